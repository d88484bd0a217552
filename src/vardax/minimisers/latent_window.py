"""Windows whose control is a latent vector.

    DecodedStart        z -> D(z) = x_0 -> the window, or the one time, of states
    DecodedWindow       z_0 -> z_t = M_z(z_{t-1}) -> x_t = D(z_t) -> H(x_t)

Both give states: the result of z is D(z), the trajectory is one of states, and operators, further terms and scattered
points see what they see without a latent space.
"""

from typing import Any

import equinox as eqx
import jax
from jaxtyping import Array, PyTree

from vardax.minimisers.observed import ObservedEntries, ObservedSamples
from vardax.minimisers.windows import AbstractObserving, Run, Window

__all__ = ["DecodedStart", "DecodedWindow"]


class _AbstractDecoded(AbstractObserving):
    """What a latent control has in common: its result is decoded, and a state is encoded to be one."""

    window: eqx.AbstractVar[Any]
    latent_map: eqx.AbstractVar[Any]

    def place(self, samples: ObservedSamples) -> ObservedSamples:
        """Scattered points get their place between the entries of the trajectory."""
        return self.window.place(samples)

    def result(self, state: PyTree[Array]) -> PyTree[Array]:
        """D(z)."""
        return self.latent_map.decode(state)

    def of_result(self, result: PyTree[Array]) -> PyTree[Array]:
        """E(x)."""
        return self.latent_map.encode(result)

    def latent(self, state: PyTree[Array]) -> PyTree[Array]:
        """z."""
        return state


class DecodedStart(_AbstractDecoded):
    """z -> D(z), then what `window` makes of a state."""

    window: Any
    latent_map: Any

    def run(self, state: PyTree[Array], observed: ObservedEntries) -> Run:
        """The trajectory of the decoded start, and the predicted observations along it."""
        return self.window.run(self.result(state), observed)

    def trajectory(self, state: PyTree[Array]) -> PyTree[Array] | None:
        """x_0 ... x_T from the decoded start; None where there is one time."""
        return self.window.trajectory(self.result(state))

    def memory(self, state: PyTree[Array]) -> str:
        """In words, what the differentiated model run keeps."""
        return self.window.memory(self.result(state))


class DecodedWindow(_AbstractDecoded):
    """z_0 -> its trajectory by the latent model of `window` -> decoded, then observed."""

    window: Window
    latent_map: Any

    def run(self, state: PyTree[Array], observed: ObservedEntries) -> Run:
        """The decoded trajectory, and the predicted observations along it."""
        trajectory = self.trajectory(state)
        return Run(trajectory, self.window.along(trajectory, observed))

    def trajectory(self, state: PyTree[Array]) -> PyTree[Array]:
        """D(z_0) ... D(z_T), stacked on a leading axis."""
        return jax.vmap(self.latent_map.decode)(self.window.trajectory(state))

    def memory(self, state: PyTree[Array]) -> str:
        """In words, what the differentiated run of the latent model keeps."""
        return self.window.memory(state)
