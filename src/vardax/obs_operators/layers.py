"""From the layers of one vertical grid to those of another, conserving what the layers hold.

A layer lies between two boundaries (pressures, or any coordinate in which the mass of a layer is its thickness). Layer
l of the retrieval shares o_lk with layer k of the model, and sees its mean there,

    x_l = sum_k o_lk X_k / d_l,      d_l its thickness

so a constant stays constant, and sum_l d_l x_l = sum_k d_k X_k where both grids have the same ends. A sum over layers
sum_l c_l x_l is then sum_k g_k X_k with g_k = sum_l c_l o_lk / d_l: the contents c, spread evenly over their layers,
are collected by the layers of the model. That is what is computed here, from how much lies below each boundary, so the
table of all o_lk is never stored. Boundaries may increase or decrease, and need not be evenly spaced.
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

__all__ = ["beyond", "collect", "covered", "reaching"]

ROUNDING = 1e-5
"""How far, in units of its range, a grid may stick out of another before it counts as reaching beyond it."""


def collect(
    contents: Float[Array, "L"], levels: Float[Array, "L1"], model_levels: Float[Array, "K1"]
) -> Float[Array, "K"]:
    """g_k = sum_l c_l o_lk / d_l: how much of the contents of the layers lies in each layer of the model.

    >>> collect(jnp.array([1.0, 0.0]), jnp.array([0.0, 4.0, 5.0]), jnp.array([5.0, 3.0, 0.0])).tolist()
    [0.25, 0.75]
    """
    lower, thickness = jnp.minimum(levels[:-1], levels[1:]), jnp.abs(levels[1:] - levels[:-1])
    solid = thickness > 0
    contents = jnp.where(solid, contents, jnp.zeros_like(contents))
    thickness = jnp.where(solid, thickness, jnp.ones_like(thickness))
    below = jnp.zeros_like(model_levels)
    for layer in range(contents.shape[0]):  # XLA fuses a sum of terms, not a sum over an axis
        below = below + contents[layer] * jnp.clip((model_levels - lower[layer]) / thickness[layer], 0, 1)
    return (below[1:] - below[:-1]) * jnp.where(model_levels[0] < model_levels[-1], 1, -1).astype(below.dtype)


def covered(levels: Float[Array, "L1"], model_levels: Float[Array, "K1"]) -> Float[Array, "L"]:
    """sum_k o_lk / d_l: the part of each layer that lies in the model's range, 1 inside and 0 outside.

    >>> covered(jnp.array([0.0, 2.0, 6.0]), jnp.array([0.0, 1.0, 3.0])).tolist()
    [1.0, 0.25]
    """
    inside = jnp.clip(levels, jnp.min(model_levels), jnp.max(model_levels))
    thickness = jnp.abs(levels[1:] - levels[:-1])
    thickness = jnp.where(thickness > 0, thickness, jnp.ones_like(thickness))
    return jnp.abs(inside[1:] - inside[:-1]) / thickness


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
