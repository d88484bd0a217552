"""The linear-Gaussian analysis in closed form.

With d = W (y - H x_b) and G = W H B^{1/2}, both forms give chi* = argmin ½‖chi‖² + ½‖d - G chi‖²:

    control space      chi* = (I + GᵀG)^{-1} Gᵀ d
    observation space  chi* = Gᵀ (I + GGᵀ)^{-1} d

The smaller side is factorised when it has at most `DENSE_LIMIT` entries; its matrix is built by products with G and Gᵀ,
so nothing of the larger side is ever dense. `NormalFactor` keeps the factor: the analysis and the posterior share it.
"""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PyTree

from vardax.minimisers.problem import ControlSpaceProblem, tree_norm
from vardax.types import Analysis, CostSummary, CostTerms, History, Status

__all__ = [
    "COLUMN_BLOCK",
    "DENSE_LIMIT",
    "NormalFactor",
    "closed_form_analysis",
    "direct_analysis",
    "factorise",
    "in_control_space",
    "is_dense_case",
]

DENSE_LIMIT = 1024
"""The smaller of the control and observation sizes up to which the analysis is a Cholesky factorisation."""

COLUMN_BLOCK = 128
"""Columns that are pushed through G at once when a small matrix is built."""


def _sizes(problem: ControlSpaceProblem) -> tuple[int, int]:
    n_control = sum(leaf.size for leaf in jax.tree.leaves(problem.half.in_structure()))
    return n_control, sum(leaf.size for leaf in jax.tree.leaves(problem.residual_structure()))


def is_dense_case(problem: ControlSpaceProblem) -> bool:
    """Whether the side to factorise is small enough."""
    n_control, n_obs = _sizes(problem)
    return (n_control if in_control_space(problem) else n_obs) <= DENSE_LIMIT


def _matrix_of(product: Callable[[Array], Array], size: int, dtype) -> Float[Array, "n n"]:
    """The matrix of a symmetric operator on vectors of length `size`, by products with blocks of unit vectors."""
    rows = jax.lax.map(product, jnp.eye(size, dtype=dtype), batch_size=min(size, COLUMN_BLOCK))
    # A factorisation wants its matrix by columns, and XLA hands that wish on to the Fourier transforms that made it,
    # which on CPU cannot write by columns and fail. A flat array in between has only one order.
    return jax.lax.optimization_barrier(rows.reshape(-1)).reshape(size, size)


class NormalFactor(eqx.Module):
    """Cholesky factor of I + GᵀG (control space) or I + GGᵀ (observation space), whichever is smaller."""

    G: Callable
    GT: Callable
    cholesky: Float[Array, "n n"]
    in_control_space: bool = eqx.field(static=True)

    def solve(self, v: PyTree[Array]) -> PyTree[Array]:
        """(I + GᵀG)^{-1} v; in observation space v - Gᵀ (I + GGᵀ)^{-1} G v."""
        if self.in_control_space:
            return self._solve_small(v)
        predicted = self.G(v)
        return jax.tree.map(jnp.subtract, v, self.GT(self._solve_small(predicted)))

    def increment(self, d: PyTree[Array]) -> PyTree[Array]:
        """chi* = (I + GᵀG)^{-1} Gᵀ d = Gᵀ (I + GGᵀ)^{-1} d."""
        return self.solve(self.GT(d)) if self.in_control_space else self.GT(self._solve_small(d))

    def _solve_small(self, v: PyTree[Array]) -> PyTree[Array]:
        flat, unravel = ravel_pytree(v)
        return unravel(jax.scipy.linalg.cho_solve((self.cholesky, True), flat))


def in_control_space(problem: ControlSpaceProblem) -> bool:
    """Whether the control is the side to factorise: it is smaller, or only part of it has a prior."""
    n_control, n_obs = _sizes(problem)
    return n_control <= n_obs or not problem.observe.proper


def factorise(problem: ControlSpaceProblem, G: Callable, GT: Callable) -> NormalFactor:
    """Build and factorise the smaller of the two normal matrices."""
    n_control, n_obs = _sizes(problem)
    if in_control_space(problem):
        zero, unravel = ravel_pytree(problem.zero_control())
        normal = _matrix_of(lambda e: ravel_pytree(GT(G(unravel(e))))[0], n_control, zero.dtype)
        prior = ravel_pytree(problem.observe.prior_part(unravel(jnp.ones_like(zero))))[0]
    else:
        zero, unravel = ravel_pytree(problem.zero_residual())
        normal = _matrix_of(lambda e: ravel_pytree(G(GT(unravel(e))))[0], n_obs, zero.dtype)
        prior = jnp.ones_like(zero)
    symmetric = 0.5 * (normal + normal.T) + jnp.diag(prior)
    return NormalFactor(G, GT, jnp.linalg.cholesky(symmetric), in_control_space(problem))


def closed_form_analysis(problem: ControlSpaceProblem, tol: float) -> Analysis:
    """The analysis of a problem whose observation operator is affine, by factorising the smaller side."""
    zero = problem.zero_control()
    residual, G, GT = problem.linearise(zero)
    control = factorise(problem, G, GT).increment(residual)
    gradient = jax.tree.map(jnp.subtract, control, GT(jax.tree.map(jnp.subtract, residual, G(control))))
    return direct_analysis(problem, control, tree_norm(gradient), tree_norm(GT(residual)), tol)


def direct_analysis(
    problem: ControlSpaceProblem,
    control: PyTree[Array],
    gradient_norm: Float[Array, ""],
    reference: Float[Array, ""],
    tol: float,
    n_iterations: Array | int = 1,
    max_steps: int | None = None,
) -> Analysis:
    """The `Analysis` of a linear solve: the background's J, the analysis' J, and how well the equation is solved."""
    zero = problem.zero_control()
    finite = jnp.isfinite(gradient_norm)
    control = jax.tree.map(lambda c, z: jnp.where(finite, c, z), control, zero)
    state = problem.window_state(control)
    first, last = problem.terms(zero), problem.terms(control)
    gradient_norm, reference = (g.astype(last.J_b.dtype) for g in (gradient_norm, reference))
    converged = finite & (gradient_norm <= tol * jnp.maximum(1.0, reference))
    n_iterations = jnp.asarray(n_iterations)
    truncated = jnp.asarray(False) if max_steps is None else n_iterations >= max_steps
    stopped = jnp.where(truncated, Status.MAX_STEPS.value, Status.STALLED.value)
    stopped = jnp.where(finite, stopped, Status.NON_FINITE.value)
    return Analysis(
        state=problem.observe.result(state),
        control=control,
        cost=CostSummary(first, last),
        n_iterations=n_iterations,
        converged=converged,
        status=jnp.where(converged, Status.CONVERGED.value, stopped),
        history=_two_point_history(first, last, reference, gradient_norm),
        gradient_norm=gradient_norm,
        trajectory=problem.observe.trajectory(state),
    )


def _two_point_history(first: CostTerms, last: CostTerms, first_norm: Array, last_norm: Array) -> History:
    pairs = lambda a, b: jnp.stack([a, b])  # noqa: E731
    return History.of(jax.tree.map(pairs, first, last), pairs(first_norm, last_norm))
