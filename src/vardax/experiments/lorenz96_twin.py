"""The twin of the Lorenz-96 experiment. Settings and expected scores are in `lorenz96`, its rows in `cycled`."""

import jax
import jax.numpy as jnp

from vardax.covariances.diagonal import DiagonalCovariance
from vardax.dynamics.lorenz96 import Lorenz96
from vardax.experiments.lorenz96 import Lorenz96Config
from vardax.experiments.twin import Twin, simulate
from vardax.obs_operators.identity import MaskedIdentity

__all__ = ["make_twin"]


def make_twin(config: Lorenz96Config) -> Twin:
    """The truth and its observations."""
    dtype = jnp.dtype(config.precision)
    return simulate(
        jax.random.key(config.seed),
        Lorenz96(config.n, jnp.asarray(config.forcing, dtype), config.dt),
        MaskedIdentity(),
        DiagonalCovariance(jnp.full(config.n, config.obs_variance, dtype)),
        first_guess=jnp.zeros(config.n, dtype).at[0].set(1.0),
        x0_variance=config.x0_variance,
        n_cycles=config.cycles,
    )
