"""How the blocks of a block-diagonal covariance make up one field.

    Stacked     blocks of one shape on a new leading axis: (H, W) and (H, W) make (2, H, W)
    Joined      blocks end to end along an axis that they have: (p1,) and (p2,) make (p1 + p2,)
    Branches    the leaves of a pytree: {"u": (H, W), "h": (H, W)}

A layout takes a field apart (`split`) and puts it together (`join`). The control of the square root is the pytree of
the blocks' controls: a tuple, or for `Branches` the same tree as the field. Layouts hold no arrays.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

__all__ = ["Branches", "Joined", "Layout", "Stacked"]

Structure: TypeAlias = PyTree[jax.ShapeDtypeStruct]


@dataclass(frozen=True)
class Stacked:
    """Block i is entry i of the leading axis."""

    n: int

    def split(self, field: Array) -> list[Array]:
        return [field[i] for i in range(self.n)]

    def join(self, parts: Sequence[Array]) -> Array:
        return jnp.stack(parts)

    def structure(self, parts: Sequence[jax.ShapeDtypeStruct]) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((self.n, *parts[0].shape), parts[0].dtype)

    def split_control(self, control: tuple) -> list[PyTree[Array]]:
        return list(control)

    def join_control(self, controls: Sequence[PyTree]) -> PyTree:
        return tuple(controls)


@dataclass(frozen=True)
class Joined:
    """Block i has `sizes[i]` entries of `axis`, one block after the other."""

    axis: int
    sizes: tuple[int, ...]

    def split(self, field: Array) -> list[Array]:
        ends = [sum(self.sizes[: i + 1]) for i in range(len(self.sizes))]
        return jnp.split(field, ends[:-1], axis=self.axis)

    def join(self, parts: Sequence[Array]) -> Array:
        return jnp.concatenate(parts, axis=self.axis)

    def structure(self, parts: Sequence[jax.ShapeDtypeStruct]) -> jax.ShapeDtypeStruct:
        shape = list(parts[0].shape)
        shape[self.axis] = sum(self.sizes)
        return jax.ShapeDtypeStruct(tuple(shape), parts[0].dtype)

    def split_control(self, control: tuple) -> list[PyTree[Array]]:
        return list(control)

    def join_control(self, controls: Sequence[PyTree]) -> PyTree:
        return tuple(controls)


@dataclass(frozen=True)
class Branches:
    """Block i is the i-th branch of a tree; a branch may be a pytree itself."""

    treedef: Any

    def split(self, field: PyTree[Array]) -> list[PyTree[Array]]:
        return self.treedef.flatten_up_to(field)

    def join(self, parts: Sequence[PyTree[Array]]) -> PyTree[Array]:
        return jax.tree.unflatten(self.treedef, parts)

    def structure(self, parts: Sequence[Structure]) -> Structure:
        return jax.tree.unflatten(self.treedef, parts)

    def split_control(self, control: PyTree[Array]) -> list[PyTree[Array]]:
        return self.split(control)

    def join_control(self, controls: Sequence[PyTree]) -> PyTree:
        return jax.tree.unflatten(self.treedef, controls)


Layout: TypeAlias = Stacked | Joined | Branches
"""How blocks make up a field."""
