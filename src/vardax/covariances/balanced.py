"""Correlations between variables from a balance: B = K B_block Kᵀ.

    x = K L χ        L_B = K L        B v = K (B_block (Kᵀ v))

K carries fields whose errors are independent (such as a stream function and an unbalanced part) to the state (such as
winds and pressure), by geostrophy, hydrostasy or a regression. B_block is usually block diagonal.
"""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
from jaxtyping import Array, ArrayLike, Float, PyTree

from vardax.covariances.base import AbstractCovariance, real_array
from vardax.covariances.by_products import (
    diagonal_by_products,
    inverse_by_products,
    logdet_by_products,
    matrix_by_products,
    restrict_by_products,
)
from vardax.covariances.factors import AbstractFactor, ravel, unravel
from vardax.covariances.functions import as_covariance, half
from vardax.covariances.restriction import DenseRestriction
from vardax.obs_operators.linearisation import is_linear
from vardax.obs_operators.module_operator import ModuleLinearOperator
from vardax.types import is_traced

__all__ = ["BalancedCovariance", "BalancedFactor"]

OWNER = "BalancedCovariance"


class BalancedCovariance(AbstractCovariance):
    """B = K B_block Kᵀ: independent errors, carried to the state by a linear balance operator K.

    - `balance_op`: K, from the fields of `block` to the state: a linear callable (of arrays or pytrees; JAX transposes
      it for Kᵀ), a lineax operator, or an array, (m, n) on ravelled fields or (*state, *field). A balance that is not
      linear must be linearised first: `vardax.primitives.tangent_linear(balance, background)`.
    - `block`: the covariance of the independent fields, such as a `BlockDiagonalCovariance`.

    When to use it: several variables with a known relation between them, so that an observation of one corrects the
    others. When not: where the relation varies from day to day; an ensemble has it from its members.

    The variances take one product for each cell, so `diagonal` is refused beyond `DENSE_LIMIT` cells: estimate it from
    samples. `inv_mv` and `logdet` are exact up to that size, and iterative beyond. Derber, J. and Bouttier, F. (1999).
    A reformulation of the background error covariance in the ECMWF global data assimilation system. Tellus A 51,
    195-221.

    >>> from vardax.covariances.diagonal import DiagonalCovariance
    >>> BalancedCovariance(jnp.array([[1.0, 0.0], [2.0, 1.0]]), DiagonalCovariance([1.0, 1.0])).as_matrix().tolist()
    [[1.0, 2.0], [2.0, 5.0]]
    """

    balance_op: lx.AbstractLinearOperator
    block: lx.AbstractLinearOperator

    diagonal_matrix: ClassVar[bool] = False

    def __init__(self, balance_op: Any, block: Any):
        self.block = as_covariance(OWNER, block, "block")
        self.balance_op = _balance(balance_op, self.block.out_structure())

    def in_structure(self) -> PyTree[jax.ShapeDtypeStruct]:
        return self.balance_op.out_structure()

    def mv(self, vector: PyTree[ArrayLike]) -> PyTree[Array]:
        independent = self.balance_op.transpose().mv(self.field(vector))
        return self.balance_op.mv(self.block.mv(independent))

    def half(self) -> "BalancedFactor":
        return BalancedFactor(self.balance_op, half(self.block))

    def diagonal(self) -> PyTree[Array]:
        return diagonal_by_products(self)

    def as_matrix(self) -> Float[Array, "n n"]:
        return matrix_by_products(self)

    def inv_mv(self, vector: PyTree[ArrayLike]) -> PyTree[Array]:
        return inverse_by_products(self, self.field(vector))

    def logdet(self) -> Float[Array, ""]:
        return logdet_by_products(self)

    def restrict(
        self, mask: ArrayLike | Sequence[Any], *, std: ArrayLike | Sequence[Any] | None = None
    ) -> DenseRestriction:
        return restrict_by_products(self, mask, std)


class BalancedFactor(AbstractFactor):
    """K L: the control is that of L."""

    balance_op: lx.AbstractLinearOperator
    factor: lx.AbstractLinearOperator

    def mv(self, vector: PyTree[Array]) -> PyTree[Array]:
        return self.balance_op.mv(self.factor.mv(vector))

    def transpose_mv(self, vector: PyTree[Array]) -> PyTree[Array]:
        return self.factor.transpose().mv(self.balance_op.transpose().mv(vector))

    def in_structure(self) -> PyTree[jax.ShapeDtypeStruct]:
        return self.factor.in_structure()

    def out_structure(self) -> PyTree[jax.ShapeDtypeStruct]:
        return self.balance_op.out_structure()


class _Matrix(eqx.Module):
    """K given by an array: (m, n) on ravelled fields, or (*state, *field)."""

    matrix: Array
    shape: tuple[int, ...] | None = eqx.field(static=True)

    def __call__(self, field: PyTree[Array]) -> PyTree[Array]:
        flat = ravel(field)
        image = jnp.matmul(self.matrix.reshape(-1, flat.size), flat, precision=jax.lax.Precision.HIGHEST)
        if self.shape is None:
            return unravel(image, jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), field))
        return image.reshape(self.shape)


class _Plain(eqx.Module):
    """A function that is no pytree, kept out of the leaves."""

    function: Callable[..., Any] = eqx.field(static=True)

    def __call__(self, field: PyTree[Array]) -> PyTree[Array]:
        return self.function(field)


def _balance(balance_op: Any, structure: PyTree[jax.ShapeDtypeStruct]) -> lx.AbstractLinearOperator:
    """K as a lineax operator from the fields of the block."""
    function: Any
    if isinstance(balance_op, lx.AbstractLinearOperator):
        if balance_op.in_structure() != structure:
            raise ValueError(
                f"{OWNER}: `balance_op` takes {balance_op.in_structure()}, expected the fields of `block`: {structure}."
            )
        return balance_op
    if isinstance(balance_op, jax.Array | np.ndarray | list | tuple):
        return ModuleLinearOperator(_matrix(balance_op, structure), structure)
    if not callable(balance_op):
        raise TypeError(
            f"{OWNER}: `balance_op` is {type(balance_op).__name__}, expected a linear callable, a matrix or a lineax "
            "operator."
        )
    function = _Plain(balance_op) if jax.tree.structure(balance_op) == jax.tree.structure(0) else balance_op
    _require_linear(function, structure)
    return ModuleLinearOperator(function, structure)


def _matrix(matrix: Any, structure: PyTree[jax.ShapeDtypeStruct]) -> _Matrix:
    leaves = jax.tree.leaves(structure)
    size = sum(leaf.size for leaf in leaves)
    matrix = real_array(OWNER, "balance_op", matrix, leaves[0].dtype)
    if matrix.ndim == 2 and matrix.shape[1] == size:
        return _Matrix(matrix, None if matrix.shape[0] == size else matrix.shape[:1])
    shape = structure.shape if isinstance(structure, jax.ShapeDtypeStruct) else ()
    ndim = len(shape)
    if ndim and matrix.ndim > ndim and matrix.shape[-ndim:] == shape:
        return _Matrix(matrix, matrix.shape[:-ndim])
    raise ValueError(
        f"{OWNER}: `balance_op` has shape {matrix.shape}, expected (m, {size}) on ravelled fields of `block`, or "
        f"(*state, *field) with fields {structure}."
    )


def _require_linear(function: Callable[..., Any], structure: PyTree[jax.ShapeDtypeStruct]) -> None:
    """K must be linear: affine, and zero at zero (as far as values are there to see)."""
    remedy = "give its linearisation, `vardax.primitives.tangent_linear(balance, background)`"
    if not is_linear(function, structure):
        raise ValueError(f"{OWNER}: `balance_op` is not linear; {remedy}.")
    at_zero = function(jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), structure))
    for leaf in jax.tree.leaves(at_zero):
        if not is_traced(leaf) and np.any(np.asarray(leaf)):
            raise ValueError(f"{OWNER}: `balance_op` of zero is not zero, so it is affine and not linear; {remedy}.")
