"""A covariance given by its square root: B = F Fᵀ with few columns.

    L = F        B v = F (Fᵀ v)        diag(B) = Σ_k F_k²

The control χ has one number for each column (mode) of F.
"""

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, PyTree

from vardax.covariances.base import AbstractCovariance, real_tree
from vardax.covariances.by_products import restrict_by_products
from vardax.covariances.factors import AbstractFactor
from vardax.covariances.restriction import DenseRestriction
from vardax.covariances.sizes import require_dense_size
from vardax.types import concrete_values

__all__ = ["LowRankCovariance", "LowRankFactor"]

OWNER = "LowRankCovariance"
EXACT_PRODUCT = jax.lax.Precision.HIGHEST


class LowRankCovariance(AbstractCovariance):
    """B = F Fᵀ from its factor F: few modes, many cells. The square root is F itself.

    - `factor`: (*shape, modes), the modes along the last axis, as the columns of a matrix F (n, modes); for fields that
      are pytrees, a pytree of such arrays. An (n, modes) matrix for fields of n cells goes with `shape=`.

    When to use it: empirical orthogonal functions, or the reduced-rank square root of B of another program (`V` of
    PDAF's 3D-Var). Members of an ensemble, (members, *shape), are not this factor before they are centred and scaled:
    give them to `LocalizedEnsembleCovariance(ensemble, None)`.

    The analysis changes the background by combinations of the modes, and by nothing else. B has no inverse and no
    determinant, and `inv_mv` and `logdet` say what to do instead.

    >>> LowRankCovariance([[1.0], [2.0]]).as_matrix().tolist()
    [[1.0, 2.0], [2.0, 4.0]]
    """

    factor: PyTree[Array]

    diagonal_matrix: ClassVar[bool] = False

    def __init__(self, factor: Any, *, shape: int | Sequence[int] | None = None, dtype: Any = None):
        factor = real_tree(OWNER, "factor", factor, dtype)
        self.factor = factor if shape is None else _reshaped(factor, shape)
        for leaf in jax.tree.leaves(self.factor):
            _require_modes(leaf, self.n_modes)

    @property
    def n_modes(self) -> int:
        """The number of modes, which is the length of the control."""
        shape = jax.tree.leaves(self.factor)[0].shape
        return shape[-1] if shape else 0

    def in_structure(self) -> PyTree[jax.ShapeDtypeStruct]:
        return self.half().out_structure()

    def mv(self, vector: PyTree[ArrayLike]) -> PyTree[Array]:
        factor = self.half()
        return factor.mv(factor.transpose_mv(self.field(vector)))

    def half(self) -> "LowRankFactor":
        return LowRankFactor(self.factor)

    def diagonal(self) -> PyTree[Array]:
        return jax.tree.map(lambda leaf: jnp.sum(leaf**2, axis=-1), self.factor)

    def as_matrix(self) -> Float[Array, "n n"]:
        require_dense_size(f"{OWNER}.as_matrix", self.in_size())
        columns = jnp.concatenate([leaf.reshape(-1, self.n_modes) for leaf in jax.tree.leaves(self.factor)])
        return jnp.matmul(columns, columns.T, precision=EXACT_PRODUCT)

    def inv_mv(self, vector: PyTree[ArrayLike]) -> PyTree[Array]:
        raise ValueError(self._no_inverse("inv_mv"))

    def logdet(self) -> Float[Array, ""]:
        raise ValueError(self._no_inverse("logdet"))

    def restrict(
        self, mask: ArrayLike | Sequence[Any], *, std: ArrayLike | Sequence[Any] | None = None
    ) -> DenseRestriction:
        return restrict_by_products(self, mask, std)

    def _no_inverse(self, what: str) -> str:
        return (
            f"{OWNER}.{what}: F Fᵀ ({self.n_modes} modes for {self.in_size()} cells) has no inverse; work with `half`, "
            "which is all that an analysis needs, or add a variance: `B + DiagonalCovariance(...)`."
        )


class LowRankFactor(AbstractFactor):
    """χ -> Σ_k χ_k F_k, the modes F_k along the last axis of each array."""

    factor: PyTree[Array]

    def mv(self, vector: Float[Array, "modes"]) -> PyTree[Array]:
        return jax.tree.map(lambda leaf: jnp.matmul(leaf, vector, precision=EXACT_PRODUCT), self.factor)

    def transpose_mv(self, vector: PyTree[Array]) -> Float[Array, "modes"]:
        return jax.tree.reduce(jnp.add, jax.tree.map(_projection, self.factor, vector))

    def in_structure(self) -> jax.ShapeDtypeStruct:
        leaf = jax.tree.leaves(self.factor)[0]
        return jax.ShapeDtypeStruct(leaf.shape[-1:], leaf.dtype)

    def out_structure(self) -> PyTree[jax.ShapeDtypeStruct]:
        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[:-1], leaf.dtype), self.factor)


def _projection(modes: Float[Array, "... modes"], field: Float[Array, "..."]) -> Float[Array, "modes"]:
    """Fᵀ v."""
    return jnp.matmul(field.ravel(), modes.reshape(field.size, -1), precision=EXACT_PRODUCT)


def _reshaped(factor: PyTree[Array], shape: int | Sequence[int]) -> Array:
    """The (n, modes) matrix as (*shape, modes)."""
    shape = (shape,) if isinstance(shape, int) else tuple(shape)
    if not isinstance(factor, jax.Array):
        raise ValueError(
            f"{OWNER}: `shape` goes with one matrix (n, modes), and `factor` is a pytree; reshape its arrays."
        )
    if factor.ndim != 2 or factor.shape[0] != math.prod(shape):
        raise ValueError(
            f"{OWNER}: `factor` has shape {factor.shape}, expected ({math.prod(shape)}, modes) for fields of shape "
            f"{shape}."
        )
    return factor.reshape(*shape, -1)


def _require_modes(leaf: Array, n_modes: int) -> None:
    if leaf.ndim == 0 or leaf.shape[-1] != n_modes or n_modes == 0:
        raise ValueError(
            f"{OWNER}: `factor` has an array of shape {leaf.shape}, expected (*shape, modes), at least one mode and as "
            f"many as the first array has ({n_modes})."
        )
    values = concrete_values(leaf)
    if values is not None and not np.all(np.isfinite(values)):
        raise ValueError(f"{OWNER}: `factor` has {int(np.sum(~np.isfinite(values)))} entries that are not finite.")
