"""A lattice of buckets over a curvilinear grid, by which the cell around a position is looked up.

A search that walks from cell to cell can get stuck where the grid bends; a look-up cannot. `tabulate` is run once, on
the host, when the operator is made: it lays a lattice of rectangles over the grid and lists for each the cells that
reach into it. A cell counts when it has a corner at sea, is convex in these coordinates, and is turned as most are:
what lies in another (the one around a pole, in latitude and longitude) is outside.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from vardax.obs_operators.quads import Fields, Periods, Quads, cross, quads_at

__all__ = ["QuadTable", "tabulate"]

MOST_PER_BUCKET = 48
"""The lattice is refined until no bucket has more cells, or it has eight buckets for every cell."""

MARGIN = 0.01
"""By how much of a bucket cells are widened when they are entered, against rounding at the sides of buckets."""


class QuadTable(NamedTuple):
    """Bucket b lists the cells `cell[first[b]:first[b + 1]]`, numbered as their corner (0, 0) in row-major order.

    `low`, `width` and `counts` are the lattice, `most` the longest list. `rim` has the sides of the grid as (cell,
    side): those that belong to one cell only.
    """

    low: Float[Array, "2"]
    width: Float[Array, "2"]
    counts: Int[Array, "2"]
    first: Int[Array, "buckets_1"]
    cell: Int[Array, "entries"]
    most: Int[Array, ""]
    rim: Int[Array, "sides 2"]


def tabulate(fields: Fields, periods: Periods, closed: tuple[bool, bool], sea: np.ndarray | None) -> QuadTable | None:
    """The table of a grid whose points are known; None where no cell can hold a position."""
    dtype, shape = jnp.result_type(fields[0]), fields[0].shape
    fields = tuple(np.asarray(field, np.float64) for field in fields)
    n_cells = [n if closes else n - 1 for n, closes in zip(shape, closed, strict=True)]
    row, column = (index.ravel() for index in np.indices(n_cells))
    with np.errstate(invalid="ignore"):
        quads = quads_at(fields, periods, row, column)[0]
        usable = _usable(quads)
    holds = usable if sea is None else usable & _has_sea(sea, row, column)
    if not holds.any():
        return None
    low, high = _boxes(Quads(*(part[holds] for part in quads)))
    start = low.min(axis=0)
    reach = high.max(axis=0) - start
    reach = np.array([reach[k] if periods[k] is None else float(periods[k]) for k in (0, 1)])
    counts = _usual_counts(high - low, reach)
    first, cell = _fill(low - start, high - start, reach, counts, periods)
    while np.diff(first).max() > MOST_PER_BUCKET and counts.prod() < 8 * len(low):
        counts = 2 * counts
        first, cell = _fill(low - start, high - start, reach, counts, periods)
    return QuadTable(
        low=jnp.asarray(start, dtype),
        width=jnp.asarray(reach / counts, dtype),
        counts=jnp.asarray(counts, jnp.int32),
        first=jnp.asarray(first, jnp.int32),
        cell=jnp.asarray((row * shape[1] + column)[holds][cell], jnp.int32),
        most=jnp.asarray(np.diff(first).max(), jnp.int32),
        rim=jnp.asarray(_rim(usable, row, column, shape, closed), jnp.int32),
    )


def _usable(quads: Quads) -> np.ndarray:
    """Which cells are convex (a triangle is), have an area, and are turned as most are."""
    sides = [quads.a, quads.b + quads.c, -(quads.a + quads.c), -quads.b]
    turns = np.stack([cross(one, other) for one, other in zip(sides, sides[1:] + sides[:1], strict=True)])
    area = np.sum(turns, axis=0) / 4
    orientation = np.sign(np.nansum(np.sign(area)))
    # A turn by less than a millionth of the area is the rounding of a straight side.
    return (area * orientation > 0) & np.all(turns * orientation >= -1e-6 * np.abs(area), axis=0)


def _has_sea(sea: np.ndarray, row: np.ndarray, column: np.ndarray) -> np.ndarray:
    around = [sea[(row + i) % sea.shape[0], (column + j) % sea.shape[1]] for i in (0, 1) for j in (0, 1)]
    return np.any(around, axis=0)


def _boxes(quads: Quads) -> tuple[np.ndarray, np.ndarray]:
    """The lowest and highest coordinates of each cell."""
    offsets = np.stack([np.zeros_like(quads.a), quads.a, quads.b, quads.a + quads.b + quads.c])
    return quads.origin + offsets.min(axis=0), quads.origin + offsets.max(axis=0)


def _usual_counts(sizes: np.ndarray, reach: np.ndarray) -> np.ndarray:
    """Buckets about as large as the cells usually are, and not more of them than cells."""
    counts = np.maximum(reach / np.maximum(np.median(sizes, axis=0), 1e-9 * reach), 1.0)
    shrink = np.sqrt(min(1.0, len(sizes) / counts.prod()))
    return np.maximum(np.ceil(counts * shrink), 1).astype(int)


def _fill(
    low: np.ndarray, high: np.ndarray, reach: np.ndarray, counts: np.ndarray, periods: Periods
) -> tuple[np.ndarray, np.ndarray]:
    """(first, cell): which cells reach into each bucket."""
    begin, end = (np.floor(corner * counts / reach + m).astype(int) for corner, m in ((low, -MARGIN), (high, MARGIN)))
    for axis, period in enumerate(periods):
        if period is None:
            begin[:, axis], end[:, axis] = (np.clip(edge[:, axis], 0, counts[axis] - 1) for edge in (begin, end))
        else:  # the lattice closes on itself
            end[:, axis] = np.minimum(end[:, axis], begin[:, axis] + counts[axis] - 1)
    extent = end - begin + 1
    n_buckets = extent.prod(axis=1)
    cell = np.repeat(np.arange(len(low)), n_buckets)
    step = np.arange(cell.size) - np.repeat(np.cumsum(n_buckets) - n_buckets, n_buckets)
    i = (begin[cell, 0] + step // extent[cell, 1]) % counts[0]
    j = (begin[cell, 1] + step % extent[cell, 1]) % counts[1]
    bucket = i * counts[1] + j
    first = np.concatenate([[0], np.cumsum(np.bincount(bucket, minlength=counts.prod()))])
    return first, cell[np.argsort(bucket, kind="stable")]


def _rim(
    usable: np.ndarray, row: np.ndarray, column: np.ndarray, shape: tuple[int, ...], closed: tuple[bool, bool]
) -> np.ndarray:
    """(cell, side) of the sides that no other usable cell has; sides: u = 0, u = 1, v = 0, v = 1."""
    there, sides = np.zeros(shape, bool), []
    there[row[usable], column[usable]] = True
    for side, (axis, step) in enumerate(((0, -1), (0, 1), (1, -1), (1, 1))):
        beside = np.roll(there, -step, axis=axis)
        if not closed[axis]:
            np.moveaxis(beside, axis, 0)[-1 if step > 0 else 0] = False
        alone = np.flatnonzero(there & ~beside)
        sides.append(np.stack([alone, np.full(alone.size, side)], axis=-1))
    return np.concatenate(sides)
