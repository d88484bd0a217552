"""What is known before the observations, said in latent space.

    z ~ N(z_b, B_z),   x = D(z)

D is the decoder. States that D cannot make have no probability: the prior lives on its range. To first order the errors
of x around D(z_b) have the covariance D' B_z D'ᵀ.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, PRNGKeyArray, PyTree

from vardax.covariances.dense import DenseCovariance
from vardax.covariances.functions import sample
from vardax.types import concrete_values, float_array

__all__ = ["LatentPrior"]


class LatentPrior(eqx.Module):
    """N(z_b, B_z) in the latent space of `latent_map`.

    - `latent_map`: any object with `encode(state)` and `decode(latent)`.
    - `z_b`: the background in latent space, an array or a pytree of arrays.
    - `B_z_op`: its error covariance, on the structure of `z_b`.

    As a `Prior` it is the reconstruction of a state, D(E(x)).

    >>> from vardax.covariances.diagonal import DiagonalCovariance
    >>> from vardax.latent.identity import IdentityLatentMap
    >>> prior = LatentPrior(IdentityLatentMap(2), jnp.zeros(2), DiagonalCovariance(jnp.ones(2)))
    >>> prior.sample(jax.random.key(0), 5).shape
    (5, 2)
    """

    latent_map: Any
    z_b: PyTree[Array]
    B_z_op: lx.AbstractLinearOperator

    def __init__(self, latent_map: Any, z_b: PyTree, B_z_op: Any):
        self.latent_map = checked_latent_map(latent_map, "LatentPrior")
        self.z_b = jax.tree.map(float_array, z_b)
        if not isinstance(B_z_op, lx.AbstractLinearOperator):
            raise TypeError(
                f"LatentPrior: `B_z_op` is {type(B_z_op).__name__}, expected a covariance (a lineax operator); wrap a "
                "matrix in DenseCovariance, variances in DiagonalCovariance."
            )
        self.B_z_op = B_z_op
        found, expected = (jax.tree.map(jnp.shape, tree) for tree in (self.z_b, B_z_op.out_structure()))
        if found != expected:
            raise ValueError(f"LatentPrior: `z_b` has shape {found}, expected {expected}, on which `B_z_op` acts.")
        known = [values for values in map(concrete_values, jax.tree.leaves(self.z_b)) if values is not None]
        if bad := sum(int(np.sum(~np.isfinite(values))) for values in known):
            raise ValueError(f"LatentPrior: `z_b` has {bad} non-finite entries; it must be complete.")

    @classmethod
    def from_samples(cls, latent_map: Any, states: PyTree) -> "LatentPrior":
        """Mean and covariance of the latent vectors of states that are stacked on a leading axis."""
        z = jax.vmap(latent_map.encode)(jax.tree.map(float_array, states))
        flat = jax.vmap(lambda one: ravel_pytree(one)[0])(z)
        _, unravel = ravel_pytree(jax.tree.map(lambda leaf: leaf[0], z))
        if not isinstance(z, jax.Array):
            raise TypeError(
                f"LatentPrior.from_samples: the latent space has the structure {jax.tree.structure(z)}, expected one "
                "array; give `z_b` and `B_z_op` to LatentPrior."
            )
        shape = z.shape[1:]
        covariance = jnp.cov(flat.T).reshape(*shape, *shape)
        return cls(latent_map, unravel(jnp.mean(flat, axis=0)), DenseCovariance(covariance))

    def __call__(self, x: PyTree[Array]) -> PyTree[Array]:
        """D(E(x)): the state of the range of the decoder that stands for x."""
        return self.latent_map.decode(self.latent_map.encode(x))

    def sample(self, key: PRNGKeyArray, n: int) -> PyTree[Array]:
        """n states D(z), z ~ N(z_b, B_z)."""
        increments = sample(self.B_z_op, key, n)
        latents = jax.tree.map(lambda b, d: b[None] + d.astype(b.dtype), self.z_b, increments)
        return jax.vmap(self.latent_map.decode)(latents)


def checked_latent_map(latent_map: Any, owner: str) -> Any:
    """`latent_map` as it is, or a `TypeError` that says what it has to offer."""
    missing = [name for name in ("encode", "decode") if not callable(getattr(latent_map, name, None))]
    if missing:
        raise TypeError(
            f"{owner}: `latent_map` is {type(latent_map).__name__} without {' and '.join(missing)}, expected an object "
            "with encode(state) and decode(latent), such as EOFBasis or an autoencoder."
        )
    return latent_map
