"""Conjugate gradients for (I + D K) u = b in the inner product ⟨v, K u⟩, K and D symmetric positive semidefinite.

I + D K is not symmetric, but self-adjoint in that inner product, so conjugate gradients hold as they stand with every
⟨v, u⟩ read as ⟨v, K u⟩. With K = I they are the usual ones.

    residual r -> `look` -> (P r, K P r, what must become small) -> search direction p, K p -> `curve` -> p + D K p

A step costs one `look` and one `curve`. `implicit_solve` differentiates the solution by the implicit function theorem.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

__all__ = ["Look", "Product", "Record", "implicit_solve", "paired_conjugate_gradients"]

Product = Callable[[Array], Array]
Record = tuple[Array, Array, Array]


class Look(NamedTuple):
    """A residual r as a step sees it: y = P r, its image K y (None: y itself), and squared norms of r.

    The iteration ends when each of `squared_norms` is `tol`² of its first value; the first of them is recorded.
    """

    direction: Array
    image: Array | None
    squared_norms: tuple[Array, ...]


class _Iterate(NamedTuple):
    """`u`, its residual r = b − (I + D K) u, the search direction with its image, ⟨r, K P r⟩, and the record."""

    n: Array
    u: Array
    residual: Array
    search: Array
    image: Array | None
    slope: Array
    squared_norms: tuple[Array, ...]
    sound: Array
    norms: Array
    costs: Array


def paired_conjugate_gradients(
    look: Callable[[Array], Look],
    curve: Callable[[Array, Array], Array],
    b: Float[Array, "..."],
    first_cost: Float[Array, ""],
    *,
    tol: float | Float[Array, ""],
    max_steps: int,
    limit: Array | None = None,
) -> tuple[Float[Array, "..."], Record]:
    """Solve (I + D K) u = b. Returns u and (steps, norms, costs), the latter two `max_steps` + 1 long.

    `curve` takes a pair (p, K p) to p + D K p. If rounding has made the curvature negative, or something is not finite,
    the iteration stops at the last sound iterate. `limit` is a smaller number of steps that may be traced.
    """
    limit = jnp.asarray(max_steps if limit is None else limit)

    def unfinished(it: _Iterate) -> Array:
        far = jnp.any(jnp.stack([norm > goal for norm, goal in zip(it.squared_norms, goals, strict=True)]))
        return (it.n < limit) & it.sound & far

    def step(it: _Iterate) -> _Iterate:
        image = it.search if it.image is None else it.image
        curved = curve(it.search, image)
        curvature = jnp.vdot(curved, image)
        length = it.slope / curvature
        sound = (curvature > 0) & jnp.isfinite(length)
        u = jnp.where(sound, it.u + length * it.search, it.u)
        residual = jnp.where(sound, it.residual - length * curved, it.residual)
        y = look(residual)
        slope = _slope(residual, y)
        ratio = slope / it.slope
        n = it.n + sound.astype(it.n.dtype)
        decrease = jnp.where(sound, 0.5 * length * it.slope, jnp.zeros_like(length))
        return _Iterate(
            n=n,
            u=u,
            residual=residual,
            search=y.direction + ratio * it.search,
            image=None if it.image is None or y.image is None else y.image + ratio * it.image,
            slope=slope,
            squared_norms=y.squared_norms,
            sound=sound & jnp.isfinite(slope),
            norms=it.norms.at[n].set(_root(y.squared_norms[0])),
            costs=it.costs.at[n].set(it.costs[it.n] - decrease),
        )

    first = look(b)
    goals = [tol**2 * norm for norm in first.squared_norms]
    blank = jnp.full(max_steps + 1, jnp.nan, b.dtype)
    slope = _slope(b, first)
    start = _Iterate(
        n=jnp.zeros_like(limit),
        u=jnp.zeros_like(b),
        residual=b,
        search=first.direction,
        image=first.image,
        slope=slope,
        squared_norms=first.squared_norms,
        sound=jnp.isfinite(slope),
        norms=blank.at[0].set(_root(first.squared_norms[0])),
        costs=blank.at[0].set(first_cost),
    )
    last = jax.lax.while_loop(unfinished, step, start)
    return last.u, (last.n, last.norms, last.costs)


def _slope(residual: Array, y: Look) -> Array:
    """⟨r, K P r⟩."""
    return jnp.vdot(residual, y.direction if y.image is None else y.image)


def _root(squared_norm: Array) -> Array:
    return jnp.sqrt(jnp.maximum(squared_norm, 0))


def implicit_solve(
    look: Callable[[Array], Look],
    K: Product,
    D: Product,
    b: Float[Array, "..."],
    first_cost: Float[Array, ""],
    *,
    tol: float,
    max_steps: int,
) -> tuple[Float[Array, "..."], Record]:
    """`paired_conjugate_gradients`, differentiated as the solution that it approximates.

    Tangents solve the same system; cotangents its transpose, (I + K D)⁻¹ v = v − K (I + D K)⁻¹ D v.
    """

    def solve(_: Product, rhs: Array) -> tuple[Array, Record]:
        curve = lambda search, image: search + D(image)  # noqa: E731
        return paired_conjugate_gradients(look, curve, rhs, first_cost, tol=tol, max_steps=max_steps)

    def transpose_solve(_: Product, rhs: Array) -> tuple[Array, Record]:
        u, record = solve(_, D(rhs))
        return rhs - K(u), record

    return jax.lax.custom_linear_solve(lambda u: u + D(K(u)), b, solve, transpose_solve, has_aux=True)
