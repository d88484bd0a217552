"""In which cell of a grid positions lie, and what the corners of the cell weigh there.

    w_c = product over axes of 1 - f or f,     without land: w_c s_c / sum_c w_c s_c,   s_c = 1 at sea

A `Cell` says, for one axis of the grid, between which two points the positions are, and the fraction f of the way from
one to the other. Axes give theirs one by one (`locate_on_axis`); a curvilinear grid gives two at once
(`vardax.obs_operators.quadrilaterals`). `weigh_corners` makes the 2^d corners and their weights of them, once.
"""

import itertools
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

__all__ = ["Cell", "Corners", "locate_on_axis", "weigh_corners"]


class Cell(NamedTuple):
    """Where positions are along one axis: between points `lower` and `upper`, `fraction` of the way."""

    lower: Int[Array, "p"]
    upper: Int[Array, "p"]
    fraction: Float[Array, "p"]
    inside: Bool[Array, "p"]


class Corners(NamedTuple):
    """Row-major indices of the corners of each position's cell, their weights, and which positions have any."""

    index: Int[Array, "corners p"]
    weight: Float[Array, "corners p"]
    at_sea: Bool[Array, "p"]


def locate_on_axis(
    axis: Float[Array, "n"], position: Float[Array, "p"], period: Float[Array, ""] | None, closed: bool
) -> Cell:
    """The cell along an axis that increases or decreases; a position outside is moved to the nearest end.

    With a `period` positions count modulo it: from the first point on where the axis is `closed`, so that there is a
    cell between its last and its first point, and around the middle of the axis where it is not.
    """
    dtype = max(axis.dtype, position.dtype, key=lambda each: jnp.finfo(each).bits)
    axis, position, n = axis.astype(dtype), position.astype(dtype), axis.shape[0]
    direction = jnp.where(axis[-1] < axis[0], -1, 1).astype(dtype)
    points, position = direction * axis, direction * position
    if period is not None:
        period = period.astype(dtype)
        centre = 0.5 * (points[0] + (points[0] + period if closed else points[-1]))
        # Whole periods are taken away: a position that needs none keeps all its digits.
        position = position - period * jnp.round((position - centre) / period)
        points = jnp.concatenate([points, points[:1] + period]) if closed else points
    inside = jnp.isfinite(position) if closed else (position >= points[0]) & (position <= points[-1])
    position = jnp.clip(jnp.where(jnp.isnan(position), points[0], position), points[0], points[-1])
    last = points.shape[0] - 1
    lower = jnp.clip(jnp.searchsorted(points, position, side="right") - 1, 0, max(last - 1, 0))
    upper = jnp.minimum(lower + 1, last)
    width = points[upper] - points[lower]
    fraction = (position - points[lower]) / jnp.where(width > 0, width, 1)
    return Cell(lower, upper % n, fraction, inside)


def weigh_corners(cells: list[Cell], shape: tuple[int, ...], order: int, sea: Bool[Array, "..."] | None) -> Corners:
    """The corners that are interpolated between: all those at sea (order 1), or the one that weighs most (order 0)."""
    indices, weights = [], []
    for sides in itertools.product((0, 1), repeat=len(cells)):
        chosen = [cell.upper if side else cell.lower for side, cell in zip(sides, cells, strict=True)]
        parts = [cell.fraction if side else 1 - cell.fraction for side, cell in zip(sides, cells, strict=True)]
        dtype = jnp.result_type(*parts)
        indices.append(_row_major(chosen, shape))
        weights.append(jnp.prod(jnp.stack([part.astype(dtype) for part in parts]), axis=0))
    index, weight = jnp.stack(indices), jnp.stack(weights)
    corners = Corners(index, weight, jnp.ones(index.shape[1:], bool))
    corners = corners if sea is None else _without_land(corners, sea.reshape(-1))
    return corners if order == 1 else _nearest(corners)


def _without_land(corners: Corners, sea: Bool[Array, "n"]) -> Corners:
    """Land weighs nothing, and the rest adds up to one again.

    A corner on land is replaced by one at sea, so that what the state holds there (NaN, often) is never read.
    """
    wet = sea[corners.index]
    weight = jnp.where(wet, corners.weight, jnp.zeros_like(corners.weight))
    total = jnp.sum(weight, axis=0)
    at_sea = total > 0
    weight = weight / jnp.where(at_sea, total, jnp.ones_like(total))[None]
    heaviest = jnp.take_along_axis(corners.index, jnp.argmax(weight, axis=0)[None], axis=0)
    elsewhere = jnp.where(at_sea[None], heaviest, jnp.argmax(sea).astype(heaviest.dtype))
    return Corners(jnp.where(wet, corners.index, elsewhere), weight, at_sea)


def _nearest(corners: Corners) -> Corners:
    heaviest = jnp.argmax(corners.weight, axis=0)[None]
    index = jnp.take_along_axis(corners.index, heaviest, axis=0)
    return Corners(index, jnp.ones(index.shape, corners.weight.dtype), corners.at_sea)


def _row_major(indices: list[Array], shape: tuple[int, ...]) -> Array:
    flat = indices[0]
    for index, size in zip(indices[1:], shape[1:], strict=True):
        flat = flat * size + index
    return flat
