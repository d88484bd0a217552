"""Parts of a batch of many windows: minibatches in an order that a key gives, and random patches of maps."""

from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PRNGKeyArray

from vardax.types import AbstractBatch, ArrayData, Batch2D, Batch2DMultivar

__all__ = ["empty_windows", "minibatches", "patches", "take_windows"]

BatchT = TypeVar("BatchT", bound=AbstractBatch)


def minibatches(batch: BatchT, size: int, key: PRNGKeyArray | None = None) -> Iterator[BatchT]:
    """The windows of a batch, `size` at a time, once each.

    With a `key` in an order that depends on the key and on the number of windows alone; a rest that does not fill a
    minibatch is left out, so that all have one shape (another key leaves out others). Without one in the order in which
    they are, the rest included.

    >>> from vardax.types import Batch1D
    >>> batch = Batch1D(jnp.zeros((5, 1, 2)), jnp.ones((5, 1, 2)))
    >>> [part.n_samples for part in minibatches(batch, 2)]
    [2, 2, 1]
    """
    n = batch.n_samples
    if not 1 <= size <= n:
        raise ValueError(f"minibatches: `size` is {size}, expected 1 to {n}, the number of windows in `batch`.")
    order = np.arange(n) if key is None else np.asarray(jax.random.permutation(key, n))
    last = n if key is None else n - n % size
    return (take_windows(batch, order[start : start + size]) for start in range(0, last, size))


def take_windows(batch: BatchT, indices: ArrayData) -> BatchT:
    """The batch of the windows with these indices."""
    per_window, times = _apart(batch)
    return eqx.combine(_picked(per_window, jnp.asarray(indices)), times)


def patches(batch: BatchT, shape: Sequence[int], key: PRNGKeyArray) -> BatchT:
    """A random patch of `shape` (h, w) of each window of a batch of maps, the same of all its times and variables.

    Land and gaps may be anywhere; a patch without any known target adds nothing to a loss. It can run inside a loss, so
    that every step sees other patches: `train_loss_fn(model, patches(batch, (32, 32), key))`.
    """
    if not isinstance(batch, Batch2D | Batch2DMultivar):
        raise TypeError(f"patches: `batch` is {type(batch).__name__}, expected Batch2D or Batch2DMultivar.")
    height, width = batch.input.shape[-2:]
    if len(shape) != 2 or not (1 <= shape[0] <= height and 1 <= shape[1] <= width):
        raise ValueError(
            f"patches: `shape` is {tuple(shape)}, expected (h, w) of at most {(height, width)}, the map's."
        )
    if batch.target is not None and batch.target.shape[-2:] != (height, width):
        raise ValueError(
            f"patches: `batch.target` is on a grid {batch.target.shape[-2:]}, expected {(height, width)}, that of "
            "`input`."
        )
    highest = jnp.array([[height - shape[0] + 1, width - shape[1] + 1]])
    corners = jax.random.randint(key, (batch.n_samples, 2), 0, highest)

    def cut(field: Array, corner: Array) -> Array:
        starts = [*[0] * (field.ndim - 2), corner[0], corner[1]]
        return jax.lax.dynamic_slice(field, starts, (*field.shape[:-2], *shape))

    per_window, times = _apart(batch)
    return eqx.combine(jax.tree.map(lambda fields: jax.vmap(cut)(fields, corners), per_window), times)


def empty_windows(batch: AbstractBatch) -> list[int]:
    """The windows in which nothing is observed, or nothing of the target is known."""
    seen = np.asarray(batch.mask).reshape(batch.n_samples, -1).any(axis=1)
    if batch.target is not None:
        seen &= np.isfinite(np.asarray(batch.target)).reshape(batch.n_samples, -1).any(axis=1)
    return np.flatnonzero(~seen).tolist()


def _apart(batch: Any) -> tuple[Any, Any]:
    """(what has one entry for each window, `times`, which all share)."""
    has_windows = eqx.tree_at(
        lambda b: b.times, jax.tree.map(lambda leaf: True, batch), False, is_leaf=lambda x: x is None
    )
    return eqx.partition(batch, has_windows)


@jax.jit
def _picked(per_window: Any, indices: Array) -> Any:
    return jax.tree.map(lambda leaf: leaf[indices], per_window)
