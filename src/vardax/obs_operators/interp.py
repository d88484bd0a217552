"""Fields are observed at positions between the grid points.

    y_j = sum_c w_jc x[i_jc],    w_jc the product over axes of 1 - f or f

with f the fraction of the way through the cell along an axis, and c the 2^d corners of that cell (order 1,
multilinear), or the one that weighs most (order 0). Corners on land are left out and the others weigh the more. Indices
and weights are computed once, where the positions become known; H is then a gather and a sum, its transpose a
scatter-add, and no matrix is ever built.

Positions come with the operator (`interp_obs_from_coords`) or with the observations
(`InterpObs(grid).at(observations)`). They are traced: as many new positions do not compile again, and what is predicted
has derivatives with respect to them.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Int, PyTree

from vardax.obs_operators.cells import Cell, locate_on_axis, weigh_corners
from vardax.obs_operators.linearisation import as_field
from vardax.obs_operators.module_operator import ModuleLinearOperator, structure_of
from vardax.obs_operators.periods import axis_periods, coordinate_periods
from vardax.obs_operators.quad_search import locate_on_quads
from vardax.obs_operators.quad_table import QuadTable, tabulate
from vardax.types import Grid, float_array, is_traced

__all__ = ["InterpObs", "interp_obs_from_coords"]

OUTSIDE = ("error", "mask", "clamp")


class InterpObs(eqx.Module):
    """H(x) = x interpolated from a grid of one to three axes to scattered positions.

    - `grid_coords`: a `Grid`, or its axes, each increasing or decreasing, evenly spaced or not. They are the last axes
      of the state; earlier ones (variables) are carried along, so y is (*leading, p). Two arrays (H, W) in the place of
      the last two axes are a curvilinear grid: where each of its points lies, so that positions are in their units. A
      `Grid` with a mask has land, which is never read.
    - `order`: 1 multilinear, 0 nearest point.
    - `periodic`: numbers of the axes that close on themselves, evenly spaced, whose period is then n times the spacing
      (longitudes 0, 1, .. 359: 360); or a mapping from axis to period, for any spacing. A `Grid` brings its own. On a
      curvilinear grid a period is that of the coordinate of the same number.
    - `wrap`: a mapping from coordinate to period where positions count modulo it but the axis does not close: a
      regional grid and longitudes of another convention.
    - `outside`: what to do with positions outside the grid: beyond its edges, or in a cell without a corner at sea.
      "error" counts them in a `ValueError` (while tracing nothing can be raised, and they predict NaN); "mask" gives
      them zero weight and a 0 in `mask`, to multiply the mask of the observations with; "clamp" moves those beyond the
      edges to the edge.

    `at` gives the operator its positions: `Observations` (entries that are not valid get zero weight) or an array
    (p, d). Before that it cannot be called.

    >>> H = InterpObs([jnp.array([0.0, 1.0, 2.0])]).at(jnp.array([[0.5], [2.0]]))
    >>> H(jnp.array([10.0, 20.0, 40.0])).tolist()
    [15.0, 40.0]
    """

    axes: tuple[Float[Array, "..."], ...]
    periods: tuple[Float[Array, ""] | None, ...]
    sea: Bool[Array, "..."] | None
    table: QuadTable | None
    index: Int[Array, "corners p"] | None
    weight: Float[Array, "corners p"] | None
    mask: Float[Array, "p"] | None
    shape: tuple[int, ...] = eqx.field(static=True)
    closed: tuple[bool, ...] = eqx.field(static=True)
    order: int = eqx.field(static=True)
    outside: str = eqx.field(static=True)
    linear_by_construction: ClassVar[bool] = True

    def __init__(
        self,
        grid_coords: Grid | Sequence[Any] | ArrayLike,
        *,
        order: int = 1,
        periodic: int | Sequence[int] | Mapping[int, float] = (),
        wrap: Mapping[int, float] | None = None,
        outside: str = "error",
    ):
        grid = grid_coords if isinstance(grid_coords, Grid) else Grid(_as_axes(grid_coords))
        if not 1 <= grid.ndim <= 3:
            raise ValueError(f"InterpObs: `grid_coords` has {grid.ndim} axes, expected one to three.")
        if order not in (0, 1):
            raise ValueError(f"InterpObs: `order` is {order!r}, expected 0 (nearest point) or 1 (multilinear).")
        if outside not in OUTSIDE:
            raise ValueError(f"InterpObs: `outside` is {outside!r}, expected 'error', 'mask' or 'clamp'.")
        closing = grid.periodic if isinstance(periodic, Sequence) and not periodic else periodic
        periods_of = coordinate_periods if grid.curvilinear else axis_periods
        self.axes, self.shape, self.sea = grid.coords, grid.shape, grid.mask
        self.periods, self.closed = periods_of(self.axes, closing, {} if wrap is None else wrap)
        self.table = _table(self.axes, self.periods, self.closed, self.sea) if grid.curvilinear else None
        self.index = self.weight = self.mask = None
        self.order, self.outside = int(order), outside

    def at(self, observations: Any) -> "InterpObs":
        """This operator at the positions of `observations`: an `Observations`, or an array (p, d)."""
        coords = float_array(jnp.asarray(getattr(observations, "coords", observations)))
        coords = coords[:, None] if coords.ndim == 1 and len(self.shape) == 1 else coords
        if coords.ndim != 2 or coords.shape[1] != len(self.shape):
            raise ValueError(
                f"InterpObs: the positions have shape {coords.shape}, expected (p, {len(self.shape)}), one column per "
                "axis of the grid."
            )
        valid = getattr(observations, "valid", None)
        counted = jnp.ones(coords.shape[0], bool) if valid is None else valid != 0
        bound, refused, on_land = _bind(self, coords, counted)
        self._refuse(coords, counted, refused, on_land)
        # Positions that are traced belong to one of many samples: none needs a table of its own.
        table = None if is_traced(coords) else self.table
        fields = lambda op: (op.index, op.weight, op.mask, op.table)  # noqa: E731
        return eqx.tree_at(fields, self, (*bound, table), is_leaf=lambda leaf: leaf is None or leaf is self.table)

    def __call__(self, state: PyTree[Array]) -> Float[Array, "..."]:
        field = as_field(state, "InterpObs")
        return self._interpolation(field)(field)

    def sample_along(self, trajectory: Float[Array, "T ..."], entry: Int[Array, "p"]) -> Float[Array, "..."]:
        """Point j as state `entry[j]` of a stacked trajectory predicts it, and no other."""
        trajectory = as_field(trajectory, "InterpObs")
        return self._interpolation(jax.eval_shape(lambda x: x[0], trajectory)).along(trajectory, entry)

    def linearize(self, state: PyTree[Array]) -> lx.AbstractLinearOperator:
        return ModuleLinearOperator(self._interpolation(as_field(state, "InterpObs")), structure_of(state))

    def check(self, state_structure: Any) -> None:
        """Raise unless the last axes of the state are those of the grid."""
        found, expected = tuple(jnp.shape(state_structure)), self.shape
        if found[max(len(found) - len(expected), 0) :] != expected:
            raise ValueError(
                f"InterpObs: the state has shape {found}, expected (..., {', '.join(map(str, expected))}), the grid's."
            )

    def _interpolation(self, field: Any) -> "_Interpolation":
        if self.index is None or self.weight is None:
            raise ValueError(
                "InterpObs: it has no positions yet; give it those of the observations by `obs_op.at(observations)`, "
                "or build it with interp_obs_from_coords."
            )
        self.check(field)
        return _Interpolation(self.index, self.weight, len(self.shape))

    def _locate(self, coords: Float[Array, "p d"]) -> list[Cell]:
        """For each axis of the grid, between which of its points the positions are."""
        curvilinear = self.axes[-1].ndim == 2
        if curvilinear and self.table is None:
            raise ValueError(
                "InterpObs: this operator got its positions while tracing, and left the table of its curvilinear grid "
                "behind; call `at` of the operator that it was made of."
            )
        axes = self.axes[:-2] if curvilinear else self.axes
        cells = [locate_on_axis(*each) for each in zip(axes, coords.T, self.periods, self.closed, strict=False)]
        if self.table is None:
            return cells
        fields, periods = (self.axes[-2], self.axes[-1]), (self.periods[-2], self.periods[-1])
        return [*cells, *locate_on_quads(self.table, fields, periods, coords[:, -2:], self.outside == "clamp")]

    def _known(self, coords: Float[Array, "p d"]) -> Bool[Array, "p"]:
        """Which positions can be moved to an edge: infinity can, where it has a direction."""
        endless = [period is None and axis.ndim == 1 for axis, period in zip(self.axes, self.periods, strict=True)]
        known = [~jnp.isnan(x) if end else jnp.isfinite(x) for end, x in zip(endless, coords.T, strict=True)]
        return jnp.all(jnp.stack(known), axis=0)

    def _refuse(self, coords: Array, counted: Array, refused: Array, on_land: Array) -> None:
        if is_traced(refused) or not (count := int(np.sum(np.asarray(refused)))):
            return
        where = np.asarray(coords[int(np.argmax(np.asarray(refused)))])
        extents = [(float(np.nanmin(np.asarray(x))), float(np.nanmax(np.asarray(x)))) for x in self.axes]
        land = int(np.sum(np.asarray(on_land)))
        raise ValueError(
            f"InterpObs: {count} of {int(np.sum(np.asarray(counted)))} observations are outside the grid "
            f"{' x '.join(f'[{low:g}, {high:g}]' for low, high in extents)}, the first is number "
            f"{int(np.argmax(np.asarray(refused)))} at ({', '.join(f'{float(c):g}' for c in where)})"
            f"{f'; {land} of them are on land, without a corner at sea' if land else ''}; pass {self._remedy(land)}."
        )

    def _remedy(self, land: int) -> str:
        if self.outside == "clamp":
            return "positions at sea, or mask these" if land else "finite positions"
        if land:
            return 'outside="mask"'
        closing = "a period (`periodic` or `wrap`)" if self.table is not None else "the periodic axes"
        return f'outside="mask" or "clamp", or name {closing}'


def interp_obs_from_coords(
    grid_coords: Grid | Sequence[Any] | ArrayLike,
    obs_coords: ArrayLike | Sequence[Any],
    *,
    order: int = 1,
    periodic: int | Sequence[int] | Mapping[int, float] = (),
    wrap: Mapping[int, float] | None = None,
    outside: str = "error",
) -> InterpObs:
    """The interpolation from a grid to positions (p, d) that are known; arguments as for `InterpObs`.

    >>> H = interp_obs_from_coords([jnp.arange(0.0, 360.0, 90.0)], [[-45.0], [315.0]], periodic=(0,))
    >>> H(jnp.array([1.0, 0.0, 0.0, 3.0])).tolist()
    [2.0, 2.0]
    """
    return InterpObs(grid_coords, order=order, periodic=periodic, wrap=wrap, outside=outside).at(obs_coords)


class _Interpolation(eqx.Module):
    """x -> sum_c w_c x[i_c] on the last `ndim` axes. One gather per corner: XLA fuses these, not a sum over an axis."""

    index: Int[Array, "corners p"]
    weight: Float[Array, "corners p"]
    ndim: int = eqx.field(static=True)

    def __call__(self, field: Array) -> Array:
        values = field.reshape(*field.shape[: field.ndim - self.ndim], -1)
        return self._sum(lambda index: values.at[..., index].get(mode="promise_in_bounds"), field.dtype)

    def along(self, trajectory: Array, entry: Int[Array, "p"]) -> Array:
        """The same, with point j read off the state number `entry[j]` of (T, *state).

        Time and space are one axis for this: scattering to two is several times slower.
        """
        by_state = jnp.moveaxis(trajectory, 0, trajectory.ndim - self.ndim - 1)
        values = by_state.reshape(*by_state.shape[: by_state.ndim - self.ndim - 1], -1)
        if values.shape[-1] > jnp.iinfo(jnp.int32).max:
            raise ValueError(
                f"InterpObs: the trajectory has {values.shape[-1]} points, more than an index of 32 bits can tell "
                "apart; split the window."
            )
        first = entry.astype(jnp.int32) * (values.shape[-1] // trajectory.shape[0])
        gather = lambda index: values.at[..., first + index].get(mode="promise_in_bounds")  # noqa: E731
        return self._sum(gather, trajectory.dtype)

    def _sum(self, gather: Any, dtype: Any) -> Array:
        values = [gather(index) for index in self.index]
        weights = [jnp.broadcast_to(w, v.shape) for w, v in zip(self.weight.astype(dtype), values, strict=True)]
        predicted = functools.reduce(jnp.add, [w * v for w, v in zip(weights, values, strict=True)])
        # Taken entry by entry, so that the adjoint has it in memory before it is scattered to the corners. XLA on CPU
        # would compute a residual again for each corner (a gradient with 100,000 points takes up to 17 times longer).
        order = jnp.arange(predicted.shape[-1])
        return predicted.at[..., order].get(mode="promise_in_bounds", indices_are_sorted=True, unique_indices=True)


@eqx.filter_jit
def _bind(
    op: InterpObs, coords: Float[Array, "p d"], counted: Bool[Array, "p"]
) -> tuple[tuple[Array, Array, Array], Array, Array]:
    """Index, weight and mask of the positions; which of those that count are refused, and which of these for land."""
    cells = op._locate(coords)
    corners = weigh_corners(cells, op.shape, op.order, op.sea)
    within = jnp.all(jnp.stack([cell.inside for cell in cells]), axis=0)
    if op.outside == "clamp":
        within = op._known(coords)
    usable = within & corners.at_sea
    kept, refused = counted & usable, counted & ~usable
    refused = jnp.zeros_like(refused) if op.outside == "mask" else refused
    weight = jnp.where(kept[None], corners.weight, jnp.where(refused[None], jnp.nan, 0.0))
    bound = (corners.index, weight.astype(coords.dtype), kept.astype(coords.dtype))
    return bound, refused, refused & within


def _table(
    axes: tuple[Array, ...], periods: tuple[Array | None, ...], closed: tuple[bool, ...], sea: Array | None
) -> QuadTable:
    """The look-up table of a curvilinear grid, whose points have to be known."""
    if any(is_traced(x) for x in (*axes[-2:], sea)):
        raise TypeError(
            "InterpObs: the points of the curvilinear grid are traced, and its cells are tabulated when the operator "
            "is made; make it outside jit, vmap and grad, and pass it in."
        )
    shape = axes[-1].shape
    columns = None if sea is None else np.any(np.asarray(sea).reshape(-1, *shape), axis=0)
    fields = (np.asarray(axes[-2]), np.asarray(axes[-1]))
    table = tabulate(fields, (periods[-2], periods[-1]), (closed[-2], closed[-1]), columns)
    if table is None:
        raise ValueError(
            f"InterpObs: no cell of the curvilinear grid of shape {shape} can hold a position; expected at least one "
            "between 2 x 2 neighbouring points, convex, and with a corner at sea."
        )
    return table


def _as_axes(grid_coords: Any) -> list[Array]:
    """The axes as arrays; a single one may be given bare."""
    array_of_one = isinstance(grid_coords, jax.Array | np.ndarray) and grid_coords.ndim == 1
    bare = array_of_one or all(np.ndim(axis) == 0 for axis in grid_coords)
    return [jnp.asarray(axis) for axis in ([grid_coords] if bare else grid_coords)]
