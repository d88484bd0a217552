"""From a grid and length scales to what diffusion works with: cell sizes, volumes and squared lengths in every cell.

A length scale is what it is for `matern_correlation`: far from land and where it does not vary, the correlation at a
distance d is exp(−d²/(2 length²)). It may be

    one number                      the same everywhere, in all directions
    one number or field per axis    lengths along the axes of the grid
    a field                         varies from cell to cell
    matrices (..., d, d)            M, symmetric: lengths along any directions, its eigenvectors

Diffusion takes squared lengths, Λ = M²: exp(−½ rᵀ Λ⁻¹ r), with M = length · 1 and M = diag(lengths) as special cases.
"""

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float

from vardax.covariances.base import real_array
from vardax.covariances.box import known
from vardax.types import Grid, concrete_values

__all__ = [
    "Reach",
    "cell_sizes",
    "cell_volume",
    "length_matrix",
    "reach_in_cells",
    "require_lengths",
    "squared_lengths",
    "summary",
]

Matrix = dict[tuple[int, int], Array]
"""A symmetric matrix in each cell: element (a, b), a <= b; elements that are not there are zero."""


def cell_sizes(owner: str, grid: Grid, mask: Bool[Array, "..."], dtype: Any) -> tuple[Float[Array, "..."], ...]:
    """The sizes of the cells along each axis, of as many axes as the grid and 1 on land."""
    return tuple(
        _in_cells(_of_axis(owner, size.astype(dtype), axis, grid.shape), mask)
        for axis, size in enumerate(grid.cell_size)
    )


def cell_volume(grid: Grid, sizes: tuple[Float[Array, "..."], ...], mask: Bool[Array, "..."]) -> Float[Array, "..."]:
    """The volumes of cells: the `area` of the grid, or the product of the sizes."""
    if grid.area is not None:
        return _in_cells(grid.area.astype(sizes[0].dtype), mask)
    return functools.reduce(jnp.multiply, sizes)


def length_matrix(owner: str, length_scale: ArrayLike | Sequence[Any], mask: Bool[Array, "..."], dtype: Any) -> Matrix:
    """M in each cell, 1 on land."""
    shape = mask.shape
    given: Any = length_scale
    per_axis = isinstance(given, list | tuple) and len(given) == len(shape)
    if per_axis and not any(isinstance(entry, list | tuple) for entry in given):
        entries = [real_array(owner, "length_scale", entry, dtype) for entry in given]
        return {(a, a): _in_cells(_field(owner, entry, shape), mask) for a, entry in enumerate(entries)}
    array = real_array(owner, "length_scale", length_scale, dtype)
    if array.ndim == 0 or _is_field(array, shape):
        field = _in_cells(_field(owner, array, shape), mask)
        return {(a, a): field for a in range(len(shape))}
    if array.shape == (len(shape),):
        return {(a, a): array[a].reshape((1,) * len(shape)) for a in range(len(shape))}
    return _from_matrices(owner, array, mask)


def squared_lengths(lengths: Matrix) -> Matrix:
    """Λ = M²."""
    ndim = max(lengths)[0] + 1
    diagonal = len(lengths) == ndim
    element: Callable[[int, int], Any] = lambda a, b: lengths[min(a, b), max(a, b)]  # noqa: E731
    if diagonal:
        return {axes: length**2 for axes, length in lengths.items()}
    product = lambda a, b: functools.reduce(jnp.add, [element(a, k) * element(k, b) for k in range(ndim)])  # noqa: E731
    return {(a, b): product(a, b) for a, b in lengths}


class Reach(NamedTuple):
    """Lengths in cells along an axis: of correlations along it, and of the smallest features of the kernel."""

    correlation: Float[Array, "..."]
    feature: Float[Array, "..."]


def reach_in_cells(squares: Matrix, sizes: tuple[Float[Array, "..."], ...]) -> tuple[Reach, ...]:
    """√Λ_aa and 1/√(Λ⁻¹)_aa in cells, for each axis; the same where Λ is diagonal."""
    correlations = [jnp.sqrt(squares[a, a]) for a in range(len(sizes))]
    if len(squares) == len(sizes):
        features = correlations
    else:
        inverse = jnp.linalg.inv(_stacked(squares, len(sizes)))
        features = [1 / jnp.sqrt(inverse[..., a, a]) for a in range(len(sizes))]
    return tuple(Reach(c / s, f / s) for c, f, s in zip(correlations, features, sizes, strict=True))


def summary(
    lengths: Matrix, sizes: tuple[Float[Array, "..."], ...], volume: Float[Array, "..."], mask: Bool[Array, "..."]
) -> dict[str, Array]:
    """What `require_lengths` looks at: the extremes of lengths and sizes, as numbers."""
    lengths, sizes, volume = jax.lax.stop_gradient((lengths, sizes, volume))
    squares = squared_lengths(lengths)
    of_axis = lambda axis: jnp.min(jnp.sqrt(squares[axis, axis]) / sizes[axis]) / mask.shape[axis]  # noqa: E731
    return {
        "length": _least(lengths, mask.ndim),
        "shares": jnp.stack([of_axis(axis) for axis in range(mask.ndim)]),
        "size": functools.reduce(jnp.minimum, [jnp.min(size) for size in (*sizes, volume)]),
        "sea": jnp.sum(mask),
    }


def require_lengths(owner: str, numbers: dict[str, Array], slanted: bool, shape: tuple[int, ...]) -> None:
    """Raise `ValueError` for lengths, sizes or volumes that are not positive, and for lengths beyond the domain.

    Only where the values are known (eagerly). A length is beyond the domain if it is longer than it in every cell: at
    high latitudes it may well be longer than a circle of latitude.
    """
    values: dict[str, Any] = {name: known(number) for name, number in numbers.items()}
    if any(value is None for value in values.values()):
        return
    if values["sea"] == 0:
        raise ValueError(f"{owner}: the mask of `grid` has no cell of the sea, expected at least one.")
    if not values["size"] > 0:
        raise ValueError(
            f"{owner}: `grid` has cells whose size or area is {values['size']:g}, expected positive numbers."
        )
    if not values["length"] > 0:
        what = "has an eigenvalue" if slanted else "is"
        raise ValueError(
            f"{owner}: `length_scale` {what} {values['length']:g} in some cells, expected positive numbers."
        )
    for n, share in zip(shape, values["shares"], strict=True):
        if n > 1 and not share <= 1:
            raise ValueError(
                f"{owner}: `length_scale` is at least {share * n:g} cells on an axis of {n}, beyond the domain; "
                "expected at most the length of the domain."
            )


def _least(lengths: Matrix, ndim: int) -> Array:
    """The smallest length, or the smallest eigenvalue of M over all cells."""
    if len(lengths) == ndim:
        return functools.reduce(jnp.minimum, [jnp.min(length) for length in lengths.values()])
    return jnp.min(jnp.linalg.eigvalsh(_stacked(lengths, ndim)))


def _stacked(matrix: Matrix, ndim: int) -> Float[Array, "... d d"]:
    rows = [[matrix[min(a, b), max(a, b)] for b in range(ndim)] for a in range(ndim)]
    return jnp.stack([jnp.stack(row, axis=-1) for row in rows], axis=-1)


def _from_matrices(owner: str, array: Array, mask: Bool[Array, "..."]) -> Matrix:
    ndim = mask.ndim
    cells, square = array.shape[:-2], array.shape[-2:] == (ndim, ndim)
    if not square or not (cells == () or _is_field(array[..., 0, 0], mask.shape)):
        raise ValueError(
            f"{owner}: `length_scale` has shape {array.shape}, expected a number, {ndim} numbers or fields (one per "
            f"axis), a field of shape {mask.shape}, or symmetric matrices ({ndim}, {ndim}), one or in every cell."
        )
    asymmetry = concrete_values(_asymmetry(jax.lax.stop_gradient(array), mask))
    if asymmetry is not None and asymmetry > 1e-5:
        raise ValueError(
            f"{owner}: the matrices of `length_scale` are not symmetric, by up to {asymmetry:.1g} of them."
        )
    element = lambda a, b: _field(owner, (array[..., a, b] + array[..., b, a]) / 2, mask.shape)  # noqa: E731
    pairs = itertools.combinations_with_replacement(range(ndim), 2)
    return {(a, b): _in_cells(element(a, b), mask, 1.0 if a == b else 0.0) for a, b in pairs}


@jax.jit
def _asymmetry(matrices: Array, mask: Bool[Array, "..."]) -> Array:
    """The largest difference between elements and those across the diagonal, relative to the largest element."""
    sea = jnp.where(mask[..., None, None], matrices, jnp.zeros_like(matrices))
    size = jnp.max(jnp.abs(sea))
    return jnp.max(jnp.abs(sea - jnp.swapaxes(sea, -1, -2))) / jnp.where(size > 0, size, jnp.ones_like(size))


def _is_field(array: Array, shape: tuple[int, ...]) -> bool:
    return array.ndim == len(shape) and all(m in (1, n) for m, n in zip(array.shape, shape, strict=True))


def _field(owner: str, array: Array, shape: tuple[int, ...]) -> Array:
    if array.ndim and not _is_field(array, shape):
        raise ValueError(
            f"{owner}: `length_scale` has an entry of shape {array.shape}, expected a number or a field of shape "
            f"{shape}."
        )
    return array if array.ndim else array.reshape((1,) * len(shape))


def _of_axis(owner: str, size: Array, axis: int, shape: tuple[int, ...]) -> Array:
    """A cell size that broadcasts to the shape of the grid: of one number, along its axis, or of the last two axes."""
    ndim = len(shape)
    if size.ndim == 0:
        return size.reshape((1,) * ndim)
    if size.shape == (shape[axis],):
        return size.reshape([-1 if k == axis else 1 for k in range(ndim)])
    spread = size[None] if size.ndim == 2 < ndim else size
    if not _is_field(spread, shape):
        raise ValueError(
            f"{owner}: `cell_size[{axis}]` of the Grid has shape {size.shape}, expected a number, ({shape[axis]},) or "
            f"{shape}."
        )
    return spread


def _in_cells(field: Array, mask: Bool[Array, "..."], on_land: float = 1.0) -> Array:
    """What a field says on land (NaN, perhaps) does not count."""
    return field if field.size == 1 else jnp.where(mask, field, jnp.full_like(field, on_land))
