"""The instruments of an observing system: what each predicts, what it can see, and how wrong it is.

An `InstrumentSpec` is one instrument: its operator H_i, the error covariance R_i of what it delivers, and a mask of
what it never sees (dead pixels, land). An `InstrumentRegistry` is all of them, by name, in the order of their names.
`MultiInstrumentFusion` makes one observation operator of a registry.
"""

import difflib
from collections.abc import Iterator, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from vardax.covariances.diagonal import DiagonalCovariance
from vardax.covariances.functions import as_covariance
from vardax.types import Observations, concrete_values

__all__ = ["SEPARATOR", "InstrumentRegistry", "InstrumentSpec"]

SEPARATOR = "/"
"""Between the name of an instrument and that of an array, where the `aux` of several are in one place."""


class InstrumentSpec(eqx.Module):
    """One instrument.

    - `obs_op`: from the state to its observations, one array of any shape.
    - `mask`: of that shape, 1 where the instrument ever sees something; None: everywhere.
    - `R_op`: the covariance of its errors, on that shape. None where the observations bring their errors
      (`Observations`, see `MultiInstrumentFusion.at`).
    - `instrument_id`: its name.

    >>> from vardax.obs_operators.point import PointObs
    >>> InstrumentSpec(PointObs([0, 2]), None, DiagonalCovariance([1.0, 4.0]), "buoys").shape
    (2,)
    """

    obs_op: Any
    mask: Float[Array, "..."] | None
    R_op: lx.AbstractLinearOperator | None
    instrument_id: str = eqx.field(static=True)

    def __init__(
        self, obs_op: Any, mask: ArrayLike | Sequence[Any] | None = None, R_op: Any = None, instrument_id: Any = ""
    ):
        if not isinstance(instrument_id, str):
            raise TypeError(f"InstrumentSpec: `instrument_id` is {instrument_id!r}, expected a name such as 'tropomi'.")
        if not instrument_id or SEPARATOR in instrument_id:
            raise ValueError(
                f"InstrumentSpec: `instrument_id` is {instrument_id!r}, expected a name without {SEPARATOR!r}."
            )
        owner = f"InstrumentSpec {instrument_id!r}"
        if not callable(obs_op):
            raise TypeError(f"{owner}: `obs_op` is {type(obs_op).__name__}, expected an observation operator.")
        self.obs_op, self.instrument_id = obs_op, instrument_id
        self.R_op = None if R_op is None else as_covariance(owner, R_op, "R_op")
        self.mask = None if mask is None else _as_mask(jnp.asarray(mask), owner).astype(jnp.result_type(float))
        if self.R_op is not None:
            self._check_errors(owner, self.R_op.out_structure())

    def _check_errors(self, owner: str, structure: Any) -> None:
        if not isinstance(structure, jax.ShapeDtypeStruct):
            raise TypeError(f"{owner}: `R_op` acts on {structure}, expected one array of observations.")
        if self.mask is not None and self.mask.shape != structure.shape:
            raise ValueError(
                f"{owner}: `mask` has shape {self.mask.shape}, expected {structure.shape}, the shape of the "
                "observations that `R_op` acts on."
            )

    @property
    def shape(self) -> tuple[int, ...] | None:
        """The shape of the observations; None where it is known only with them."""
        known = self.mask if self.R_op is None else self.R_op.out_structure()
        return None if known is None else tuple(known.shape)

    def at(self, observations: Observations) -> "InstrumentSpec":
        """This instrument at the positions of its observations, with their errors where it has no R of its own."""
        obs_op = self.obs_op.at(observations) if hasattr(self.obs_op, "at") else self.obs_op
        counted = jnp.where(observations.valid != 0, observations.error, jnp.ones_like(observations.error))
        R_op = DiagonalCovariance(counted**2) if self.R_op is None else self.R_op
        return InstrumentSpec(obs_op, self.mask, R_op, self.instrument_id)


class InstrumentRegistry(eqx.Module):
    """Instruments by name: `registry["tropomi"]`, in the order of their names.

    >>> spec = InstrumentSpec(lambda x: x, None, DiagonalCovariance([1.0]), "buoys")
    >>> InstrumentRegistry([spec]).ids
    ('buoys',)
    """

    entries: tuple[InstrumentSpec, ...]

    def __init__(self, entries: Any):
        entries = [entries] if isinstance(entries, InstrumentSpec) else list(entries)
        for entry in entries:
            if not isinstance(entry, InstrumentSpec):
                raise TypeError(
                    f"InstrumentRegistry: an entry is {type(entry).__name__}, expected "
                    "InstrumentSpec(obs_op, mask, R_op, instrument_id)."
                )
        if not entries:
            raise ValueError("InstrumentRegistry: `entries` is empty, expected at least one InstrumentSpec.")
        ids = [entry.instrument_id for entry in entries]
        twice = sorted({name for name in ids if ids.count(name) > 1})
        if twice:
            raise ValueError(f"InstrumentRegistry: {', '.join(twice)} is there more than once; names must differ.")
        self.entries = tuple(sorted(entries, key=lambda entry: entry.instrument_id))

    @property
    def ids(self) -> tuple[str, ...]:
        """The names, sorted: instrument i of a batch and of a cost is `ids[i]`."""
        return tuple(entry.instrument_id for entry in self.entries)

    def __getitem__(self, instrument_id: str) -> InstrumentSpec:
        self.require([instrument_id], "InstrumentRegistry")
        return self.entries[self.ids.index(instrument_id)]

    def __contains__(self, instrument_id: object) -> bool:
        return instrument_id in self.ids

    def __iter__(self) -> Iterator[InstrumentSpec]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    def require(self, names: Any, owner: str) -> None:
        """Raise unless all names are of instruments that are here."""
        for name in names:
            if name not in self.ids:
                near = difflib.get_close_matches(str(name), self.ids, n=1)
                hint = f" Did you mean {near[0]!r}?" if near else ""
                raise ValueError(f"{owner}: there is no instrument {name!r}; there are {', '.join(self.ids)}.{hint}")


def _as_mask(mask: Array, owner: str) -> Array:
    values = concrete_values(mask)
    bad = 0 if values is None else int(np.sum((values != 0) & (values != 1)))
    if bad:
        raise ValueError(f"{owner}: `mask` must be 1 (seen) or 0; found {bad} other entries.")
    return mask
