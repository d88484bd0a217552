"""Several instruments as one observation operator on one vector.

    H(x) = [m_1 H_1(x); m_2 H_2(x); ...],      H' = [m_1 H_1'; m_2 H_2'; ...]

ravelled, in the order of the instruments' names, and 0 where an instrument's mask m_i is. H' stacks what the
instruments' own `linearize` return, and its transpose adds their transposes, so a tangent that is written by hand, or
exact where H_i is not differentiated by JAX, stays what it is.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array, Float, PyTree

from vardax.covariances.factors import AbstractFactor
from vardax.obs_operators.instruments import InstrumentRegistry, InstrumentSpec
from vardax.obs_operators.linearisation import is_linear, linearise_operator
from vardax.obs_operators.sampling import is_unbound, mask_on, where_seen
from vardax.obs_operators.scattered import ScatteredObs
from vardax.types import Observations

__all__ = ["FusedObs", "predict_one"]


class FusedObs(eqx.Module):
    """The observations of all instruments of a registry, as one vector; `MultiInstrumentFusion` makes it.

    `mask` is 1 where an instrument ever sees something, `obs_cov_op` the R that goes with the operator (None where
    errors come with the observations).
    """

    registry: InstrumentRegistry
    obs_cov_op: lx.AbstractLinearOperator | None = None

    @property
    def ids(self) -> tuple[str, ...]:
        """The names of the instruments, in the order of the vector."""
        return self.registry.ids

    @property
    def linear_by_construction(self) -> bool:
        return all(getattr(spec.obs_op, "linear_by_construction", False) for spec in self.registry)

    def linear_on(self, state_structure: PyTree[Any]) -> bool:
        """Whether every instrument's operator is affine on this state."""
        return all(is_linear(spec.obs_op, state_structure) for spec in self.registry)

    @property
    def mask(self) -> Float[Array, "M"] | None:
        """1 where an instrument sees something; None while sizes or positions are not known."""
        masks = []
        for spec in self.registry:
            if spec.shape is None or is_unbound(spec.obs_op):
                return None
            seen = _seen(spec, spec.shape)
            masks.append(jnp.ones(spec.shape, bool) if seen is None else seen)
        return jnp.concatenate([jnp.ravel(mask) for mask in masks]).astype(jnp.result_type(float))

    def at(self, observations: Observations) -> ScatteredObs:
        """Every entry of one list of observations by its own instrument, number `observations.instrument` of `ids`."""
        return ScatteredObs(self.registry, observations)

    def check(self, state_structure: PyTree[Any]) -> None:
        """Let every operator that can check the state do so, and name the instrument that refuses it."""
        for spec in self.registry:
            if hasattr(spec.obs_op, "check"):
                try:
                    spec.obs_op.check(state_structure)
                except ValueError as error:
                    raise ValueError(f"instrument {spec.instrument_id!r}: {error}") from error

    def __call__(self, state: PyTree[Array]) -> Float[Array, "M"]:
        return jnp.concatenate([jnp.ravel(predict_one(spec, state)) for spec in self.registry])

    def linearize(self, state: PyTree[Array]) -> lx.AbstractLinearOperator:
        operators = tuple(linearise_operator(spec.obs_op, state) for spec in self.registry)
        shapes = [operator.out_structure().shape for operator in operators]
        return _Stacked(operators, tuple(_seen(*each) for each in zip(self.registry, shapes, strict=True)))


class _Stacked(AbstractFactor):
    """[m_1 H_1'; m_2 H_2'; ...] on one ravelled vector."""

    operators: tuple[lx.AbstractLinearOperator, ...]
    masks: tuple[Array | None, ...]

    def mv(self, vector: PyTree[Array]) -> Float[Array, "M"]:
        pairs = zip(self.operators, self.masks, strict=True)
        return jnp.concatenate([jnp.ravel(where_seen(mask, operator.mv(vector))) for operator, mask in pairs])

    def transpose_mv(self, vector: Float[Array, "M"]) -> PyTree[Array]:
        parts, start = [], 0
        for operator, mask in zip(self.operators, self.masks, strict=True):
            structure = operator.out_structure()
            part = vector[start : start + structure.size].reshape(structure.shape)
            parts.append(operator.T.mv(where_seen(mask, part)))
            start += structure.size
        return jax.tree.map(lambda *leaves: sum(leaves[1:], leaves[0]), *parts)

    def in_structure(self) -> PyTree[jax.ShapeDtypeStruct]:
        return self.operators[0].in_structure()

    def out_structure(self) -> jax.ShapeDtypeStruct:
        structures = [operator.out_structure() for operator in self.operators]
        return jax.ShapeDtypeStruct((sum(one.size for one in structures),), structures[0].dtype)


def predict_one(spec: InstrumentSpec, state: PyTree[Array]) -> Float[Array, "..."]:
    """m_i H_i(x), in the shape of the instrument's observations."""
    predicted = spec.obs_op(state)
    if not isinstance(predicted, jax.Array):
        raise TypeError(
            f"instrument {spec.instrument_id!r}: `obs_op` gives {type(predicted).__name__}, expected one array; what "
            "delivers several is several instruments."
        )
    if spec.shape not in (None, predicted.shape):
        raise ValueError(
            f"instrument {spec.instrument_id!r}: `obs_op` makes observations of shape {predicted.shape} of the state, "
            f"expected {spec.shape}, the shape of its `R_op` and `mask`."
        )
    return where_seen(_seen(spec, predicted.shape), predicted)


def _seen(spec: InstrumentSpec, shape: tuple[int, ...]) -> Array | None:
    """What the instrument and its operator both see; None where neither has a mask."""
    masks = [mask for mask in (mask_on(spec, shape), mask_on(spec.obs_op, shape)) if mask is not None]
    return jnp.all(jnp.stack(masks), axis=0) if masks else None
