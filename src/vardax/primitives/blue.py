"""BLUE, the best linear unbiased estimate, as a pure function.

    x* = x_b + B Hᵀ (H B Hᵀ + R)^{-1} (y - H x_b),      P* = (B^{-1} + Hᵀ R^{-1} H)^{-1}

Lorenc, A. C. (1986). Analysis methods for numerical weather prediction. QJRMS 112, 1177-1194.
"""

import jax
import lineax as lx
from jaxtyping import Array, PyTree

from vardax.covariances.functions import half
from vardax.minimisers.blue import solve_blue_problem
from vardax.minimisers.observed import ObservedSamples, restrict_samples
from vardax.minimisers.problem import ControlSpaceProblem
from vardax.minimisers.transforms import Identity
from vardax.minimisers.windows import Snapshot
from vardax.posterior.covariance import PosteriorCovariance
from vardax.posterior.laplace import normal_inverse
from vardax.types import observed_entries

__all__ = ["blue_analysis"]


def blue_analysis(
    x_b: PyTree[Array],
    y: Array,
    B_op: lx.AbstractLinearOperator,
    R_op: lx.AbstractLinearOperator,
    H_op: lx.AbstractLinearOperator,
) -> tuple[PyTree[Array], lx.AbstractLinearOperator]:
    """(x*, P*) of one sample; P* is a lazy operator with `mv`, `diagonal`, `sample`, `as_matrix`.

    NaNs in `y` are missing observations. The control-space or the observation-space form is taken by dimension, with a
    dense factorisation where the smaller side is small and preconditioned conjugate gradients otherwise; no matrix of a
    large side is built.
    """
    value, mask = observed_entries(y)
    samples = ObservedSamples(value=value[None, None], mask=mask[None, None])
    observed = jax.tree.map(lambda a: a[0], restrict_samples(samples, R_op, "blue_analysis"))
    problem = ControlSpaceProblem(x_b, observed, B_op, half(B_op), Snapshot(H_op.mv), Identity())
    analysis = solve_blue_problem(problem)
    inverse = normal_inverse(problem, analysis.control)
    return analysis.state, PosteriorCovariance(problem, analysis.control, inverse)
