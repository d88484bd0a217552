"""Standard deviations times a correlation: B = D C D with D = diag(std).

L = D L_C        B⁻¹ = D⁻¹ C⁻¹ D⁻¹        log|B| = log|C| + 2 Σ log std
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
from jaxtyping import Array, ArrayLike, Float, PyTree

from vardax.covariances.base import AbstractCovariance, real_array
from vardax.covariances.by_products import matrix_by_products
from vardax.covariances.diagonal import safe_sqrt
from vardax.covariances.factors import AbstractFactor, ravel
from vardax.covariances.functions import as_covariance, diagonal, half, inv_mv, is_diagonal, logdet, restrict
from vardax.covariances.restriction import AbstractRestriction
from vardax.types import concrete_values

__all__ = ["ScaledCovariance", "ScaledFactor", "as_scale", "times"]

OWNER = "ScaledCovariance"


class ScaledCovariance(AbstractCovariance):
    """B = diag(std) C diag(std): a correlation and a field of standard deviations.

    - `std`: a number for all cells, or a field; for fields that are pytrees a number or a pytree of these.
    - `correlation`: any covariance. With ones on its diagonal `std` is the standard deviation of B; otherwise the
      standard deviation of `correlation` times `std`.

    When to use it: errors that are larger here than there, with correlations that are the same everywhere.

    A cell whose `std` is zero is known exactly: its variance and all its covariances are zero, and no analysis changes
    it. `inv_mv` and `logdet` then do not exist, and as an R such an entry must be masked.

    >>> from vardax.covariances.dense import DenseCovariance
    >>> B = ScaledCovariance(jnp.array([2.0, 3.0]), DenseCovariance([[1.0, 0.5], [0.5, 1.0]]))
    >>> B.as_matrix().round(4).tolist()
    [[4.0, 3.0], [3.0, 9.0]]
    """

    std: PyTree[Array]
    correlation: lx.AbstractLinearOperator

    def __init__(self, std: PyTree[ArrayLike] | Sequence[Any], correlation: Any):
        self.correlation = as_covariance(OWNER, correlation, "correlation")
        self.std = as_scale(OWNER, "std", std, self.correlation.in_structure())

    @property
    def diagonal_matrix(self) -> bool:
        return is_diagonal(self.correlation)

    def in_structure(self) -> PyTree[jax.ShapeDtypeStruct]:
        return self.correlation.in_structure()

    def mv(self, vector: PyTree[ArrayLike]) -> PyTree[Array]:
        return times(self.std, self.correlation.mv(times(self.std, self.field(vector))))

    def half(self) -> "ScaledFactor":
        return ScaledFactor(self.std, half(self.correlation))

    def diagonal(self) -> PyTree[Array]:
        return times(self.std, times(self.std, diagonal(self.correlation)))

    def as_matrix(self) -> Float[Array, "n n"]:
        return matrix_by_products(self)

    def inv_mv(self, vector: PyTree[ArrayLike]) -> PyTree[Array]:
        self._require_invertible("inv_mv")
        inverse = jax.tree.map(lambda s: 1 / s, self.std)
        return times(inverse, inv_mv(self.correlation, times(inverse, self.field(vector))))

    def logdet(self) -> Float[Array, ""]:
        self._require_invertible("logdet")
        ones = jax.tree.map(lambda leaf: jnp.ones(leaf.shape, leaf.dtype), self.in_structure())
        return logdet(self.correlation) + 2 * jnp.sum(jnp.log(ravel(times(self.std, ones))))

    def restrict(
        self, mask: ArrayLike | Sequence[Any], *, std: ArrayLike | Sequence[Any] | None = None
    ) -> AbstractRestriction:
        own = jax.tree.map(safe_sqrt, self.diagonal()) if std is None else std
        return restrict(self.correlation, mask, std=own)

    def _require_invertible(self, what: str) -> None:
        values = [concrete_values(leaf) for leaf in jax.tree.leaves(self.std)]
        zeros = sum(int(np.sum(value == 0)) for value in values if value is not None)
        if zeros:
            raise ValueError(
                f"{OWNER}.{what}: {zeros} standard deviations are zero, so there is no inverse; leave those entries "
                "out, or work with `half`."
            )


class ScaledFactor(AbstractFactor):
    """D L: multiply the field of a square root by `scale`, a number or a field for each of its arrays."""

    scale: PyTree[Array]
    factor: lx.AbstractLinearOperator

    def mv(self, vector: PyTree[Array]) -> PyTree[Array]:
        return times(self.scale, self.factor.mv(vector))

    def transpose_mv(self, vector: PyTree[Array]) -> PyTree[Array]:
        return self.factor.transpose().mv(times(self.scale, vector))

    def in_structure(self) -> PyTree[jax.ShapeDtypeStruct]:
        return self.factor.in_structure()

    def out_structure(self) -> PyTree[jax.ShapeDtypeStruct]:
        return self.factor.out_structure()


def as_scale(owner: str, name: str, scale: Any, structure: PyTree[jax.ShapeDtypeStruct]) -> PyTree[Array]:
    """`scale` as one number, or as a field of the structure; not negative."""
    leaves, treedef = jax.tree.flatten(structure)
    if isinstance(structure, jax.ShapeDtypeStruct) or isinstance(scale, int | float | np.generic | jax.Array):
        return _one_scale(owner, name, scale, leaves[0], field=isinstance(structure, jax.ShapeDtypeStruct))
    if jax.tree.structure(scale) != treedef:
        raise ValueError(f"{owner}: `{name}` is {jax.tree.structure(scale)}, expected {treedef}, or one number.")
    pairs = zip(jax.tree.leaves(scale), leaves, strict=True)
    return jax.tree.unflatten(treedef, [_one_scale(owner, name, entry, like) for entry, like in pairs])


def _one_scale(owner: str, name: str, scale: Any, like: jax.ShapeDtypeStruct, field: bool = True) -> Array:
    array = real_array(owner, name, scale, like.dtype)
    if array.shape != () and not (field and array.shape == like.shape):
        expected = f"{like.shape}, or one number" if field else "one number, or a pytree of fields"
        raise ValueError(f"{owner}: `{name}` has shape {array.shape}, expected {expected}.")
    values = concrete_values(array)
    if values is not None and not np.all((values >= 0) & (values < np.inf)):
        bad = int(np.sum(~((values >= 0) & (values < np.inf))))
        raise ValueError(
            f"{owner}: `{name}` must be finite and not negative; found {bad} of {values.size} entries that are not "
            f"(smallest {values.min()})."
        )
    return array


def times(scale: PyTree[Array], field: PyTree[Array]) -> PyTree[Array]:
    """`scale`, one number or a field, times a field."""
    if isinstance(scale, jax.Array) and scale.ndim == 0:
        return jax.tree.map(lambda leaf: scale.astype(leaf.dtype) * leaf, field)
    return jax.tree.map(jnp.multiply, scale, field)
