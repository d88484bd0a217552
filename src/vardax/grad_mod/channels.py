"""Which axes of a state are channels of a network, and over which its weights are shared.

A state is (*leading, *space), leading being (T,) or (T, C). `state_channels` says how many numbers of a place a network
sees at once, and they are those of the last leading axes:

    state_channels = T C     times and variables are channels          no groups
    state_channels = C       variables are channels                    T groups
    state_channels = 1       every time and variable by itself         T C groups

Groups share the weights; each has its own memory.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
from jaxtyping import Array

__all__ = ["groups_of", "in_groups", "same_shape"]


def groups_of(shape: tuple[int, ...], state_channels: int, n_spatial: int, owner: str) -> tuple[int, ...]:
    """The leading axes of a state over which weights are shared.

    >>> groups_of((15, 2, 64, 64), 2, 2, "Owner")
    (15,)
    """
    leading = shape[: max(len(shape) - n_spatial, 0)]
    if len(shape) < n_spatial:
        raise ValueError(f"{owner}: the state has shape {shape}, expected {n_spatial} axes of space.")
    counts = [math.prod(leading[k:]) for k in range(len(leading) + 1)]
    if state_channels not in counts:
        raise ValueError(
            f"{owner}: `state_channels` is {state_channels}, but the state has shape {shape}, with the axes {leading} "
            f"before those of space; expected {' or '.join(map(str, sorted(set(counts), reverse=True)))} channels (all "
            "of these axes, the last ones of them, or 1 to share the weights over all)."
        )
    return leading[: counts.index(state_channels)]


def in_groups(fn: Callable[..., Any], groups: tuple[int, ...]) -> Callable[..., Any]:
    """`fn` on each of the groups, which are the first axes of its arguments."""
    for _ in groups:
        fn = jax.vmap(fn)
    return fn


def same_shape(grad: Array, state: Array, owner: str) -> None:
    """Refuse a gradient that is not one of this state."""
    if grad.shape != state.shape:
        raise ValueError(f"{owner}: the gradient has shape {grad.shape}, expected that of the state, {state.shape}.")
