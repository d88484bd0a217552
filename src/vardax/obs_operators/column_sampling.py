"""Where satellite soundings look into a model: its columns, and the boundaries of its layers there.

    state (K, *horizontal) -> columns (K, p)

by an operator that samples the horizontal axes and carries the layers along (`InterpObs`, or any other that gives
(K, p)), or by the numbers of the columns.
"""

import math
from typing import Any, ClassVar

import equinox as eqx
import jax.numpy as jnp
import lineax as lx
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from vardax.obs_operators.linearisation import as_field
from vardax.obs_operators.module_operator import ModuleLinearOperator, structure_of
from vardax.types import concrete_values

__all__ = ["as_sampling", "levels_at", "seen_by"]


def as_sampling(interp: Any) -> Any:
    """`interp` as an operator from the state to columns."""
    if interp is None or callable(interp):
        return _Columns() if interp is None else interp
    numbers = jnp.asarray(interp)
    if numbers.ndim != 1 or not jnp.issubdtype(numbers.dtype, jnp.integer):
        raise TypeError(
            f"ColumnRetrieval: `interp` is an array {numbers.dtype}{list(numbers.shape)}, expected an operator such as "
            "InterpObs(grid), whole column numbers (p,), or None."
        )
    return _Columns(numbers)


def seen_by(interp: Any, p: int) -> Array:
    """Which soundings the sampling reaches."""
    mask = getattr(interp, "mask", None)
    if mask is None:
        return jnp.ones(p, bool)
    if mask.shape != (p,):
        raise ValueError(f"ColumnRetrieval: `interp` has {mask.shape[0]} positions, expected {p}, one per sounding.")
    return mask != 0


def levels_at(model_levels: Array | None, interp: Any, p: int) -> Array | None:
    """The model's boundaries (K+1,), or (K+1, p) where they vary, sampled like the state."""
    if model_levels is None or model_levels.ndim == 1:
        return model_levels
    sampled = interp(model_levels)
    if sampled.shape != (model_levels.shape[0], p):
        raise ValueError(
            f"ColumnRetrieval: `interp` makes {sampled.shape} of `model_levels` {model_levels.shape}, expected "
            f"{(model_levels.shape[0], p)}."
        )
    return sampled


class _Columns(eqx.Module):
    """(K, *horizontal) -> (K, p): the columns of these numbers, or all of them."""

    number: Int[Array, "p"] | None = None
    linear_by_construction: ClassVar[bool] = True

    def at(self, observations: Any) -> "_Columns":
        brought = getattr(observations, "aux", {})
        return _Columns(brought["column"]) if "column" in brought else self

    def __call__(self, state: PyTree[Array]) -> Float[Array, "K p"]:
        field = as_field(state, "ColumnRetrieval")
        columns = field.reshape(field.shape[0], -1)
        return columns if self.number is None else columns.at[:, self.number].get(mode="fill", fill_value=jnp.nan)

    def linearize(self, state: PyTree[Array]) -> lx.AbstractLinearOperator:
        return ModuleLinearOperator(self, structure_of(as_field(state, "ColumnRetrieval")))

    def check(self, state_structure: Any) -> None:
        """Raise where a column number is beyond the state."""
        shape = tuple(jnp.shape(state_structure))
        numbers, columns = None if self.number is None else concrete_values(self.number), math.prod(shape[1:])
        if numbers is None:
            return
        bad = int(np.sum((numbers < 0) | (numbers >= columns)))
        if bad:
            raise ValueError(
                f"ColumnRetrieval: {bad} of {numbers.size} column numbers are out of range, expected 0 to "
                f"{columns - 1} for a state of shape {shape}."
            )
