"""Dense autoencoders of whole windows (T, N): every latent number sees every entry.

    MLPAEPrior1D      z = MLP(x),                      phi = MLP(z)         low-dimensional states, such as Lorenz-63
    BilinAEPrior1D    z = ReLU(A x) ⊙ tanh(B x),       phi = C z            the standard start of 4DVarNet

A, B and C are matrices with a bias. The number of weights grows with T N; fields want convolutions. States are best
near unit variance. The networks compute in the precision of their weights; states and latent vectors keep their own.
"""

import math
from typing import Any, SupportsIndex

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from vardax.dynamics.stepping import checked_count
from vardax.priors.grid_autoencoder import as_dtype, as_key, in_precision_of, time_axes

__all__ = ["BilinAEPrior1D", "MLPAEPrior1D"]


class MLPAEPrior1D(eqx.Module):
    """Multilayer perceptrons to a latent vector and back, a `Prior` and a `LatentMap`.

    - `state_dim`: N; `n_time`: T, or None for states (N,) without a time axis.
    - `latent_dim`: numbers that the window is squeezed into.
    - `hidden_dim`, `depth`: width and number of the hidden layers of each side, with the activation GELU.
    - `key`: of the first weights, `jax.random.key(0)` by default; `dtype`: theirs.

    >>> prior = MLPAEPrior1D(state_dim=3, n_time=10, latent_dim=4)
    >>> prior(jnp.zeros((10, 3))).shape, prior.encode(jnp.zeros((10, 3))).shape
    ((10, 3), (4,))
    """

    encoder: eqx.nn.MLP
    decoder: eqx.nn.MLP
    shape: tuple[int, ...] = eqx.field(static=True)
    latent_dim: int = eqx.field(static=True)

    def __init__(
        self,
        state_dim: SupportsIndex,
        n_time: SupportsIndex | None,
        latent_dim: SupportsIndex = 32,
        hidden_dim: SupportsIndex = 64,
        *,
        depth: SupportsIndex = 1,
        key: PRNGKeyArray | None = None,
        dtype: Any = None,
    ):
        self.shape, self.latent_dim = _sizes(state_dim, n_time, latent_dim, "MLPAEPrior1D")
        width = checked_count(hidden_dim, "hidden_dim", "MLPAEPrior1D", least=1)
        depth = checked_count(depth, "depth", "MLPAEPrior1D", least=0)
        n, dtype = math.prod(self.shape), as_dtype(dtype)
        into, out = jax.random.split(as_key(key))
        options = {"activation": jax.nn.gelu, "dtype": dtype}
        self.encoder = eqx.nn.MLP(n, self.latent_dim, width, depth, key=into, **options)
        self.decoder = eqx.nn.MLP(self.latent_dim, n, width, depth, key=out, **options)

    @property
    def state_signature(self) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(self.shape, self.encoder.layers[0].weight.dtype)

    def encode(self, state: Float[Array, "..."]) -> Float[Array, "latent"]:
        return in_precision_of(self.encoder, self.encoder, _flat(self, state))

    def decode(self, latent: Float[Array, "..."]) -> Float[Array, "..."]:
        return in_precision_of(self.decoder, self.decoder, _latent(self, latent)).reshape(self.shape)

    @eqx.filter_jit
    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        return self.decode(self.encode(x))


class BilinAEPrior1D(eqx.Module):
    """decode(ReLU(A x) ⊙ tanh(B x)) on the whole window, a `Prior` and a `LatentMap`.

    - `state_dim`: N; `n_time`: T, or None for states (N,) without a time axis.
    - `latent_dim`: gated features of the window.
    - `key`: of the first weights, `jax.random.key(0)` by default; `dtype`: theirs.

    >>> prior = BilinAEPrior1D(state_dim=40, n_time=5)
    >>> prior(jnp.zeros((5, 40))).shape, prior.latent_dim
    ((5, 40), 32)
    """

    A: eqx.nn.Linear
    B: eqx.nn.Linear
    C: eqx.nn.Linear
    shape: tuple[int, ...] = eqx.field(static=True)
    latent_dim: int = eqx.field(static=True)

    def __init__(
        self,
        state_dim: SupportsIndex,
        n_time: SupportsIndex | None,
        latent_dim: SupportsIndex = 32,
        *,
        key: PRNGKeyArray | None = None,
        dtype: Any = None,
    ):
        self.shape, self.latent_dim = _sizes(state_dim, n_time, latent_dim, "BilinAEPrior1D")
        n, dtype = math.prod(self.shape), as_dtype(dtype)
        keys = jax.random.split(as_key(key), 3)
        self.A, self.B = (eqx.nn.Linear(n, self.latent_dim, dtype=dtype, key=k) for k in keys[:2])
        self.C = eqx.nn.Linear(self.latent_dim, n, dtype=dtype, key=keys[2])

    @property
    def state_signature(self) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(self.shape, self.C.weight.dtype)

    def encode(self, state: Float[Array, "..."]) -> Float[Array, "latent"]:
        gated = lambda x: jax.nn.relu(self.A(x)) * jnp.tanh(self.B(x))  # noqa: E731
        return in_precision_of(self.A, gated, _flat(self, state))

    def decode(self, latent: Float[Array, "..."]) -> Float[Array, "..."]:
        return in_precision_of(self.C, self.C, _latent(self, latent)).reshape(self.shape)

    @eqx.filter_jit
    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        return self.decode(self.encode(x))


def _sizes(state_dim: Any, n_time: Any, latent_dim: Any, owner: str) -> tuple[tuple[int, ...], int]:
    n = checked_count(state_dim, "state_dim", owner, least=1)
    return (*time_axes(n_time, owner), n), checked_count(latent_dim, "latent_dim", owner, least=1)


def _flat(prior: MLPAEPrior1D | BilinAEPrior1D, state: Array) -> Array:
    if state.shape != prior.shape:
        raise ValueError(
            f"{type(prior).__name__}: the state has shape {state.shape}, expected {prior.shape}: one window, without a "
            "batch axis."
        )
    return jnp.ravel(state)


def _latent(prior: MLPAEPrior1D | BilinAEPrior1D, latent: Array) -> Array:
    if latent.shape != (prior.latent_dim,):
        raise ValueError(
            f"{type(prior).__name__}: the latent vector has shape {latent.shape}, expected ({prior.latent_dim},)."
        )
    return latent
