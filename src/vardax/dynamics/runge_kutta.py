"""Explicit Runge-Kutta steps on states that are arrays or trees of arrays.

    k_i = f(t + c_i dt, x + dt Σ_{j<i} a_ij k_j),   x(t + dt) = x + dt Σ_i b_i k_i

`rk4` is the classical fourth-order scheme of the demonstration systems, for an autonomous f; `rk4_looped` is the same
for fields with a stencil. Left written out, XLA fuses the four stages of a stencil into one kernel that computes each
neighbour's neighbours again: on a 64x64 shallow-water grid the loop, which ends the fusion, makes the step 8 times
faster, its tangent 28 times, its gradient 40 times, and compiles in a sixth of the time. For the short states of
Lorenz's systems the loop would only cost. `explicit_step` takes any tableau, such as those of diffrax's solvers.

`LIMIT_REAL` and `LIMIT_IMAGINARY` are where the stability region of fourth-order Runge-Kutta ends: |λ| dt for a
decaying and for an oscillating mode.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

__all__ = ["LIMIT_IMAGINARY", "LIMIT_REAL", "beyond_limit", "explicit_step", "rk4", "rk4_looped"]

LIMIT_REAL = 2.785
LIMIT_IMAGINARY = 2.828


def beyond_limit(dt: float, limit: float) -> bool:
    """Whether |dt| is longer than the stability `limit`, or either is not a number.

    Equal means equal in float32: a model keeps its parameters in that precision, and its own limit moves with them.

    >>> beyond_limit(0.1 + 1e-9, 0.1), beyond_limit(0.1001, 0.1), beyond_limit(float("nan"), 0.1)
    (False, True, True)
    """
    return not abs(dt) <= limit * (1.0 + 4.0 * float(np.finfo(np.float32).eps))


def rk4(tendency: Callable[[Any], Any], state: PyTree[Array], dt: Any) -> PyTree[Array]:
    """One step of the classical scheme for dx/dt = tendency(x).

    >>> round(float(rk4(lambda x: -x, jnp.array(1.0), 0.1)), 6)
    0.904837
    """
    k1 = tendency(state)
    k2 = tendency(_moved(state, 0.5 * dt, k1))
    k3 = tendency(_moved(state, 0.5 * dt, k2))
    k4 = tendency(_moved(state, dt, k3))
    return jax.tree.map(lambda x, a, b, c, d: x + dt / 6.0 * (a + 2.0 * b + 2.0 * c + d), state, k1, k2, k3, k4)


def rk4_looped(tendency: Callable[[Any], Any], state: PyTree[Array], dt: Any) -> PyTree[Array]:
    """The same step, its stages a loop.

    >>> round(float(rk4_looped(lambda x: -x, jnp.array(1.0), 0.1)), 6)
    0.904837
    """
    dtype = jnp.result_type(*[leaf.real.dtype for leaf in jax.tree.leaves(state)])
    offsets = jnp.asarray([0.0, 0.5, 0.5, 1.0], dtype) * dt
    weights = jnp.asarray([1.0, 2.0, 2.0, 1.0], dtype) * dt / 6.0

    def stage(carry: tuple[Any, Any], factors: tuple[Array, Array]) -> tuple[tuple[Any, Any], None]:
        slope, after = carry
        slope = tendency(_moved(state, factors[0], slope))
        return (slope, _moved(after, factors[1], slope)), None

    at_rest = jax.tree.map(jnp.zeros_like, state)
    (_, after), _ = jax.lax.scan(stage, (at_rest, state), (offsets, weights))
    return after


def _moved(state: PyTree[Array], step: Any, slope: PyTree[Array]) -> PyTree[Array]:
    return jax.tree.map(lambda x, k: x + (step.astype(k.dtype) if isinstance(step, Array) else step) * k, state, slope)


def explicit_step(
    field: Callable[[Any, Any], Any],
    t: Any,
    state: PyTree[Array],
    dt: Any,
    *,
    a_lower: Sequence[np.ndarray],
    b: np.ndarray,
    c: np.ndarray,
) -> PyTree[Array]:
    """One step for dx/dt = field(t, x): `a_lower` and `c` hold the rows of the second stage on, `b` all weights.

    The stages are a loop, because a field may have a stencil. Those whose weight in everything later is zero, such as
    the one for an error estimate, are not computed.
    """
    n = len(b)
    matrix, nodes = np.zeros((n, n)), np.concatenate([[0.0], c])
    for row, weights in enumerate(a_lower, start=1):
        matrix[row, : len(weights)] = weights
    used = [stage for stage in range(n) if b[stage] != 0 or np.any(matrix[:, stage] != 0)]
    matrix, nodes, b = matrix[np.ix_(used, used)], nodes[used], b[used]

    def stage(slopes: PyTree[Array], entry: tuple[Array, Array, Array]) -> tuple[PyTree[Array], None]:
        number, weights, node = entry
        slope = field(t + node * dt, _combined(state, dt, weights, slopes))
        return jax.tree.map(lambda all_, k: all_.at[number].set(k), slopes, slope), None

    dtype = jax.tree.leaves(state)[0].real.dtype
    at_rest = jax.tree.map(lambda x: jnp.zeros((len(used), *x.shape), x.dtype), state)
    entries = (jnp.arange(len(used)), jnp.asarray(matrix, dtype), jnp.asarray(nodes, dtype))
    slopes, _ = jax.lax.scan(stage, at_rest, entries)
    return _combined(state, dt, jnp.asarray(b, dtype), slopes)


def _combined(state: PyTree[Array], dt: Any, weights: Array, slopes: PyTree[Array]) -> PyTree[Array]:
    """x + dt Σ w_j k_j."""

    def moved(x: Array, ks: Array) -> Array:
        return x + jnp.tensordot((dt * weights).astype(x.dtype), ks, 1)

    return jax.tree.map(moved, state, slopes)
