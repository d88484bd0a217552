"""A static and an ensemble covariance, weighted: B = w_s B_s + w_e B_e.

    L = [√w_s L_s   √w_e L_e],        x = √w_s L_s χ_s + √w_e L_e χ_e

The control is the pair (χ_s, χ_e). Weights that are fields stand on both sides: √w_s · B_s · √w_s.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
from jaxtyping import Array, ArrayLike, Float, PyTree

from vardax.covariances.base import AbstractCovariance
from vardax.covariances.by_products import (
    inverse_by_products,
    logdet_by_products,
    matrix_by_products,
    restrict_by_products,
)
from vardax.covariances.diagonal import safe_sqrt
from vardax.covariances.factors import ConcatenatedFactor
from vardax.covariances.functions import as_covariance, diagonal, half
from vardax.covariances.restriction import DenseRestriction
from vardax.covariances.scaled import ScaledFactor, as_scale, times

__all__ = ["HybridCovariance"]

OWNER = "HybridCovariance"


class HybridCovariance(AbstractCovariance):
    """B = w_s B_s + w_e B_e: a static covariance and one of an ensemble (or any two).

    - `static`, `ensemble`: covariances of the same fields.
    - `weights`: (w_s, w_e), each a number or a field, none negative. They weigh variances, and need not add up to one.

    When to use it: an ensemble that is too small to span what the static covariance describes on average, and a static
    covariance that does not know the errors of the day. Hamill, T. M. and Snyder, C. (2000). A hybrid ensemble Kalman
    filter-3D variational analysis scheme. Monthly Weather Review 128, 2905-2919.

    The square root is the longer control (χ_s, χ_e), so a static part without an inverse is welcome. `inv_mv` and
    `logdet` are exact up to `DENSE_LIMIT` cells and iterative beyond (`vardax.covariances.by_products`).

    >>> from vardax.covariances.diagonal import DiagonalCovariance
    >>> from vardax.covariances.ensemble import LocalizedEnsembleCovariance
    >>> ensemble = LocalizedEnsembleCovariance([[1.0, 2.0], [3.0, 6.0]], None)
    >>> HybridCovariance(DiagonalCovariance([1.0, 1.0]), ensemble, (0.5, 0.5)).as_matrix().round(4).tolist()
    [[1.5, 2.0], [2.0, 4.5]]
    """

    static: lx.AbstractLinearOperator
    ensemble: lx.AbstractLinearOperator
    weights: tuple[PyTree[Array], PyTree[Array]]

    diagonal_matrix: ClassVar[bool] = False

    def __init__(self, static: Any, ensemble: Any, weights: Any):
        self.static = as_covariance(OWNER, static, "static")
        remedy = "`LocalizedEnsembleCovariance(members, localization)` makes one of members"
        self.ensemble = as_covariance(OWNER, ensemble, "ensemble", remedy)
        structure = self.static.in_structure()
        if (found := self.ensemble.in_structure()) != structure:
            raise ValueError(f"{OWNER}: `ensemble` acts on {found}, expected the fields of `static`, {structure}.")
        if not (isinstance(weights, list | tuple) or np.ndim(weights) == 1) or len(weights) != 2:
            raise ValueError(f"{OWNER}: `weights` is {weights}, expected two: (weight of static, weight of ensemble).")
        first, second = (as_scale(OWNER, "weights", weight, structure) for weight in weights)
        self.weights = (first, second)

    def in_structure(self) -> PyTree[jax.ShapeDtypeStruct]:
        return self.static.in_structure()

    def mv(self, vector: PyTree[ArrayLike]) -> PyTree[Array]:
        field = self.field(vector)
        return jax.tree.map(jnp.add, *[_weighted(weight, B, field) for weight, B in self._parts()])

    def half(self) -> ConcatenatedFactor:
        roots = [ScaledFactor(jax.tree.map(safe_sqrt, weight), half(B)) for weight, B in self._parts()]
        return ConcatenatedFactor(tuple(roots))

    def diagonal(self) -> PyTree[Array]:
        return jax.tree.map(jnp.add, *[times(_clipped(weight), diagonal(B)) for weight, B in self._parts()])

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

    def _parts(self) -> list[tuple[PyTree[Array], lx.AbstractLinearOperator]]:
        return list(zip(self.weights, (self.static, self.ensemble), strict=True))


def _weighted(weight: PyTree[Array], B: lx.AbstractLinearOperator, field: PyTree[Array]) -> PyTree[Array]:
    """√w B √w v, which for a number is w B v: then the derivative at w = 0 is right, too."""
    if isinstance(weight, jax.Array) and weight.ndim == 0:
        return times(_clipped(weight), B.mv(field))
    root = jax.tree.map(safe_sqrt, weight)
    return times(root, B.mv(times(root, field)))


def _clipped(weight: PyTree[Array]) -> PyTree[Array]:
    """No weight below zero, whatever has happened to the leaves: B is positive semidefinite by construction."""
    return jax.tree.map(lambda w: jnp.where(w < 0, jnp.zeros_like(w), w), weight)
