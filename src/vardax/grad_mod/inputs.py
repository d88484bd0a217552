"""What a learned modulator sees: the state and its gradient as two sets of channels, or the gradient alone.

The state carries its units into the network, so it wants data that are near unit variance. The gradient comes
normalised from the solver: a network that sees nothing else does not depend on the units of the data.
"""

import abc
from typing import ClassVar

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

__all__ = ["AbstractInputs", "GradientOnly", "StateAndGradient"]


class AbstractInputs(eqx.Module):
    """How many fields a network sees, and which."""

    n_fields: eqx.AbstractClassVar[int]

    @abc.abstractmethod
    def __call__(self, grad: Float[Array, "channels *space"], state: Float[Array, "channels *space"]) -> Array:
        """(n_fields · channels, *space)."""


class StateAndGradient(AbstractInputs):
    """[x, g], in this order."""

    n_fields: ClassVar[int] = 2

    def __call__(self, grad: Float[Array, "channels *space"], state: Float[Array, "channels *space"]) -> Array:
        return jnp.concatenate([state, grad])


class GradientOnly(AbstractInputs):
    """[g], as the PyTorch programs of 4DVarNet."""

    n_fields: ClassVar[int] = 1

    def __call__(self, grad: Float[Array, "channels *space"], state: Float[Array, "channels *space"]) -> Array:
        return grad
