"""What the default networks of `FourDVarNet1D`, `2D` and `3D` are made from: sizes, keys, and the modulator of each.

A size is needed where a default is, and only there.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from vardax.grad_mod.conv_lstm import ConvLSTMGradMod1D, ConvLSTMGradMod2D, ConvLSTMGradMod3D
from vardax.minimisers.solver_config import SolverConfig

__all__ = ["MODULATORS", "config_of", "keys_of", "required", "signature_on"]

MODULATORS: dict[int, Any] = {1: ConvLSTMGradMod1D, 2: ConvLSTMGradMod2D, 3: ConvLSTMGradMod3D}
"""The default modulator for each number of spatial axes."""


def keys_of(key: PRNGKeyArray | None) -> tuple[PRNGKeyArray, PRNGKeyArray]:
    """Of the prior and of the modulator."""
    first, second = jax.random.split(jax.random.key(0) if key is None else key)
    return first, second


def config_of(config: SolverConfig | None, n_solver_steps: int) -> SolverConfig:
    """The settings that are given, or the default ones with so many steps."""
    return SolverConfig(n_steps=n_solver_steps) if config is None else config


def required(owner: str, **sizes: int | None) -> list[int]:
    """Sizes that the default networks are made from."""
    missing = [name for name, size in sizes.items() if size is None]
    if missing:
        raise TypeError(
            f"{owner}: `{missing[0]}` is not given, expected the size of the windows; only a model that is given both "
            "`prior` and `grad_mod` does without."
        )
    return [size for size in sizes.values() if size is not None]


def signature_on(grid_shape: Sequence[int] | None, axes: tuple[int, ...], n_spatial: int, owner: str) -> Any:
    """What a state is like on a grid that was named; None, for any grid, where none was."""
    if grid_shape is None:
        return None
    shape = tuple(int(n) for n in grid_shape)
    if len(shape) != n_spatial or min(shape) < 1:
        raise ValueError(f"{owner}: `grid_shape` is {shape}, expected {n_spatial} positive sizes, or None for any.")
    return jax.ShapeDtypeStruct((*axes, *shape), jnp.result_type(float))
