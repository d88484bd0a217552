"""The large analysis for an R of which only products are known.

    (H B Hᵀ + R) w = d,        dx = B Hᵀ w

by conjugate gradients. On the way J may rise above J(x_b), so the increment is multiplied by the number that minimises
J (`least_cost_multiple`): 1 at convergence, and J <= J(x_b) wherever it is truncated.
"""

import jax
import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array, Float

from vardax.minimisers.krylov_result import KrylovResult, Observing
from vardax.minimisers.paired_gradients import Look, Product, paired_conjugate_gradients

__all__ = ["ERROR_STEPS", "least_cost_multiple", "solve_by_products"]

ERROR_STEPS = 1000
"""Most steps of the two solves with R alone in `solve_by_products`."""


def solve_by_products(
    B: lx.AbstractLinearOperator,
    B_half: lx.AbstractLinearOperator,
    H: lx.AbstractLinearOperator,
    R: lx.AbstractLinearOperator,
    innovation: Float[Array, "..."],
    mask: Float[Array, "..."],
    *,
    tol: float,
    max_steps: int,
) -> KrylovResult:
    """The analysis for an R that cannot be factorised: products with R only.

    Conjugate gradients solve (H B Hᵀ + R) w = d between the observed entries (`mask` 1) to ‖residual‖ <= tol · ‖d‖.
    What J and ‖∇J‖ need of R⁻¹ are two solves with R alone, after the iteration. `gradient_norms` and `costs` are those
    of the background and of the result.
    """
    observing = Observing(B, H, R, innovation.dtype)
    observed = lambda v: jnp.where(mask != 0, v, jnp.zeros_like(v))  # noqa: E731

    def K(weights: Array) -> Array:
        return observed(observing.covariance(observed(weights)))

    def error(weights: Array) -> Array:
        product = R.mv(observed(weights).astype(R.in_structure().dtype))
        return jnp.where(mask != 0, product.astype(weights.dtype), weights)

    innovation = observed(innovation)
    weights, n_iterations = _symmetric_solve(lambda w: K(w) + error(w), innovation, tol, max_steps)
    exact = float(jnp.finfo(innovation.dtype).eps) ** 0.75
    solve_error = lambda v: _symmetric_solve(error, v, exact, ERROR_STEPS)[0]  # noqa: E731
    image = K(weights)
    b, residual = solve_error(innovation), solve_error(innovation - image - error(weights))
    scale, costs = least_cost_multiple(image, b, residual, 0.5 * jnp.vdot(innovation, b))
    gradients = b, b - scale * (b - residual)
    norms = jnp.stack([jnp.sqrt(jnp.maximum(jnp.vdot(g, K(g)), 0)) for g in gradients])
    weights = observed(scale * weights)
    return KrylovResult(
        increment=observing.covary(weights),
        control=observing.control(B_half, weights),
        weights=weights,
        n_iterations=n_iterations,
        converged=jnp.isfinite(norms[1]) & (norms[1] <= tol * jnp.maximum(1, norms[0])),
        gradient_norms=norms,
        costs=costs,
    )


def least_cost_multiple(image: Array, b: Array, residual: Array, first_cost: Array) -> tuple[Array, Array]:
    """(s, J of 0 and of s w): the multiple of the weights w with the least J. `image` is K w, `residual` is
    R⁻¹ (d − K w − R w), and J(s w) = J(0) − s ⟨K w, b⟩ + ½ s² ⟨K w, b − residual⟩."""
    along, curvature = jnp.vdot(image, b), jnp.vdot(image, b - residual)
    curved = curvature > 0
    scale = jnp.where(curved, along / jnp.where(curved, curvature, jnp.ones_like(curvature)), jnp.zeros_like(along))
    scale = jax.lax.stop_gradient(scale)
    return scale, jnp.stack([first_cost, first_cost - scale * along + 0.5 * scale**2 * curvature])


def _symmetric_solve(product: Product, rhs: Array, tol: float, max_steps: int) -> tuple[Array, Array]:
    """(A⁻¹ b, steps) by conjugate gradients, differentiated implicitly."""

    def solve(_: Product, b: Array) -> tuple[Array, Array]:
        look = lambda r: Look(r, None, (jnp.vdot(r, r),))  # noqa: E731
        curve = lambda search, _: product(search)  # noqa: E731
        solution, record = paired_conjugate_gradients(
            look, curve, b, jnp.zeros((), b.dtype), tol=tol, max_steps=max_steps
        )
        return solution, record[0]

    return jax.lax.custom_linear_solve(product, rhs, solve, symmetric=True, has_aux=True)
