"""The large analysis by preconditioned conjugate gradients on H B Hᵀ + R.

    (H B Hᵀ + R) w = d,        dx = B Hᵀ w,        M⁻¹ ≈ (H B Hᵀ + R)⁻¹

What J asks for is a small ‖∇J‖ = ⟨g, H B Hᵀ g⟩^½ with g = R⁻¹ (d − H dx) − w = R⁻¹ r, r the residual. The iteration
sees ⟨r, R⁻¹ r⟩ instead, so it goes in rounds: each solves for the residual of the last one, computed anew, to the
accuracy that is still missing, and ends with ‖∇J‖ itself. That also makes up for the rounding of the iteration.

On the way J may rise above J(x_b), so the increment is multiplied by the number that minimises J: 1 at convergence, and
J <= J(x_b) wherever it is truncated.
"""

from typing import NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array, Float

from vardax.minimisers.krylov_result import KrylovResult, Observing, background_cost, krylov_result
from vardax.minimisers.paired_gradients import Look, Product, paired_conjugate_gradients
from vardax.minimisers.products_form import least_cost_multiple

__all__ = ["LEAST_PROGRESS", "SAFETY", "ErrorProducts", "solve_preconditioned"]

SAFETY = 0.5
"""Each round aims at this fraction of the accuracy that is missing."""

LEAST_PROGRESS = 0.7
"""A round that does not bring ‖∇J‖ below this fraction of what it was is the last: rounding."""


@runtime_checkable
class ErrorProducts(Protocol):
    """R between the observed entries, zero elsewhere: `AbstractRestriction`, or anything with these products."""

    def solve(self, residual: Array, /) -> Array:
        """R⁻¹ r."""
        ...

    def mv(self, vector: Array, /) -> Array:
        """R v."""
        ...


class _Round(NamedTuple):
    """Weights, their residual, ‖∇J‖, the steps so far, and whether another round may help."""

    weights: Array
    residual: Array
    norm: Array
    n: Array
    progress: Array


def solve_preconditioned(
    B: lx.AbstractLinearOperator,
    B_half: lx.AbstractLinearOperator,
    H: lx.AbstractLinearOperator,
    R: ErrorProducts,
    innovation: Float[Array, "..."],
    mask: Float[Array, "..."],
    precondition: Product,
    *,
    tol: float,
    max_steps: int,
) -> KrylovResult:
    """`solve_blue` between the observed entries (`mask` 1); `precondition` is r -> M⁻¹ r, zero elsewhere.

    `gradient_norms` and `costs` hold the background's and the result's, NaN between.
    """
    observing = Observing(B, H, R, innovation.dtype)
    observed = lambda v: jnp.where(mask != 0, v, jnp.zeros_like(v))  # noqa: E731

    def K(weights: Array) -> Array:
        return observed(observing.covariance(observed(weights)))

    def product(weights: Array) -> Array:
        return jnp.where(mask != 0, K(weights) + R.mv(observed(weights)), weights)

    def gradient_norm(gradient: Array) -> Array:
        return jnp.sqrt(jnp.maximum(jnp.vdot(gradient, K(gradient)), 0))

    def solve(_: Product, rhs: Array) -> tuple[Array, Array]:
        return _in_rounds(product, precondition, R.solve, gradient_norm, rhs, tol, max_steps)

    innovation = observed(innovation)
    weights, n = jax.lax.custom_linear_solve(product, innovation, solve, symmetric=True, has_aux=True)
    b, image = R.solve(innovation), K(weights)
    pulled = R.solve(image) + observed(weights)
    scale, costs = least_cost_multiple(image, b, b - pulled, background_cost(innovation, b))
    norms = jnp.stack([gradient_norm(b), gradient_norm(b - scale * pulled)])
    weights = scale * weights
    increment = observing.covary(weights)
    record = (n, _first_and_last(norms, n, max_steps), _first_and_last(costs, n, max_steps))
    misfit = R.solve(innovation - observing.predict(increment))
    return krylov_result(increment, observing.control(B_half, weights), misfit, record, tol)


def _in_rounds(
    product: Product,
    precondition: Product,
    weigh: Product,
    gradient_norm: Product,
    rhs: Array,
    tol: float,
    max_steps: int,
) -> tuple[Array, Array]:
    """(weights, steps): `product` w = `rhs` until ‖∇J‖, `gradient_norm` of R⁻¹ r, is `tol` of what it is for w = 0."""
    first = gradient_norm(weigh(rhs))

    def look(residual: Array) -> Look:
        return Look(precondition(residual), None, (jnp.vdot(residual, weigh(residual)),))

    def another(state: _Round) -> _Round:
        missing = SAFETY * tol * first / state.norm
        change, (n, _, _) = paired_conjugate_gradients(
            look,
            lambda search, _: product(search),
            state.residual,
            jnp.zeros((), rhs.dtype),
            tol=jnp.maximum(missing, jnp.finfo(rhs.dtype).eps),
            max_steps=max_steps,
            limit=max_steps - state.n,
        )
        weights = state.weights + change
        residual = rhs - product(weights)
        norm = gradient_norm(weigh(residual))
        progress = (norm < LEAST_PROGRESS * state.norm) & (n > 0)
        better = _Round(weights, residual, norm, state.n + n, progress)
        worse = state._replace(n=state.n + n, progress=progress)
        return jax.tree.map(lambda a, b: jnp.where(norm < state.norm, a, b), better, worse)

    def unfinished(state: _Round) -> Array:
        return state.progress & (state.n < max_steps) & (state.norm > tol * first)

    start = _Round(jnp.zeros_like(rhs), rhs, first, jnp.zeros((), int), jnp.isfinite(first))
    last = jax.lax.while_loop(unfinished, another, start)
    return last.weights, last.n


def _first_and_last(values: Float[Array, "2"], n: Array, max_steps: int) -> Float[Array, "steps"]:
    """A record of `max_steps` + 1 values of which only number 0 and number n are known."""
    return jnp.full(max_steps + 1, jnp.nan, values.dtype).at[0].set(values[0]).at[n].set(values[1])
