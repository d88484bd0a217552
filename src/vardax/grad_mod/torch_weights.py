"""Weights of the ConvLSTM as PyTorch's programs name them.

    gates -> gates, with its outputs in the order enter, remember, leave, content;    conv_out -> readout

Both sides keep kernels as (out, in, *kernel), with the gradient before the memory among the inputs.

Names and architecture: CIA-Oceanix/4dvarnet-starter and the package `ocean4dvarnet`, class `ConvLstmGradModel`.
"""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

__all__ = ["conv_lstm_weights"]

NAMES = tuple(f"{layer}.{part}" for layer in ("gates", "conv_out") for part in ("weight", "bias"))


def conv_lstm_weights(state_dict: Mapping[str, Any]) -> dict[str, Array]:
    """The arrays by their names without prefixes, `gates.weight` first.

    >>> names = ("grad_mod__gates__weight", "grad_mod__gates__bias", "grad_mod__conv_out__weight")
    >>> list(conv_lstm_weights(dict.fromkeys((*names, "grad_mod__conv_out__bias"), np.ones(1, np.float32))))
    ['gates.weight', 'gates.bias', 'conv_out.weight', 'conv_out.bias']
    """
    dotted = {name.replace("__", "."): value for name, value in state_dict.items()}
    anchors = [name for name in dotted if f".{name}".endswith(".gates.weight")]
    if len(anchors) != 1:
        raise ValueError(
            f"`state_dict` has {len(anchors)} names that end in gates.weight, expected one: the weights of one "
            "ConvLSTM."
        )
    prefix = anchors[0].removesuffix("gates.weight")
    missing = [prefix + name for name in NAMES if prefix + name not in dotted]
    if missing:
        raise ValueError(f"`state_dict` lacks {', '.join(missing)}.")
    return {name: jnp.asarray(np.asarray(dotted[prefix + name])) for name in NAMES}
