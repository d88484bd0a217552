"""Solve a linear-Gaussian control-space problem: by factorisation where a side is small, iteratively beyond."""

import jax
import lineax as lx

from vardax.minimisers.closed_form import closed_form_analysis, direct_analysis, is_dense_case
from vardax.minimisers.krylov import solve_blue
from vardax.minimisers.problem import ControlSpaceProblem
from vardax.minimisers.recording import default_tolerance
from vardax.types import Analysis

__all__ = ["solve_blue_problem"]


def solve_blue_problem(problem: ControlSpaceProblem, tol: float | None = None, max_steps: int = 500) -> Analysis:
    """The BLUE of a problem whose observation operator is affine and whose control transform is the identity.

    ‖∇J(chi)‖ <= tol · max(1, ‖∇J(x_b)‖) at the result; the iteration of large problems is truncated at `max_steps`.
    """
    tol = default_tolerance(problem.observed.value.dtype) if tol is None else tol
    return closed_form_analysis(problem, tol) if is_dense_case(problem) else _iterative(problem, tol, max_steps)


def _iterative(problem: ControlSpaceProblem, tol: float, max_steps: int) -> Analysis:
    predict = lambda state: problem.observe(state, problem.observed)  # noqa: E731
    predicted, tangent = jax.linearize(predict, problem.background)
    H = lx.FunctionLinearOperator(tangent, jax.eval_shape(lambda: problem.background))
    innovation = problem.observed.innovation(predicted)
    B, L, R = problem.covariance, problem.half, problem.observed
    result = solve_blue(B, L, H, R, innovation, tol=tol, max_steps=max_steps)
    norms = (result.gradient_norm, result.gradient_norms[0])
    return direct_analysis(problem, result.control, *norms, tol, result.n_iterations, max_steps)
