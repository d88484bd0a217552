"""(I + A)⁻¹ from a Lanczos record, never surer than the truth.

With A = GᵀG and orthonormal Lanczos vectors Q, an analysis that is given the numbers (G Q)ᵀ y in place of y has

    C = I - A Q (QᵀAQ + QᵀA²Q)⁻¹ QᵀA

for the covariance of its control. Fewer data leave more uncertainty, so for every number of vectors C lies between
(I + A)⁻¹ and I, falls with each further vector, and reaches (I + A)⁻¹ when they span the range of Gᵀ. (The usual form
I - V (1 - 1/λ) Vᵀ over Ritz pairs has no such bound.) Lanczos gives A Q = Q₊ T̄, where Q₊ has one vector more than Q
and T̄ one row more than T = QᵀAQ. With T̄ = U Σ Vᵀ

    C = I - Z diag(1 - 1/λ) Zᵀ,     Z = Q₊ U W,     1 - 1/λ the eigenvalues, W the eigenvectors of (I + M)⁻¹,
                                                    M = Σ⁻¹ Vᵀ T V Σ⁻¹

so that small eigenvalues of A are not lost among the squares of large ones.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from vardax.minimisers.lanczos import KrylovRecord, RitzPairs, combine

__all__ = ["galerkin_pairs"]

UNSEEN = 10.0
"""Singular values below so many rounding errors of the largest are none: A does not reach these directions."""


def galerkin_pairs(record: KrylovRecord) -> RitzPairs:
    """Orthonormal Z and λ >= 1, with `solve` and `damp` those of C = I - Z diag(1 - 1/λ) Zᵀ."""
    T_bar = _rectangular(record)
    T = T_bar[:-1]
    U, sizes, Vt = jnp.linalg.svd(T_bar, full_matrices=False)
    seen = sizes > UNSEEN * T.shape[0] * jnp.finfo(T.dtype).eps * jnp.maximum(1, jnp.max(sizes))
    scale = jnp.where(seen, 1 / jnp.where(seen, sizes, jnp.ones_like(sizes)), 0)
    M = scale[:, None] * (Vt @ T @ Vt.T) * scale[None, :]
    noise, W = jnp.linalg.eigh(0.5 * (M + M.T) + jnp.diag(jnp.where(seen, 0.0, -1.0).astype(T.dtype)))
    known = noise > 0  # what is unseen has -1, so it comes first and is left out
    values = jnp.where(known, 1 + 1 / jnp.where(known, noise, jnp.ones_like(noise)), 1)
    vectors = combine((U @ W).T, record.vectors)
    return RitzPairs(values, vectors, known)


def _rectangular(record: KrylovRecord) -> Float[Array, "rows k"]:
    """T̄, the k + 1 by k matrix of A = GᵀG between the vectors, zero in the columns that are not used."""
    k = record.diagonal.shape[0]
    used = jnp.arange(k) < record.n
    diagonal = jnp.where(used, record.diagonal - 1, 0)
    off = jnp.where(used, record.off, 0)
    square = jnp.diag(diagonal) + jnp.diag(jnp.where(used[1:], off[:-1], 0), 1)
    return jnp.concatenate([square, jnp.zeros_like(square[:1])]).at[jnp.arange(1, k + 1), jnp.arange(k)].set(off)
