"""The latent map that changes nothing: z = x.

With it a latent method is its state-space sibling, to rounding; that is what the tests of latent methods start from.
"""

from typing import Any

import equinox as eqx
from jaxtyping import Array, PyTree

from vardax.dynamics.stepping import checked_count

__all__ = ["IdentityLatentMap"]


class IdentityLatentMap(eqx.Module):
    """encode(x) = x, decode(z) = z, for states of any structure with `latent_dim` numbers.

    >>> IdentityLatentMap(3).latent_dim
    3
    """

    latent_dim: int = eqx.field(static=True)

    def __init__(self, latent_dim: Any):
        self.latent_dim = checked_count(latent_dim, "latent_dim", "IdentityLatentMap", least=1)

    def encode(self, state: PyTree[Array]) -> PyTree[Array]:
        return state

    def decode(self, latent: PyTree[Array]) -> PyTree[Array]:
        return latent
