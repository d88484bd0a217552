"""The cells of a curvilinear grid: quadrilaterals between four neighbouring points, and the bilinear map onto them.

    q(u, v) = q_00 + u a + v b + uv c,     a = q_10 - q_00,  b = q_01 - q_00,  c = q_11 - q_10 - q_01 + q_00

with u, v in [0, 1]. A field that is linear in the coordinates is linear in q, so interpolation between the corners with
these u and v gives it back exactly. The inverse is the root of a quadratic. All functions take arrays of numpy or JAX.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

__all__ = ["Fields", "Periods", "Quads", "cross", "inverse", "jacobian", "newton_step", "quads_at", "shortest"]

Fields = tuple[Any, ...]
"""The two coordinates of the points of the grid, (H, W) each."""

Periods = tuple[Any, ...]
"""The period of each coordinate, None where it has none."""


class Quads(NamedTuple):
    """Some cells, each by its corner (0, 0) and by a, b and c: arrays (..., 2)."""

    origin: Any
    a: Any
    b: Any
    c: Any

    def at(self, u: Any, v: Any) -> Any:
        """q(u, v) - q_00."""
        u, v = u[..., None], v[..., None]
        return u * self.a + v * self.b + u * v * self.c


def cross(a: Any, b: Any) -> Any:
    """a_1 b_2 - a_2 b_1."""
    return a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]


def shortest(difference: Any, periods: Periods) -> Any:
    """Differences of positions (..., 2), less whole periods of the coordinates that have one."""
    xp = np if isinstance(difference, np.ndarray) else jnp
    parts = []
    for number, period in enumerate(periods):
        part = difference[..., number]
        if period is not None:
            length = xp.asarray(period, difference.dtype)
            part = part - length * xp.round(part / length)
        parts.append(part)
    return xp.stack(parts, axis=-1)


def quads_at(fields: Fields, periods: Periods, row: Any, column: Any) -> tuple[Quads, Any, Any]:
    """The cells whose corner (0, 0) is the point (row, column), and the rows and columns of their opposite corners."""
    xp = np if isinstance(fields[0], np.ndarray) else jnp
    points = xp.stack(fields, axis=-1)
    next_row, next_column = (row + 1) % points.shape[0], (column + 1) % points.shape[1]
    origin = points[row, column]
    a, b, diagonal = (
        shortest(points[i, j] - origin, periods)
        for i, j in ((next_row, column), (row, next_column), (next_row, next_column))
    )
    return Quads(origin, a, b, diagonal - a - b), next_row, next_column


def jacobian(quads: Quads, u: Any, v: Any) -> Any:
    """det dq/d(u, v); in a convex cell it has one sign."""
    return cross(quads.a, quads.b) + u * cross(quads.a, quads.c) + v * cross(quads.c, quads.b)


def inverse(quads: Quads, offset: Any) -> tuple[Any, Any]:
    """(u, v) with q(u, v) - q_00 = offset where the cell holds the position; something outside [0, 1] elsewhere.

    v is a root of k2 v² + k1 v + k0, and the derivative of that quadratic at the root is the Jacobian of the map. Its
    sign is known, and says which root. Of the two ways to write a root the one without cancellation is taken.
    """
    k2, k0 = cross(quads.c, quads.b), cross(offset, quads.a)
    k1 = cross(quads.a, quads.b) + cross(offset, quads.c)
    sign = jnp.sign(jacobian(quads, 0.5, 0.5))
    square, scale = k1**2 - 4 * k2 * k0, k1**2 + 4 * jnp.abs(k2 * k0)
    root = sign * jnp.sqrt(jnp.maximum(square, 0))
    agree = k1 * sign >= 0
    top, bottom = jnp.where(agree, -2 * k0, root - k1), jnp.where(agree, k1 + root, 2 * k2)
    v = top / jnp.where(bottom == 0, 1, bottom)
    across = quads.a + v[..., None] * quads.c
    size = jnp.sum(across**2, axis=-1)
    u = jnp.sum(across * (offset - v[..., None] * quads.b), axis=-1) / jnp.where(size > 0, size, 1)
    u = jnp.where(size > 0, u, 0.5)  # a corner where a side has collapsed
    eps, missing = jnp.finfo(square.dtype).eps, offset - quads.at(u, v)
    extent = jnp.sum(quads.a**2, axis=-1) + jnp.sum(quads.b**2, axis=-1)
    found = (square >= -100 * eps * scale) & (jnp.sum(missing**2, axis=-1) <= eps * extent)
    return jnp.where(found, u, jnp.inf), jnp.where(found, v, jnp.inf)


def newton_step(quads: Quads, offset: Any, u: Any, v: Any, where: Any) -> tuple[Any, Any]:
    """The step from a root that rounds it better, and carries its derivative with respect to the position."""
    missing = offset - quads.at(u, v)
    by_u, by_v = quads.a + v[..., None] * quads.c, quads.b + u[..., None] * quads.c
    determinant = cross(by_u, by_v)
    regular = where & (determinant != 0)
    determinant = jnp.where(regular, determinant, 1)
    zero = jnp.zeros_like(determinant)
    du, dv = cross(missing, by_v) / determinant, cross(by_u, missing) / determinant
    return jnp.where(regular, du, zero), jnp.where(regular, dv, zero)
