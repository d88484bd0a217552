"""Solve a linear-Gaussian control-space problem: by factorisation where a side is small, iteratively beyond."""

import jax
import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array, PyTree

from vardax.minimisers.closed_form import closed_form_analysis, direct_analysis, is_dense_case
from vardax.minimisers.minimise import default_tolerance
from vardax.minimisers.problem import ControlSpaceProblem, tree_norm
from vardax.types import Analysis

__all__ = ["solve_blue_problem"]


def solve_blue_problem(
    problem: ControlSpaceProblem,
    tol: float | None = None,
    max_steps: int = 500,
    start: PyTree[Array] | None = None,
) -> Analysis:
    """The BLUE of a problem whose observation operator is affine."""
    tol = default_tolerance(problem.observed.value.dtype) if tol is None else tol
    if is_dense_case(problem):
        return closed_form_analysis(problem, tol)
    residual, G, GT = problem.linearise(problem.zero_control())
    normal = lx.FunctionLinearOperator(
        lambda v: jax.tree.map(jnp.add, v, GT(G(v))), problem.half.in_structure(), lx.positive_semidefinite_tag
    )
    rhs = GT(residual)
    solver = lx.CG(rtol=tol, atol=tol, norm=tree_norm, max_steps=max_steps)
    solution = lx.linear_solve(normal, rhs, solver, throw=False)
    gradient = jax.tree.map(jnp.subtract, normal.mv(solution.value), rhs)
    return direct_analysis(
        problem, solution.value, tree_norm(gradient), tree_norm(rhs), tol, solution.stats["num_steps"], max_steps
    )
