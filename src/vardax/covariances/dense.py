"""A covariance given by its matrix: B = L Lᵀ, factorised once when it is built."""

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from vardax.covariances.base import AbstractCovariance, real_array
from vardax.covariances.factors import DenseFactor
from vardax.covariances.restriction import DenseRestriction, require_restrictable, restrict_dense
from vardax.types import concrete_values, is_traced

__all__ = ["DenseCovariance", "factorise", "square_root"]


class DenseCovariance(AbstractCovariance):
    """B = L Lᵀ from its matrix: for small systems and for correlated R.

    `matrix` is (n, n) for vectors, or (*shape, *shape) for fields; an (n, n) matrix for fields of n cells goes with
    `shape=`. It is factorised once, here: by Cholesky where B is positive definite, by its eigenvectors where it is
    only semidefinite (then `half`, `mv` and `sample` work, and `inv_mv` and `logdet` say that there is no inverse).
    Only the factor is kept, so B stays positive semidefinite whatever happens to the leaves.

    While tracing, the matrix is taken to be positive definite, and a matrix that is not gives NaN.

    >>> DenseCovariance(jnp.array([[1.0, 0.5], [0.5, 1.0]])).mv(jnp.array([1.0, 0.0]))
    Array([1. , 0.5], dtype=float32)
    """

    factor: Float[Array, "n n"]
    field_shape: tuple[int, ...] = eqx.field(static=True)
    definite: bool = eqx.field(static=True)

    diagonal_matrix: ClassVar[bool] = False

    def __init__(
        self, matrix: ArrayLike | Sequence[Any], *, shape: int | Sequence[int] | None = None, dtype: Any = None
    ):
        matrix = real_array("DenseCovariance", "matrix", matrix, dtype)
        self.field_shape = _field_shape(matrix.shape, shape)
        n = math.prod(self.field_shape)
        self.factor, self.definite = factorise("DenseCovariance", matrix.reshape(n, n))

    def in_structure(self) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(self.field_shape, self.factor.dtype)

    def mv(self, vector: ArrayLike) -> Float[Array, "..."]:
        factor = self.half()
        return factor.mv(factor.transpose_mv(self.field(vector)))

    def half(self) -> DenseFactor:
        return DenseFactor(self.factor, self.in_structure())

    def diagonal(self) -> Float[Array, "..."]:
        return jnp.sum(self.factor**2, axis=1).reshape(self.shape)

    def as_matrix(self) -> Float[Array, "n n"]:
        return jnp.matmul(self.factor, self.factor.T, precision=jax.lax.Precision.HIGHEST)

    def inv_mv(self, vector: ArrayLike) -> Float[Array, "..."]:
        self._require_definite("inv_mv")
        flat = jnp.ravel(self.field(vector))
        return jax.scipy.linalg.cho_solve((self.factor, True), flat).reshape(self.shape)

    def logdet(self) -> Float[Array, ""]:
        self._require_definite("logdet")
        return 2 * jnp.sum(jnp.log(jnp.diagonal(self.factor)))

    def restrict(
        self, mask: ArrayLike | Sequence[Any], *, std: ArrayLike | Sequence[Any] | None = None
    ) -> DenseRestriction:
        require_restrictable("DenseCovariance", self.in_size())
        return restrict_dense(self.as_matrix(), self.shape, mask, std)

    def _require_definite(self, what: str) -> None:
        if not self.definite:
            raise ValueError(
                f"DenseCovariance.{what}: the matrix is only positive semidefinite, so there is no inverse; work with "
                "`half`, or add a small variance to the diagonal."
            )


def factorise(owner: str, matrix: Float[Array, "n n"]) -> tuple[Float[Array, "n n"], bool]:
    """L with L Lᵀ = matrix, and whether L is the (lower triangular) Cholesky factor of a definite matrix.

    A matrix counts as definite when, variable by variable, the variance that the earlier variables leave unexplained is
    more than rounding: L_ii² > n ε A_ii.
    """
    values = concrete_values(matrix)
    if values is not None:
        _require_symmetric(owner, values)
    factor = jnp.linalg.cholesky(matrix)
    if is_traced(factor):
        return factor, True
    n = matrix.shape[0]
    unexplained = np.asarray(jnp.diagonal(factor)) ** 2
    if np.all(unexplained > n * float(jnp.finfo(matrix.dtype).eps) * np.asarray(jnp.diagonal(matrix))):
        return factor, True
    return _semidefinite_root(owner, matrix), False


def square_root(owner: str, matrix: Float[Array, "n n"]) -> Float[Array, "n n"]:
    """L with L Lᵀ = matrix, also for a semidefinite matrix and under tracing; L may be any square root."""
    factor, _ = factorise(owner, matrix)
    if not is_traced(factor):
        return factor
    rounding = matrix.shape[0] * float(jnp.finfo(matrix.dtype).eps)
    definite = jnp.all(jnp.diagonal(factor) ** 2 > rounding * jnp.diagonal(matrix))  # False for the NaN of a failure
    return jax.lax.cond(definite, jnp.linalg.cholesky, _clipped_root, matrix)


def _clipped_root(matrix: Float[Array, "n n"]) -> Float[Array, "n n"]:
    eigenvalues, eigenvectors = jnp.linalg.eigh(matrix)
    return eigenvectors * jnp.sqrt(jnp.maximum(eigenvalues, 0))[None, :]


def _semidefinite_root(owner: str, matrix: Float[Array, "n n"]) -> Float[Array, "n n"]:
    """V √λ from the eigenvectors of a concrete matrix; eigenvalues that are negative by rounding count as 0."""
    eigenvalues = jnp.linalg.eigvalsh(matrix)
    rounding = 10 * matrix.shape[0] * float(jnp.finfo(matrix.dtype).eps) * float(jnp.max(jnp.abs(eigenvalues)))
    smallest = float(jnp.min(eigenvalues))
    if not smallest >= -rounding:
        raise ValueError(
            f"{owner}: `matrix` is not positive semidefinite; its smallest eigenvalue is {smallest:.3g}, expected none "
            "below 0. Repair it, for instance by clipping its eigenvalues."
        )
    return _clipped_root(matrix)


def _field_shape(found: tuple[int, ...], shape: int | Sequence[int] | None) -> tuple[int, ...]:
    """The field shape of a matrix of shape (*shape, *shape), or (n, n) with n the cells of `shape`."""
    half = len(found) // 2
    if len(found) == 0 or len(found) % 2 or found[:half] != found[half:]:
        raise ValueError(f"DenseCovariance: `matrix` has shape {found}, expected (n, n), or (*shape, *shape): square.")
    if shape is None:
        return found[:half]
    shape = (shape,) if isinstance(shape, int) else tuple(shape)
    if math.prod(shape) != math.prod(found[:half]) or (half > 1 and shape != found[:half]):
        raise ValueError(f"DenseCovariance: `matrix` has shape {found}, which does not fit fields of shape {shape}.")
    return shape


def _require_symmetric(owner: str, matrix: np.ndarray) -> None:
    if not np.all(np.isfinite(matrix)):
        raise ValueError(f"{owner}: `matrix` has {int(np.sum(~np.isfinite(matrix)))} entries that are not finite.")
    asymmetry, size = np.max(np.abs(matrix - matrix.T), initial=0), np.max(np.abs(matrix), initial=0)
    if asymmetry > 0.1 * np.sqrt(np.finfo(matrix.dtype).eps) * size:
        raise ValueError(
            f"{owner}: `matrix` is not symmetric; entries differ from the transposed ones by up to {asymmetry:.3g}. "
            "Use (A + Aᵀ)/2 if that is rounding."
        )
