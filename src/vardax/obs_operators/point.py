"""Single entries of the state are observed: y_j = x[i_j].

The transpose adds each observation to its entry, so an entry may be observed more than once.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Int, PyTree

from vardax.obs_operators.linearisation import as_field
from vardax.obs_operators.module_operator import ModuleLinearOperator, structure_of
from vardax.types import concrete_values

__all__ = ["PointObs"]


class PointObs(eqx.Module):
    """H(x) = x at `indices`: integers into the ravelled (row-major) state, or a tuple of index arrays, one per axis.

    The indices may have any shape; the predicted observations have the same. Indices beyond the state are refused when
    they are concrete (negative ones at construction, others when the state is seen, see `check`); traced ones that are
    out of range predict NaN.

    >>> PointObs([0, 3, 3])(jnp.array([[1.0, 2.0], [3.0, 4.0]])).tolist()
    [1.0, 4.0, 4.0]
    """

    indices: Int[Array, "..."] | tuple[Int[Array, "..."], ...]
    linear_by_construction: ClassVar[bool] = True

    def __init__(self, indices: ArrayLike | Sequence[Any]):
        if isinstance(indices, tuple) and not all(np.ndim(index) == 0 for index in indices):
            self.indices = tuple(_index_array(index, f"indices[{axis}]") for axis, index in enumerate(indices))
            shapes = {index.shape for index in self.indices}
            if len(shapes) > 1:
                raise ValueError(f"PointObs: the index arrays have shapes {sorted(shapes)}, expected one shape.")
        else:
            self.indices = _index_array(indices, "indices")

    def __call__(self, state: PyTree[Array]) -> Float[Array, "..."]:
        field = as_field(state, "PointObs")
        self.check(field)
        return _Gather(self.indices)(field)

    def sample_along(self, trajectory: Float[Array, "T ..."], entry: Int[Array, "..."]) -> Float[Array, "..."]:
        """Observation j as state `entry[j]` of a stacked trajectory predicts it, and no other."""
        field = as_field(trajectory, "PointObs")
        self.check(jax.ShapeDtypeStruct(field.shape[1:], field.dtype))
        where = self.indices if isinstance(self.indices, tuple) else (self.indices,)
        states = field if isinstance(self.indices, tuple) else field.reshape(field.shape[0], -1)
        return states.at[(entry, *where)].get(mode="fill", fill_value=jnp.nan)

    def linearize(self, state: PyTree[Array]) -> lx.AbstractLinearOperator:
        field = as_field(state, "PointObs")
        self.check(field)
        return ModuleLinearOperator(_Gather(self.indices), structure_of(field))

    def check(self, state_structure: Any) -> None:
        """Raise unless the indices lie inside a state of this shape; under tracing only the number of axes counts."""
        shape = tuple(jnp.shape(state_structure))
        if not isinstance(self.indices, tuple):
            _check_range(self.indices, "indices", int(np.prod(shape)), shape)
            return
        if len(self.indices) != len(shape):
            raise ValueError(
                f"PointObs: `indices` has {len(self.indices)} index arrays, expected {len(shape)}, one per axis of a "
                f"state of shape {shape}."
            )
        for axis, index in enumerate(self.indices):
            _check_range(index, f"indices[{axis}]", shape[axis], shape)


class _Gather(eqx.Module):
    indices: Array | tuple[Array, ...]

    def __call__(self, field: Array) -> Array:
        where = self.indices if isinstance(self.indices, tuple) else (self.indices,)
        values = field if isinstance(self.indices, tuple) else field.reshape(-1)
        return values.at[where].get(mode="fill", fill_value=jnp.nan)


def _index_array(indices: Any, name: str) -> Array:
    array = indices if isinstance(indices, jax.Array) else np.asarray(indices)
    if array.size == 0 and not jnp.issubdtype(array.dtype, jnp.integer):
        array = np.asarray(array, dtype=np.int32)  # an empty list has no dtype of its own
    if not jnp.issubdtype(array.dtype, jnp.integer):
        hint = "; np.flatnonzero(mask) turns a mask into indices" if array.dtype == bool else ""
        raise TypeError(f"PointObs: `{name}` has dtype {array.dtype}, expected integers{hint}.")
    concrete = concrete_values(array)
    if concrete is not None and concrete.size and concrete.min() < 0:
        raise ValueError(f"PointObs: `{name}` holds {int(concrete.min())}, expected indices from 0 on.")
    return jnp.asarray(array)


def _check_range(index: Array, name: str, size: int, shape: tuple[int, ...]) -> None:
    concrete = concrete_values(index)
    if concrete is None or not concrete.size:
        return
    outside = int(np.sum((concrete < 0) | (concrete >= size)))
    if outside:
        raise ValueError(
            f"PointObs: {outside} of {concrete.size} `{name}` are out of range (largest {int(concrete.max())}); "
            f"expected 0 to {size - 1} for a state of shape {shape}."
        )
