"""Separable covariances: B = B₁ ⊗ B₂ ⊗ ..., each factor along axes of its own.

    B v = (B₁ ⊗ I ⊗ ...) (I ⊗ B₂ ⊗ ...) ... v        L = L₁ ⊗ L₂ ⊗ ...
    B⁻¹ = B₁⁻¹ ⊗ B₂⁻¹ ⊗ ...                          log|B| = Σ_k (n / n_k) log|B_k|

A field is (*axes of B₁, *axes of B₂, ...). A product goes through the factors one after the other, each along its own
axes for all entries of the others: with matrices, one matrix product per factor.
"""

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array, ArrayLike, Float

from vardax.covariances.base import AbstractCovariance
from vardax.covariances.block_restriction import BatchedRestriction, restrict_batch
from vardax.covariances.factors import AbstractFactor, ravel, require_structure, unravel
from vardax.covariances.functions import as_covariance, diagonal, half, inv_mv, is_diagonal, logdet
from vardax.covariances.restriction import (
    AbstractRestriction,
    as_mask,
    as_std,
    require_positive,
    require_restrictable,
    restrict_dense,
    restrict_diagonal,
)
from vardax.covariances.sizes import require_dense_size

__all__ = ["KroneckerCovariance", "KroneckerFactor"]

OWNER = "KroneckerCovariance"
Shape: TypeAlias = tuple[int, ...]


class KroneckerCovariance(AbstractCovariance):
    """B = B₁ ⊗ B₂ ⊗ ...: a covariance along some axes of the field times a covariance along the others.

    `factors` are covariances (any lineax operators) of the leading axes, the next axes, and so on. A field of shape
    (levels, y, x) may have `KroneckerCovariance(DenseCovariance(vertical), MaternLinearOperator((y, x), length))`, or a
    factor for each axis. Diagonal factors are welcome: `KroneckerCovariance(DiagonalCovariance(ones(p)),
    DenseCovariance(C))` is an R of p soundings whose channels are correlated by C.

    When to use it: correlations that are products, such as vertical times horizontal, and grids of any spacing, since
    dense factors of a single axis are small. When not: lengths that change from level to level.

    Exact inverse and determinant, where the factors have them. As an R, entries of diagonal factors are independent:
    what is left is factorised for all of them together, up to `RESTRICT_LIMIT` entries each.

    >>> from vardax.covariances.dense import DenseCovariance
    >>> KroneckerCovariance(DenseCovariance([[4.0]]), DenseCovariance([[4.0, 2.0], [2.0, 5.0]])).as_matrix().tolist()
    [[16.0, 8.0], [8.0, 20.0]]
    """

    factors: tuple[lx.AbstractLinearOperator, ...]

    def __init__(self, *factors: Any):
        if not factors:
            raise ValueError(f"{OWNER}: there are no factors, expected at least one covariance.")
        self.factors = tuple(as_covariance(OWNER, op, f"factors[{k}]") for k, op in enumerate(factors))
        dtypes = set()
        for k, factor in enumerate(self.factors):
            structure = factor.in_structure()
            if not isinstance(structure, jax.ShapeDtypeStruct):
                raise ValueError(f"{OWNER}: `factors[{k}]` acts on a pytree, expected a factor of axes of one array.")
            dtypes.add(structure.dtype.name)
        if len(dtypes) > 1:
            found = ", ".join(sorted(dtypes))
            raise ValueError(f"{OWNER}: the factors have the dtypes {found}, expected one; build them with `dtype=`.")

    @property
    def diagonal_matrix(self) -> bool:
        return all(map(is_diagonal, self.factors))

    def in_structure(self) -> jax.ShapeDtypeStruct:
        return _joint([factor.in_structure() for factor in self.factors])

    def mv(self, vector: ArrayLike) -> Float[Array, "..."]:
        return self._along_axes([factor.mv for factor in self.factors], vector)

    def half(self) -> "KroneckerFactor":
        return KroneckerFactor(tuple(map(half, self.factors)))

    def diagonal(self) -> Float[Array, "..."]:
        return functools.reduce(lambda a, b: jnp.tensordot(a, b, axes=0), map(diagonal, self.factors))

    def as_matrix(self) -> Float[Array, "n n"]:
        require_dense_size(f"{OWNER}.as_matrix", self.in_size())
        return functools.reduce(jnp.kron, [factor.as_matrix() for factor in self.factors])

    def inv_mv(self, vector: ArrayLike) -> Float[Array, "..."]:
        return self._along_axes([functools.partial(inv_mv, factor) for factor in self.factors], vector)

    def logdet(self) -> Float[Array, ""]:
        n = self.in_size()
        terms = [logdet(factor) * (n / factor.in_size()) for factor in self.factors]
        return functools.reduce(jnp.add, terms)

    def restrict(
        self, mask: ArrayLike | Sequence[Any], *, std: ArrayLike | Sequence[Any] | None = None
    ) -> AbstractRestriction:
        if self.diagonal_matrix:
            return restrict_diagonal(self.diagonal(), mask, std)
        mask = as_mask(mask, self.shape, self.dtype)
        std = None if std is None else as_std(std, self.shape, self.dtype)
        require_positive(self.diagonal() if std is None else std, mask)
        return self._restrict_blocks(mask, std)

    def _restrict_blocks(self, mask: Array, std: Array | None) -> BatchedRestriction:
        """Entries of diagonal factors number the blocks; a block is their variance times the other factors."""
        apart = [factor for factor in self.factors if is_diagonal(factor)]
        together = [factor for factor in self.factors if not is_diagonal(factor)]
        shape = tuple(itertools.chain(*(factor.in_structure().shape for factor in together)))
        require_restrictable(OWNER, math.prod(shape))
        matrix = functools.reduce(jnp.kron, [factor.as_matrix() for factor in together])
        variances = functools.reduce(
            jnp.kron, [jnp.ravel(diagonal(factor)) for factor in apart], jnp.ones(1, self.dtype)
        )

        def restrict_one(variance: Array, mask: Array, std: Array | None) -> AbstractRestriction:
            return restrict_dense(variance * matrix, shape, mask, std)

        axes = _axes([factor.in_structure().shape for factor in self.factors])
        numbering = [a for factor, mine in zip(self.factors, axes, strict=True) if is_diagonal(factor) for a in mine]
        rest = [axis for axis in range(mask.ndim) if axis not in numbering]
        order = (*numbering, *rest)
        return restrict_batch(restrict_one, variances, mask, std, order=order, n_axes=len(numbering))

    def _along_axes(self, products: Sequence[Callable[[Array], Array]], vector: ArrayLike) -> Array:
        field = self.field(vector)
        for k, product in enumerate(products):
            field = _along(product, field, [factor.in_structure().shape for factor in self.factors], k)
        return field


class KroneckerFactor(AbstractFactor):
    """L₁ ⊗ L₂ ⊗ ...: the control is (*control of L₁, *control of L₂, ...).

    The control of a factor that is a pytree (a sum of covariances has one) counts as one axis, ravelled.
    """

    factors: tuple[lx.AbstractLinearOperator, ...]

    def mv(self, vector: Float[Array, "..."]) -> Float[Array, "..."]:
        require_structure("KroneckerFactor", "control", vector, self.in_structure())
        shapes = [_one_array(factor.in_structure()).shape for factor in self.factors]
        for k in self._shrinking_first():
            factor = self.factors[k]
            vector = _along(functools.partial(_mv, factor), vector, shapes, k)
            shapes[k] = factor.out_structure().shape
        return vector

    def transpose_mv(self, vector: Float[Array, "..."]) -> Float[Array, "..."]:
        require_structure("KroneckerFactor", "field", vector, self.out_structure())
        shapes = [factor.out_structure().shape for factor in self.factors]
        for k in reversed(self._shrinking_first()):
            factor = self.factors[k]
            vector = _along(functools.partial(_transpose_mv, factor), vector, shapes, k)
            shapes[k] = _one_array(factor.in_structure()).shape
        return vector

    def in_structure(self) -> jax.ShapeDtypeStruct:
        return _joint([_one_array(factor.in_structure()) for factor in self.factors])

    def out_structure(self) -> jax.ShapeDtypeStruct:
        return _joint([factor.out_structure() for factor in self.factors])

    def _shrinking_first(self) -> list[int]:
        """The order of the factors that keeps what is between them smallest: padded controls are cropped first."""
        growth = [factor.out_size() / factor.in_size() for factor in self.factors]
        return sorted(range(len(self.factors)), key=growth.__getitem__)


def _mv(factor: lx.AbstractLinearOperator, control: Array) -> Array:
    structure = factor.in_structure()
    return factor.mv(control if isinstance(structure, jax.ShapeDtypeStruct) else unravel(control, structure))


def _transpose_mv(factor: lx.AbstractLinearOperator, field: Array) -> Array:
    control = factor.transpose().mv(field)
    return control if isinstance(control, jax.Array) else ravel(control)


def _one_array(structure: Any) -> jax.ShapeDtypeStruct:
    """The structure of a control, ravelled if it is a pytree."""
    if isinstance(structure, jax.ShapeDtypeStruct):
        return structure
    leaves = jax.tree.leaves(structure)
    return jax.ShapeDtypeStruct((sum(leaf.size for leaf in leaves),), jnp.result_type(*leaves))


def _joint(structures: Sequence[jax.ShapeDtypeStruct]) -> jax.ShapeDtypeStruct:
    shape = tuple(itertools.chain(*(structure.shape for structure in structures)))
    return jax.ShapeDtypeStruct(shape, structures[0].dtype)


def _axes(shapes: Sequence[Shape]) -> list[list[int]]:
    """Which axes of the field are those of each factor."""
    ends = list(itertools.accumulate(len(shape) for shape in shapes))
    return [list(range(end - len(shape), end)) for shape, end in zip(shapes, ends, strict=True)]


def _along(product: Callable[[Array], Array], field: Array, shapes: Sequence[Shape], k: int) -> Array:
    """`product` along the axes of factor k, for all entries of the others."""
    before, after = tuple(itertools.chain(*shapes[:k])), tuple(itertools.chain(*shapes[k + 1 :]))
    many = jax.vmap(product, in_axes=-1, out_axes=-1) if after else product
    many = jax.vmap(many) if before else many
    sizes = [math.prod(axes) for axes in (before, after) if axes]
    stack = field.reshape(*sizes[: bool(before)], *shapes[k], *sizes[bool(before) :])
    image = many(stack)
    inner = image.shape[bool(before) : image.ndim - bool(after)]
    return image.reshape(*before, *inner, *after)
