"""The twin of the Lorenz-63 experiment. Settings and expected scores are in `lorenz63`, its rows in `cycled`."""

import jax
import jax.numpy as jnp

from vardax.covariances.diagonal import DiagonalCovariance
from vardax.dynamics.lorenz63 import Lorenz63
from vardax.experiments.lorenz63 import START, Lorenz63Config
from vardax.experiments.twin import Twin, interval_forward, simulate
from vardax.obs_operators.identity import MaskedIdentity

__all__ = ["make_twin"]


def make_twin(config: Lorenz63Config) -> Twin:
    """The truth and its observations; a step of the twin's model is the interval between them."""
    dtype = jnp.dtype(config.precision)
    return simulate(
        jax.random.key(config.seed),
        interval_forward(Lorenz63(dt=config.dt), config.steps),
        MaskedIdentity(),
        DiagonalCovariance(jnp.full(3, config.obs_variance, dtype)),
        first_guess=jnp.asarray(START, dtype),
        x0_variance=config.x0_variance,
        n_cycles=config.cycles,
    )
