"""Models in latent space: how z moves from one time to the next.

    NeuralLatentForwardModel    z(t + dt) = net(z(t))                learned
    EncodedForwardModel         z(t + dt) = E(M(D(z(t))))            a model of states M between decoder and encoder

The second is exact where the states that M makes of decoded states can be decoded again; what they have besides is lost
at every step. It costs more than M. The first costs what its network costs.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
from jaxtyping import Array, ArrayLike, PyTree

from vardax.dynamics.neural_forward import NeuralForward
from vardax.dynamics.rollout import as_forward
from vardax.dynamics.stepping import StepConvention, in_state_dtype, step_convention
from vardax.latent.prior import checked_latent_map

__all__ = ["EncodedForwardModel", "NeuralLatentForwardModel"]


class NeuralLatentForwardModel(eqx.Module):
    """The `LatentForwardModel` of a network `net(latent) -> latent` that predicts over `dt`.

    The network computes in the precision of its weights; dropout and the like are switched off. A network that gives
    the increment is `lambda z: z + net(z)`.

    >>> import jax.numpy as jnp
    >>> net = eqx.nn.MLP(3, 3, width_size=8, depth=1, key=jax.random.key(0))
    >>> NeuralLatentForwardModel(net, dt=0.1).step(jnp.ones(3), 0.1).shape
    (3,)
    """

    network: NeuralForward

    def __init__(
        self,
        net: Any,
        dt: Any = 1.0,
        *,
        latent_signature: PyTree[jax.ShapeDtypeStruct] | None = None,
    ):
        if not callable(net):
            raise TypeError(f"NeuralLatentForwardModel: `net` is {net!r}, expected a network: net(latent) -> latent.")
        self.network = NeuralForward(net, dt, state_signature=latent_signature)

    @property
    def net(self) -> Callable[[Any], Any]:
        return self.network.net

    @property
    def dt(self) -> float | Array:
        return self.network.dt

    @property
    def latent_signature(self) -> Any:
        return self.network.state_signature

    def step(self, latent: PyTree[Array], dt: ArrayLike) -> PyTree[Array]:
        """The latent vector one interval later, in its own dtype."""
        return self.network.step(latent, dt)


class EncodedForwardModel(eqx.Module):
    """A model of states as a model of latent vectors: decode, one step of `inner`, encode.

    >>> import jax.numpy as jnp
    >>> from vardax.dynamics.lorenz96 import Lorenz96
    >>> from vardax.latent.identity import IdentityLatentMap
    >>> EncodedForwardModel(IdentityLatentMap(4), Lorenz96(4)).step(jnp.full(4, 8.0), 0.05).tolist()
    [8.0, 8.0, 8.0, 8.0]
    """

    latent_map: Any
    inner: Any
    convention: StepConvention = eqx.field(static=True)

    def __init__(self, latent_map: Any, inner: Any):
        self.latent_map = checked_latent_map(latent_map, "EncodedForwardModel")
        self.inner = as_forward(inner)
        self.convention = step_convention(self.inner.step, f"{type(inner).__name__}.step")

    @property
    def dt(self) -> Any:
        """That of the model inside."""
        return self.inner.dt

    @property
    def latent_signature(self) -> None:
        """The latent map decides what a latent vector looks like."""
        return None

    def step(self, latent: PyTree[Array], dt: ArrayLike, *, t0: ArrayLike = 0.0) -> PyTree[Array]:
        """E(M(D(z))), one step of the model inside."""
        state = self.latent_map.decode(latent)
        times = (in_state_dtype(dt, state), in_state_dtype(t0, state))
        return self.latent_map.encode(self.convention(self.inner.step, state, *times))
