"""States and observations as vectors: the bookkeeping between pytrees of arrays and NumPy vectors in float64.

An operator under test lives on arrays or pytrees in its own precision. The numbers of a check (dot products, norms,
differences) are formed on the host in float64, so that their own rounding never hides a defect. A `Space` knows the
structure of one side of an operator and goes back and forth.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

__all__ = ["Space", "generator", "relative_error", "rms"]


@dataclass(frozen=True)
class Space:
    """The pytree that one side of an operator takes: its tree, and the name, shape and dtype of each array."""

    treedef: Any
    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[np.dtype, ...]

    @classmethod
    def of(cls, tree: PyTree, argument: str) -> "Space":
        """The space of an example (arrays or `ShapeDtypeStruct`s); `argument` is what messages call it."""
        paths, treedef = jax.tree_util.tree_flatten_with_path(tree)
        leaves = [leaf if isinstance(leaf, jax.ShapeDtypeStruct) else _as_array(leaf, argument) for _, leaf in paths]
        if not leaves:
            raise ValueError(f"`{argument}` has no arrays; expected an array or a pytree of arrays.")
        for leaf in leaves:
            if leaf.dtype not in (np.dtype("float32"), np.dtype("float64")):
                raise TypeError(
                    f"`{argument}` has dtype {leaf.dtype}, expected float32 or float64: derivatives and adjoints are "
                    "checked in real numbers of these precisions. Convert it with `.astype`."
                )
        names = tuple(jax.tree_util.keystr(path) for path, _ in paths)
        return cls(treedef, names, tuple(tuple(x.shape) for x in leaves), tuple(np.dtype(x.dtype) for x in leaves))

    @property
    def size(self) -> int:
        return sum(self.sizes)

    @property
    def sizes(self) -> tuple[int, ...]:
        return tuple(int(np.prod(shape)) for shape in self.shapes)

    @property
    def slices(self) -> tuple[slice, ...]:
        """Where each array lies in the vector."""
        ends = np.cumsum(self.sizes)
        return tuple(slice(int(end - size), int(end)) for end, size in zip(ends, self.sizes, strict=True))

    @property
    def precision(self) -> str:
        """The coarsest of the float types."""
        return "float32" if np.dtype("float32") in self.dtypes else "float64"

    @property
    def described(self) -> str:
        arrays = [
            f"{name}{dtype}{list(shape)}"
            for name, dtype, shape in zip(self.names, self.dtypes, self.shapes, strict=True)
        ]
        return ", ".join(arrays)

    def tree(self, vector: np.ndarray) -> PyTree[Array]:
        """The pytree with these numbers, each array in its own dtype."""
        parts = zip(self.slices, self.shapes, self.dtypes, strict=True)
        leaves = [jnp.asarray(vector[where].reshape(shape).astype(dtype)) for where, shape, dtype in parts]
        return jax.tree.unflatten(self.treedef, leaves)

    def vector(self, tree: PyTree) -> np.ndarray:
        """The numbers of a pytree of this space."""
        leaves = [np.asarray(leaf, dtype=np.float64).ravel() for leaf in jax.tree.leaves(tree)]
        return np.concatenate(leaves)

    def rounded(self, vector: np.ndarray) -> np.ndarray:
        """The nearest vector that the dtypes of this space can hold."""
        return self.vector(self.tree(vector))

    def noise(self, rng: np.random.Generator) -> np.ndarray:
        """White noise N(0, I)."""
        return self.rounded(rng.standard_normal(self.size))

    def only(self, vector: np.ndarray, leaf: int) -> np.ndarray:
        """The vector with every array but one set to zero."""
        kept = np.zeros_like(vector)
        kept[self.slices[leaf]] = vector[self.slices[leaf]]
        return kept

    def leaf_scales(self, vector: np.ndarray) -> np.ndarray:
        """The root-mean-square of each array, spread over its entries; 1 where an array is zero."""
        scales = np.ones_like(vector)
        for where in self.slices:
            size = rms(vector[where])
            scales[where] = size if size > 0 and np.isfinite(size) else 1.0
        return scales

    def mismatch(self, tree: PyTree) -> str:
        """What is different between a pytree and this space, in words; empty when nothing is."""
        leaves, treedef = jax.tree.flatten(tree)
        if treedef != self.treedef:
            return f"found the structure {treedef}, expected {self.treedef}"
        for name, leaf, shape, dtype in zip(self.names, leaves, self.shapes, self.dtypes, strict=True):
            try:
                found = jnp.asarray(leaf)
            except TypeError:
                return f"found {name}{type(leaf).__name__}, expected {name}{dtype}{list(shape)}"
            if found.shape != shape or found.dtype != dtype:
                return f"found {name}{found.dtype}{list(found.shape)}, expected {name}{dtype}{list(shape)}"
        return ""


def _as_array(leaf: Any, argument: str) -> Array:
    try:
        return jnp.asarray(leaf)
    except TypeError as error:
        raise TypeError(f"`{argument}` holds {type(leaf).__name__}, expected arrays.") from error


def generator(key: Any) -> np.random.Generator:
    """A NumPy generator seeded by a JAX key; None is the documented default, `jax.random.key(0)`."""
    try:
        data = jax.random.key_data(jax.random.key(0) if key is None else key)
    except TypeError as error:
        raise TypeError(f"`key` is {type(key).__name__}, expected a JAX key such as jax.random.key(0).") from error
    return np.random.default_rng(np.asarray(data))


def rms(vector: np.ndarray) -> float:
    """Root-mean-square; 0 of nothing."""
    return float(np.sqrt(np.mean(vector**2))) if vector.size else 0.0


def relative_error(found: np.ndarray, expected: np.ndarray) -> float:
    """|found - expected| / |expected|, and 0 when both are zero."""
    error, size = np.linalg.norm(found - expected), np.linalg.norm(expected)
    return float(error / size) if size > 0 else float(error and np.inf)
