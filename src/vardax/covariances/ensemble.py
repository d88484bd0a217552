"""The covariance of an ensemble, localised: B = C ∘ (A Aᵀ), entry by entry.

The columns of A are the anomalies of the members, a_i = (x_i − mean) / √(n − 1). A sample covariance of few members has
spurious correlations at all distances; the localisation C, a correlation that falls to zero, takes them out. The square
root has a field of weights for each member (Lorenc's extended control, "alpha control"):

    L χ = Σ_i a_i · C^{1/2} χ_i        B v = Σ_i a_i · C (a_i · v)        diag(B) = diag(C) Σ_i a_i²

Without localisation the weights are numbers: L χ = Σ_i a_i χ_i.
"""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
from jaxtyping import Array, ArrayLike, Float, PyTree

from vardax.covariances.base import AbstractCovariance, real_tree
from vardax.covariances.by_products import (
    inverse_by_products,
    logdet_by_products,
    matrix_by_products,
    restrict_by_products,
)
from vardax.covariances.factors import AbstractFactor
from vardax.covariances.functions import as_covariance, diagonal, half
from vardax.covariances.restriction import DenseRestriction
from vardax.types import concrete_values

__all__ = ["EnsembleFactor", "LocalizedEnsembleCovariance"]

OWNER = "LocalizedEnsembleCovariance"
EXACT_PRODUCT = jax.lax.Precision.HIGHEST


class LocalizedEnsembleCovariance(AbstractCovariance):
    """B of an ensemble: the sample covariance of its members times a localisation.

    - `ensemble`: the members, (n, *state), or a pytree of arrays with the members along axis 0. Their mean is taken off
      and the rest divided by √(n − 1), here.
    - `localization`: a correlation C of fields, such as a `MaternLinearOperator`, or Kronecker products of
      `gaspari_cohn` matrices; None for no localisation. It acts on the whole state (also a pytree), or on the trailing
      axes of every array, such as (y, x) of {"u": (levels, y, x), "ssh": (y, x)}: levels and variables at one place
      then share their weights and keep the correlations that the ensemble has between them.

    When to use it: errors of the day, with B from an ensemble of forecasts. Alone it explains only what the members
    span locally; `HybridCovariance` adds a static B.

    The control of the square root is longer than the field: n controls of C, or n numbers without localisation. A
    single member has no spread, so its B is zero and the analysis is the background. Without localisation B is of low
    rank and has no inverse. Lorenc, A. C. (2003). The potential of the ensemble Kalman filter for NWP. QJRMS 129,
    3183-3203.

    >>> B = LocalizedEnsembleCovariance(jnp.array([[1.0, 2.0], [3.0, 6.0]]), None)
    >>> B.as_matrix().round(4).tolist()
    [[2.0, 4.0], [4.0, 8.0]]
    """

    anomalies: PyTree[Array]
    """(n, *state): the members less their mean, over √(n − 1)."""
    localization: lx.AbstractLinearOperator | None

    diagonal_matrix: ClassVar[bool] = False

    def __init__(self, ensemble: Any, localization: Any, *, dtype: Any = None):
        members = real_tree(OWNER, "ensemble", ensemble, dtype)
        n_members = _count_members(members)
        self.anomalies = jax.tree.map(lambda m: (m - jnp.mean(m, axis=0, keepdims=True)) / _root(n_members), members)
        self.localization = None
        if localization is not None:
            self.localization = as_covariance(OWNER, localization, "localization")
            _require_fit(self.localization.in_structure(), self.in_structure())

    @property
    def n_members(self) -> int:
        """The number of members."""
        return jax.tree.leaves(self.anomalies)[0].shape[0]

    def in_structure(self) -> PyTree[jax.ShapeDtypeStruct]:
        return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape[1:], a.dtype), self.anomalies)

    def mv(self, vector: PyTree[ArrayLike]) -> PyTree[Array]:
        field = self.field(vector)
        if self.localization is None:
            factor = self.half()
            return factor.mv(factor.transpose_mv(field))
        return _localised_product(self.anomalies, self.localization, field)

    def half(self) -> "EnsembleFactor":
        return EnsembleFactor(self.anomalies, None if self.localization is None else half(self.localization))

    def diagonal(self) -> PyTree[Array]:
        variances = jax.tree.map(lambda a: jnp.sum(a**2, axis=0), self.anomalies)
        if self.localization is None:
            return variances
        return _weigh(variances, diagonal(self.localization))

    def as_matrix(self) -> Float[Array, "n n"]:
        return matrix_by_products(self)

    def inv_mv(self, vector: PyTree[ArrayLike]) -> PyTree[Array]:
        self._require_localised("inv_mv")
        return inverse_by_products(self, self.field(vector))

    def logdet(self) -> Float[Array, ""]:
        self._require_localised("logdet")
        return logdet_by_products(self)

    def restrict(
        self, mask: ArrayLike | Sequence[Any], *, std: ArrayLike | Sequence[Any] | None = None
    ) -> DenseRestriction:
        return restrict_by_products(self, mask, std)

    def _require_localised(self, what: str) -> None:
        if self.localization is None:
            raise ValueError(
                f"{OWNER}.{what}: the covariance of {self.n_members} members without localisation has no inverse; work "
                "with `half`, localise it, or add a static part: `HybridCovariance(static, ensemble, weights)`."
            )


class EnsembleFactor(AbstractFactor):
    """χ -> Σ_i a_i · C^{1/2} χ_i: the control is that of C^{1/2}, stacked over the members; or one number for each."""

    anomalies: PyTree[Array]
    localization: lx.AbstractLinearOperator | None

    def mv(self, vector: PyTree[Array]) -> PyTree[Array]:
        if self.localization is None:
            return jax.tree.map(lambda a: jnp.tensordot(vector, a, axes=1, precision=EXACT_PRODUCT), self.anomalies)
        return _weighted_sum(self.anomalies, self.localization, vector)

    def transpose_mv(self, vector: PyTree[Array]) -> PyTree[Array]:
        if self.localization is None:
            product = lambda a, v: jnp.tensordot(a, v, axes=v.ndim, precision=EXACT_PRODUCT)  # noqa: E731
            return jax.tree.reduce(jnp.add, jax.tree.map(product, self.anomalies, vector))
        return _weights_of(self.anomalies, self.localization.transpose(), vector)

    def in_structure(self) -> PyTree[jax.ShapeDtypeStruct]:
        anomalies = jax.tree.leaves(self.anomalies)[0]
        n_members = anomalies.shape[0]
        if self.localization is None:
            return jax.ShapeDtypeStruct((n_members,), anomalies.dtype)
        of_one = self.localization.in_structure()
        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((n_members, *leaf.shape), leaf.dtype), of_one)

    def out_structure(self) -> PyTree[jax.ShapeDtypeStruct]:
        return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape[1:], a.dtype), self.anomalies)


# One member after the other: memory for one field, and faster than all at once. Jitted, because a loop that is called
# eagerly would compile each time.


@eqx.filter_jit
def _localised_product(
    anomalies: PyTree[Array], localization: lx.AbstractLinearOperator, field: PyTree[Array]
) -> PyTree[Array]:
    """Σ_i a_i · C (a_i · v)."""
    structure = localization.in_structure()
    return _sum_over(lambda a: _weigh(a, localization.mv(_project(a, field, structure))), anomalies, field)


@eqx.filter_jit
def _weighted_sum(anomalies: PyTree[Array], root: lx.AbstractLinearOperator, control: PyTree[Array]) -> PyTree[Array]:
    """Σ_i a_i · C^{1/2} χ_i."""
    like = jax.tree.map(lambda a: a[0], anomalies)
    return _sum_over(lambda pair: _weigh(pair[0], root.mv(pair[1])), (anomalies, control), like)


@eqx.filter_jit
def _weights_of(anomalies: PyTree[Array], transposed: lx.AbstractLinearOperator, field: PyTree[Array]) -> PyTree[Array]:
    """C^{T/2} (a_i · v), for every i."""
    structure = transposed.in_structure()
    return jax.lax.map(lambda a: transposed.mv(_project(a, field, structure)), anomalies)


def _sum_over(term: Callable[[Any], PyTree[Array]], members: Any, like: PyTree[Array]) -> PyTree[Array]:
    """Σ_i term(member i), a field like `like`."""
    add = lambda total, member: (jax.tree.map(jnp.add, total, term(member)), None)  # noqa: E731
    return jax.lax.scan(add, jax.tree.map(jnp.zeros_like, like), members)[0]


def _weigh(member: PyTree[Array], weights: PyTree[Array]) -> PyTree[Array]:
    """a · w, the weights of a place for all levels and variables there."""
    if not isinstance(weights, jax.Array):
        return jax.tree.map(jnp.multiply, member, weights)
    return jax.tree.map(lambda a: a * jnp.broadcast_to(_behind(weights, a.ndim), a.shape), member)


def _project(member: PyTree[Array], field: PyTree[Array], structure: PyTree[jax.ShapeDtypeStruct]) -> PyTree[Array]:
    """The transpose of `_weigh`: a · v, summed over the levels and variables that share a weight."""
    products = jax.tree.map(jnp.multiply, member, field)
    if not isinstance(structure, jax.ShapeDtypeStruct):
        return products
    sums = [jnp.sum(p, axis=tuple(range(p.ndim - len(structure.shape)))) for p in jax.tree.leaves(products)]
    return sum(sums[1:], sums[0])


def _behind(weights: Array, ndim: int) -> Array:
    """`weights` with axes of length 1 in front, up to `ndim`."""
    return weights.reshape((1,) * (ndim - weights.ndim) + weights.shape)


def _root(n_members: int) -> float:
    return max(n_members - 1, 1) ** 0.5


def _count_members(members: PyTree[Array]) -> int:
    """The length of axis 0 of all arrays, after a check that there are members and that they are finite."""
    leaves = jax.tree.leaves(members)
    counts = sorted({leaf.shape[0] if leaf.ndim else 0 for leaf in leaves})
    if len(counts) > 1 or counts[0] == 0:
        raise ValueError(
            f"{OWNER}: the arrays of `ensemble` have {' and '.join(map(str, counts))} members along axis 0, expected "
            "one number, at least 1."
        )
    bad = [int(np.sum(~np.isfinite(values))) for leaf in leaves if (values := concrete_values(leaf)) is not None]
    if sum(bad):
        raise ValueError(f"{OWNER}: `ensemble` has {sum(bad)} entries that are not finite; members must be complete.")
    return counts[0]


def _require_fit(localization: PyTree[jax.ShapeDtypeStruct], state: PyTree[jax.ShapeDtypeStruct]) -> None:
    """The localisation acts on the state, or on the trailing axes of every array of it."""
    if localization == state:
        return
    leaves = jax.tree.leaves(state)
    if isinstance(localization, jax.ShapeDtypeStruct):
        shape = localization.shape
        trailing = all(leaf.shape[len(leaf.shape) - len(shape) :] == shape for leaf in leaves)
        if trailing and all(leaf.dtype == localization.dtype for leaf in leaves):
            return
    raise ValueError(
        f"{OWNER}: `localization` acts on {localization}, and a member is {state}; expected the structure of a member, "
        "or the trailing axes of all its arrays, in the same dtype."
    )
