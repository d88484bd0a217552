"""`OneStepAdjoint`: the derivative of the last update alone.

At a fixed point y* = F(y*, theta) of rate rho the derivative of one step, dF/dtheta, misses (1 - rho) parts of the
exact (I - dF/dy)^{-1} dF/dtheta. Newton's step has rho = 0 there: one step is exact.
"""

from vardax.adjoints.k_step import KStepAdjoint

__all__ = ["OneStepAdjoint"]


class OneStepAdjoint(KStepAdjoint):
    """`KStepAdjoint(k=1)`: the cheapest derivative of a converged solve, without a linear solve.

    Exact at the solution for Newton-like solvers; for one that contracts slowly take `KStepAdjoint(k)` with more steps.

    >>> OneStepAdjoint().k
    1

    Reference: Bolte, J., Pauwels, E. and Vaiter, S. (2023). One-step differentiation of iterative algorithms. NeurIPS.
    """

    def __init__(self) -> None:
        super().__init__(k=1)
