"""Training on several devices: each has a share of the windows, and all have the whole model.

    model, opt_state = replicate((model, opt_state), devices)
    model, opt_state, loss = train_step(model, shard_windows(batch, devices), optimizer, opt_state)

The step is the one for a single device. The compiler splits it along the windows, which do not depend on each other,
and sums the gradients; they are those of one device up to rounding, and each device keeps the intermediate states of
its own windows only.
"""

from collections.abc import Sequence
from typing import Any, TypeVar

import equinox as eqx
import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from vardax.types import AbstractBatch, is_traced

__all__ = ["replicate", "shard_windows"]

T = TypeVar("T")

AXIS = "windows"


def shard_windows(batch: Any, devices: Sequence[Any] | None = None) -> Any:
    """The batch with its windows shared out evenly among `devices` (None: all).

    A pytree of arrays that is no batch of vardax is split along the first axis of each.
    """
    mesh = _mesh(devices)
    share, whole = NamedSharding(mesh, PartitionSpec(AXIS)), NamedSharding(mesh, PartitionSpec())
    times = batch.times if isinstance(batch, AbstractBatch) else None
    without_times = _with_times(batch, None) if times is not None else batch
    for leaf in jax.tree.leaves(eqx.filter(without_times, eqx.is_array)):
        if leaf.ndim == 0 or leaf.shape[0] % mesh.size:
            raise ValueError(
                f"shard_windows: `batch` has an array of shape {leaf.shape}, expected a first axis (the windows) that "
                f"{mesh.size} devices can share evenly."
            )
    shared = _placed(without_times, share)
    return shared if times is None else _with_times(shared, _placed(times, whole))


def replicate(tree: T, devices: Sequence[Any] | None = None) -> T:
    """A model or an optimiser's state on each of `devices` (None: all)."""
    return _placed(tree, NamedSharding(_mesh(devices), PartitionSpec()))


def _placed(tree: T, sharding: NamedSharding) -> T:
    """The arrays of a tree where they belong: moved there, wherever they are, or under jit by the compiler."""
    arrays, rest = eqx.partition(tree, eqx.is_array)
    if any(map(is_traced, jax.tree.leaves(arrays))):
        return eqx.filter_shard(tree, sharding)
    return eqx.combine(jax.device_put(arrays, sharding), rest)


def _mesh(devices: Sequence[Any] | None) -> Mesh:
    return Mesh(np.asarray(jax.devices() if devices is None else devices), (AXIS,))


def _with_times(batch: Any, times: Any) -> Any:
    return eqx.tree_at(lambda b: b.times, batch, times, is_leaf=lambda x: x is None)
