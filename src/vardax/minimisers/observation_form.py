"""The large analysis with one number per observation: restricted preconditioned conjugate gradients.

Any minimiser in control space, dx = L chi with L Lᵀ = B, only visits increments dx = B Hᵀ w. With the weights w in
place of the control the normal equations are

    (I + R⁻¹ H B Hᵀ) w = R⁻¹ d,

self-adjoint in ⟨v, H B Hᵀ w⟩, and conjugate gradients in that inner product take the same steps as in control space:
J decreases at every step, so a truncated solve is never worse than the background. A step costs one product with B, H
and Hᵀ each. Suits any B and H.

Gratton, S. and J. Tshimanga (2009). An observation-space formulation of variational assimilation using a restricted
preconditioned conjugate gradient algorithm. QJRMS 135, 1573-1585.
"""

import functools

import jax
import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array, Float, PyTree

from vardax.minimisers.krylov_result import KrylovResult, ObservationError, Observing, background_cost, krylov_result
from vardax.minimisers.paired_gradients import Look, implicit_solve

__all__ = ["solve_in_observations"]


def solve_in_observations(
    B: lx.AbstractLinearOperator,
    B_half: lx.AbstractLinearOperator,
    H: lx.AbstractLinearOperator,
    R: ObservationError,
    innovation: Float[Array, "..."],
    *,
    tol: float,
    max_steps: int,
) -> KrylovResult:
    """`solve_blue` by conjugate gradients on the weights.

    The norm of the iteration, ⟨w, K w⟩, does not see weights that give no increment (two observations of one cell with
    opposite weights, or a direction that a low-rank B does not have), so these do not converge. Nothing visible depends
    on them, but derivatives with respect to B do. So values come from the iteration, and derivatives from the implicit
    function theorem at w = R⁻¹ (d − H dx), where they are right.
    """
    observing = Observing(B, H, R, innovation.dtype)
    K = observing.covariance

    def look(residual: Array) -> Look:
        image = K(residual)
        return Look(residual, image, (jnp.vdot(residual, image),))

    def emit(weights: Array) -> tuple[PyTree[Array], PyTree[Array]]:
        return observing.covary(weights), observing.control(B_half, weights)

    solve = functools.partial(implicit_solve, look, K, R.solve, tol=tol, max_steps=max_steps)
    b = R.solve(innovation)
    visible, record = jax.lax.stop_gradient(solve(b, background_cost(innovation, b)))
    exact = jax.lax.stop_gradient(jnp.where(jnp.isfinite(record[1][0]), b - R.solve(K(visible)), visible))
    misfit = b - exact - R.solve(K(exact))
    change, _ = solve(misfit - jax.lax.stop_gradient(misfit), jnp.zeros_like(record[2][0]))
    increment, control = _with_derivative_of(emit(visible), emit(exact + change))
    return krylov_result(increment, control, R.solve(innovation - observing.predict(increment)), record, tol)


def _with_derivative_of(value: PyTree[Array], twin: PyTree[Array]) -> PyTree[Array]:
    """`value`, differentiated as if it were `twin`."""
    constant = jax.lax.stop_gradient
    return jax.tree.map(lambda v, t: constant(v) + jnp.where(jnp.isfinite(t), t - constant(t), 0), value, twin)
