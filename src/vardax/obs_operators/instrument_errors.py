"""The error covariance of one instrument as a block of the R of several.

    R_i / w_i on ravelled observations

so that blocks of any shape stand end to end, and an instrument of weight w_i has w_i times its cost: with the same
misfit, ½ rᵀ (R_i / w_i)⁻¹ r = w_i · ½ rᵀ R_i⁻¹ r. How R_i is built is kept: a diagonal one stays diagonal, and its
restriction to what was observed is R_i's own.
"""

from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array, ArrayLike, Float, PyTree

from vardax.covariances.base import AbstractCovariance
from vardax.covariances.diagonal import safe_sqrt
from vardax.covariances.factors import AbstractFactor
from vardax.covariances.functions import diagonal, half, inv_mv, is_diagonal, logdet, restrict
from vardax.covariances.restriction import AbstractRestriction, as_mask, as_std

__all__ = ["InstrumentErrors"]


class InstrumentErrors(AbstractCovariance):
    """R / weight on the ravelled observations of one instrument.

    >>> from vardax.covariances.diagonal import DiagonalCovariance
    >>> InstrumentErrors(DiagonalCovariance([[4.0, 2.0]]), 2.0).mv(jnp.ones(2))
    Array([2., 1.], dtype=float32)
    """

    R: lx.AbstractLinearOperator
    weight: Float[Array, ""]

    def __init__(self, R: lx.AbstractLinearOperator, weight: ArrayLike = 1.0):
        self.R = R
        self.weight = jnp.asarray(weight, R.out_structure().dtype)

    @property
    def diagonal_matrix(self) -> bool:
        return is_diagonal(self.R)

    @property
    def observed_shape(self) -> tuple[int, ...]:
        """The shape of the observations, before they are ravelled."""
        return self.R.out_structure().shape

    def in_structure(self) -> jax.ShapeDtypeStruct:
        structure = self.R.out_structure()
        return jax.ShapeDtypeStruct((structure.size,), structure.dtype)

    def mv(self, vector: ArrayLike) -> Float[Array, "m"]:
        return self._ravelled(self.R.mv, self.field(vector)) / self.weight

    def half(self) -> "_Half":
        return _Half(half(self.R), jnp.sqrt(self.weight))

    def diagonal(self) -> Float[Array, "m"]:
        return jnp.ravel(diagonal(self.R)) / self.weight

    def as_matrix(self) -> Float[Array, "m m"]:
        return self.R.as_matrix() / self.weight

    def inv_mv(self, vector: ArrayLike) -> Float[Array, "m"]:
        return self.weight * self._ravelled(lambda v: inv_mv(self.R, v), self.field(vector))

    def logdet(self) -> Float[Array, ""]:
        return logdet(self.R) - self.in_size() * jnp.log(self.weight)

    def restrict(
        self, mask: ArrayLike | Sequence[Any], *, std: ArrayLike | Sequence[Any] | None = None
    ) -> "_Restriction":
        structure = self.in_structure()
        mask = as_mask(mask, structure.shape, structure.dtype)
        std = safe_sqrt(self.diagonal()) if std is None else as_std(std, structure.shape, structure.dtype)
        shape = self.observed_shape
        return _Restriction(mask, restrict(self.R, mask.reshape(shape), std=std.reshape(shape)), shape)

    def _ravelled(self, product: Any, vector: Array) -> Array:
        return jnp.ravel(product(vector.reshape(self.observed_shape)))


class _Half(AbstractFactor):
    """L / √weight, with L Lᵀ = R."""

    factor: lx.AbstractLinearOperator
    root: Float[Array, ""]

    def mv(self, vector: PyTree[Array]) -> Float[Array, "m"]:
        return jnp.ravel(self.factor.mv(vector)) / self.root

    def transpose_mv(self, vector: Float[Array, "m"]) -> PyTree[Array]:
        return self.factor.transpose().mv(vector.reshape(self.factor.out_structure().shape) / self.root)

    def in_structure(self) -> PyTree[jax.ShapeDtypeStruct]:
        return self.factor.in_structure()

    def out_structure(self) -> jax.ShapeDtypeStruct:
        structure = self.factor.out_structure()
        return jax.ShapeDtypeStruct((structure.size,), structure.dtype)


class _Restriction(AbstractRestriction):
    """The restriction of R on ravelled residuals."""

    mask: Float[Array, "m"]
    inner: AbstractRestriction
    shape: tuple[int, ...] = eqx.field(static=True)

    def whiten(self, residual: Float[Array, "m"]) -> Float[Array, "m"]:
        return jnp.ravel(self.inner.whiten(residual.reshape(self.shape)))

    def solve(self, residual: Float[Array, "m"]) -> Float[Array, "m"]:
        return jnp.ravel(self.inner.solve(residual.reshape(self.shape)))

    def mv(self, vector: Float[Array, "m"]) -> Float[Array, "m"]:
        return jnp.ravel(self.inner.mv(vector.reshape(self.shape)))

    def logdet(self) -> Float[Array, ""]:
        return self.inner.logdet()
