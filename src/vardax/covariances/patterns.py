"""Patterns of well separated sources, from which the squared row sums Σ_j P_ij² of a smoothing P follow.

For independent signs in all cells, (P z)_i² is Σ_j P_ij² and a sum over all pairs of cells that P joins at i, of random
signs: a relative standard error of √(2/n) for n of them. Almost all of it is needless. The cells are divided into n
patterns, each of which holds sources so far apart that P joins no two of them, and Σ_z (P z)_i² over the patterns is
the sum without its cross terms.

A source is a small block of cells, ± 1/√(number of cells) in each. P is smooth, so it hardly varies over a block that
is narrower than its features; what little is lost is known to leading order (`lost_in_blocks`). Cells of a block that
land separates are sources of their own.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from vardax.covariances.box import known
from vardax.covariances.lengths import Reach

__all__ = ["Blocks", "block_layout", "divided", "lost_in_blocks", "sources"]

APART = 3.2
"""How many lengths sources of a pattern should be apart: they then disturb each other by less than 1 %."""

LARGEST_BLOCK = 0.4
"""How many lengths a block is wide at most."""


class Blocks(NamedTuple):
    """The blocks along an axis: the number of the block of each cell, how many colours they take turns in, widths."""

    number: np.ndarray
    n_colours: int
    widest: int
    mean_square: float


def block_layout(
    n: int, mask: Bool[Array, "..."], reach: tuple[Reach, ...], periodic: tuple[int, ...]
) -> tuple[Blocks, ...]:
    """Blocks such that n colours keep equal ones `APART` lengths from each other, if blocks then are small enough.

    Where the lengths have no values (while tracing), blocks are single cells.

    >>> even = Reach(jnp.full((1, 1), 10.0), jnp.full((1, 1), 10.0))
    >>> [(axis.n_colours, axis.widest) for axis in block_layout(256, jnp.ones((90, 120), bool), (even, even), ())]
    [(16, 2), (16, 2)]
    """
    return divided(n, mask.shape, known(_extremes(*jax.lax.stop_gradient((mask, reach)))), periodic)


def divided(
    n: int, shape: tuple[int, ...], extremes: np.ndarray | None, periodic: tuple[int, ...]
) -> tuple[Blocks, ...]:
    """The blocks for given extremes, the longest correlation and the shortest feature along each axis, in cells."""
    layout = []
    for axis, (size, m) in enumerate(zip(shape, _colours(n, shape), strict=True)):
        width = 1
        if extremes is not None:
            longest, shortest = extremes[axis]
            width = int(np.clip(np.ceil(APART * longest / m), 1, max(1, np.floor(LARGEST_BLOCK * shortest))))
        count = size / width
        if axis in periodic:  # as many blocks as make whole turns of the colours
            count = min(size, m * max(1, round(count / m)))
        number = np.floor(np.arange(size) * count / size + 1e-9).astype(np.int32)
        widths = np.bincount(number)
        layout.append(Blocks(number, min(m, widths.size), int(widths.max()), float(np.sum(widths**3) / size)))
    return tuple(layout)


@jax.jit
def _extremes(mask: Bool[Array, "..."], reach: tuple[Reach, ...]) -> Float[Array, "axes 2"]:
    """The longest correlation and the shortest feature at sea, along each axis."""
    longest = [jnp.max(jnp.where(mask, axis.correlation, jnp.zeros_like(axis.correlation))) for axis in reach]
    shortest = [jnp.min(jnp.where(mask, axis.feature, jnp.full_like(axis.feature, jnp.inf))) for axis in reach]
    return jnp.stack([jnp.stack(longest), jnp.stack(shortest)], axis=1)


def _colours(n: int, shape: tuple[int, ...]) -> list[int]:
    """How many colours along each axis, n at most in all; short axes need fewer and leave more for the others."""
    colours, left = [1] * len(shape), n
    for done, axis in enumerate(sorted(range(len(shape)), key=shape.__getitem__)):
        colours[axis] = min(shape[axis], int(left ** (1 / (len(shape) - done)) + 1e-9))
        left //= colours[axis]
    return colours


def sources(
    key: PRNGKeyArray, mask: Bool[Array, "..."], layout: tuple[Blocks, ...], dtype: Any
) -> tuple[Float[Array, "..."], Int[Array, "..."]]:
    """All sources in one field, zero on land, and the number of the pattern that each cell belongs to."""
    labels = _connected(mask, layout)
    counts = jnp.zeros(mask.size, dtype).at[jnp.ravel(labels)].add(1.0)
    signs = jax.random.rademacher(key, (mask.size,), dtype) / jnp.sqrt(jnp.maximum(counts, 1))
    pattern = jnp.zeros(mask.shape, jnp.int32)
    for axis, blocks in enumerate(layout):
        pattern = pattern * blocks.n_colours + _on_axis(blocks.number % blocks.n_colours, axis, mask.ndim)
    return jnp.where(mask, signs[labels], jnp.zeros((), dtype)), pattern


def _connected(mask: Bool[Array, "..."], layout: tuple[Blocks, ...]) -> Int[Array, "..."]:
    """A label for each cell: equal in two cells of a block if they are connected within it, through sea.

    The smallest label spreads, in as many rounds as blocks without land need twice; a winding strait may remain in
    parts, which only makes it several sources.
    """
    n_rounds = 2 * sum(blocks.widest - 1 for blocks in layout)
    start = jnp.arange(mask.size, dtype=jnp.int32).reshape(mask.shape)

    def spread(_: Any, labels: Array) -> Array:
        for axis, blocks in enumerate(layout):
            inside = _on_axis(blocks.number[1:] == blocks.number[:-1], axis, mask.ndim)
            before, after = (_shifted(labels, axis, step) for step in (0, 1))
            open_face = inside & _shifted(mask, axis, 0) & _shifted(mask, axis, 1)
            lower = jnp.where(open_face, jnp.minimum(before, after), mask.size)
            for step in (0, 1):
                widths = [(step, 1 - step, 0) if k == axis else (0, 0, 0) for k in range(mask.ndim)]
                labels = jnp.minimum(labels, jax.lax.pad(lower, np.array(mask.size, labels.dtype), widths))
        return labels

    return jax.lax.fori_loop(0, n_rounds, spread, start) if n_rounds else start


def lost_in_blocks(layout: tuple[Blocks, ...], reach: tuple[Reach, ...]) -> Float[Array, "..."]:
    """By how much sums over blocks are too small. P is a Gaussian that is widened by the variance of a block."""
    factor = jnp.ones_like(reach[0].feature)
    for blocks, axis in zip(layout, reach, strict=True):
        factor = factor * jnp.sqrt(1 + (blocks.mean_square - 1) / (6 * axis.feature**2))
    return factor


def _on_axis(values: Any, axis: int, ndim: int) -> Array:
    return jnp.asarray(values).reshape([-1 if k == axis else 1 for k in range(ndim)])


def _shifted(field: Array, axis: int, step: int) -> Array:
    """All cells but the last one (0), or the first one (1), of an axis."""
    return jax.lax.slice_in_dim(field, step, field.shape[axis] - 1 + step, axis=axis)
