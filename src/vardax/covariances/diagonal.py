"""Uncorrelated errors: B = diag(variance), on fields of any shape."""

from collections.abc import Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from vardax.covariances.base import AbstractCovariance, real_array
from vardax.covariances.restriction import DiagonalRestriction, restrict_diagonal
from vardax.types import concrete_values

__all__ = ["DiagonalCovariance", "safe_sqrt"]


def safe_sqrt(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """√x, and 0 with derivative 0 where x <= 0, so that a zero variance does not make gradients infinite."""
    positive = x > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, x, jnp.ones_like(x))), jnp.zeros_like(x))


class DiagonalCovariance(AbstractCovariance):
    """B = diag(variance): independent errors, the usual R, and Q or B of small systems.

    `variance` has the shape of the field. A variance of zero is allowed in B (the entry is known) and refused where
    B⁻¹ is asked for. `restrict` is exact at any size, so per-observation errors are simply the variances.

    >>> DiagonalCovariance(jnp.array([4.0, 9.0])).half().mv(jnp.array([1.0, 1.0]))
    Array([2., 3.], dtype=float32)
    """

    variance: Float[Array, "..."]

    diagonal_matrix: ClassVar[bool] = True

    def __init__(self, variance: ArrayLike | Sequence[Any], *, dtype: Any = None):
        self.variance = real_array("DiagonalCovariance", "variance", variance, dtype)
        values = concrete_values(self.variance)
        if values is not None and not np.all((values >= 0) & (values < np.inf)):
            bad = int(np.sum(~((values >= 0) & (values < np.inf))))
            raise ValueError(
                f"DiagonalCovariance: `variance` must be finite and not negative; found {bad} of {values.size} entries "
                f"that are not (smallest {values.min()}). Mask observations that are missing instead."
            )

    def in_structure(self) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(self.variance.shape, self.variance.dtype)

    def mv(self, vector: ArrayLike) -> Float[Array, "..."]:
        return self.variance * self.field(vector)

    def half(self) -> lx.DiagonalLinearOperator:
        return lx.DiagonalLinearOperator(safe_sqrt(self.variance))

    def diagonal(self) -> Float[Array, "..."]:
        return self.variance

    def as_matrix(self) -> Float[Array, "n n"]:
        return jnp.diag(jnp.ravel(self.variance))

    def inv_mv(self, vector: ArrayLike) -> Float[Array, "..."]:
        self._require_invertible("inv_mv")
        return self.field(vector) / self.variance

    def logdet(self) -> Float[Array, ""]:
        self._require_invertible("logdet")
        return jnp.sum(jnp.log(self.variance))

    def restrict(
        self, mask: ArrayLike | Sequence[Any], *, std: ArrayLike | Sequence[Any] | None = None
    ) -> DiagonalRestriction:
        return restrict_diagonal(self.variance, mask, std)

    def _require_invertible(self, what: str) -> None:
        values = concrete_values(self.variance)
        if values is not None and not np.all(values > 0):
            raise ValueError(
                f"DiagonalCovariance.{what}: {int(np.sum(values <= 0))} variances are zero, so there is no inverse; "
                "leave those entries out, or work with `half`."
            )
