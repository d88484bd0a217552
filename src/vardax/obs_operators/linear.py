"""A linear map that the user has: y = H x.

`H` may be an array, a lineax operator, or a linear callable. The array is (m, n) and acts on the ravelled state of n
numbers, or (*obs, *state) and is summed over its trailing axes, those of the state.
"""

from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array, ArrayLike, PyTree

from vardax.obs_operators.linearisation import linearise_operator, matrix_on_field
from vardax.obs_operators.module_operator import ModuleLinearOperator, structure_of
from vardax.types import float_array

__all__ = ["LinearObs"]


class LinearObs(eqx.Module):
    """H(x) = H x for an array, a lineax operator or a linear (affine) callable.

    An array is cast to the dtype of the state. A lineax operator on vectors also takes a field with as many entries. A
    callable is taken at its word; `is_linear` finds one that is not linear, and it then works like `CallableObs`.

    >>> LinearObs([[1.0, 0.0, 1.0]])(jax.numpy.arange(3.0)).tolist()
    [2.0]
    """

    H: Array | lx.AbstractLinearOperator | Callable[..., Any]

    def __init__(self, H: ArrayLike | Sequence[Any] | lx.AbstractLinearOperator | Callable[..., Any]):
        if isinstance(H, lx.AbstractLinearOperator) or callable(H):
            self.H = H
            return
        self.H = float_array(jnp.asarray(H))
        if self.H.ndim < 2:
            raise ValueError(f"LinearObs: `H` has shape {self.H.shape}, expected a matrix (m, n) or (*obs, *state).")

    @property
    def linear_by_construction(self) -> bool:
        return isinstance(self.H, jax.Array | lx.AbstractLinearOperator)

    def __call__(self, state: PyTree[Array]) -> PyTree[Array]:
        if isinstance(self.H, jax.Array | lx.AbstractLinearOperator):
            return self.linearize(state).mv(state)
        return self.H(state)

    def linearize(self, state: PyTree[Array]) -> lx.AbstractLinearOperator:
        if isinstance(self.H, jax.Array):
            return matrix_on_field(self.H, state, "LinearObs")
        if isinstance(self.H, lx.AbstractLinearOperator):
            return _operator_on_state(self.H, state)
        return linearise_operator(self.H, state)


def _operator_on_state(operator: lx.AbstractLinearOperator, state: PyTree[Array]) -> lx.AbstractLinearOperator:
    """`operator` on the structure of `state`, ravelling a field for an operator on vectors."""
    found, wanted = operator.in_structure(), structure_of(state)
    if found == wanted:
        return operator
    if not (isinstance(found, jax.ShapeDtypeStruct) and isinstance(wanted, jax.ShapeDtypeStruct)):
        raise ValueError(f"LinearObs: the operator `H` takes {found}, which does not fit a state {wanted}.")
    if found.size != wanted.size:
        raise ValueError(f"LinearObs: the operator `H` takes shape {found.shape}, found a state of {wanted.shape}.")

    return ModuleLinearOperator(_OnVectors(operator), wanted)


class _OnVectors(eqx.Module):
    """An operator on one shape applied to fields of another, in the dtype of the field."""

    operator: lx.AbstractLinearOperator

    def __call__(self, field: Array) -> PyTree[Array]:
        wanted = self.operator.in_structure()
        predicted = self.operator.mv(field.reshape(wanted.shape).astype(wanted.dtype))
        return jax.tree.map(lambda leaf: leaf.astype(field.dtype), predicted)
