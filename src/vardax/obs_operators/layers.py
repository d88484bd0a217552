"""Averages over the layers of one vertical grid, from those of another, conserving what the layers hold.

A layer lies between two boundaries (pressures, or any coordinate in which the mass of a layer is its thickness). Layer
l of the retrieval shares o_lk with layer k of the model, and has the mean

    x_l = sum_k o_lk x_k / d_l,      d_l its thickness

so a constant stays constant, and sum_l d_l x_l = sum_k d_k x_k where both grids have the same ends. Boundaries may
increase or decrease, and need not be evenly spaced.
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

__all__ = ["beyond", "layer_means", "reaching"]

ROUNDING = 1e-5
"""How far, in units of its range, a grid may stick out of another before it counts as reaching beyond it."""


def layer_means(levels: Float[Array, "L1"], model_levels: Float[Array, "K1"]) -> Float[Array, "L K"]:
    """o_lk / d_l: the weight of each model layer in the mean of each layer.

    A row adds up to the part of the layer that the model covers: 1 inside its range, 0 outside.

    >>> layer_means(jnp.array([0.0, 4.0, 5.0]), jnp.array([5.0, 3.0, 0.0])).tolist()
    [[0.25, 0.75], [1.0, 0.0]]
    """
    lower, upper = _bounds(levels)
    model_lower, model_upper = _bounds(model_levels)
    shared = jnp.minimum(upper[:, None], model_upper[None]) - jnp.maximum(lower[:, None], model_lower[None])
    thickness = upper - lower
    thickness = jnp.where(thickness > 0, thickness, jnp.ones_like(thickness))
    return jnp.maximum(shared, jnp.zeros_like(shared)) / thickness[:, None]


def reaching(model_levels: Float[Array, "K1"], levels: Float[Array, "L1"]) -> Float[Array, "K1"]:
    """The model's boundaries with the outermost ones moved out to those of `levels` where they do not reach as far."""
    low = jnp.minimum(jnp.min(levels), jnp.min(model_levels))
    high = jnp.maximum(jnp.max(levels), jnp.max(model_levels))
    increasing = model_levels[0] < model_levels[-1]
    ends = jnp.where(increasing, low, high), jnp.where(increasing, high, low)
    return model_levels.at[0].set(ends[0]).at[-1].set(ends[1])


def beyond(levels: Float[Array, "L1"], model_levels: Float[Array, "K1"]) -> Bool[Array, ""]:
    """Whether `levels` reach beyond the model's range by more than rounding."""
    slack = ROUNDING * (jnp.max(levels) - jnp.min(levels))
    below = jnp.min(levels) < jnp.min(model_levels) - slack
    return below | (jnp.max(levels) > jnp.max(model_levels) + slack)


def _bounds(levels: Array) -> tuple[Array, Array]:
    """The lower and upper boundary of each layer."""
    return jnp.minimum(levels[:-1], levels[1:]), jnp.maximum(levels[:-1], levels[1:])
