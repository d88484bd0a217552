"""Weights of the bilinear prior as PyTorch's programs name them, and where they go.

    conv_in -> first,  conv_hidden -> hidden,  [bilin_1, bilin_21, bilin_22] -> features,  conv_out -> readout

Both sides keep kernels as (out, in, height, width). Features that share their input are one convolution here.

Names: CIA-Oceanix/4dvarnet-starter and the package `ocean4dvarnet`, class `BilinAEPriorCost`.
"""

from collections.abc import Mapping
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from vardax.priors.bilinear_forms import BilinearLayers

__all__ = ["bilinear_weights", "with_torch_weights"]

LAYERS = ("conv_in", "conv_hidden", "bilin_1", "bilin_21", "bilin_22", "conv_out")


def bilinear_weights(state_dict: Mapping[str, Any]) -> dict[str, Array]:
    """The arrays of the prior by their names without prefixes, such as `conv_in.weight`.

    >>> layers = ("conv_in", "conv_hidden", "bilin_1", "bilin_21", "bilin_22", "conv_out")
    >>> both = {f"prior_cost.{layer}.{part}": jnp.zeros(1) for layer in layers for part in ("weight", "bias")}
    >>> sorted(bilinear_weights(both | {"grad_mod.conv_out.bias": jnp.ones(1)}))[:3]
    ['bilin_1.bias', 'bilin_1.weight', 'bilin_21.bias']
    """
    dotted = {name.replace("__", "."): value for name, value in state_dict.items()}
    anchors = [name for name in dotted if name.endswith("conv_in.weight")]
    if len(anchors) != 1:
        raise ValueError(
            f"`state_dict` has {len(anchors)} names that end in conv_in.weight, expected one: the weights of one "
            "bilinear prior."
        )
    prefix = anchors[0].removesuffix("conv_in.weight")
    wanted = [f"{layer}.{part}" for layer in LAYERS for part in ("weight", "bias")]
    found = {name: dotted[prefix + name] for name in wanted if prefix + name in dotted}
    if missing := [name for name in wanted if name not in found]:
        raise ValueError(f"`state_dict` lacks {', '.join(prefix + name for name in missing)}.")
    return {name: jnp.asarray(np.asarray(value)) for name, value in found.items()}


def with_torch_weights(layers: BilinearLayers, weights: Mapping[str, Array]) -> BilinearLayers:
    """`layers` with these weights."""
    names = ("bilin_1", "bilin_21", "bilin_22")[: layers.n_features]
    sources = {"first": ["conv_in"], "hidden": ["conv_hidden"], "features": names, "readout": ["conv_out"]}
    for place, torch_names in sources.items():
        for part in ("weight", "bias"):
            joined = jnp.concatenate([weights[f"{name}.{part}"] for name in torch_names])
            old = getattr(getattr(layers, place), part)
            if joined.shape != old.shape:
                raise ValueError(
                    f"`state_dict`: {' and '.join(torch_names)} have a {part} of shape {joined.shape}, expected "
                    f"{old.shape}."
                )
            layers = eqx.tree_at(
                lambda tree, place=place, part=part: getattr(getattr(tree, place), part), layers, joined
            )
    return layers
