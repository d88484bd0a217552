"""Optimal interpolation (BLUE): the analysis of a linear-Gaussian problem, in closed form.

    x* = x_b + B Hᵀ (H B Hᵀ + R)^{-1} (y - H x_b),      P* = (B^{-1} + Hᵀ R^{-1} H)^{-1}

**Assumes** that H is affine and that B and R are right. Then x* is the minimum-variance estimate and P* its error.
**Use it** first: it is exact, has no convergence to watch, and every other method must agree with it where both apply.
**Not for** a nonlinear H (`ThreeDVar`) or observations at several times (`StrongFourDVar`).

The smaller of the control and observation sides is factorised up to 1024 entries. Larger problems are solved by
preconditioned conjugate gradients that decrease J at every step, to `tol`; nothing of a large side is ever dense.

Lorenc, A. C. (1986). Analysis methods for numerical weather prediction. QJRMS 112, 1177-1194.
"""

from typing import Any, ClassVar

import equinox as eqx
import lineax as lx
from jaxtyping import Array, PyTree

from vardax.minimisers.blue import solve_blue_problem
from vardax.minimisers.problem import ControlSpaceProblem
from vardax.minimisers.windows import Snapshot
from vardax.models.boundary import as_obs_covariance, as_prior_covariance, as_state, check_covariance
from vardax.models.method import AbstractAnalysisMethod
from vardax.obs_operators.linearisation import is_linear
from vardax.types import Analysis

__all__ = ["OptimalInterpolation"]


class OptimalInterpolation(AbstractAnalysisMethod):
    """BLUE / OI in closed form; refuses a nonlinear `obs_op`. `obs_cov_op=None` takes the standard deviations that come
    with the observations as a diagonal R.

    `tol` (default 1e-6 in float64, 1e-4 in float32) and `max_steps` (default 500) govern the iterative form of large
    problems: ‖∇J(chi)‖ <= tol · max(1, ‖∇J(x_b)‖).
    """

    takes_window: ClassVar[bool] = False
    iterative: ClassVar[bool] = False

    obs_op: Any
    prior_mean: PyTree[Array] = eqx.field(converter=as_state)
    prior_cov_op: lx.AbstractLinearOperator = eqx.field(converter=as_prior_covariance)
    obs_cov_op: lx.AbstractLinearOperator | None = eqx.field(converter=as_obs_covariance)
    tol: float | None = eqx.field(static=True, default=None, kw_only=True)
    max_steps: int = eqx.field(static=True, default=500, kw_only=True)
    strict: bool = eqx.field(static=True, default=False, kw_only=True)

    def __check_init__(self) -> None:
        check_covariance(self.prior_cov_op, "prior_cov_op", "OptimalInterpolation")
        if not is_linear(self.obs_op, self.prior_cov_op.out_structure()):
            raise ValueError(
                f"OptimalInterpolation: `obs_op` ({type(self.obs_op).__name__}) is not linear, and the closed form "
                "needs an affine operator. Use ThreeDVar for a nonlinear observation operator."
            )

    def observe(self, samples: Any) -> Snapshot:
        return Snapshot(self.obs_op)

    def solve(self, problem: ControlSpaceProblem, start: PyTree[Array] | None) -> Analysis:
        return solve_blue_problem(problem, self.tol, self.max_steps)
