"""Fields are observed at positions between the grid points.

    y_j = sum_c w_jc x[i_jc],    w_jc the product over axes of 1 - f or f

with f the fraction of the way through the cell along an axis, and c the 2^d corners of that cell (order 1,
multilinear), or its nearest corner (order 0). Indices and weights are computed once, where the positions become known;
H is then a gather and a sum, its transpose a scatter-add, and no matrix is ever built.

Positions come with the operator (`interp_obs_from_coords`) or with the observations
(`InterpObs(grid).at(observations)`). They are traced: as many new positions do not compile again.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Int, PyTree

from vardax.obs_operators.linearisation import as_field
from vardax.obs_operators.module_operator import ModuleLinearOperator, structure_of
from vardax.types import Grid, concrete_values, float_array, is_traced

__all__ = ["InterpObs", "interp_obs_from_coords"]

OUTSIDE = ("error", "mask", "clamp")


class InterpObs(eqx.Module):
    """H(x) = x interpolated from a grid of one to three axes to scattered positions.

    - `grid_coords`: a `Grid`, or its axes, each increasing or decreasing, evenly spaced or not. They are the last axes
      of the state; earlier ones (variables) are carried along, so y is (*leading, p).
    - `order`: 1 multilinear, 0 nearest point.
    - `periodic`: numbers of the axes that close on themselves, evenly spaced, whose period is then n times the spacing
      (longitudes 0, 1, .. 359: 360); or a mapping from axis to period, for any spacing. A `Grid` brings its own.
    - `outside`: what to do with positions beyond the first and last point of an axis that is not periodic. "error"
      counts them in a `ValueError` (while tracing nothing can be raised, and they predict NaN); "mask" gives them zero
      weight and a 0 in `mask`, to multiply the mask of the observations with; "clamp" moves them to the edge.

    `at` gives the operator its positions: `Observations` (entries that are not valid get zero weight) or an array
    (p, d). Before that it cannot be called.

    >>> H = InterpObs([jnp.array([0.0, 1.0, 2.0])]).at(jnp.array([[0.5], [2.0]]))
    >>> H(jnp.array([10.0, 20.0, 40.0])).tolist()
    [15.0, 40.0]
    """

    axes: tuple[Float[Array, "..."], ...]
    periods: tuple[Float[Array, ""] | None, ...]
    index: Int[Array, "corners p"] | None
    weight: Float[Array, "corners p"] | None
    mask: Float[Array, "p"] | None
    order: int = eqx.field(static=True)
    outside: str = eqx.field(static=True)
    linear_by_construction: ClassVar[bool] = True

    def __init__(
        self,
        grid_coords: Grid | Sequence[Any] | ArrayLike,
        *,
        order: int = 1,
        periodic: int | Sequence[int] | Mapping[int, float] = (),
        outside: str = "error",
    ):
        grid = grid_coords if isinstance(grid_coords, Grid) else Grid(_as_axes(grid_coords))
        if not 1 <= grid.ndim <= 3:
            raise ValueError(f"InterpObs: `grid_coords` has {grid.ndim} axes, expected one to three.")
        if order not in (0, 1):
            raise ValueError(f"InterpObs: `order` is {order!r}, expected 0 (nearest point) or 1 (multilinear).")
        if outside not in OUTSIDE:
            raise ValueError(f"InterpObs: `outside` is {outside!r}, expected 'error', 'mask' or 'clamp'.")
        self.axes = grid.coords
        self.periods = _periods(self.axes, periodic if periodic != () else grid.periodic)
        self.index = self.weight = self.mask = None
        self.order, self.outside = int(order), outside

    def at(self, observations: Any) -> "InterpObs":
        """This operator at the positions of `observations`: an `Observations`, or an array (p, d)."""
        coords = float_array(jnp.asarray(getattr(observations, "coords", observations)))
        coords = coords[:, None] if coords.ndim == 1 and len(self.axes) == 1 else coords
        if coords.ndim != 2 or coords.shape[1] != len(self.axes):
            raise ValueError(
                f"InterpObs: the positions have shape {coords.shape}, expected (p, {len(self.axes)}), one column per "
                "axis of the grid."
            )
        valid = getattr(observations, "valid", None)
        counted = jnp.ones(coords.shape[0], bool) if valid is None else valid != 0
        bound, refused = _weigh(self.axes, self.periods, coords, counted, self.order, self.outside)
        self._refuse(coords, refused)
        fields = lambda op: (op.index, op.weight, op.mask)  # noqa: E731
        return eqx.tree_at(fields, self, bound, is_leaf=lambda leaf: leaf is None)

    def __call__(self, state: PyTree[Array]) -> Float[Array, "..."]:
        return self._interpolation(state)(jnp.asarray(state))

    def linearize(self, state: PyTree[Array]) -> lx.AbstractLinearOperator:
        return ModuleLinearOperator(self._interpolation(state), structure_of(state))

    def check(self, state_structure: Any) -> None:
        """Raise unless the last axes of the state are those of the grid."""
        found, expected = tuple(jnp.shape(state_structure)), tuple(axis.shape[0] for axis in self.axes)
        if found[max(len(found) - len(expected), 0) :] != expected:
            raise ValueError(
                f"InterpObs: the state has shape {found}, expected (..., {', '.join(map(str, expected))}), the grid's."
            )

    def _interpolation(self, state: Any) -> "_Interpolation":
        field = as_field(state, "InterpObs")
        if self.index is None or self.weight is None:
            raise ValueError(
                "InterpObs: it has no positions yet; give it those of the observations by `obs_op.at(observations)`, "
                "or build it with interp_obs_from_coords."
            )
        self.check(field)
        return _Interpolation(self.index, self.weight, len(self.axes))

    def _refuse(self, coords: Array, refused: Array) -> None:
        concrete = None if is_traced(refused) else np.asarray(refused)
        if concrete is None or not concrete.any():
            return
        first = int(np.flatnonzero(concrete)[0])
        where = ", ".join(f"{float(c):g}" for c in np.asarray(coords[first]))
        extent = " x ".join(f"[{float(axis.min()):g}, {float(axis.max()):g}]" for axis in self.axes)
        remedy = 'outside="mask" or "clamp"' if self.outside == "error" else "finite positions"
        raise ValueError(
            f"InterpObs: {int(concrete.sum())} of {concrete.size} observations are outside the grid {extent}, the "
            f"first is number {first} at ({where}); pass {remedy}, or name the periodic axes."
        )


def interp_obs_from_coords(
    grid_coords: Grid | Sequence[Any] | ArrayLike,
    obs_coords: ArrayLike | Sequence[Any],
    *,
    order: int = 1,
    periodic: int | Sequence[int] | Mapping[int, float] = (),
    outside: str = "error",
) -> InterpObs:
    """The interpolation from a grid to positions (p, d) that are known; arguments as for `InterpObs`.

    >>> H = interp_obs_from_coords([jnp.arange(0.0, 360.0, 90.0)], [[-45.0], [315.0]], periodic=(0,))
    >>> H(jnp.array([1.0, 0.0, 0.0, 3.0])).tolist()
    [2.0, 2.0]
    """
    return InterpObs(grid_coords, order=order, periodic=periodic, outside=outside).at(obs_coords)


class _Interpolation(eqx.Module):
    """x -> sum_c w_c x[i_c] on the last `ndim` axes. One gather per corner: XLA fuses these, not a sum over an axis."""

    index: Int[Array, "corners p"]
    weight: Float[Array, "corners p"]
    ndim: int = eqx.field(static=True)

    def __call__(self, field: Array) -> Array:
        leading = field.shape[: field.ndim - self.ndim]
        values = field.reshape(*leading, -1)
        weight = self.weight.astype(field.dtype)
        predicted = jnp.zeros((*leading, self.index.shape[1]), field.dtype)
        for corner in range(self.index.shape[0]):
            gathered = values.at[..., self.index[corner]].get(mode="promise_in_bounds")
            predicted = predicted + jnp.broadcast_to(weight[corner], gathered.shape) * gathered
        return predicted


class _Cell(eqx.Module):
    """Where positions are along one axis: between points `lower` and `upper`, `fraction` of the way."""

    lower: Int[Array, "p"]
    upper: Int[Array, "p"]
    fraction: Float[Array, "p"]
    inside: Array


def _locate(axis: Array, position: Array, period: Array | None) -> _Cell:
    dtype = max(axis.dtype, position.dtype, key=lambda each: jnp.finfo(each).bits)
    axis, position, n = axis.astype(dtype), position.astype(dtype), axis.shape[0]
    direction = jnp.where(axis[-1] < axis[0], -1, 1).astype(dtype)
    points, position = direction * axis, direction * position
    if period is not None:
        period = period.astype(dtype)
        position = points[0] + jnp.mod(position - points[0], period)
        points = jnp.concatenate([points, points[:1] + period])
    inside = (position >= points[0]) & (position <= points[-1])
    position = jnp.clip(jnp.where(jnp.isnan(position), points[0], position), points[0], points[-1])
    last = points.shape[0] - 1
    lower = jnp.clip(jnp.searchsorted(points, position, side="right") - 1, 0, max(last - 1, 0))
    upper = jnp.minimum(lower + 1, last)
    width = points[upper] - points[lower]
    fraction = (position - points[lower]) / jnp.where(width > 0, width, 1)
    return _Cell(lower, upper % n, fraction, inside)


@eqx.filter_jit
def _weigh(
    axes: tuple[Array, ...],
    periods: tuple[Array | None, ...],
    coords: Array,
    counted: Array,
    order: int,
    outside: str,
) -> tuple[tuple[Array, Array, Array], Array]:
    """Index, weight and mask of the positions, and which of those that count are refused."""
    cells = [_locate(*each) for each in zip(axes, coords.T, periods, strict=True)]
    inside = jnp.all(jnp.stack([cell.inside for cell in cells]), axis=0)
    usable = ~jnp.any(jnp.isnan(coords), axis=1) if outside == "clamp" else inside
    index, weight = _corners(cells, tuple(axis.shape[0] for axis in axes), order)
    kept = counted & usable
    refused = jnp.zeros_like(kept) if outside == "mask" else counted & ~usable
    weight = jnp.where(kept[None], weight, jnp.where(refused[None], jnp.nan, 0.0))
    return (index, weight.astype(coords.dtype), kept.astype(coords.dtype)), refused


def _corners(cells: list[_Cell], shape: tuple[int, ...], order: int) -> tuple[Array, Array]:
    """Row-major indices and weights of the corners, (corners, p) each."""
    if order == 0:
        nearest = [jnp.where(cell.fraction < 0.5, cell.lower, cell.upper) for cell in cells]
        return _row_major(nearest, shape)[None], jnp.ones_like(cells[0].fraction)[None]
    indices, weights = [], []
    for sides in itertools.product((0, 1), repeat=len(cells)):
        chosen = [cell.upper if side else cell.lower for side, cell in zip(sides, cells, strict=True)]
        parts = [cell.fraction if side else 1 - cell.fraction for side, cell in zip(sides, cells, strict=True)]
        dtype = jnp.result_type(*parts)
        indices.append(_row_major(chosen, shape))
        weights.append(jnp.prod(jnp.stack([part.astype(dtype) for part in parts]), axis=0))
    return jnp.stack(indices), jnp.stack(weights)


def _row_major(indices: list[Array], shape: tuple[int, ...]) -> Array:
    flat = indices[0]
    for index, size in zip(indices[1:], shape[1:], strict=True):
        flat = flat * size + index
    return flat


def _as_axes(grid_coords: Any) -> list[Array]:
    """The axes as arrays; a single one may be given bare."""
    array_of_one = isinstance(grid_coords, jax.Array | np.ndarray) and grid_coords.ndim == 1
    bare = array_of_one or all(np.ndim(axis) == 0 for axis in grid_coords)
    return [jnp.asarray(axis) for axis in ([grid_coords] if bare else grid_coords)]


def _periods(
    axes: tuple[Array, ...], periodic: int | Sequence[int] | Mapping[int, float]
) -> tuple[Float[Array, ""] | None, ...]:
    """The period of each axis, None where it does not close."""
    given = periodic if isinstance(periodic, Mapping) else dict.fromkeys(np.atleast_1d(periodic).tolist())
    periods: list[Array | None] = [None] * len(axes)
    for number, period in given.items():
        if not isinstance(number, int) or not -len(axes) <= number < len(axes):
            raise ValueError(f"InterpObs: `periodic` names axis {number!r}, expected axis numbers below {len(axes)}.")
        axis = axes[number]
        periods[number] = _spacing_period(axis, number) if period is None else _given_period(axis, number, period)
    return tuple(periods)


def _given_period(axis: Array, number: int, period: ArrayLike) -> Array:
    points, length = concrete_values(axis), concrete_values(period)
    if points is not None and length is not None and not float(length) > float(np.ptp(points)):
        raise ValueError(
            f"InterpObs: the period of axis {number} is {float(length):g}, expected more than its extent "
            f"{float(np.ptp(points)):g}; leave out the last point where it repeats the first."
        )
    return jnp.asarray(period, axis.dtype)


def _spacing_period(axis: Array, number: int) -> Array:
    n, points = axis.shape[0], concrete_values(axis)
    steps = np.abs(np.diff(points)) if points is not None else np.ones(1)
    if n < 2 or not np.allclose(steps, steps.mean(), rtol=1e-3, atol=0.0):
        raise ValueError(
            f"InterpObs: axis {number} is not evenly spaced, so its period cannot be read off it; give it as "
            f"periodic={{{number}: period}}."
        )
    return jnp.abs(axis[-1] - axis[0]) * n / (n - 1)
