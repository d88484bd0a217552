"""What a learned modulator sees: the state and its gradient as two sets of channels, or the gradient alone.

The state carries its units into the network, which wants numbers near unit variance: `StateAndGradient(mean, scale)`
standardises what is shown, where the data themselves have to stay in their units (a model as prior needs them). The
gradient comes normalised from the solver: a network that sees nothing else does not depend on the units of the data.
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
    """[(x - mean) / scale, g], in this order; `mean` and `scale` are numbers, 0 and 1 if the data are standardised.

    >>> StateAndGradient(mean=2.0, scale=4.0)(jnp.ones((1, 1)), jnp.full((1, 1), 10.0)).ravel().tolist()
    [2.0, 1.0]
    """

    n_fields: ClassVar[int] = 2

    mean: float = eqx.field(static=True, default=0.0)
    scale: float = eqx.field(static=True, default=1.0)

    def __check_init__(self) -> None:
        if not self.scale > 0:
            raise ValueError(f"StateAndGradient: `scale` is {self.scale}, expected a positive number.")

    def __call__(self, grad: Float[Array, "channels *space"], state: Float[Array, "channels *space"]) -> Array:
        return jnp.concatenate([(state - self.mean) / self.scale, grad])


class GradientOnly(AbstractInputs):
    """[g], as the PyTorch programs of 4DVarNet."""

    n_fields: ClassVar[int] = 1

    def __call__(self, grad: Float[Array, "channels *space"], state: Float[Array, "channels *space"]) -> Array:
        return grad
