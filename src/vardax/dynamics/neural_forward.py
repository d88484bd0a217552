"""A model that is a network: one that was trained to give the state one interval later.

    x(t + dt) = net(x(t))

The network computes in the precision of its weights, whatever that of the state is, and the state keeps its own. It
was trained for one `dt` and is refused another. Its weights are leaves: they can be trained through an analysis.

A network that gives the tendency is a vector field: `DiffraxForward(net, dt)`. One that gives the increment is a model
with `DiscreteForward(lambda x: x + net(x), dt)`, or here as a residual network.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, PyTree

from vardax.dynamics.stepping import checked_dt
from vardax.types import concrete_values

__all__ = ["NeuralForward"]


class NeuralForward(eqx.Module):
    """The `ForwardModel` of a network `net(state) -> state`, with dropout and the like switched off.

    `net` is an `eqx.Module`, or any function of the state; `dt` the interval that it predicts over.

    >>> net = eqx.nn.MLP(3, 3, width_size=8, depth=1, key=jax.random.key(0))
    >>> NeuralForward(net, dt=0.1).step(jnp.ones(3), 0.1).shape
    (3,)
    """

    net: Callable[[Any], Any]
    dt: float | Array
    state_signature: PyTree[jax.ShapeDtypeStruct] | None

    def __init__(self, net: Any, dt: Any, *, state_signature: PyTree[jax.ShapeDtypeStruct] | None = None):
        if not callable(net):
            raise TypeError(f"NeuralForward: `net` is {net!r}, expected a network: net(state) -> state.")
        self.net = eqx.nn.inference_mode(net)
        self.dt = checked_dt(dt, "NeuralForward")
        self.state_signature = state_signature

    def step(self, state: PyTree[Array], dt: ArrayLike) -> PyTree[Array]:
        """The state one interval later, in the dtypes of `state`."""
        self._check_trained_for(dt)
        weights = [leaf.dtype for leaf in jax.tree.leaves(self.net) if eqx.is_inexact_array(leaf)]
        dtype = jnp.result_type(*weights) if weights else None
        after = self.net(jax.tree.map(lambda x: x.astype(dtype or x.dtype), state))
        found, expected = jax.tree.structure(after), jax.tree.structure(state)
        if found != expected:
            raise TypeError(
                f"NeuralForward: `net` returns the structure {found}, expected that of the state, {expected}."
            )
        return jax.tree.map(lambda a, x: a.astype(x.dtype), after, state)

    def _check_trained_for(self, dt: ArrayLike) -> None:
        asked, own = concrete_values(dt), concrete_values(self.dt)
        if asked is None or own is None:
            return
        if abs(float(asked) - float(own)) > 1e-6 * abs(float(own)):
            raise ValueError(
                f"NeuralForward: `dt` is {float(asked):g}, but the network predicts over {float(own):g}; take more or "
                "fewer steps (`n_substeps`) instead."
            )
