"""Square roots of covariances: linear operators L from a control to a field, with L Lᵀ = B.

    control χ ~ N(0, I)  --L-->  field x ~ N(0, B)        field gradient  --Lᵀ-->  control gradient

A factor states both of its products, `mv` (L χ) and `transpose_mv` (Lᵀ v), so the transpose costs what the product
costs. The control may be longer than the field (padding, sums of covariances) and may be a pytree.
"""

import abc
import functools
import operator as operators
from typing import Any

import equinox as eqx
import jax
import jax.flatten_util
import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from vardax.covariances.sizes import require_dense_size

__all__ = [
    "AbstractFactor",
    "ConcatenatedFactor",
    "DenseFactor",
    "TransposedFactor",
    "ravel",
    "require_structure",
    "sample_factor",
    "unravel",
    "white_noise",
]


def ravel(tree: PyTree[Array]) -> Float[Array, "n"]:
    """The leaves of a field, ravelled row-major and joined."""
    return jax.flatten_util.ravel_pytree(tree)[0]


def unravel(vector: Float[Array, "n"], structure: PyTree[jax.ShapeDtypeStruct]) -> PyTree[Array]:
    """The field of the given structure whose `ravel` is `vector`."""
    _, unflatten = eqx.filter_eval_shape(jax.flatten_util.ravel_pytree, structure)
    return unflatten(vector)


def require_structure(owner: str, name: str, found: PyTree[Array], expected: PyTree[jax.ShapeDtypeStruct]) -> None:
    """Raise `ValueError` unless shapes and dtypes are the expected ones."""
    describe = functools.partial(jax.tree.map, lambda leaf: f"{leaf.dtype}{list(leaf.shape)}")
    if describe(found) != describe(expected):
        raise ValueError(
            f"{owner}: `{name}` is {describe(found)}, expected {describe(expected)}; reshape or cast it, or build the "
            "covariance with `dtype=`."
        )


def white_noise(key: PRNGKeyArray, structure: PyTree[jax.ShapeDtypeStruct], n: int) -> PyTree[Array]:
    """`n` independent standard normal controls, stacked on axis 0 of each leaf."""
    leaves, treedef = jax.tree.flatten(structure)
    keys = jax.random.split(key, len(leaves))
    noise = [jax.random.normal(k, (n, *leaf.shape), leaf.dtype) for k, leaf in zip(keys, leaves, strict=True)]
    return jax.tree.unflatten(treedef, noise)


def sample_factor(factor: lx.AbstractLinearOperator, key: PRNGKeyArray, n: int) -> PyTree[Array]:
    """`n` draws of L χ, χ ~ N(0, I), stacked on axis 0.

    >>> sample_factor(lx.DiagonalLinearOperator(jnp.ones(3)), jax.random.key(0), 5).shape
    (5, 3)
    """
    if operators.index(n) < 1:
        raise ValueError(f"sample: `n` is {n}, expected the number of samples, at least 1.")
    return jax.vmap(factor.mv)(white_noise(key, factor.in_structure(), operators.index(n)))


class AbstractFactor(lx.AbstractLinearOperator):
    """A linear operator L: control -> field that states its own transpose."""

    @abc.abstractmethod
    def transpose_mv(self, vector: PyTree[Array]) -> PyTree[Array]:
        """Lᵀ v: a field to a control."""

    def transpose(self) -> lx.AbstractLinearOperator:
        return TransposedFactor(self)

    def as_matrix(self) -> Float[Array, "field control"]:
        """The matrix on ravelled controls and fields, one transposed product per row, for small sizes."""
        size, structure = self.out_size(), self.out_structure()
        require_dense_size(f"{type(self).__name__}.as_matrix", size)
        dtype = jnp.result_type(*jax.tree.leaves(structure))
        return jax.vmap(lambda row: ravel(self.transpose_mv(unravel(row, structure))))(jnp.eye(size, dtype=dtype))


class TransposedFactor(lx.AbstractLinearOperator):
    """Lᵀ: field -> control."""

    factor: AbstractFactor

    def mv(self, vector: PyTree[Array]) -> PyTree[Array]:
        return self.factor.transpose_mv(vector)

    def as_matrix(self) -> Float[Array, "control field"]:
        return self.factor.as_matrix().T

    def transpose(self) -> AbstractFactor:
        return self.factor

    def in_structure(self) -> PyTree[jax.ShapeDtypeStruct]:
        return self.factor.out_structure()

    def out_structure(self) -> PyTree[jax.ShapeDtypeStruct]:
        return self.factor.in_structure()


class DenseFactor(AbstractFactor):
    """L given by its n x n matrix on ravelled fields; the control has the structure of the field."""

    matrix: Float[Array, "n n"]
    structure: tuple[tuple[jax.ShapeDtypeStruct, ...], Any] = eqx.field(static=True)

    def __init__(self, matrix: Float[Array, "n n"], structure: PyTree[jax.ShapeDtypeStruct]):
        leaves, treedef = jax.tree.flatten(structure)
        self.matrix, self.structure = matrix, (tuple(leaves), treedef)

    def mv(self, vector: PyTree[Array]) -> PyTree[Array]:
        return unravel(_product(self.matrix, ravel(vector)), self.out_structure())

    def transpose_mv(self, vector: PyTree[Array]) -> PyTree[Array]:
        return unravel(_product(self.matrix.T, ravel(vector)), self.in_structure())

    def in_structure(self) -> PyTree[jax.ShapeDtypeStruct]:
        leaves, treedef = self.structure
        return jax.tree.unflatten(treedef, leaves)

    def out_structure(self) -> PyTree[jax.ShapeDtypeStruct]:
        return self.in_structure()


class ConcatenatedFactor(AbstractFactor):
    """[L₁ L₂ ...], the square root of B₁ + B₂ + ...: the control is the tuple (χ₁, χ₂, ...)."""

    factors: tuple[lx.AbstractLinearOperator, ...]

    def mv(self, vector: PyTree[Array]) -> PyTree[Array]:
        parts = [factor.mv(control) for factor, control in zip(self.factors, vector, strict=True)]
        return jax.tree.map(lambda *leaves: sum(leaves[1:], leaves[0]), *parts)

    def transpose_mv(self, vector: PyTree[Array]) -> PyTree[Array]:
        return tuple(factor.transpose().mv(vector) for factor in self.factors)

    def in_structure(self) -> PyTree[jax.ShapeDtypeStruct]:
        return tuple(factor.in_structure() for factor in self.factors)

    def out_structure(self) -> PyTree[jax.ShapeDtypeStruct]:
        return self.factors[0].out_structure()


def _product(matrix: Float[Array, "a b"], vector: Float[Array, "b"]) -> Float[Array, "a"]:
    return jnp.matmul(matrix, vector, precision=jax.lax.Precision.HIGHEST)


def _is_not_claimed(operator: lx.AbstractLinearOperator) -> bool:
    return False


for _type in (AbstractFactor, TransposedFactor):
    for _hook in (lx.linearise, lx.conj):
        _hook.register(_type)(lambda operator: operator)

    for _hook in (
        lx.is_symmetric,
        lx.is_diagonal,
        lx.is_tridiagonal,
        lx.is_lower_triangular,
        lx.is_upper_triangular,
        lx.is_positive_semidefinite,
        lx.is_negative_semidefinite,
        lx.has_unit_diagonal,
    ):
        _hook.register(_type)(_is_not_claimed)

    @lx.materialise.register(_type)
    def _(operator):
        return lx.materialise(lx.FunctionLinearOperator(operator.mv, operator.in_structure()))

    @lx.diagonal.register(_type)
    def _(operator):
        return jnp.diagonal(operator.as_matrix())

    @lx.tridiagonal.register(_type)
    def _(operator):
        matrix = operator.as_matrix()
        return jnp.diagonal(matrix), jnp.diagonal(matrix, offset=-1), jnp.diagonal(matrix, offset=1)
