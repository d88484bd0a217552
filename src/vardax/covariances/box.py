"""From a grid, lengths and a boundary to the periodic box on which a stationary covariance lives.

Only lengths in cells matter to a covariance, and along a free axis the box is longer than the field, by as much as
correlations reach. Its size is part of the compiled program, so it needs the *values* of the lengths: they are known
eagerly, also under an eager `grad`, and unknown under `jit` and `vmap`.
"""

import functools
import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from vardax.covariances.base import real_array
from vardax.covariances.correlations import matern_correlation
from vardax.types import Grid, concrete_values, is_traced

__all__ = [
    "PADDED_LIMIT",
    "PADDING_LENGTHS",
    "common_dtype",
    "fast_size",
    "free_axes",
    "known",
    "known_lengths",
    "padded_box",
    "per_axis",
    "require_values",
    "spacing_of",
]

PADDED_LIMIT = 2**22
"""Number of cells of the padded box up to which a free boundary is padded by as much as it needs."""

PADDING_LENGTHS = 8
"""By how many length scales a free boundary is padded."""

Numbers = ArrayLike | Sequence[ArrayLike]
Shape = tuple[int, ...]


def free_axes(owner: str, shape: Any, grid: Grid, boundary: str | Sequence[str] | None) -> tuple[bool, ...]:
    """Which axes do not close on themselves. Without `boundary` a `Grid` says so, and a bare shape is periodic."""
    if boundary is None:
        periodic = grid.periodic if isinstance(shape, Grid) else range(grid.ndim)
        return tuple(axis not in periodic for axis in range(grid.ndim))
    kinds = (boundary,) * grid.ndim if isinstance(boundary, str) else tuple(boundary)
    if len(kinds) != grid.ndim or any(kind not in ("periodic", "free") for kind in kinds):
        raise ValueError(
            f"{owner}: `boundary` is {boundary!r}, expected 'periodic' or 'free', or one of these for each of the "
            f"{grid.ndim} axes."
        )
    return tuple(kind == "free" for kind in kinds)


def per_axis(owner: str, name: str, x: Numbers, ndim: int, dtype: Any) -> Float[Array, "axes"]:
    """A number, or one per axis, as an array of one per axis."""
    if isinstance(x, list | tuple):
        x = jnp.stack([real_array(owner, name, entry, dtype) for entry in x]) if len(x) else jnp.zeros(0)
    array = real_array(owner, name, x, dtype)
    if array.shape not in ((), (ndim,)):
        raise ValueError(f"{owner}: `{name}` has shape {array.shape}, expected one number, or {ndim}: one per axis.")
    return jnp.broadcast_to(array, (ndim,))


def spacing_of(owner: str, shape: Any, grid: Grid, spacing: Numbers) -> Numbers:
    """The distance between cells: what was given, or that of the `Grid`, which must be uniform."""
    if not isinstance(shape, Grid):
        return spacing
    if not (isinstance(spacing, int | float) and spacing == 1):
        raise ValueError(f"{owner}: `spacing` comes with the Grid; leave it out.")
    if grid.curvilinear:
        raise ValueError(f"{owner}: the Grid is curvilinear, expected one with axes; use DiffusionCovariance.")
    for axis, sizes in enumerate([*map(_steps, grid.coords), *map(known, grid.cell_size)]):
        if sizes is not None and sizes.size > 1 and np.ptp(sizes) > 1e-2 * np.max(np.abs(sizes)):
            raise ValueError(
                f"{owner}: along axis {axis % grid.ndim} of the Grid cells measure from {np.min(np.abs(sizes)):.4g} "
                f"to {np.max(np.abs(sizes)):.4g}, expected a uniform spacing (to 1 %)."
            )
    values = [known(size) for size in grid.cell_size]
    return [jnp.mean(s) if v is None else np.mean(v) for s, v in zip(grid.cell_size, values, strict=True)]


def common_dtype(*parameters: ArrayLike | Sequence[ArrayLike]) -> Any:
    """The float dtype of the arrays among the parameters; numbers have none, and alone mean the default."""
    arrays = [x for x in jax.tree.leaves(parameters) if isinstance(x, jax.Array | np.ndarray)]
    dtypes = [jnp.asarray(x).dtype for x in arrays if not getattr(x, "weak_type", False)]
    floats = [dtype for dtype in dtypes if jnp.issubdtype(dtype, jnp.floating)]
    return functools.reduce(jnp.promote_types, floats) if floats else jnp.result_type(float)


def known(x: Numbers) -> np.ndarray | None:
    """The values of `x` where they are known: they are under eager `grad`, and are not under `jit` or `vmap`."""
    if isinstance(x, list | tuple):
        entries = [known(entry) for entry in x]
        return None if any(entry is None for entry in entries) else np.array(entries, float)
    return concrete_values(jax.lax.stop_gradient(x) if is_traced(x) else x)


def require_values(
    owner: str, name: str, values: np.ndarray | None, holds: Callable[[np.ndarray], Any], expected: str
) -> None:
    """Raise `ValueError` where the values are known and `holds` does not hold for all of them."""
    if values is not None and not np.all(holds(values)):
        raise ValueError(f"{owner}: `{name}` is {values}, expected {expected}.")


def known_lengths(owner: str, length_scale: Numbers, spacing: Numbers, shape: Shape) -> np.ndarray | None:
    """The lengths in cells, one per axis, where they are known, after a check of lengths and spacing."""
    lengths, steps = known(length_scale), known(spacing)
    require_values(owner, "spacing", steps, lambda step: (step > 0) & np.isfinite(step), "positive numbers")
    require_values(owner, "length_scale", lengths, lambda length: length > 0, "positive numbers")
    if lengths is None or steps is None:
        return None
    cells = np.broadcast_to(lengths / steps, len(shape))
    for length, n in zip(cells, shape, strict=True):
        if n > 1 and not length <= n:
            raise ValueError(
                f"{owner}: `length_scale` is {length:g} cells on an axis of {n}, beyond the domain; expected at most "
                "the length of the domain."
            )
    return cells


def padded_box(
    owner: str,
    shape: Shape,
    free: tuple[bool, ...],
    lengths: np.ndarray | None,
    padding: int | Sequence[int] | None,
    nu: float,
) -> Shape:
    """The shape of the periodic box that holds the field and, along free axes, the padding."""
    if padding is not None:
        pads = (padding,) * len(shape) if isinstance(padding, int) else tuple(padding)
        if len(pads) != len(shape) or any(pad < 0 for pad in pads):
            raise ValueError(
                f"{owner}: `padding` is {padding}, expected a number of cells, or {len(shape)}: one per axis."
            )
        return _box(shape, free, pads)
    if lengths is None:
        generous = _box(shape, free, tuple(3 * n for n in shape))
        return generous if math.prod(generous) <= 2**16 else _box(shape, free, shape)
    pads = tuple(math.ceil(PADDING_LENGTHS * length) for length in lengths)
    box = _box(shape, free, pads)
    if math.prod(box) > PADDED_LIMIT:
        box = _box(shape, free, tuple(map(min, pads, shape)))
        _warn_of_wrapping(owner, shape, free, box, lengths, nu)
    return box


def fast_size(minimum: int) -> int:
    """The smallest even size of at least `minimum` whose prime factors are 2, 3 and 5: fast to transform.

    >>> fast_size(1184)
    1200
    """
    size = minimum + minimum % 2
    while not _is_smooth(size):
        size += 2
    return size


def _is_smooth(size: int) -> bool:
    for prime in (2, 3, 5):
        while size % prime == 0:
            size //= prime
    return size == 1


def _steps(coords: Array) -> np.ndarray | None:
    values = known(coords)
    return None if values is None else np.diff(values)


def _box(shape: Shape, free: tuple[bool, ...], pads: Shape) -> Shape:
    """A single cell has no neighbours along its axis and needs no padding."""
    sizes = zip(shape, free, pads, strict=True)
    return tuple(fast_size(n + pad) if is_free and n > 1 else n for n, is_free, pad in sizes)


def _warn_of_wrapping(
    owner: str, shape: Shape, free: tuple[bool, ...], box: Shape, lengths: np.ndarray, nu: float
) -> None:
    axes = zip(shape, free, box, lengths, strict=True)
    error = float(matern_correlation(min((size - n + 1) / length for n, is_free, size, length in axes if is_free), nu))
    if error > 1e-3:
        warnings.warn(
            f"{owner}: the free boundary is padded to {box} cells only (PADDED_LIMIT = {PADDED_LIMIT}); correlations "
            f"between opposite edges are too large by up to {error:.1e}. Give `padding` for more.",
            stacklevel=4,
        )
