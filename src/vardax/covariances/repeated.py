"""The same covariance at several times, independent from one to the next: model errors over a window.

    B = diag(Q, Q, ..., Q)  (n times)        L = diag(L_Q, ..., L_Q)        log|B| = n log|Q|

The fields are those of Q stacked on a new leading axis; products are those with Q, all n at once.
"""

import operator
from collections.abc import Sequence
from typing import Any, SupportsIndex

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array, ArrayLike, Float, PyTree

from vardax.covariances.base import AbstractCovariance
from vardax.covariances.block_restriction import BatchedRestriction, restrict_batch
from vardax.covariances.by_products import matrix_by_products
from vardax.covariances.factors import AbstractFactor
from vardax.covariances.functions import as_covariance, diagonal, half, inv_mv, is_diagonal, logdet, restrict
from vardax.covariances.restriction import as_mask, as_std

__all__ = ["RepeatedCovariance", "RepeatedFactor"]


class RepeatedCovariance(AbstractCovariance):
    """`covariance` at `n` times, independent of one another; fields (n, *field), or pytrees of such.

    For a Q that changes from time to time, stack the Q_t in a `BlockDiagonalCovariance`.

    >>> from vardax.covariances.diagonal import DiagonalCovariance
    >>> RepeatedCovariance(DiagonalCovariance([4.0, 1.0]), 3).mv(jnp.ones((3, 2))).tolist()
    [[4.0, 1.0], [4.0, 1.0], [4.0, 1.0]]
    """

    covariance: lx.AbstractLinearOperator
    n: int = eqx.field(static=True)

    def __init__(self, covariance: Any, n: SupportsIndex):
        self.covariance = as_covariance("RepeatedCovariance", covariance, "covariance")
        if operator.index(n) < 0:
            raise ValueError(f"RepeatedCovariance: `n` is {n}, expected the number of times, 0 or more.")
        self.n = operator.index(n)

    @property
    def diagonal_matrix(self) -> bool:
        return is_diagonal(self.covariance)

    def in_structure(self) -> PyTree[jax.ShapeDtypeStruct]:
        return _stacked(self.covariance.in_structure(), self.n)

    def mv(self, vector: PyTree[ArrayLike]) -> PyTree[Array]:
        return jax.vmap(self.covariance.mv)(self.field(vector))

    def half(self) -> "RepeatedFactor":
        return RepeatedFactor(half(self.covariance), self.n)

    def diagonal(self) -> PyTree[Array]:
        repeat = lambda leaf: jnp.broadcast_to(leaf, (self.n, *leaf.shape))  # noqa: E731
        return jax.tree.map(repeat, diagonal(self.covariance))

    def as_matrix(self) -> Float[Array, "n n"]:
        return matrix_by_products(self)

    def inv_mv(self, vector: PyTree[ArrayLike]) -> PyTree[Array]:
        return jax.vmap(lambda part: inv_mv(self.covariance, part))(self.field(vector))

    def logdet(self) -> Float[Array, ""]:
        return self.n * logdet(self.covariance)

    def restrict(
        self, mask: ArrayLike | Sequence[Any], *, std: ArrayLike | Sequence[Any] | None = None
    ) -> BatchedRestriction:
        mask = as_mask(mask, self.shape, self.dtype)
        std = None if std is None else as_std(std, self.shape, self.dtype)
        one = lambda _, m, s: restrict(self.covariance, m, std=s)  # noqa: E731
        return restrict_batch(one, None, mask, std, order=tuple(range(mask.ndim)), n_axes=1)


class RepeatedFactor(AbstractFactor):
    """diag(L, ..., L): controls and fields stacked on a leading axis."""

    factor: lx.AbstractLinearOperator
    n: int = eqx.field(static=True)

    def mv(self, vector: PyTree[Array]) -> PyTree[Array]:
        return jax.vmap(self.factor.mv)(vector)

    def transpose_mv(self, vector: PyTree[Array]) -> PyTree[Array]:
        return jax.vmap(self.factor.transpose().mv)(vector)

    def in_structure(self) -> PyTree[jax.ShapeDtypeStruct]:
        return _stacked(self.factor.in_structure(), self.n)

    def out_structure(self) -> PyTree[jax.ShapeDtypeStruct]:
        return _stacked(self.factor.out_structure(), self.n)


def _stacked(structure: PyTree[jax.ShapeDtypeStruct], n: int) -> PyTree[jax.ShapeDtypeStruct]:
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((n, *leaf.shape), leaf.dtype), structure)
