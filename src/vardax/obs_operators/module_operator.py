"""The linear operator of a linear module: products that go as fast as the module, with its exact transpose.

    mv(x) = fn(x),    transpose: the linear transpose of fn

`fn` is an `eqx.Module` whose arrays (a matrix, indices, weights) stay traced leaves. A `lineax.FunctionLinearOperator`
would freeze the function into a jaxpr, and a jaxpr is new each time: as an argument of a jitted function it compiles
again. A `ModuleLinearOperator` does not.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import lineax as lx
from jaxtyping import Array, PyTree

__all__ = ["ModuleLinearOperator", "structure_of"]


def structure_of(tree: PyTree[Any]) -> PyTree[jax.ShapeDtypeStruct]:
    """The shapes and dtypes of a state."""
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(jax.numpy.shape(leaf), jax.numpy.result_type(leaf)), tree)


class ModuleLinearOperator(lx.AbstractLinearOperator):
    """`fn`, linear, from `structure` to what it gives.

    Nothing is claimed about its matrix (not symmetric, not diagonal): it stands for an H', which is rectangular.
    """

    fn: Callable[..., Any]
    structure: tuple[tuple[jax.ShapeDtypeStruct, ...], Any] = eqx.field(static=True)

    def __init__(self, fn: Callable[..., Any], structure: PyTree[jax.ShapeDtypeStruct]):
        leaves, treedef = jax.tree.flatten(structure)
        self.fn = fn
        self.structure = (tuple(leaves), treedef)

    def mv(self, vector: PyTree[Array]) -> PyTree[Array]:
        return self.fn(vector)

    def as_matrix(self) -> Array:
        return lx.materialise(self).as_matrix()

    def transpose(self) -> "ModuleLinearOperator":
        if isinstance(self.fn, _Transposed):
            return self.fn.operator
        return ModuleLinearOperator(_Transposed(self), self.out_structure())

    def in_structure(self) -> PyTree[jax.ShapeDtypeStruct]:
        leaves, treedef = self.structure
        return jax.tree.unflatten(treedef, leaves)

    def out_structure(self) -> PyTree[jax.ShapeDtypeStruct]:
        return structure_of(eqx.filter_eval_shape(self.fn, self.in_structure()))


class _Transposed(eqx.Module):
    operator: ModuleLinearOperator

    def __call__(self, vector: PyTree[Array]) -> PyTree[Array]:
        (transposed,) = jax.linear_transpose(self.operator.fn, self.operator.in_structure())(vector)
        return transposed


def _as_lineax(operator: ModuleLinearOperator) -> lx.FunctionLinearOperator:
    return lx.FunctionLinearOperator(operator.fn, operator.in_structure())


for _hook in (
    lx.is_symmetric,
    lx.is_diagonal,
    lx.is_tridiagonal,
    lx.has_unit_diagonal,
    lx.is_lower_triangular,
    lx.is_upper_triangular,
    lx.is_positive_semidefinite,
    lx.is_negative_semidefinite,
):
    _hook.register(ModuleLinearOperator)(lambda operator: False)

lx.diagonal.register(ModuleLinearOperator)(lambda operator: lx.diagonal(_as_lineax(operator)))
lx.tridiagonal.register(ModuleLinearOperator)(lambda operator: lx.tridiagonal(_as_lineax(operator)))
lx.materialise.register(ModuleLinearOperator)(lambda operator: lx.materialise(_as_lineax(operator)))
lx.conj.register(ModuleLinearOperator)(lambda operator: lx.conj(_as_lineax(operator)))
lx.linearise.register(ModuleLinearOperator)(lambda operator: operator)
