"""Observations of several instruments in one list, each entry predicted by its own instrument.

    y_j = H_i(j)(x)_j,      i(j) the instrument of entry j

Every instrument's operator is bound to all positions, with the entries of the others not valid, and row j of the result
is that of instrument i(j). So the order and the number of each instrument's entries are free: the list can be cut into
windows and filled up to a few sizes like one of a single instrument. What an instrument reads from `aux` (the kernels
of a retrieval) stands in the list under "name/key"; "name/" says that an instrument has no entries at all.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from vardax.covariances.factors import AbstractFactor
from vardax.obs_operators.instruments import SEPARATOR, InstrumentRegistry
from vardax.obs_operators.linearisation import linearise_operator
from vardax.obs_operators.sampling import mask_on, sample_along, where_seen
from vardax.types import Observations, is_traced

__all__ = ["ScatteredObs", "join_observations"]


class ScatteredObs(eqx.Module):
    """y_j = H_i(x)_j, i the instrument of entry j; 0 where the entry is not seen. `FusedObs.at` makes it."""

    operators: tuple[Any, ...]
    chosen: tuple[Array, ...]
    mask: Float[Array, "p"]

    def __init__(self, registry: InstrumentRegistry, observations: Observations):
        operators, chosen, masks = [], [], []
        for number, spec in enumerate(registry):
            if spec.instrument_id + SEPARATOR in observations.aux:
                continue
            if not hasattr(spec.obs_op, "at"):
                raise ValueError(
                    f"FusedObs: {type(spec.obs_op).__name__} of instrument {spec.instrument_id!r} does not read "
                    "positions, so its observations cannot be in one list with scattered ones; give them by "
                    "`fusion.at({name: observations})` and `fusion.batch`."
                )
            mine = (observations.instrument == number) & (observations.valid != 0)
            operators.append(spec.obs_op.at(_as_seen_by(spec.instrument_id, observations, mine)))
            seen = mask_on(operators[-1], mine.shape)
            chosen.append(mine)
            masks.append(mine if seen is None else mine & seen)
        self.operators, self.chosen = tuple(operators), tuple(chosen)
        self.mask = jnp.any(jnp.stack(masks), axis=0).astype(observations.value.dtype)

    @property
    def linear_by_construction(self) -> bool:
        return all(getattr(operator, "linear_by_construction", False) for operator in self.operators)

    def check(self, state_structure: PyTree[Any]) -> None:
        """Let every operator that can check the state do so."""
        for operator in self.operators:
            if hasattr(operator, "check"):
                operator.check(state_structure)

    def __call__(self, state: PyTree[Array]) -> Float[Array, "p"]:
        return _select([operator(state) for operator in self.operators], self.chosen)

    def sample_along(self, trajectory: PyTree[Array], entry: Int[Array, "p"]) -> Float[Array, "p"]:
        """Entry j as state `entry[j]` of a stacked trajectory predicts it."""
        return _select([sample_along(operator, trajectory, entry) for operator in self.operators], self.chosen)

    def linearize(self, state: PyTree[Array]) -> lx.AbstractLinearOperator:
        return _Selected(tuple(linearise_operator(operator, state) for operator in self.operators), self.chosen)


class _Selected(AbstractFactor):
    """Row j is that of the operator which is chosen there."""

    operators: tuple[lx.AbstractLinearOperator, ...]
    chosen: tuple[Array, ...]

    def mv(self, vector: PyTree[Array]) -> Float[Array, "p"]:
        return _select([operator.mv(vector) for operator in self.operators], self.chosen)

    def transpose_mv(self, vector: Float[Array, "p"]) -> PyTree[Array]:
        pairs = zip(self.operators, self.chosen, strict=True)
        parts = [operator.T.mv(where_seen(mine, vector)) for operator, mine in pairs]
        return jax.tree.map(lambda *leaves: sum(leaves[1:], leaves[0]), *parts)

    def in_structure(self) -> PyTree[jax.ShapeDtypeStruct]:
        return self.operators[0].in_structure()

    def out_structure(self) -> jax.ShapeDtypeStruct:
        return self.operators[0].out_structure()


def join_observations(
    registry: InstrumentRegistry, weights: Mapping[str, Array], observations: Mapping[str, Observations]
) -> Observations:
    """The observations of several instruments end to end, in the order of the registry; errors become σ / √w."""
    given = {name: observations[name] for name in registry.ids if name in observations}
    dims = {name: points.coords.shape[1] for name, points in given.items()}
    if len(set(dims.values())) > 1:
        raise ValueError(
            f"MultiInstrumentFusion.observations: the positions have {dims} coordinates, expected as many for all; "
            "give observations of different kinds by `fusion.at` and `fusion.batch`."
        )
    fields = {
        field: _join([getattr(points, field) for points in given.values()])
        for field in ("value", "error", "time", "coords", "valid")
    }
    numbers, roots = [], []
    for name, points in given.items():
        size = points.value.shape[0]
        numbers.append(np.full(size, registry.ids.index(name), np.int32))
        roots.append(jnp.broadcast_to(jnp.sqrt(weights[name]).astype(points.error.dtype), (size,)))
    fields["error"] = fields["error"] / _join(roots)
    aux = _joined_aux(given, registry.ids)
    return Observations(**fields, instrument=_join(numbers), aux=aux, n_instruments=len(registry))


def _joined_aux(given: Mapping[str, Observations], names: Sequence[str]) -> dict[str, Any]:
    """Every instrument's arrays under its name; the entries of the others are NaN, or 0 in whole numbers."""
    sizes = [points.value.shape[0] for points in given.values()]
    none = np.zeros(sum(sizes), np.int32)
    aux = {name + SEPARATOR: none for name in names if name not in given}
    for place, (name, points) in enumerate(given.items()):
        for key, array in points.aux.items():
            gap = jnp.nan if jnp.issubdtype(array.dtype, jnp.inexact) else 0
            before, after = sum(sizes[:place]), sum(sizes[place + 1 :])
            fill = [np.full((n, *array.shape[1:]), gap, array.dtype) for n in (before, after)]
            aux[f"{name}{SEPARATOR}{key}"] = _join([fill[0], array, fill[1]])
    return aux


def _join(parts: list[Any]) -> Any:
    """End to end, on the host where values are there: a new count compiles nothing."""
    if any(is_traced(part) for part in parts):
        return jnp.concatenate([jnp.asarray(part) for part in parts])
    return np.concatenate([np.asarray(part) for part in parts])


def _as_seen_by(name: str, observations: Observations, mine: Array) -> Observations:
    """The list as one instrument sees it: its own entries are valid, and its own arrays stand in `aux`."""
    prefix = name + SEPARATOR
    shared = {key: array for key, array in observations.aux.items() if SEPARATOR not in key}
    own = {key.removeprefix(prefix): array for key, array in observations.aux.items() if key.startswith(prefix)}
    valid = mine.astype(observations.valid.dtype)
    return eqx.tree_at(lambda o: (o.valid, o.aux), observations, (valid, shared | own))


def _select(parts: list[Array], chosen: tuple[Array, ...]) -> Array:
    total = jnp.zeros_like(parts[0])
    for part, mine in zip(parts, chosen, strict=True):
        total = jnp.where(mine, part, total)
    return total
