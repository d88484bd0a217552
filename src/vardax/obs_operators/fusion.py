"""Several instruments in one analysis: what each predicts, and the operator, the R and the batch of all of them.

    J_o(x) = sum_i w_i ½ ‖m_i (y_i - H_i(x))‖²_{R_i⁻¹},      R = diag(R_1 / w_1, R_2 / w_2, ...)

One path leads from instruments to an analysis:

    fusion = MultiInstrumentFusion(InstrumentRegistry([...]), weights={"tropomi": 0.5})
    method = OptimalInterpolation(fusion.to_observation_operator(), x_b, B, fusion.obs_cov_op)
    analysis = method.analyse(fusion.batch({"tropomi": y_1, "goes": y_2}))
    dict(zip(fusion.ids, analysis.cost.last.J_o_by_instrument[0]))

NaN is a missing observation, an instrument that is not named is missing altogether. Positions that are new each day
enter by `fusion.at(observations)`, a fusion of the same kind; lists of scattered observations, also over a window, by
`fusion.observations`.
"""

from collections.abc import Mapping
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import lineax as lx
import numpy as np
from jaxtyping import Array, ArrayLike, Float, PyTree

from vardax.covariances.block_diagonal import BlockDiagonalCovariance
from vardax.covariances.diagonal import safe_sqrt
from vardax.obs_operators.fused import FusedObs, predict_one
from vardax.obs_operators.instrument_errors import InstrumentErrors
from vardax.obs_operators.instruments import InstrumentRegistry, InstrumentSpec
from vardax.obs_operators.scattered import join_observations
from vardax.types import Batch1D, Observations, concrete_values, float_array

__all__ = ["MultiInstrumentFusion"]

OWNER = "MultiInstrumentFusion"


class MultiInstrumentFusion(eqx.Module):
    """All instruments of a registry at once: `fusion(state)` is `{name: predicted observations}`.

    `weights` (1 where not given) multiply the cost of an instrument: for thinning that was not done, errors whose
    correlation is not described, or trust. They are traced, like masks and R: new values do not compile again.

    >>> from vardax.covariances.diagonal import DiagonalCovariance
    >>> from vardax.obs_operators.point import PointObs
    >>> buoys = InstrumentSpec(PointObs([0, 2]), None, DiagonalCovariance([1.0, 1.0]), "buoys")
    >>> fusion = MultiInstrumentFusion(InstrumentRegistry([buoys]), weights={"buoys": 4.0})
    >>> fusion(jnp.array([1.0, 2.0, 3.0]))
    {'buoys': Array([1., 3.], dtype=float32)}
    >>> fusion.obs_cov_op.diagonal()
    Array([0.25, 0.25], dtype=float32)
    """

    registry: InstrumentRegistry
    weights: dict[str, Float[Array, ""]]

    def __init__(self, registry: Any, weights: Mapping[str, Any] | None = None):
        self.registry = registry if isinstance(registry, InstrumentRegistry) else InstrumentRegistry(registry)
        given = dict(weights or {})
        self.registry.require(given, f"{OWNER}: `weights`")
        self.weights = {name: _as_weight(name, given.get(name, 1.0)) for name in self.registry.ids}

    @property
    def ids(self) -> tuple[str, ...]:
        """The names of the instruments, sorted; instrument i of costs and batches is `ids[i]`."""
        return self.registry.ids

    def __call__(self, state: PyTree[Array]) -> dict[str, Array]:
        return {spec.instrument_id: predict_one(spec, state) for spec in self.registry}

    @property
    def obs_cov_op(self) -> BlockDiagonalCovariance:
        """R of the flattened observations: one block R_i / w_i for each instrument."""
        blocks = self._blocks()
        dtypes = {name: block.dtype.name for name, block in blocks.items()}
        if len(set(dtypes.values())) > 1:
            raise ValueError(f"{OWNER}: the `R_op` of the instruments have the dtypes {dtypes}, expected one.")
        return BlockDiagonalCovariance(*blocks.values(), joined_along=0)

    def to_observation_operator(self) -> FusedObs:
        """The operator from a state to the observations of all instruments as one vector, in the order of `ids`."""
        complete = all(spec.R_op is not None for spec in self.registry)
        return FusedObs(self.registry, self.obs_cov_op if complete else None)

    def at(self, observations: Any) -> "MultiInstrumentFusion":
        """This fusion with the named instruments at the positions, and with the errors, of their `Observations`.

        `observations` is {name: Observations}. As many as before do not compile again (`Observations.pad_to`).
        """
        self._require(observations, "at")
        _require_points(observations, "at")
        specs = [
            spec.at(observations[spec.instrument_id]) if spec.instrument_id in observations else spec
            for spec in self.registry
        ]
        return MultiInstrumentFusion(InstrumentRegistry(specs), self.weights)

    def observations(self, observations: Any) -> Observations:
        """{name: Observations}, scattered, as one list, for methods that have this fusion's operator.

        Each entry is predicted by its own instrument, with the `aux` of its own. Errors are divided by √w. The list may
        be cut into windows and filled up like any other, and needs no `obs_cov_op`.
        """
        self._require(observations, "observations")
        _require_points(observations, "observations")
        for name in observations:
            spec = self.registry[name]
            if spec.mask is not None or spec.R_op is not None:
                raise ValueError(
                    f"{OWNER}.observations: instrument {name!r} has a `mask` or an `R_op`, which are for observations "
                    "in fixed places; leave them None, since scattered observations bring `valid` and `error`."
                )
        return join_observations(self.registry, self.weights, observations)

    def flatten(self, values: Any) -> Float[Array, "... M"]:
        """{name: (..., *obs)} as (..., M), in the order of `ids`; NaN for instruments that are not named, or None."""
        self._require(values, "flatten")
        arrays = {name: float_array(jnp.asarray(array)) for name, array in values.items() if array is not None}
        leading = {name: self._leading(name, array) for name, array in arrays.items()}
        if len(set(leading.values())) != 1:
            found = f"the leading axes {leading}, expected the same for all" if leading else "no values"
            raise ValueError(f"{OWNER}: the observations have {found}.")
        before = next(iter(leading.values()))
        dtype = max((array.dtype for array in arrays.values()), key=lambda each: jnp.finfo(each).bits)
        parts = [
            arrays[name].astype(dtype).reshape(*before, size)
            if name in arrays
            else jnp.full((*before, size), jnp.nan, dtype)
            for name, size in self._sizes().items()
        ]
        return jnp.concatenate(parts, axis=-1)

    def unflatten(self, vector: ArrayLike) -> dict[str, Array]:
        """(..., M) as {name: (..., *obs)}: predictions, innovations or masks by instrument."""
        vector, sizes = jnp.asarray(vector), self._sizes()
        if vector.shape[-1:] != (sum(sizes.values()),):
            raise ValueError(f"{OWNER}: the vector has shape {vector.shape}, expected (..., {sum(sizes.values())}).")
        parts = jnp.split(vector, np.cumsum(list(sizes.values()))[:-1], axis=-1)
        shapes = [self._errors_of(spec).out_structure().shape for spec in self.registry]
        return {
            name: part.reshape(*vector.shape[:-1], *shape)
            for name, part, shape in zip(sizes, parts, shapes, strict=True)
        }

    def batch(self, observations: Any, *, times: Any = None) -> Batch1D:
        """What the methods take: `input` (B, M) or (B, T, M), its mask, and the instrument of each entry.

        `observations` is {name: values}: (*obs), (B, *obs) or (B, T, *obs), alike for all, with NaN where missing; or
        `Observations`, at whose positions the instrument is (`at`). Instruments that are not named are missing.
        """
        self._require(observations, "batch")
        flat = self.flatten({name: _values(given) for name, given in observations.items()})
        flat = flat[None] if flat.ndim == 1 else flat
        number = np.repeat(np.arange(len(self.ids)), list(self._sizes().values()))
        return Batch1D.from_observations(
            flat,
            obs_err=self._own_errors(observations, flat),
            instrument=jnp.broadcast_to(jnp.asarray(number), flat.shape),
            times=times,
            n_instruments=len(self.ids),
        )

    def _require(self, observations: Any, method: str) -> None:
        """Names that are there, of at least one instrument."""
        if not isinstance(observations, Mapping):
            raise TypeError(
                f"{OWNER}.{method}: the observations are {type(observations).__name__}, expected a dictionary "
                f"{{name: observations}} with names of {', '.join(self.ids)}."
            )
        if not observations:
            raise ValueError(f"{OWNER}.{method}: there are observations of no instrument, expected at least one.")
        self.registry.require(observations, f"{OWNER}.{method}")

    def _errors_of(self, spec: InstrumentSpec) -> lx.AbstractLinearOperator:
        if spec.R_op is None:
            raise ValueError(
                f"{OWNER}: instrument {spec.instrument_id!r} has no `R_op`, so neither its errors nor how much it "
                "observes are known; give one, or give it Observations by `fusion.at` or `fusion.observations`."
            )
        return spec.R_op

    def _blocks(self) -> dict[str, InstrumentErrors]:
        """R_i / w_i of each instrument."""
        names = zip(self.ids, self.registry, strict=True)
        return {name: InstrumentErrors(self._errors_of(spec), self.weights[name]) for name, spec in names}

    def _sizes(self) -> dict[str, int]:
        """How many observations each instrument has."""
        return {spec.instrument_id: self._errors_of(spec).out_structure().size for spec in self.registry}

    def _leading(self, name: str, array: Array) -> tuple[int, ...]:
        """The axes before those of the instrument's observations: none, samples, or samples and times."""
        shape = tuple(self._errors_of(self.registry[name]).out_structure().shape)
        before = array.ndim - len(shape)
        if not 0 <= before <= 2 or array.shape[before:] != shape:
            raise ValueError(
                f"{OWNER}: the observations of {name!r} have shape {array.shape}, expected {shape}, or that after an "
                "axis of samples, or of samples and times."
            )
        return array.shape[:before]

    def _own_errors(self, observations: Mapping[str, Any], flat: Array) -> Array | None:
        """The standard deviations, where some observations bring theirs; those of R_i / w_i for the others."""
        if not any(isinstance(given, Observations) for given in observations.values()):
            return None
        parts = []
        for name, block in self._blocks().items():
            given, deviation = observations.get(name), safe_sqrt(block.diagonal())
            if isinstance(given, Observations):
                deviation = given.error.astype(deviation.dtype) / jnp.sqrt(block.weight)
            parts.append(deviation.astype(flat.dtype))
        return jnp.broadcast_to(jnp.concatenate(parts), flat.shape)


def _as_weight(name: str, weight: Any) -> Array:
    weight = float_array(jnp.asarray(weight))
    value = concrete_values(weight)
    if weight.shape != () or (value is not None and not 0 < float(value) < np.inf):
        raise ValueError(
            f"{OWNER}: the weight of {name!r} is {weight if value is None else value.tolist()}, expected one positive "
            "number; to ignore an instrument, leave it out of the batch."
        )
    return weight


def _require_points(observations: Mapping[str, Any], method: str) -> None:
    for name, points in observations.items():
        if not isinstance(points, Observations):
            raise TypeError(f"{OWNER}.{method}: {name!r} has {type(points).__name__}, expected Observations.")


def _values(given: Any) -> Any:
    """The values of `Observations`, NaN where they are not valid; anything else as it is."""
    if not isinstance(given, Observations):
        return given
    return jnp.where(given.valid != 0, given.value, jnp.full_like(given.value, jnp.nan))
