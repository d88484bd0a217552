"""Independent blocks: B = diag(B₁, B₂, ...), one covariance for each variable, instrument or time.

    L = diag(L₁, L₂, ...)        B⁻¹ = diag(B₁⁻¹, B₂⁻¹, ...)        log|B| = Σ log|Bᵢ|

The field is taken apart into the fields of the blocks, and put together again, by a layout: see
`vardax.covariances.blocks`.
"""

from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array, ArrayLike, Float, PyTree

from vardax.covariances.base import AbstractCovariance
from vardax.covariances.block_restriction import BatchedRestriction, JoinedRestriction, restrict_batch
from vardax.covariances.blocks import Branches, Joined, Layout, Stacked
from vardax.covariances.by_products import matrix_by_products
from vardax.covariances.factors import AbstractFactor
from vardax.covariances.functions import as_covariance, diagonal, half, inv_mv, is_diagonal, logdet, restrict
from vardax.covariances.restriction import as_mask, as_std, require_positive

__all__ = ["BlockDiagonalCovariance", "BlockFactor"]

OWNER = "BlockDiagonalCovariance"


class BlockDiagonalCovariance(AbstractCovariance):
    """B with independent blocks: several variables, several instruments, or an R that changes from time to time.

    There are three forms. What the blocks are given as says what the fields are:

    - `BlockDiagonalCovariance(B_u, B_v)`: blocks on fields of one shape, (H, W), **stacked** on a new leading axis: the
      fields are (2, H, W). With one block per time entry this is an R of a whole window, (E, *obs).
    - `BlockDiagonalCovariance({"u": B_u, "h": B_h})`, one pytree of blocks (a dictionary, tuple or list, also nested):
      the fields are **pytrees** of the same structure.
    - `BlockDiagonalCovariance(R_1, R_2, joined_along=0)`: blocks end to end **along an axis** that they have. Vectors
      of p1 and p2 observations make one of p1 + p2: the R of several instruments.

    A block is any covariance, or any lineax operator that is one. As an R, each block is restricted to its observed
    entries by itself: a diagonal one at any size, a correlated one up to `RESTRICT_LIMIT` entries; equal blocks that
    are stacked are factorised together.

    When not: where errors of the variables are correlated. `BalancedCovariance` adds such correlations, and a
    `LocalizedEnsembleCovariance` has them from its members.

    >>> from vardax.covariances.diagonal import DiagonalCovariance
    >>> R = BlockDiagonalCovariance(DiagonalCovariance([4.0]), DiagonalCovariance([1.0, 9.0]), joined_along=0)
    >>> R.mv(jnp.ones(3))
    Array([4., 1., 9.], dtype=float32)
    """

    blocks: tuple[lx.AbstractLinearOperator, ...]
    layout: Layout = eqx.field(static=True)

    def __init__(self, *blocks: Any, joined_along: int | None = None):
        if len(blocks) == 1 and not _is_block(blocks[0]):
            leaves, treedef = jax.tree.flatten(blocks[0], is_leaf=_is_block)
            if joined_along is not None:
                raise ValueError(f"{OWNER}: `joined_along` goes with blocks given one by one, not with a pytree.")
            self.blocks = _as_blocks(leaves)
            self.layout = Branches(treedef)
        else:
            self.blocks = _as_blocks(blocks)
            self.layout = _stacked(self.blocks) if joined_along is None else _joined(self.blocks, joined_along)

    @property
    def diagonal_matrix(self) -> bool:
        return all(map(is_diagonal, self.blocks))

    def in_structure(self) -> PyTree[jax.ShapeDtypeStruct]:
        return self.layout.structure([block.in_structure() for block in self.blocks])

    def mv(self, vector: PyTree[ArrayLike]) -> PyTree[Array]:
        return self._on_blocks(lambda block, part: block.mv(part), self.field(vector))

    def half(self) -> "BlockFactor":
        return BlockFactor(tuple(map(half, self.blocks)), self.layout)

    def diagonal(self) -> PyTree[Array]:
        return self.layout.join(list(map(diagonal, self.blocks)))

    def as_matrix(self) -> Float[Array, "n n"]:
        return matrix_by_products(self)

    def inv_mv(self, vector: PyTree[ArrayLike]) -> PyTree[Array]:
        return self._on_blocks(inv_mv, self.field(vector))

    def logdet(self) -> Float[Array, ""]:
        determinants = list(map(logdet, self.blocks))
        return sum(determinants[1:], determinants[0])

    def restrict(
        self, mask: ArrayLike | Sequence[Any], *, std: ArrayLike | Sequence[Any] | None = None
    ) -> BatchedRestriction | JoinedRestriction:
        if isinstance(self.layout, Branches):
            raise TypeError(
                f"{OWNER}.restrict: the fields are pytrees, expected one array; restrict each block by itself."
            )
        mask = as_mask(mask, self.shape, self.dtype)
        std = None if std is None else as_std(std, self.shape, self.dtype)
        if isinstance(self.layout, Stacked) and _are_alike(self.blocks):
            require_positive(self.diagonal() if std is None else std, mask)
            stack = jax.tree.map(lambda *leaves: jnp.stack(leaves), *self.blocks)
            return restrict_batch(_restrict_one, stack, mask, std, order=tuple(range(mask.ndim)), n_axes=1)
        masks = self.layout.split(mask)
        stds = [None] * len(masks) if std is None else self.layout.split(std)
        parts = [_restrict_one(*arguments) for arguments in zip(self.blocks, masks, stds, strict=True)]
        return JoinedRestriction(mask, tuple(parts), self.layout)

    def _on_blocks(self, product: Callable, field: PyTree[Array]) -> PyTree[Array]:
        parts = zip(self.blocks, self.layout.split(field), strict=True)
        return self.layout.join([product(block, part) for block, part in parts])


class BlockFactor(AbstractFactor):
    """diag(L₁, L₂, ...): the control is the tuple (χ₁, χ₂, ...), or a tree of controls where the field is a tree."""

    factors: tuple[lx.AbstractLinearOperator, ...]
    layout: Layout = eqx.field(static=True)

    def mv(self, vector: PyTree[Array]) -> PyTree[Array]:
        controls = zip(self.factors, self.layout.split_control(vector), strict=True)
        return self.layout.join([factor.mv(control) for factor, control in controls])

    def transpose_mv(self, vector: PyTree[Array]) -> PyTree[Array]:
        parts = zip(self.factors, self.layout.split(vector), strict=True)
        return self.layout.join_control([factor.transpose().mv(part) for factor, part in parts])

    def in_structure(self) -> PyTree[jax.ShapeDtypeStruct]:
        return self.layout.join_control([factor.in_structure() for factor in self.factors])

    def out_structure(self) -> PyTree[jax.ShapeDtypeStruct]:
        return self.layout.structure([factor.out_structure() for factor in self.factors])


def _is_block(x: Any) -> bool:
    return isinstance(x, lx.AbstractLinearOperator) or callable(getattr(x, "mv", None))


def _as_blocks(blocks: Sequence[Any]) -> tuple[lx.AbstractLinearOperator, ...]:
    if not blocks:
        raise ValueError(f"{OWNER}: there are no blocks, expected at least one covariance.")
    return tuple(as_covariance(OWNER, block, f"blocks[{i}]") for i, block in enumerate(blocks))


def _array_structures(blocks: Sequence[lx.AbstractLinearOperator]) -> list[jax.ShapeDtypeStruct]:
    """The structures of blocks that act on arrays of one dtype."""
    structures = [block.in_structure() for block in blocks]
    if not all(isinstance(structure, jax.ShapeDtypeStruct) for structure in structures):
        raise ValueError(
            f"{OWNER}: a block acts on a pytree, and such fields cannot be stacked or joined; give the blocks as one "
            "pytree, such as a dictionary."
        )
    dtypes = sorted({str(structure.dtype) for structure in structures})
    if len(dtypes) > 1:
        raise ValueError(
            f"{OWNER}: the blocks have the dtypes {', '.join(dtypes)}, expected one; build them with `dtype=`."
        )
    return structures


def _stacked(blocks: Sequence[lx.AbstractLinearOperator]) -> Stacked:
    shapes = [structure.shape for structure in _array_structures(blocks)]
    if len(set(shapes)) > 1:
        raise ValueError(
            f"{OWNER}: the blocks act on the shapes {shapes}, and only equal shapes can be stacked; give "
            "`joined_along=` an axis to put them end to end, or one dictionary of blocks for fields that are pytrees."
        )
    return Stacked(len(blocks))


def _joined(blocks: Sequence[lx.AbstractLinearOperator], axis: int) -> Joined:
    shapes = [structure.shape for structure in _array_structures(blocks)]
    ndim = len(shapes[0])
    if not -ndim <= axis < ndim:
        raise ValueError(f"{OWNER}: `joined_along` is {axis}, expected one of the {ndim} axes of the first block.")
    axis %= ndim
    others = {(len(shape), *shape[:axis], *shape[axis + 1 :]) for shape in shapes}
    if len(others) > 1:
        raise ValueError(
            f"{OWNER}: the blocks act on the shapes {shapes}, expected shapes that differ only along axis {axis}, the "
            "one on which they are joined."
        )
    return Joined(axis, tuple(shape[axis] for shape in shapes))


def _are_alike(blocks: Sequence[lx.AbstractLinearOperator]) -> bool:
    """Whether the blocks differ in the values of their arrays only, so that they can be stacked."""
    kinds = set()
    for block in blocks:
        leaves, treedef = jax.tree.flatten(block)
        if not all(map(eqx.is_array, leaves)):
            return False
        kinds.add((treedef, tuple((leaf.shape, leaf.dtype) for leaf in leaves)))
    return len(kinds) == 1


def _restrict_one(block: lx.AbstractLinearOperator, mask: Array, std: Array | None) -> Any:
    return restrict(block, mask, std=std)
