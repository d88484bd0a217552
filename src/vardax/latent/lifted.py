"""An observation operator of states as one of latent vectors.

    z -> D(z) -> H(D(z)),     (H o D)'(z) = H'(D(z)) D'(z)

With it, and a latent model, any method of state space works in latent space.
"""

from typing import Any

import equinox as eqx
import lineax as lx
from jaxtyping import Array, Int, PyTree

from vardax.obs_operators.composite import CompositeObs

__all__ = ["LiftedObservationOperator"]


class LiftedObservationOperator(eqx.Module):
    """H after the decoder, with the exact derivative of both.

    `decoder` is a latent map (its `decode` is taken) or a function of latent vectors; `inner` observes states, and may
    read its positions from the observations (`at`).

    >>> import jax.numpy as jnp
    >>> observe = LiftedObservationOperator(jnp.exp, lambda x: x[:1] ** 2)
    >>> observe.linearize(jnp.zeros(2)).as_matrix().tolist()
    [[2.0, 0.0]]
    """

    decoder: Any
    inner: Any

    def __init__(self, decoder: Any, inner: Any):
        if not callable(getattr(decoder, "decode", decoder)):
            raise TypeError(
                f"LiftedObservationOperator: `decoder` is {type(decoder).__name__}, expected a latent map, or a "
                "function from latent vectors to states."
            )
        self.decoder, self.inner = decoder, inner
        self._composed()  # refuses an `inner` that is no operator

    @property
    def ops(self) -> tuple[Any, Any]:
        """Decoder and operator, in the order of the data."""
        return getattr(self.decoder, "decode", self.decoder), self.inner

    def _composed(self) -> CompositeObs:
        return CompositeObs(*self.ops)

    @property
    def mask(self) -> Array | None:
        """That of the operator inside."""
        return self._composed().mask

    def __call__(self, latent: PyTree[Array]) -> PyTree[Array]:
        return self._composed()(latent)

    def linearize(self, latent: PyTree[Array]) -> lx.AbstractLinearOperator:
        return self._composed().linearize(latent)

    def at(self, observations: Any) -> "LiftedObservationOperator":
        """This operator at the positions of `observations`."""
        inner = self.inner.at(observations) if hasattr(self.inner, "at") else self.inner
        return LiftedObservationOperator(self.decoder, inner)

    def sample_along(self, trajectory: PyTree[Array], entry: Int[Array, "p"]) -> Array:
        """Point j as latent vector `entry[j]` of a stacked trajectory predicts it."""
        return self._composed().sample_along(trajectory, entry)

    def linear_on(self, latent_structure: PyTree[Any]) -> bool:
        """Whether decoder and operator are both affine."""
        return self._composed().linear_on(latent_structure)

    def check(self, latent_structure: PyTree[Any]) -> None:
        """Raise where the operator inside does not fit the decoded state."""
        self._composed().check(latent_structure)
