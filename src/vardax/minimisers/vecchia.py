"""A sparse inverse of H B Hᵀ + R for observations of single cells, to precondition with.

The density of correlated variables is the product of the densities of each block given all earlier ones. Vecchia's
approximation conditions on a few earlier neighbours n(k) instead: with Sigma the covariance of neighbours and block and
Sigma = Λ Λᵀ, the last rows C of Λ⁻¹ give what the block k does not share with its neighbours, as white noise, and

    M⁻¹ = Σ_k (C_k E_k)ᵀ (C_k E_k),        E_k the entries n(k) and k of a vector.

It is positive definite whatever the neighbours are, and the exact inverse if they are all earlier ones. For a B that
decays, on observations sorted as in `neighbours`, M⁻¹ (H B Hᵀ + R) is close to the identity.

Observations of one cell count as one with the sum of their precisions: with the averages u = D⁻¹ Sᵀ R⁻¹ r over each
cell, D = Sᵀ R⁻¹ S, the inverse is R⁻¹ (r − S u) + R⁻¹ S D⁻¹ M⁻¹ u, exactly.

Vecchia, A. V. (1988). Estimation and model identification for continuous spatial processes. JRSS B 50, 297-312.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from vardax.minimisers.neighbours import BLOCK, CHUNK, Arrangement, arrange
from vardax.minimisers.observed_cells import ObservedCells

__all__ = ["VecchiaInverse", "vecchia_inverse"]

CellCovariance = Callable[[tuple[Array, ...], tuple[Array, ...]], Array]


class VecchiaInverse(NamedTuple):
    """r -> M⁻¹ r, symmetric and positive definite on the observed entries, zero elsewhere."""

    rows: Float[Array, "blocks block window"]
    windows: Int[Array, "blocks windows"]
    entry: Int[Array, "m"]
    share: Float[Array, "m"]
    gain: Float[Array, "m"]
    precision: Float[Array, "m"]

    def __call__(self, residual: Float[Array, "..."]) -> Float[Array, "..."]:
        r = jnp.ravel(residual)
        n_entries = self.rows.shape[0] * BLOCK
        average = jnp.zeros(n_entries, r.dtype).at[self.entry].add(self.share * r)
        inner = r - self.gain * average[self.entry]
        product = inner * self.precision + self.share * self._between_cells(average)[self.entry]
        return product.reshape(residual.shape)

    def _between_cells(self, u: Array) -> Array:
        """Σ_k E_kᵀ C_kᵀ C_k E_k u."""
        inside = _window_elements(self.windows)
        own = u.reshape(-1, BLOCK)
        precision = jax.lax.Precision.HIGHEST
        white = jnp.einsum("kij,kj->ki", self.rows, jnp.concatenate([u[inside], own], axis=1), precision=precision)
        back = jnp.einsum("kij,ki->kj", self.rows, white, precision=precision)
        return jnp.ravel(back[:, -BLOCK:]).at[inside].add(back[:, :-BLOCK])


def vecchia_inverse(
    covariance: CellCovariance, observed: ObservedCells, variances: Float[Array, "m"], shape: tuple[int, ...]
) -> VecchiaInverse:
    """M⁻¹ for observations of these cells. `covariance` gives B between cells, and `variances` is the diagonal of R,
    zero where missing."""
    dtype = variances.dtype
    seen = variances > 0
    gain = observed.gain.astype(dtype)
    precision = jnp.where(seen, 1 / jnp.where(seen, variances, jnp.ones_like(variances)), jnp.zeros_like(variances))
    arranged = arrange(observed.cells, gain**2 * precision, shape)
    total = arranged.precision[arranged.entry]
    share = jnp.where(total > 0, gain * precision / jnp.where(total > 0, total, jnp.ones_like(total)), 0)
    rows = _conditional_rows(covariance, arranged)
    return VecchiaInverse(rows, arranged.windows, arranged.entry, share, gain, precision)


def _window_elements(windows: Array) -> Array:
    """All entries of the windows of each block."""
    return (windows[:, :, None] + jnp.arange(BLOCK)[None, None, :]).reshape(windows.shape[0], -1)


def _conditional_rows(covariance: CellCovariance, arranged: Arrangement) -> Float[Array, "blocks block window"]:
    """C_k of all blocks, a chunk at a time."""
    n_blocks = arranged.windows.shape[0]
    chunked = lambda array: array.reshape(-1, min(CHUNK, n_blocks), *array.shape[1:])  # noqa: E731

    def rows(chunk: tuple[Array, Array]) -> Array:
        own, windows = chunk
        inside = _window_elements(windows)
        member = jnp.concatenate([inside, own], axis=1)
        cells = tuple(cell[member] for cell in arranged.cells)
        precision = arranged.precision[member]
        earlier = jnp.concatenate([inside < own[:, :1], jnp.ones(own.shape, bool)], axis=1)
        counted = earlier & (precision > 0)
        each = lambda axis: tuple(jnp.expand_dims(cell, axis) for cell in cells)  # noqa: E731
        between = covariance(each(2), each(1)).astype(precision.dtype)
        return _last_rows(between, precision, counted)

    own = jnp.arange(n_blocks * BLOCK).reshape(n_blocks, BLOCK)
    result = jax.lax.map(rows, (chunked(own), chunked(arranged.windows)))
    return result.reshape(n_blocks, BLOCK, -1)


def _last_rows(between: Array, precision: Array, counted: Array) -> Array:
    """The last `BLOCK` rows of Λ⁻¹, Λ Λᵀ = `between` + 1 / `precision`, zero in the columns that are not counted.

    Rounding can make a smooth covariance slightly indefinite, so the diagonal is raised by what rounding may be; a
    block that has no factor all the same stands alone.
    """
    n = between.shape[-1]
    identity = jnp.eye(n, dtype=between.dtype)[None]
    variance = jnp.where(counted, 1 / jnp.where(counted, precision, jnp.ones_like(precision)), 1)
    between = jnp.where(counted[:, :, None] & counted[:, None, :], between, jnp.zeros_like(between))
    own = jnp.diagonal(between, axis1=1, axis2=2)
    rounding = n * float(jnp.finfo(between.dtype).eps)
    diagonal = variance + rounding * own
    matrix = between + diagonal[:, :, None] * identity
    factor = jax.lax.linalg.cholesky(matrix, symmetrize_input=False)
    sound = jnp.all(jnp.isfinite(factor), axis=(1, 2), keepdims=True)
    alone = jnp.sqrt(own + diagonal)[:, :, None] * identity
    rows = _rows_of_inverse(jnp.where(sound, factor, alone))
    return jnp.where(counted[:, None, :], rows, jnp.zeros_like(rows))


def _rows_of_inverse(factor: Float[Array, "blocks n n"]) -> Float[Array, "blocks block n"]:
    """The last `BLOCK` rows X of Λ⁻¹, from X Λ = (0, I), column by column from the last one.

    A loop of small products, because threads of a LAPACK triangular solve get into each other's way on many small
    matrices.
    """
    n_blocks, n = factor.shape[:2]
    unit = jnp.eye(n, dtype=factor.dtype)[n - BLOCK :]

    def column(i: Array, rows: Array) -> Array:
        at = n - 1 - i
        below = jax.lax.dynamic_index_in_dim(factor, at, 2, keepdims=False)
        pivot = jax.lax.dynamic_index_in_dim(below, at, 1)
        right = jax.lax.dynamic_index_in_dim(unit, at, 1, keepdims=False)
        solved = (right[None] - jnp.einsum("kbi,ki->kb", rows, below, precision=jax.lax.Precision.HIGHEST)) / pivot
        return jax.lax.dynamic_update_index_in_dim(rows, solved, at, 2)

    return jax.lax.fori_loop(0, n, column, jnp.zeros((n_blocks, BLOCK, n), factor.dtype))
