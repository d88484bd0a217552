"""Explicit Runge-Kutta steps on states that are arrays or trees of arrays.

    k_i = f(t + c_i dt, x + dt Σ_{j<i} a_ij k_j),   x(t + dt) = x + dt Σ_i b_i k_i

`rk4` is the classical fourth-order scheme of the demonstration systems, for an autonomous f. `explicit_step` takes
any tableau, such as those of diffrax's explicit solvers. The stages are written out, not looped over: XLA fuses them,
and tangents and adjoints are those of plain arithmetic.

`LIMIT_REAL` and `LIMIT_IMAGINARY` are where the stability region of fourth-order Runge-Kutta ends: |λ| dt for a
decaying and for an oscillating mode.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, PyTree

__all__ = ["LIMIT_IMAGINARY", "LIMIT_REAL", "explicit_step", "rk4"]

LIMIT_REAL = 2.785
LIMIT_IMAGINARY = 2.828


def rk4(tendency: Callable[[Any], Any], state: PyTree[Array], dt: Any) -> PyTree[Array]:
    """One step of the classical scheme for dx/dt = tendency(x).

    >>> import jax.numpy as jnp
    >>> round(float(rk4(lambda x: -x, jnp.array(1.0), 0.1)), 6)
    0.904837
    """
    k1 = tendency(state)
    k2 = tendency(_moved(state, 0.5 * dt, k1))
    k3 = tendency(_moved(state, 0.5 * dt, k2))
    k4 = tendency(_moved(state, dt, k3))
    return jax.tree.map(lambda x, a, b, c, d: x + dt / 6.0 * (a + 2.0 * b + 2.0 * c + d), state, k1, k2, k3, k4)


def _moved(state: PyTree[Array], step: Any, slope: PyTree[Array]) -> PyTree[Array]:
    return jax.tree.map(lambda x, k: x + step * k, state, slope)


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

    Stages whose weight in everything later is zero, such as the one for an error estimate, are not computed.
    """
    rows = [*a_lower, b]
    needed = [any(row[i] != 0 for row in rows if i < len(row)) for i in range(len(b))]
    slopes: list[Any] = []
    for stage, wanted in enumerate(needed):
        if not wanted:
            slopes.append(None)
        elif stage == 0:
            slopes.append(field(t, state))
        else:
            slopes.append(field(t + float(c[stage - 1]) * dt, _combined(state, dt, a_lower[stage - 1], slopes)))
    return _combined(state, dt, b, slopes)


def _combined(state: PyTree[Array], dt: Any, weights: np.ndarray, slopes: Sequence[Any]) -> PyTree[Array]:
    """x + dt Σ w_j k_j, without the terms of weight zero."""
    terms = [(float(w), k) for w, k in zip(weights, slopes, strict=False) if w != 0]
    if not terms:
        return state
    factors = [w for w, _ in terms]

    def moved(x: Array, *ks: Array) -> Array:
        slope = factors[0] * ks[0]
        for w, k in zip(factors[1:], ks[1:], strict=True):
            slope = slope + w * k
        return x + dt * slope

    return jax.tree.map(moved, state, *[k for _, k in terms])
