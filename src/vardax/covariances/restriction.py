"""The observed part of an observation-error covariance R.

A mask M = diag(m), m ∈ {0, 1}, says which entries were observed. The missing ones are marginalised exactly: what counts
is R between the observed entries, also where R is correlated.

    W r            whitened residual,  Wᵀ W = (M R M)⁺,  zero where missing
    solve(r)       (M R M + I − M)⁻¹ M r = (M R M)⁺ r
    mv(v)          M R M v
    logdet()       log|R| over the observed entries

`restrict` factorises once; the result is a pytree of arrays, so it goes through `vmap` over masks, `jit` and `scan`,
and the iterations of a minimiser only apply it. Diagonal R is exact at any size. A correlated R is factorised by
Cholesky up to `RESTRICT_LIMIT` entries and refused beyond.
"""

import abc
from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from vardax.covariances.sizes import RESTRICT_LIMIT
from vardax.types import concrete_values, float_array

__all__ = [
    "AbstractRestriction",
    "DenseRestriction",
    "DiagonalRestriction",
    "as_mask",
    "as_std",
    "require_finite",
    "require_positive",
    "require_restrictable",
    "restrict_dense",
    "restrict_diagonal",
]


class AbstractRestriction(eqx.Module):
    """R between observed entries. What a residual, of the shape of `mask`, holds at missing entries is ignored."""

    mask: eqx.AbstractVar[Float[Array, "..."]]

    @abc.abstractmethod
    def whiten(self, residual: Float[Array, "..."]) -> Float[Array, "..."]:
        """W r, with Wᵀ W = (M R M)⁺; zero where missing."""

    @abc.abstractmethod
    def solve(self, residual: Float[Array, "..."]) -> Float[Array, "..."]:
        """(M R M + I − M)⁻¹ M r; zero where missing."""

    @abc.abstractmethod
    def mv(self, vector: Float[Array, "..."]) -> Float[Array, "..."]:
        """M R M v; zero where missing."""

    @abc.abstractmethod
    def logdet(self) -> Float[Array, ""]:
        """log|R| over the observed entries; 0 when there are none."""

    def observed(self, vector: Float[Array, "..."]) -> Float[Array, "..."]:
        """M v; a NaN at a missing entry becomes 0."""
        return jnp.where(self.mask != 0, vector, jnp.zeros_like(vector))


class DiagonalRestriction(AbstractRestriction):
    """Uncorrelated errors: `std` is the standard deviation of each entry, 1 where missing."""

    mask: Float[Array, "..."]
    std: Float[Array, "..."]

    def whiten(self, residual: Float[Array, "..."]) -> Float[Array, "..."]:
        return self.observed(residual) / self.std

    def solve(self, residual: Float[Array, "..."]) -> Float[Array, "..."]:
        return self.observed(residual) / self.std**2

    def mv(self, vector: Float[Array, "..."]) -> Float[Array, "..."]:
        return self.observed(vector) * self.std**2

    def logdet(self) -> Float[Array, ""]:
        return 2 * jnp.sum(jnp.log(self.std))


class DenseRestriction(AbstractRestriction):
    """Correlated errors: `factor` is the Cholesky factor of M R M + I − M on ravelled entries."""

    mask: Float[Array, "..."]
    factor: Float[Array, "n n"]

    def whiten(self, residual: Float[Array, "..."]) -> Float[Array, "..."]:
        return _triangular(self.factor, jnp.ravel(self.observed(residual))).reshape(self.mask.shape)

    def solve(self, residual: Float[Array, "..."]) -> Float[Array, "..."]:
        whitened = _triangular(self.factor, jnp.ravel(self.observed(residual)))
        return _triangular(self.factor, whitened, transposed=True).reshape(self.mask.shape)

    def mv(self, vector: Float[Array, "..."]) -> Float[Array, "..."]:
        product = jnp.matmul(self.factor.T, jnp.ravel(self.observed(vector)), precision=jax.lax.Precision.HIGHEST)
        product = jnp.matmul(self.factor, product, precision=jax.lax.Precision.HIGHEST)
        return product.reshape(self.mask.shape)

    def logdet(self) -> Float[Array, ""]:
        return 2 * jnp.sum(jnp.log(jnp.diagonal(self.factor)))


def restrict_diagonal(
    variance: Float[Array, "..."], mask: ArrayLike | Sequence[Any], std: ArrayLike | Sequence[Any] | None = None
) -> DiagonalRestriction:
    """The restriction of R = diag(variance), or of diag(std²) when `std` is given.

    >>> restrict_diagonal(jnp.array([4.0, 9.0]), [1.0, 0.0]).whiten(jnp.array([2.0, jnp.nan]))
    Array([1., 0.], dtype=float32)
    """
    mask = as_mask(mask, variance.shape, variance.dtype)
    spread = None if std is None else as_std(std, variance.shape, variance.dtype)
    variance = variance if spread is None else spread**2
    require_positive(variance, mask)
    return DiagonalRestriction(mask, jnp.sqrt(jnp.where(mask != 0, variance, jnp.ones_like(variance))))


def restrict_dense(
    matrix: Float[Array, "n n"],
    shape: tuple[int, ...],
    mask: ArrayLike | Sequence[Any],
    std: ArrayLike | Sequence[Any] | None = None,
) -> DenseRestriction:
    """The restriction of R given by its matrix on ravelled entries; `std` replaces its standard deviations.

    With `std`, R becomes D C D: C the correlation matrix of R, D = diag(std).
    """
    mask = as_mask(mask, shape, matrix.dtype)
    observed = jnp.ravel(mask) != 0
    if std is not None:
        spread = as_std(std, shape, matrix.dtype)
        require_positive(spread, mask)
        spread = jnp.where(observed, jnp.ravel(spread), jnp.ones(matrix.shape[0], matrix.dtype))
        own = jnp.diagonal(matrix)
        ratio = spread / jnp.sqrt(jnp.where(observed & (own > 0), own, jnp.ones_like(own)))
        matrix = matrix * ratio[:, None] * ratio[None, :]
    both = observed[:, None] & observed[None, :]
    marginal = jnp.where(both, matrix, jnp.diag(jnp.where(observed, 0, 1).astype(matrix.dtype)))
    factor = jnp.linalg.cholesky(marginal)
    require_finite(factor)
    return DenseRestriction(mask, factor)


def require_restrictable(owner: str, size: int) -> None:
    """Raise `ValueError` if a correlated R of `size` entries is too large to factorise."""
    if size > RESTRICT_LIMIT:
        raise ValueError(
            f"{owner}.restrict: a correlated R of {size} entries is larger than RESTRICT_LIMIT = {RESTRICT_LIMIT}; use "
            "a `DiagonalCovariance`, blocks of at most that size, or a dual solver, which needs only products with R."
        )


def _triangular(factor: Array, vector: Array, transposed: bool = False) -> Array:
    return jax.scipy.linalg.solve_triangular(factor, vector, trans=int(transposed), lower=True)


def as_mask(mask: ArrayLike | Sequence[Any], shape: tuple[int, ...], dtype: jnp.dtype) -> Float[Array, "..."]:
    """`mask` as zeros and ones of the shape of R's fields; any number that is not 0 counts as observed."""
    mask = jnp.asarray(mask)
    if mask.shape != tuple(shape):
        raise ValueError(f"restrict: `mask` has shape {mask.shape}, expected {tuple(shape)}, the shape of R's fields.")
    return mask.astype(bool).astype(dtype)


def as_std(std: ArrayLike | Sequence[Any], shape: tuple[int, ...], dtype: jnp.dtype) -> Float[Array, "..."]:
    """`std` as an array of the shape of R's fields."""
    std = float_array(std)
    if std.shape != tuple(shape):
        raise ValueError(f"restrict: `std` has shape {std.shape}, expected {tuple(shape)}, the shape of R's fields.")
    return std.astype(dtype)


def require_positive(variance: Array, mask: Array) -> None:
    """Raise `ValueError` if an observed entry has no positive variance, where the values are known."""
    values, observed = concrete_values(variance), concrete_values(mask)
    if values is None or observed is None:
        return
    bad = int(np.sum(~(values > 0) & (observed != 0)))
    if bad:
        raise ValueError(
            f"restrict: the error variance (or `std`) of {bad} observed entries is zero, negative or NaN; give them a "
            "positive variance, or mask them."
        )


def require_finite(factor: Array) -> None:
    """Raise `ValueError` if the factorisation of R has failed, where the values are known."""
    values = concrete_values(factor)
    if values is not None and not np.all(np.isfinite(values)):
        raise ValueError(
            "restrict: R between the observed entries is not positive definite; add an uncorrelated error variance."
        )
