"""Observations in an order in which a short window of earlier ones says most of what all earlier ones say.

The grid is cut into strips along its last axis, about as high as a block of observations is wide. Observations are
sorted by strip, then along the strip, and cut into blocks of `BLOCK`. What a block depends on most are then a few
contiguous windows of the sorted list: the blocks before it in its own strip, and what lies beside it in the strips
before; each is found by bisection. In three dimensions strips are counted along two axes, in one there is one strip.

    cells, precision of each observation -> `arrange` -> one entry per observed cell, sorted -> windows of each block

Everything is traced, also the height of the strips, which follows from the number of cells that are observed.
"""

import itertools
import math
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

__all__ = ["BLOCK", "CHUNK", "FLATNESS", "LATE_STRIPS", "Arrangement", "arrange"]

BLOCK = 12
"""Entries that are conditioned on their neighbours together, and the length of each window of neighbours."""

FLATNESS = 0.4
"""Height of a strip over the side of a square that holds a block: flat blocks see more of the strips beside them."""

LATE_STRIPS = 3
"""So many last strips of a grid see the first one."""

CHUNK = 64
"""Blocks that are factorised at once: their matrices fit into the cache."""


class Arrangement(NamedTuple):
    """Sorted entries, one per observed cell, in whole blocks (and chunks of these).

    `entry` is the number of each observation's entry, `precision` the sum of the precisions of the observations of each
    entry, zero where there is none, `cells` its cell, and `windows` the first entry of each window of each block.
    """

    entry: Int[Array, "m"]
    precision: Float[Array, "entries"]
    cells: tuple[Int[Array, "entries"], ...]
    windows: Int[Array, "blocks windows"]


class _Cut(NamedTuple):
    """An axis of n cells, cut into `count` strips: the first n mod count of them have one row more than the others."""

    n: int
    count: Array

    @property
    def most_rows(self) -> Array:
        """The rows of a high strip."""
        return self.n // self.count + 1

    def strip_and_row(self, cell: Array) -> tuple[Array, Array]:
        """The strip of a cell, and its row within."""
        low, high, n_high = self.n // self.count, self.most_rows, self.n % self.count
        rest = cell - n_high * high
        strip = jnp.where(rest < 0, cell // high, n_high + rest // low)
        return strip, jnp.where(rest < 0, cell % high, rest % low)


class _Order(NamedTuple):
    """The order of cells: by strip, then along the last axis, then across the strip."""

    cuts: tuple[_Cut, ...]
    length: int

    def key(self, cells: tuple[Array, ...]) -> Array:
        """A number that sorts cells, different for different cells."""
        strips, rows = zip(*self._split(cells), strict=True) if self.cuts else ((), ())
        return self._number(strips, cells[-1], rows)

    def strips(self, cells: tuple[Array, ...]) -> tuple[Array, ...]:
        """The strip of each cell."""
        return tuple(strip for strip, _ in self._split(cells))

    def start(self, strips: tuple[Array, ...], along: Array) -> Array:
        """The least key of a strip at the position `along` it."""
        return self._number(strips, along, tuple(jnp.zeros_like(along) for _ in self.cuts))

    def _split(self, cells: tuple[Array, ...]) -> list[tuple[Array, Array]]:
        return [cut.strip_and_row(cell) for cut, cell in zip(self.cuts, cells[:-1], strict=True)]

    def _number(self, strips: tuple[Array, ...], along: Array, rows: tuple[Array, ...]) -> Array:
        sizes = [*(cut.count for cut in self.cuts), self.length, *(cut.most_rows for cut in self.cuts)]
        number = jnp.zeros_like(along)
        for digit, size in zip((*strips, along, *rows), sizes, strict=True):
            number = number * size + digit
        return number


def arrange(cells: tuple[Int[Array, "m"], ...], precision: Float[Array, "m"], shape: tuple[int, ...]) -> Arrangement:
    """Merge observations of one cell, sort the cells, and find the windows of each block.

    Observations of zero precision are in no cell: they come last, in an entry of zero precision.
    """
    m = precision.size
    n_blocks = -(-m // BLOCK)
    slots = BLOCK * (n_blocks + -n_blocks % min(CHUNK, n_blocks))
    order = _order(cells, precision > 0, shape)
    nowhere = jnp.iinfo(cells[0].dtype).max
    key = jnp.where(precision > 0, order.key(cells), nowhere)
    ranks = jnp.argsort(key)
    new = jnp.diff(key[ranks]) > 0
    entry = jnp.zeros(m, int).at[ranks[1:]].set(jnp.cumsum(new))
    keys = jnp.full(slots, nowhere, key.dtype).at[entry].set(key)
    positions = tuple(jnp.zeros(slots, cell.dtype).at[entry].set(cell) for cell in cells)
    total = jnp.zeros(slots, precision.dtype).at[entry].add(precision)
    return Arrangement(entry, total, positions, _windows(keys, positions, order))


def _order(cells: tuple[Array, ...], seen: Array, shape: tuple[int, ...]) -> _Order:
    """Strips as high as `FLATNESS` times the side of a square (or cube) that holds a block of the observed cells."""
    occupied = jnp.sum(jnp.zeros(shape, bool).at[cells].max(seen))
    height = FLATNESS * (BLOCK * math.prod(shape) / jnp.maximum(occupied, 1)) ** (1 / len(shape))
    counts = [jnp.clip(jnp.round(n / height).astype(int), 1, n) for n in shape[:-1]]
    return _Order(tuple(_Cut(n, count) for n, count in zip(shape[:-1], counts, strict=True)), shape[-1])


def _windows(keys: Array, cells: tuple[Array, ...], order: _Order) -> Array:
    """The first entry of each window. A window may hold later entries, which do not count; where there is none it is
    the last of all.

    The grid may close on itself, so the last block of a strip also sees the first one, and the last strips the first:
    without these the two sides of the seam know nothing of each other, which costs many steps.
    """
    block = jnp.arange(keys.size // BLOCK)
    middle = tuple(cell.reshape(-1, BLOCK)[:, BLOCK // 2] for cell in cells)
    strips, along = order.strips(middle), middle[-1]

    def find(strips: tuple[Array, ...], along: Array) -> Array:
        """The first entry of these strips that is not before `along`."""
        return jnp.searchsorted(keys, order.start(strips, along)).astype(block.dtype)

    def beside(strips: tuple[Array, ...]) -> Array:
        """The same at the middle of the block, none where there is no such strip."""
        inside = [(strip >= 0) & (strip < cut.count) for strip, cut in zip(strips, order.cuts, strict=True)]
        return jnp.where(jnp.all(jnp.stack(inside), axis=0), find(strips, along), keys.size)

    begin, end = find(strips, jnp.zeros_like(along)), find(strips, jnp.full_like(along, order.length))
    closing = (block + 1) * BLOCK >= end
    found = [(block - 1) * BLOCK, jnp.where(closing, begin, (block - 2) * BLOCK)]
    if strips:
        above = [beside(tuple(map(jnp.add, strips, offset))) for offset in _earlier(len(strips))]
        late, first = strips[0] >= order.cuts[0].count - LATE_STRIPS, beside((jnp.zeros_like(along), *strips[1:]))
        found += [centre + shift for centre in above for shift in (-BLOCK, 0)]
        if len(strips) == 1:
            found.append(above[0] + BLOCK)
            found.append(jnp.where(late, first - 3 * BLOCK // 2, above[0] - 2 * BLOCK))
            found.append(jnp.where(late, first + BLOCK // 2, above[0] + 2 * BLOCK))
        found.append(jnp.where(late, first, beside((strips[0] - 2, *strips[1:]))) - BLOCK // 2)
    windows = jnp.stack(found, axis=1)
    return jnp.where(windows <= -BLOCK, keys.size - BLOCK, jnp.clip(windows, 0, keys.size - BLOCK))


def _earlier(ndim: int) -> list[tuple[int, ...]]:
    """From a strip to its neighbours that come before it."""
    return [offset for offset in itertools.product((-1, 0, 1), repeat=ndim) if offset < (0,) * ndim]
