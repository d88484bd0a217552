"""What every stage of an assimilation receives and returns.

Observations come in as a *batch* on a grid (`Batch1D`, `Batch2D`, `Batch2DMultivar`, `Batch3D`) or as a list of points
(`Observations`). `Grid` carries the geometry. A method returns an `Analysis`: the state, what it cost, whether it
converged, and what a posterior or a warm start can use again.

One rule holds for all containers: a missing or non-finite entry never reaches the algebra. The effective mask is
`mask & isfinite(input)`, and the input is zero where that mask is zero, so `0 * nan` is never computed.
"""

import enum
from collections.abc import Sequence
from typing import Any, ClassVar, TypeAlias, TypeVar

import equinox as eqx
import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Int, PyTree

__all__ = [
    "AbstractBatch",
    "AbstractLSTMState",
    "Analysis",
    "Batch1D",
    "Batch2D",
    "Batch2DMultivar",
    "Batch3D",
    "ConvergenceError",
    "ConvergenceWarning",
    "CostSummary",
    "CostTerms",
    "Grid",
    "History",
    "LSTMState1D",
    "LSTMState2D",
    "LSTMState3D",
    "Observations",
    "Status",
    "as_grid",
    "concrete_values",
    "float_array",
    "is_traced",
    "observed_entries",
]

BatchT = TypeVar("BatchT", bound="AbstractBatch")
LSTMStateT = TypeVar("LSTMStateT", bound="AbstractLSTMState")

ArrayData: TypeAlias = ArrayLike | Sequence[Any]
"""What becomes an array: an array of JAX or numpy, a number, or nested sequences of numbers."""

VALUE_CHECK_LIMIT = 10**6
"""Values (signs, finiteness) are checked when they are concrete and have fewer entries than this."""


def float_array(x: ArrayData, dtype: Any = None) -> Array:
    """`x` as an inexact JAX array: its own float dtype, or JAX's default float for integers and bools."""
    x = jnp.asarray(x, dtype=dtype)
    return x if jnp.issubdtype(x.dtype, jnp.inexact) else x.astype(jnp.result_type(float))


def is_traced(x: Any) -> bool:
    """Whether `x` has no value yet: it is inside `jit`, `vmap` or `grad`."""
    return isinstance(x, jax.core.Tracer)


def concrete_values(x: ArrayData) -> np.ndarray | None:
    """The values of `x` for a check, or None while tracing or when there are too many to look at."""
    if is_traced(x) or np.size(x) >= VALUE_CHECK_LIMIT:
        return None
    return np.asarray(x)


def _namespace(*arrays: Any) -> Any:
    """numpy where all arrays are numpy's, jax.numpy otherwise."""
    return np if all(isinstance(array, np.ndarray) for array in arrays) else jnp


def observed_entries(values: Any, mask: ArrayData | None = None) -> tuple[Any, Any]:
    """Zero-filled values and the effective mask `mask & isfinite(values)`, both in the float dtype of `values`."""
    xp = _namespace(values) if mask is None else _namespace(values, mask)
    observed = xp.isfinite(values)
    if mask is not None:
        observed = observed & xp.asarray(mask).astype(bool)
    return xp.where(observed, values, xp.zeros_like(values)), observed.astype(values.dtype)


def _check_shape(owner: str, field: str, found: tuple[int, ...], expected: tuple[int, ...], meaning: str) -> None:
    if tuple(found) != tuple(expected):
        raise ValueError(f"{owner}: `{field}` has shape {tuple(found)}, expected {tuple(expected)} ({meaning}).")


def _check_real(owner: str, field: str, values: Array | np.ndarray) -> None:
    if not jnp.issubdtype(values.dtype, jnp.floating):
        raise TypeError(f"{owner}: `{field}` has dtype {values.dtype}, expected real numbers.")


def _check_mask(owner: str, field: str, mask: Array | np.ndarray) -> None:
    values = concrete_values(mask)
    bad = 0 if values is None else int(np.sum((values != 0) & (values != 1)))
    if bad:
        raise ValueError(f"{owner}: `{field}` must be 1 (observed) or 0 (missing); found {bad} other entries.")


def _check_positive(owner: str, field: str, values: ArrayData, where: ArrayData | None = None) -> None:
    concrete = concrete_values(values)
    if concrete is None:
        return
    chosen = np.asarray(where) != 0 if where is not None and concrete_values(where) is not None else True
    bad = int(np.sum(chosen & ~(concrete > 0)))
    if bad:
        raise ValueError(f"{owner}: `{field}` must be positive; found {bad} entries that are zero, negative or NaN.")


def _instrument_count(owner: str, instrument: Array | np.ndarray | None, n_instruments: int | None) -> int:
    if instrument is None:
        return 1 if n_instruments is None else n_instruments
    if not jnp.issubdtype(instrument.dtype, jnp.integer):
        raise TypeError(f"{owner}: `instrument` has dtype {instrument.dtype}, expected integer ids.")
    concrete = concrete_values(instrument)
    if n_instruments is None and concrete is None:
        raise ValueError(
            f"{owner}: `instrument` is traced or very large, so the number of instruments cannot be read from it; "
            "pass `n_instruments`."
        )
    if concrete is not None and concrete.size and concrete.min() < 0:
        raise ValueError(f"{owner}: `instrument` must hold ids 0, 1, ...; found {int(concrete.min())}.")
    needed = 1 + int(concrete.max()) if concrete is not None and concrete.size else 1
    if n_instruments is not None and concrete is not None and needed > n_instruments:
        raise ValueError(f"{owner}: `instrument` has id {needed - 1}, but n_instruments={n_instruments}.")
    return needed if n_instruments is None else n_instruments


class AbstractBatch(eqx.Module):
    """B samples of T time entries on a grid, with gaps.

    - `input`: the observed values, zero where not observed.
    - `mask`: 1 observed, 0 missing, in the dtype of `input`.
    - `target`: the truth, where it is known (training, scores).
    - `obs_err`: standard deviation of each entry; replaces the standard deviations of R and keeps its correlations.
    - `instrument`: integer id of each entry; splits the observation cost in reports.
    - `times`: model time of each time entry.

    The time axis may be left out (`(B, *obs)`) for the single-time methods.
    """

    input: Float[Array, "..."]
    mask: Float[Array, "..."]
    target: Float[Array, "..."] | None
    obs_err: Float[Array, "..."] | None
    instrument: Int[Array, "..."] | None
    times: Float[Array, "..."] | None
    n_instruments: int = eqx.field(static=True)

    axes: eqx.AbstractClassVar[tuple[str, ...]]

    def __init__(
        self,
        input: ArrayData,
        mask: ArrayData,
        target: ArrayData | None = None,
        *,
        obs_err: ArrayData | None = None,
        instrument: ArrayData | None = None,
        times: ArrayData | None = None,
        n_instruments: int | None = None,
    ):
        name, values = type(self).__name__, float_array(input)
        allowed = (len(self.axes), len(self.axes) - 1)
        if values.ndim not in allowed:
            raise ValueError(
                f"{name}: `input` has shape {values.shape}, expected {len(self.axes)} axes ({', '.join(self.axes)}), "
                f"or {allowed[1]} without the time axis."
            )
        _check_real(name, "input", values)
        mask = jnp.asarray(mask)
        _check_shape(name, "mask", mask.shape, values.shape, "the shape of `input`")
        _check_mask(name, "mask", mask)
        self.input, self.mask = observed_entries(values, mask)
        self.target = None if target is None else float_array(target)
        if self.target is not None and self.target.shape[:1] != values.shape[:1]:
            raise ValueError(
                f"{name}: `target` has shape {self.target.shape}, expected {values.shape[0]} samples on its first axis."
            )
        self.obs_err = None if obs_err is None else float_array(obs_err).astype(values.dtype)
        self.instrument = None if instrument is None else jnp.asarray(instrument)
        for field, array in (("obs_err", self.obs_err), ("instrument", self.instrument)):
            if array is not None:
                _check_shape(name, field, array.shape, values.shape, "the shape of `input`")
        if self.obs_err is not None:
            _check_positive(name, "obs_err", self.obs_err, self.mask)
            self.obs_err = jnp.where(self.mask != 0, self.obs_err, jnp.ones_like(self.obs_err))
        self.n_instruments = _instrument_count(name, self.instrument, n_instruments)
        self.instrument = None if self.instrument is None else self.instrument.astype(jnp.int32)
        self.times = None if times is None else float_array(times)
        if self.times is not None:
            entries = values.shape[1] if values.ndim == len(self.axes) else 1
            _check_shape(name, "times", self.times.shape, (entries,), "one per time entry")

    @classmethod
    def from_observations(cls: type[BatchT], y: ArrayData, target: ArrayData | None = None, **fields: Any) -> BatchT:
        """A batch whose gaps are the NaNs (and infinities) of `y`.

        >>> Batch1D.from_observations([[[1.0, float("nan")]]]).mask
        Array([[[1., 0.]]], dtype=float32)
        """
        values = float_array(y)
        return cls(values, jnp.isfinite(values), target, **fields)

    @property
    def n_samples(self) -> int:
        return self.input.shape[0]

    def sample(self: BatchT, index: int) -> BatchT:
        """One sample without the batch axis, as `analyse_one` takes it."""
        per_sample = eqx.tree_at(lambda b: b.times, self, None, is_leaf=lambda x: x is None)
        picked = jax.tree.map(lambda a: a[index], per_sample)
        return eqx.tree_at(lambda b: b.times, picked, self.times, is_leaf=lambda x: x is None)


class Batch1D(AbstractBatch):
    """Fields on one axis: `input` (B, T, N), or (B, N) for the single-time methods."""

    axes: ClassVar[tuple[str, ...]] = ("B", "T", "N")


class Batch2D(AbstractBatch):
    """Fields on two axes: `input` (B, T, H, W), or (B, H, W)."""

    axes: ClassVar[tuple[str, ...]] = ("B", "T", "H", "W")


class Batch2DMultivar(AbstractBatch):
    """Several variables on two axes: `input` (B, T, C, H, W), or (B, C, H, W)."""

    axes: ClassVar[tuple[str, ...]] = ("B", "T", "C", "H", "W")


class Batch3D(AbstractBatch):
    """Fields on three axes: `input` (B, T, D, H, W), or (B, D, H, W)."""

    axes: ClassVar[tuple[str, ...]] = ("B", "T", "D", "H", "W")


class Observations(eqx.Module):
    """p observations that are not on a grid: tracks, soundings, stations.

    `value`, `error` (standard deviation), `time`, `instrument` and `valid` are (p,), `coords` is (p, d). `start` is the
    model time at which a window that holds them begins (`window` sets it; None is 0). All are traced leaves, so new
    positions of the same count do not compile again. Methods fill up counts to a few sizes by themselves; `pad_to`
    chooses other ones, and `padded` says that the count is to stay as it is.
    """

    value: Float[Array, "p"]
    error: Float[Array, "p"]
    time: Float[Array, "p"]
    coords: Float[Array, "p d"]
    instrument: Int[Array, "p"]
    valid: Float[Array, "p"]
    aux: dict[str, Array]
    start: Float[Array, ""]
    n_instruments: int = eqx.field(static=True)
    padded: bool = eqx.field(static=True)

    def __init__(
        self,
        value: ArrayData,
        error: ArrayData,
        time: ArrayData,
        coords: ArrayData,
        instrument: ArrayData | None = None,
        valid: ArrayData | None = None,
        aux: dict[str, ArrayData] | None = None,
        *,
        start: ArrayData | None = None,
        n_instruments: int | None = None,
        padded: bool = False,
    ):
        values = _numbers(value)
        if values.ndim != 1:
            raise ValueError(f"Observations: `value` has shape {values.shape}, expected (p,), one value a point.")
        _check_real("Observations", "value", values)
        p, dtype = values.shape[0], values.dtype
        ones = np.ones(p, dtype=bool)
        per_point = {
            "error": _on_each(_numbers(error).astype(dtype), p),
            "time": _on_each(_numbers(time), p),
            "instrument": np.zeros(p, dtype=np.int32) if instrument is None else _at_hand(instrument),
            "valid": ones if valid is None else _at_hand(valid),
        }
        for field, array in per_point.items():
            _check_shape("Observations", field, array.shape, (p,), "one per point")
        _check_mask("Observations", "valid", per_point["valid"])
        self.value, self.valid = map(jax.device_put, observed_entries(values, per_point["valid"]))
        self.error, self.time = jax.device_put(per_point["error"]), jax.device_put(per_point["time"])
        begin = _numbers(0.0 if start is None else start).astype(self.time.dtype)
        _check_shape("Observations", "start", begin.shape, (), "one time")
        self.start, self.padded = jax.device_put(begin), padded
        self.coords = jax.device_put(_numbers(coords).astype(dtype))
        if self.coords.ndim != 2 or self.coords.shape[0] != p:
            raise ValueError(f"Observations: `coords` has shape {self.coords.shape}, expected ({p}, d).")
        self.aux = {key: jax.device_put(_at_hand(array)) for key, array in (aux or {}).items()}
        for key, array in self.aux.items():
            if array.shape[:1] != (p,):
                raise ValueError(f"Observations: `aux[{key!r}]` has shape {array.shape}, expected ({p}, ...).")
        _check_positive("Observations", "error", self.error, self.valid)
        self.n_instruments = _instrument_count("Observations", per_point["instrument"], n_instruments)
        self.instrument = jax.device_put(per_point["instrument"].astype(np.int32))

    def _with_arrays(self, change: Any, **fields: Any) -> "Observations":
        """Every per-point array replaced by `change(array, name)`, on the host: a new count compiles nothing."""
        arrays = {name: change(_at_hand(getattr(self, name)), name) for name in ("value", "error", "time", "coords")}
        arrays |= {name: change(_at_hand(getattr(self, name)), name) for name in ("instrument", "valid")}
        aux = {key: change(_at_hand(array), key) for key, array in self.aux.items()}
        kept = {"start": self.start, "n_instruments": self.n_instruments}
        return Observations(**arrays, aux=aux, **(kept | fields))

    def window(self, t0: ArrayData, t1: ArrayData) -> "Observations":
        """The observations with t0 <= time < t1, of a window that starts at t0.

        While tracing the length stays and the others become invalid.
        """
        time, start, end = (_at_hand(t) for t in (self.time, t0, t1))
        inside = (time >= start) & (time < end)
        if is_traced(inside):
            begin = float_array(start).astype(self.time.dtype)
            chosen = self.valid * inside.astype(self.valid.dtype)
            return eqx.tree_at(lambda o: (o.valid, o.start), self, (chosen, begin))
        chosen = np.flatnonzero(inside)
        return self._with_arrays(lambda array, name: array[chosen], start=t0)

    def pad_to(self, bucket: int | Sequence[int]) -> "Observations":
        """Fill up with invalid points to `bucket` points, or to the smallest of several buckets that fits.

        A method takes the result as it is, and compiles once for each count that it is given.
        """
        p = self.value.shape[0]
        sizes = sorted([bucket] if isinstance(bucket, int) else bucket)
        size = next((s for s in sizes if s >= p), None)
        if size is None:
            raise ValueError(
                f"Observations.pad_to: {p} observations do not fit in `bucket` {sizes}; give a larger one."
            )
        fills = {"value": 0, "error": 1, "valid": 0}

        def pad(array: Array | np.ndarray, name: str) -> Array | np.ndarray:
            width = [(0, size - p)] + [(0, 0)] * (array.ndim - 1)
            pads = _namespace(array).pad
            if name in fills or p == 0:
                return pads(array, width, constant_values=fills.get(name, 0))
            return pads(array, width, mode="edge")  # a position that exists, so inside the domain

        return self._with_arrays(pad, padded=True)


def _at_hand(x: ArrayData) -> Array | np.ndarray:
    """`x` as a numpy array unless it is traced: what is done with it then compiles nothing."""
    if any(is_traced(part) for part in jax.tree.leaves(x)):
        return jnp.asarray(x)
    x = np.asarray(x)
    return x.astype(jax.dtypes.canonicalize_dtype(x.dtype))  # a copy: the caller may change his array later


def _numbers(x: ArrayData) -> Array | np.ndarray:
    """`float_array`, as a numpy array unless it is traced."""
    x = _at_hand(x)
    return x if jnp.issubdtype(x.dtype, jnp.inexact) else x.astype(jnp.result_type(float))


def _on_each(x: Array | np.ndarray, p: int) -> Array | np.ndarray:
    """One value a point, where a single one serves all."""
    return _namespace(x).broadcast_to(x, (p,)) if x.ndim == 0 else x


class Grid(eqx.Module):
    """Geometry of a field: where its cells are, how large they are, which are active, which axes close on themselves.

    `coords` holds one 1-D axis per dimension. On a curvilinear grid its last two entries are arrays (H, W), where each
    point of the last two axes lies (its latitude and longitude, say). `mask` is 1 where the grid has a cell and 0 on
    land. `periodic` names the axes (by number) that wrap around. A bare shape is accepted wherever a grid is
    (`as_grid`): unit spacing.

    `cell_size` has an entry for each axis: a number, one per cell of the axis, or a field. Unless given it is in the
    units of `coords`: the step of an axis (one per cell where steps differ), the distance between neighbours (H, W) on
    a curvilinear grid. `area` is the size of each cell (in three dimensions its volume), the product of these unless
    given. `Grid.latlon` has both in metres.
    """

    coords: tuple[Float[Array, "..."], ...]
    cell_size: tuple[Float[Array, "..."], ...]
    area: Float[Array, "..."] | None
    mask: Bool[Array, "..."] | None
    periodic: tuple[int, ...] = eqx.field(static=True)
    shape: tuple[int, ...] = eqx.field(static=True)

    def __init__(
        self,
        coords: Sequence[ArrayData],
        *,
        cell_size: Sequence[ArrayData] | None = None,
        area: ArrayData | None = None,
        mask: ArrayData | None = None,
        periodic: Sequence[int] = (),
    ):
        self.coords = tuple(float_array(axis) for axis in coords)
        self.shape = _grid_shape(self.coords)
        ndim = len(self.shape)
        if cell_size is not None and len(cell_size) != ndim:
            raise ValueError(f"Grid: `cell_size` has {len(cell_size)} entries, expected {ndim}, one per axis.")
        self.cell_size = tuple(map(float_array, _steps_of(self.coords) if cell_size is None else cell_size))
        for number, size in enumerate(() if cell_size is None else self.cell_size):
            _check_positive("Grid", f"cell_size[{number}]", size)
        self.area = None if area is None else float_array(area)
        self.mask = None if mask is None else jnp.asarray(mask).astype(bool)
        for field, array in (("area", self.area), ("mask", self.mask)):
            if array is not None:
                _check_shape("Grid", field, array.shape, self.shape, "the shape of the grid")
        if any(not -ndim <= axis < ndim for axis in periodic):
            raise ValueError(f"Grid: `periodic` is {tuple(periodic)}, expected axis numbers below {ndim}.")
        self.periodic = tuple(sorted({axis % ndim for axis in periodic}))
        _check_positions_of_cells(self)

    @classmethod
    def latlon(
        cls,
        latitude: ArrayData,
        longitude: ArrayData,
        *,
        radius: float = 6.371e6,
        mask: ArrayData | None = None,
        periodic: Sequence[int] | None = None,
    ) -> "Grid":
        """Cells on a sphere, positions in degrees, sizes and areas in the unit of `radius` (metres on the Earth).

        `latitude` (H,) and `longitude` (W,), or both (H, W) on a curvilinear grid, whose axes should be orthogonal. An
        axis of longitudes that goes all around is periodic; on a curvilinear grid `periodic` says so.

        >>> Grid.latlon([0.0, 60.0], jnp.arange(0.0, 360.0, 90.0), radius=1.0).periodic
        (1,)
        """
        latitude, longitude = float_array(latitude), float_array(longitude)
        _grid_shape((latitude, longitude))
        fields = {"mask": mask, "periodic": _closing_axes(longitude) if periodic is None else periodic}
        if longitude.ndim == 2:
            sizes = [radius * _arc(latitude, longitude, axis) for axis in (0, 1)]
            return cls([latitude, longitude], cell_size=sizes, **fields)
        north, south = _edges(latitude)
        height = jnp.deg2rad(jnp.abs(north - south))[:, None]
        chord = jnp.abs(jnp.sin(jnp.deg2rad(north)) - jnp.sin(jnp.deg2rad(south)))[:, None]
        width = jnp.deg2rad(jnp.abs(_slope(longitude, 0)))[None, :]
        sizes = [radius * height[:, 0], radius * width * chord / height]
        return cls([latitude, longitude], cell_size=sizes, area=radius**2 * width * chord, **fields)

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def curvilinear(self) -> bool:
        """Whether the last two coordinates are arrays (H, W) instead of axes."""
        return self.coords[-1].ndim == 2

    @property
    def spacing(self) -> tuple[Float[Array, ""], ...]:
        """The distance between neighbouring cells along each axis (the mean one where it varies)."""
        return tuple(jnp.mean(size) for size in self.cell_size)


def _grid_shape(coords: tuple[Array, ...]) -> tuple[int, ...]:
    """The shape of the grid: 1-D axes, of which the last two may be replaced by two arrays (H, W)."""
    if not coords:
        raise ValueError("Grid: `coords` is empty, expected one axis per dimension.")
    fields = coords[-2:] if len(coords) > 1 and coords[-2].ndim == coords[-1].ndim == 2 else ()
    if fields and (fields[0].shape != fields[1].shape or 0 in fields[1].shape):
        raise ValueError(
            f"Grid: the last two `coords` have shapes {fields[0].shape} and {fields[1].shape}, expected one shape "
            "(H, W), the positions of the cells of a curvilinear grid."
        )
    axes = coords[: len(coords) - len(fields)]
    for number, axis in enumerate(axes):
        if axis.ndim != 1 or axis.shape[0] == 0:
            raise ValueError(f"Grid: `coords[{number}]` has shape {axis.shape}, expected a 1-D axis with cells.")
        points = concrete_values(axis)
        if points is not None and points.size > 1 and not (np.all(np.diff(points) > 0) or np.all(np.diff(points) < 0)):
            raise ValueError(f"Grid: `coords[{number}]` must increase or decrease throughout.")
    return (*(axis.shape[0] for axis in axes), *(fields[0].shape if fields else ()))


def _steps_of(coords: tuple[Array, ...]) -> list[Array]:
    """Cell sizes in the units of `coords`: the steps of each axis, distances (H, W) on a curvilinear grid."""
    if coords[-1].ndim == 1:
        return [_steps(axis) for axis in coords]
    slopes = [[_slope(field, axis) for field in coords[-2:]] for axis in (0, 1)]
    return [*map(_steps, coords[:-2]), *(jnp.hypot(*slope) for slope in slopes)]


def _steps(axis: Array) -> Array:
    """One number where steps are equal to 0.1 %, otherwise (and for positions without values) one per cell."""
    points = concrete_values(axis)
    if axis.shape[0] > 1 and (points is None or np.ptp(np.diff(points)) > 1e-3 * abs(points[1] - points[0])):
        return jnp.abs(_slope(axis, 0))
    return jnp.abs(axis[-1] - axis[0]) / (axis.shape[0] - 1) if axis.shape[0] > 1 else jnp.ones((), axis.dtype)


def _slope(field: Array, axis: int) -> Array:
    return jnp.asarray(jnp.gradient(field, axis=axis)) if field.shape[axis] > 1 else jnp.ones_like(field)


def _edges(latitude: Array) -> tuple[Array, Array]:
    """The edges of cells, half-way between latitudes and not beyond the poles, the larger one first."""
    half = jnp.abs(_slope(latitude, 0)) / 2
    return jnp.minimum(latitude + half, 90.0), jnp.maximum(latitude - half, -90.0)


def _arc(latitude: Array, longitude: Array, axis: int) -> Array:
    """The angle between neighbours on a sphere, in radians; longitudes may jump by a full turn."""
    turns = jnp.cumsum(
        jnp.round(jnp.diff(longitude, axis=axis, prepend=longitude.take(jnp.array([0]), axis)) / 360), axis
    )
    north, east = _slope(latitude, axis), _slope(longitude - 360 * turns, axis)
    return jnp.deg2rad(jnp.hypot(north, jnp.cos(jnp.deg2rad(latitude)) * east))


def _closing_axes(longitude: Array) -> tuple[int, ...]:
    """(1,) for an axis of longitudes on which the step from the last to the first is like the others."""
    points = concrete_values(longitude)
    if points is None or points.ndim != 1 or points.size < 2:
        return ()
    steps = np.abs(np.diff(points))
    return (1,) if abs(steps.sum() + steps.mean() - 360) < 0.01 * steps.mean() else ()


def _check_positions_of_cells(grid: "Grid") -> None:
    """Land may lie anywhere; a cell of a curvilinear grid has a position."""
    fields = [concrete_values(field) for field in grid.coords[-2:]] if grid.curvilinear else []
    mask = concrete_values(np.ones(1, bool) if grid.mask is None else grid.mask)
    known = [field for field in fields if field is not None]
    if mask is None or not fields or len(known) < len(fields):
        return
    if bad := int(np.sum(~np.all(np.isfinite(np.stack(known)), axis=0) & mask)):
        raise ValueError(f"Grid: {bad} cells have a position in `coords` that is not finite; mask them, if on land.")


def as_grid(shape_or_grid: "int | Sequence[int] | Grid") -> Grid:
    """A grid as it is, or unit-spaced cells for a bare shape."""
    if isinstance(shape_or_grid, Grid):
        return shape_or_grid
    shape = (shape_or_grid,) if isinstance(shape_or_grid, int) else tuple(shape_or_grid)
    if not shape or any(int(n) != n or n < 1 for n in shape):
        raise ValueError(f"`shape` is {shape_or_grid!r}, expected positive whole numbers, one per axis, or a Grid.")
    return Grid([jnp.arange(int(n), dtype=jnp.result_type(float)) for n in shape])


class Status(enum.IntEnum):
    """Why a minimisation stopped, the worse the larger. `Status(int(analysis.status)).words` says it in words."""

    COMPLETED = -1
    CONVERGED = 0
    MAX_STEPS = 1
    STALLED = 2
    NON_FINITE = 3

    @property
    def words(self) -> str:
        return {
            Status.COMPLETED: "made all the steps that a learned solver makes, which end by number",
            Status.CONVERGED: "converged: the gradient norm is below the tolerance",
            Status.MAX_STEPS: "stopped at max_steps before the tolerance was reached",
            Status.STALLED: "stalled: no step decreases the cost further, and the gradient norm is above the tolerance",
            Status.NON_FINITE: "met a non-finite cost; the best finite iterate is returned",
        }[self]


class CostTerms(eqx.Module):
    """The terms of J at one iterate: background, observations by instrument, model error, what is estimated jointly
    with the state, and further terms. Those that a problem does not have are zero."""

    J_b: Float[Array, "..."]
    J_o_by_instrument: Float[Array, "... instruments"]
    J_q: Float[Array, "..."]
    J_theta: Float[Array, "..."]
    J_c: Float[Array, "..."]

    def __init__(
        self,
        J_b: Float[Array, "..."],
        J_o_by_instrument: Float[Array, "... instruments"],
        J_q: Float[Array, "..."],
        J_theta: Float[Array, "..."] | None = None,
        J_c: Float[Array, "..."] | None = None,
    ):
        self.J_b, self.J_o_by_instrument, self.J_q = J_b, J_o_by_instrument, J_q
        self.J_theta = jnp.zeros_like(J_b) if J_theta is None else J_theta
        self.J_c = jnp.zeros_like(J_b) if J_c is None else J_c

    @property
    def J_o(self) -> Float[Array, "..."]:
        return jnp.sum(self.J_o_by_instrument, axis=-1)

    @property
    def total(self) -> Float[Array, "..."]:
        return self.J_b + self.J_o + self.J_q + self.J_theta + self.J_c


class CostSummary(eqx.Module):
    """J at the first and at the last iterate."""

    first: CostTerms
    last: CostTerms


class History(eqx.Module):
    """The terms of J and its gradient norm at each iteration, in arrays of fixed length that are NaN after the last
    iteration."""

    J_b: Float[Array, "... steps"]
    J_o: Float[Array, "... steps instruments"]
    J_q: Float[Array, "... steps"]
    gradient_norm: Float[Array, "... steps"]
    J_theta: Float[Array, "... steps"]
    J_c: Float[Array, "... steps"]

    def __init__(
        self,
        J_b: Float[Array, "... steps"],
        J_o: Float[Array, "... steps instruments"],
        J_q: Float[Array, "... steps"],
        gradient_norm: Float[Array, "... steps"],
        J_theta: Float[Array, "... steps"] | None = None,
        J_c: Float[Array, "... steps"] | None = None,
    ):
        self.J_b, self.J_o, self.J_q, self.gradient_norm = J_b, J_o, J_q, gradient_norm
        self.J_theta = jnp.zeros_like(J_b) if J_theta is None else J_theta
        self.J_c = jnp.zeros_like(J_b) if J_c is None else J_c

    @classmethod
    def of(cls, terms: CostTerms, gradient_norm: Float[Array, "... steps"]) -> "History":
        """Iterations whose terms are stacked on the last axis but that of the instruments."""
        return cls(terms.J_b, terms.J_o_by_instrument, terms.J_q, gradient_norm, terms.J_theta, terms.J_c)

    @property
    def total(self) -> Float[Array, "... steps"]:
        return self.J_b + jnp.sum(self.J_o, axis=-1) + self.J_q + self.J_theta + self.J_c


class Analysis(eqx.Module):
    """What a method found.

    `state` is the analysis: the state, or a tuple of it and what is estimated besides (model errors, joint control).
    `trajectory` is its evolution over the window (4D methods), `control` the control vector chi at the analysis (hand
    it on as `warm_start`). `converged` means that the gradient norm in control space is at most
    `tol * max(1, its value at the background)`; `status` says why the iteration stopped. `memory` says what the
    differentiated model run keeps (4D methods). `krylov` is the Lanczos record of the last Hessian (incremental
    method). `latent` is z* (latent methods), the latent vector that decodes to the state; their control is chi*, with
    z* = z_b + B_z^{1/2} chi*. `residual` is the last step of a learned solver relative to the state (4DVarNet).
    """

    state: PyTree[Array]
    control: PyTree[Array]
    cost: CostSummary
    n_iterations: Int[Array, "..."]
    converged: Bool[Array, "..."]
    status: Int[Array, "..."]
    history: History
    gradient_norm: Float[Array, "..."]
    trajectory: PyTree[Array] | None = None
    krylov: Any = None
    latent: PyTree[Array] | None = None
    residual: Float[Array, "..."] | None = None
    memory: str = eqx.field(static=True, default="")

    def message(self) -> str:
        """The status in words (outside jit); the worst one of a batch."""
        status = Status(int(np.max(np.asarray(self.status))))
        reached = float(np.max(np.asarray(self.gradient_norm)))
        return f"{status.words} (iterations {int(np.max(np.asarray(self.n_iterations)))}, gradient norm {reached:.3g})"


class AbstractLSTMState(eqx.Module):
    """The memory of a convolutional LSTM between two iterations: output `h` and cell `c`.

    Both are (*space, hidden), with the hidden channels as the last axis; (*groups, *space, hidden) where the weights
    are shared over times or variables, each of which has its own memory.
    """

    h: Float[Array, "..."]
    c: Float[Array, "..."]

    axes: eqx.AbstractClassVar[tuple[str, ...]]

    @classmethod
    def zeros(
        cls: type[LSTMStateT],
        shape: int | Sequence[int],
        hidden_dim: int,
        *,
        groups: Sequence[int] = (),
        dtype: Any = None,
    ) -> LSTMStateT:
        """The memory before the first iteration, on a grid of this shape."""
        space = (shape,) if isinstance(shape, int) else tuple(shape)
        if len(space) != len(cls.axes):
            raise ValueError(
                f"{cls.__name__}: `shape` is {space}, expected {len(cls.axes)} sizes ({', '.join(cls.axes)})."
            )
        if hidden_dim < 1:
            raise ValueError(f"{cls.__name__}: `hidden_dim` is {hidden_dim}, expected at least 1.")
        zeros = jnp.zeros((*groups, *space, hidden_dim), jnp.result_type(float) if dtype is None else dtype)
        made: Any = cls
        return made(zeros, zeros)


class LSTMState1D(AbstractLSTMState):
    """The memory on one axis of space.

    >>> LSTMState1D.zeros(40, hidden_dim=8).h.shape
    (40, 8)
    """

    axes: ClassVar[tuple[str, ...]] = ("N",)


class LSTMState2D(AbstractLSTMState):
    """The memory on two axes of space."""

    axes: ClassVar[tuple[str, ...]] = ("H", "W")


class LSTMState3D(AbstractLSTMState):
    """The memory on three axes of space."""

    axes: ClassVar[tuple[str, ...]] = ("D", "H", "W")


class ConvergenceWarning(UserWarning):
    """An analysis did not reach its tolerance."""


class ConvergenceError(RuntimeError):
    """An analysis did not reach its tolerance, and the method was asked to be strict."""
