"""In which cell of a curvilinear grid positions lie, and where in it.

The bucket of a position (`vardax.obs_operators.quad_table`) lists the few cells that can hold it. The bilinear map of
each is inverted, and the cell is the one with u and v in [0, 1]. Runs once, where positions become known; traced
positions are as good as known ones, and derivatives with respect to them go through the inverse of the map.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from vardax.obs_operators.cells import Cell
from vardax.obs_operators.quad_table import QuadTable
from vardax.obs_operators.quads import Fields, Periods, Quads, inverse, newton_step, quads_at, shortest

__all__ = ["locate_on_quads"]

RIM_BLOCK = 256
"""So many positions at once are compared with the rim of the grid."""

SIDES = np.array([[[0, 0], [0, 1]], [[1, 0], [1, 1]], [[0, 0], [1, 0]], [[0, 1], [1, 1]]])
"""The sides of a cell as the rim numbers them, each from (u, v) to (u, v)."""


def locate_on_quads(
    table: QuadTable, fields: Fields, periods: Periods, position: Float[Array, "p 2"], clamp: bool
) -> tuple[Cell, Cell]:
    """Rows and columns between which the positions are; one outside is moved to the rim of the grid with `clamp`."""
    dtype = max(fields[0].dtype, position.dtype, key=lambda each: jnp.finfo(each).bits)
    fields, position = tuple(field.astype(dtype) for field in fields), position.astype(dtype)
    fixed = jax.lax.stop_gradient((table, fields, periods, position))
    number, u, v, inside = _search(*fixed)
    if clamp and table.rim.shape[0] and position.shape[0]:
        nearest = _nearest_on_rim(*fixed, inside)
        number, u, v = (jnp.where(inside, a, b) for a, b in zip((number, u, v), nearest, strict=True))
    row, column = number // fields[0].shape[1], number % fields[0].shape[1]
    quads, next_row, next_column = quads_at(fields, periods, row, column)
    steps = newton_step(quads, shortest(position - quads.origin, periods), u, v, inside)
    u, v = (jnp.clip(w + step, 0, 1) for w, step in zip((u, v), steps, strict=True))
    return Cell(row, next_row, u, inside), Cell(column, next_column, v, inside)


def _search(
    table: QuadTable, fields: Fields, periods: Periods, position: Float[Array, "p 2"]
) -> tuple[Int[Array, "p"], Float[Array, "p"], Float[Array, "p"], Bool[Array, "p"]]:
    """(cell, u, v, inside): of the cells in the bucket the one whose u and v are least outside [0, 1]."""
    bucket = _bucket(table, periods, position)
    first, end, last = table.first[bucket], table.first[bucket + 1], table.cell.shape[0] - 1

    def look(k: Any, best: tuple[Array, ...]) -> tuple[Array, ...]:
        number = table.cell[jnp.minimum(first + k, last)]
        quads = _numbered(fields, periods, number)
        u, v = inverse(quads, shortest(position - quads.origin, periods))
        beyond = jnp.max(jnp.stack([-u, u - 1, -v, v - 1]), axis=0)
        better = (first + k < end) & (beyond < best[3])
        return tuple(jnp.where(better, new, old) for new, old in zip((number, u, v, beyond), best, strict=True))

    half = jnp.full(position.shape[:1], 0.5, position.dtype)
    start = (jnp.full(half.shape, table.cell[0]), half, half, jnp.full_like(half, jnp.inf))
    number, u, v, beyond = jax.lax.fori_loop(0, table.most, look, start)
    # A position on a side is in one of its two cells, whichever way it was rounded.
    inside = beyond <= jnp.finfo(position.dtype).eps ** 0.75
    return number, jnp.clip(u, 0, 1), jnp.clip(v, 0, 1), inside


def _numbered(fields: Fields, periods: Periods, number: Int[Array, "..."]) -> Quads:
    n_columns = fields[0].shape[1]
    return quads_at(fields, periods, number // n_columns, number % n_columns)[0]


def _bucket(table: QuadTable, periods: Periods, position: Float[Array, "p 2"]) -> Int[Array, "p"]:
    """The bucket of each position; one beyond the lattice gets a bucket at its edge, whose cells do not hold it."""
    places = []
    for axis, period in enumerate(periods):
        offset = position[:, axis] - table.low[axis].astype(position.dtype)
        offset = offset if period is None else jnp.mod(offset, period.astype(position.dtype))
        offset = jnp.where(jnp.isfinite(offset), offset, jnp.zeros_like(offset))
        place = jnp.floor(offset / table.width[axis].astype(position.dtype))
        highest = table.counts[axis] - 1
        places.append(jnp.clip(place, 0, highest.astype(place.dtype)).astype(jnp.int32))
    return places[0] * table.counts[1] + places[1]


def _nearest_on_rim(
    table: QuadTable, fields: Fields, periods: Periods, position: Float[Array, "p 2"], inside: Bool[Array, "p"]
) -> tuple[Int[Array, "p"], Float[Array, "p"], Float[Array, "p"]]:
    """(cell, u, v) of the point on the rim of the grid that is nearest as the coordinates measure it.

    Positions that are inside are left out: the work is that of those outside.
    """
    number, side = table.rim[:, 0], table.rim[:, 1]
    quads, ends = _numbered(fields, periods, number), jnp.asarray(SIDES, position.dtype)[side]
    begin = quads.at(ends[:, 0, 0], ends[:, 0, 1])
    along = quads.at(ends[:, 1, 0], ends[:, 1, 1]) - begin
    squared = jnp.sum(along**2, axis=-1)
    squared = jnp.where(squared > 0, squared, 1)

    def nearest(point: Float[Array, "2"]) -> tuple[Array, Array]:
        gap = shortest(point[None] - quads.origin, periods) - begin
        share = jnp.clip((gap[:, 0] * along[:, 0] + gap[:, 1] * along[:, 1]) / squared, 0, 1)
        chosen = jnp.argmin(jnp.square(gap[:, 0] - share * along[:, 0]) + jnp.square(gap[:, 1] - share * along[:, 1]))
        return chosen, share[chosen]

    def block(k: Any, found: tuple[Array, Array]) -> tuple[Array, Array]:
        these = jax.lax.dynamic_slice_in_dim(outside_first, k * RIM_BLOCK, RIM_BLOCK)
        chosen, share = jax.vmap(nearest)(position[these])
        return found[0].at[these].set(chosen), found[1].at[these].set(share)

    p = position.shape[0]
    outside_first = jnp.pad(jnp.argsort(inside), (0, -p % RIM_BLOCK), mode="edge")
    start = (jnp.zeros(p, jnp.result_type(int)), jnp.zeros(p, position.dtype))
    chosen, share = jax.lax.fori_loop(0, -(-jnp.sum(~inside) // RIM_BLOCK), block, start)
    u, v = (ends[chosen, 0, k] + share * (ends[chosen, 1, k] - ends[chosen, 0, k]) for k in (0, 1))
    return number[chosen], u, v
