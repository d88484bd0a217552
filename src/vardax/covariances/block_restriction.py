"""The observed part of an R that is made of independent blocks.

Blocks do not see each other, so each is restricted and factorised by itself: many blocks of one size in one batched
Cholesky factorisation (`BatchedRestriction`), blocks of different kinds one by one (`JoinedRestriction`). The size of R
as a whole does not matter, only that of its largest block.
"""

import math
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from vardax.covariances.blocks import Layout
from vardax.covariances.restriction import AbstractRestriction, require_finite

__all__ = ["BatchedRestriction", "JoinedRestriction", "restrict_batch"]


class BatchedRestriction(AbstractRestriction):
    """Blocks of one shape: `part` restricts them all, its arrays have a leading axis of blocks.

    `order` brings the axes that number the blocks to the front; there are `n_axes` of them.
    """

    mask: Float[Array, "..."]
    part: AbstractRestriction
    order: tuple[int, ...] = eqx.field(static=True)
    n_axes: int = eqx.field(static=True)

    def whiten(self, residual: Float[Array, "..."]) -> Float[Array, "..."]:
        return self._on_blocks("whiten", residual)

    def solve(self, residual: Float[Array, "..."]) -> Float[Array, "..."]:
        return self._on_blocks("solve", residual)

    def mv(self, vector: Float[Array, "..."]) -> Float[Array, "..."]:
        return self._on_blocks("mv", vector)

    def logdet(self) -> Float[Array, ""]:
        return jnp.sum(jax.vmap(lambda part: part.logdet())(self.part))

    def _on_blocks(self, member: str, field: Array) -> Array:
        blocks = _to_blocks(field, self.order, self.n_axes)
        images = jax.vmap(lambda part, block: getattr(part, member)(block))(self.part, blocks)
        shape = tuple(field.shape[axis] for axis in self.order)
        return jnp.transpose(images.reshape(shape), [int(axis) for axis in np.argsort(self.order)])


class JoinedRestriction(AbstractRestriction):
    """Blocks of any kind: `parts[i]` restricts block i, and `layout` says where it is in the field."""

    mask: Float[Array, "..."]
    parts: tuple[AbstractRestriction, ...]
    layout: Layout = eqx.field(static=True)

    def whiten(self, residual: Float[Array, "..."]) -> Float[Array, "..."]:
        return self._on_parts("whiten", residual)

    def solve(self, residual: Float[Array, "..."]) -> Float[Array, "..."]:
        return self._on_parts("solve", residual)

    def mv(self, vector: Float[Array, "..."]) -> Float[Array, "..."]:
        return self._on_parts("mv", vector)

    def logdet(self) -> Float[Array, ""]:
        return sum((part.logdet() for part in self.parts[1:]), self.parts[0].logdet())

    def _on_parts(self, member: str, field: Array) -> Array:
        blocks = zip(self.parts, self.layout.split(field), strict=True)
        return self.layout.join([getattr(part, member)(block) for part, block in blocks])


def restrict_batch(
    restrict_one: Callable[..., AbstractRestriction],
    blocks: object,
    mask: Float[Array, "..."],
    std: Float[Array, "..."] | None,
    *,
    order: tuple[int, ...],
    n_axes: int,
) -> BatchedRestriction:
    """`restrict_one(block, mask, std)` for all blocks at once; `blocks` is a pytree with a leading axis of blocks."""
    masks = _to_blocks(mask, order, n_axes)
    stds = None if std is None else _to_blocks(std, order, n_axes)
    part = jax.vmap(restrict_one)(blocks, masks, stds)
    for leaf in jax.tree.leaves(part):
        require_finite(leaf)
    return BatchedRestriction(mask, part, order, n_axes)


def _to_blocks(field: Array, order: tuple[int, ...], n_axes: int) -> Array:
    """(blocks, *block) of a field."""
    moved = jnp.transpose(field, order)
    return moved.reshape(math.prod(moved.shape[:n_axes]), *moved.shape[n_axes:])
