"""What an observation operator sees, and what it waits for.

An operator that samples space has `at(observations)`, which gives it its positions, and a `mask`: None until it has
them, then 1 where a position is seen and 0 where it is not (outside the grid, not valid, without a kernel). The mask
belongs to the last axes of what the operator predicts. Methods multiply it with the mask of the observations.

Observations of a window are made at different times. `sample_along(trajectory, entry)` predicts point j from state
`entry[j]` of a trajectory, and an operator that has a method of this name reads no other state for it.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, PyTree

__all__ = ["is_unbound", "mask_on", "sample_along", "where_seen"]


def is_unbound(op: Any) -> bool:
    """Whether an operator waits for positions: it has `at`, and its `mask` is not there yet."""
    parts = getattr(op, "ops", None)
    if parts is not None:
        return any(is_unbound(part) for part in parts)
    return hasattr(op, "at") and getattr(op, "mask", False) is None


def mask_on(op: Any, shape: tuple[int, ...]) -> Bool[Array, "..."] | None:
    """Where `op` sees something, on predictions of this shape; None where it has no mask that fits them."""
    mask = getattr(op, "mask", None)
    if mask is None or shape[len(shape) - mask.ndim :] != mask.shape:
        return None
    return jnp.broadcast_to(mask != 0, shape)


def where_seen(seen: Bool[Array, "..."] | None, values: Array) -> Array:
    """`values`, and 0 where nothing is seen."""
    return values if seen is None else jnp.where(seen, values, jnp.zeros_like(values))


def sample_along(op: Any, trajectory: PyTree[Array], entry: Int[Array, "p"]) -> Array:
    """What `op` predicts for point j, the last axis, from state `entry[j]` of a stacked trajectory."""
    if hasattr(op, "sample_along"):
        return op.sample_along(trajectory, entry)
    everywhere = jax.vmap(op)(trajectory)
    chosen = jnp.broadcast_to(entry, (1, *everywhere.shape[1:]))
    return jnp.take_along_axis(everywhere, chosen, axis=0)[0]
