"""Convolutional autoencoders: one's own layers, and one for periodic lines.

    ConvAEPrior       phi(x) = decoder(encoder(x))                      any networks of the window
    ConvAEPrior1D     z = F coarse(gelu(A x)),   phi = C gelu(fine(G z)),      on a circle

`ConvAEPrior1D` has circular convolutions, with the times of the window as channels: turning the state turns the
reconstruction (by multiples of the `downsampling`), as a system like Lorenz-96 asks for, and one set of weights is
shared by all places.
"""

from typing import Any, SupportsIndex

import equinox as eqx
import jax
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from vardax.dynamics.stepping import checked_count
from vardax.networks.convolution import Convolution
from vardax.priors.grid_autoencoder import (
    AbstractGridAutoencoderPrior,
    GridAutoencoder,
    Window,
    as_dtype,
    as_key,
    in_precision_of,
    time_axes,
)
from vardax.priors.resampling import CellCentred, Resampling

__all__ = ["ConvAEPrior", "ConvAEPrior1D", "PeriodicLayers"]


class ConvAEPrior(eqx.Module):
    """Any encoder and decoder as a `Prior` and a `LatentMap`.

    - `encoder(state) -> latent`, `decoder(latent) -> state`: networks or functions, of one window without batch axis.
      Their dropout and the like are switched off.
    - `latent_dim`, `state_signature`: what to say of them, for those who ask.

    >>> import jax.numpy as jnp
    >>> halve = ConvAEPrior(lambda x: x[..., ::2], lambda z: jnp.repeat(z, 2, axis=-1))
    >>> import jax.numpy as jnp
    >>> halve(jnp.array([1.0, 2.0, 3.0, 4.0])).tolist()
    [1.0, 1.0, 3.0, 3.0]
    """

    encoder: Any
    decoder: Any
    latent_dim: int | None = eqx.field(static=True)
    state_signature: PyTree[jax.ShapeDtypeStruct] | None

    def __init__(
        self,
        encoder: Any,
        decoder: Any,
        *,
        latent_dim: SupportsIndex | None = None,
        state_signature: PyTree[jax.ShapeDtypeStruct] | None = None,
    ):
        for name, net in (("encoder", encoder), ("decoder", decoder)):
            if not callable(net):
                raise TypeError(f"ConvAEPrior: `{name}` is {net!r}, expected a network or a function.")
        self.encoder, self.decoder = eqx.nn.inference_mode(encoder), eqx.nn.inference_mode(decoder)
        count = None if latent_dim is None else checked_count(latent_dim, "latent_dim", "ConvAEPrior", least=1)
        self.latent_dim, self.state_signature = count, state_signature

    def encode(self, state: Float[Array, "..."]) -> Float[Array, "..."]:
        return in_precision_of(self.encoder, self.encoder, state)

    def decode(self, latent: Float[Array, "..."]) -> Float[Array, "..."]:
        return in_precision_of(self.decoder, self.decoder, latent)

    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        phi = self.decode(self.encode(x))
        if phi.shape != x.shape:
            raise ValueError(
                f"ConvAEPrior: decoder(encoder(x)) has shape {phi.shape}, expected {x.shape}, that of the state; a "
                "strided encoder may need a grid that its strides divide."
            )
        return phi


class ConvAEPrior1D(AbstractGridAutoencoderPrior):
    """A circular convolutional autoencoder, for windows (T, N) on a circle.

    - `state_dim`: N, or None for circles of any length; `n_time`: T, or None for states without a time axis.
    - `latent_dim`: latent numbers for each cell of the coarse circle; `hidden_dim`: channels between.
    - `kernel_size` of all convolutions, odd; `downsampling`: the factor to the coarse circle, by means; it divides N.
    - `key`: of the first weights, `jax.random.key(0)` by default; `dtype`: theirs.

    >>> import jax.numpy as jnp
    >>> prior = ConvAEPrior1D(state_dim=40, n_time=5, latent_dim=3, downsampling=2)
    >>> prior(jnp.zeros((5, 40))).shape, prior.encode(jnp.zeros((5, 40))).shape
    ((5, 40), (3, 20))
    """

    net: GridAutoencoder
    state_dim: int | None = eqx.field(static=True)

    def __init__(
        self,
        state_dim: SupportsIndex | None,
        n_time: SupportsIndex | None,
        latent_dim: SupportsIndex = 8,
        hidden_dim: SupportsIndex = 32,
        *,
        kernel_size: int = 5,
        downsampling: SupportsIndex = 1,
        key: PRNGKeyArray | None = None,
        dtype: Any = None,
    ):
        counts = {"latent_dim": latent_dim, "hidden_dim": hidden_dim, "downsampling": downsampling}
        n_latent, n_hidden, factor = (checked_count(n, k, "ConvAEPrior1D", least=1) for k, n in counts.items())
        n = None if state_dim is None else checked_count(state_dim, "state_dim", "ConvAEPrior1D", least=1)
        if n is not None and n % factor:
            raise ValueError(f"ConvAEPrior1D: `downsampling` is {factor}, which does not divide `state_dim`, {n}.")
        window = Window("ConvAEPrior1D", time_axes(n_time, "ConvAEPrior1D"), 1)
        widths = (window.n_channels, n_hidden, n_latent, n_hidden, window.n_channels)
        keys = jax.random.split(as_key(key), 4)
        convolutions = tuple(
            Convolution(1, a, b, kernel_size, padding="periodic", dtype=as_dtype(dtype), key=k)
            for a, b, k in zip(widths[:-1], widths[1:], keys, strict=True)
        )
        layers = PeriodicLayers(convolutions, Resampling(factor, CellCentred(), (True,)))
        self.net, self.state_dim = GridAutoencoder(window, layers, n_latent, factor, (True,)), n

    @property
    def state_signature(self) -> jax.ShapeDtypeStruct | None:
        if self.state_dim is None:
            return None
        dtype = self.net.layers.convolutions[0].weight.dtype
        return jax.ShapeDtypeStruct((*self.net.window.leading, self.state_dim), dtype)


class PeriodicLayers(eqx.Module):
    """A, F, G and C, with the change of grid between A and F, and between G and C."""

    convolutions: tuple[Convolution, ...]
    resampling: Resampling

    def encode(self, channels: Float[Array, "channels n"]) -> Float[Array, "latent coarse"]:
        first, second = self.convolutions[:2]
        return second(self.resampling.down(jax.nn.gelu(first(channels))))

    def decode(self, latent: Float[Array, "latent coarse"]) -> Float[Array, "channels n"]:
        third, fourth = self.convolutions[2:]
        return fourth(jax.nn.gelu(self.resampling.up(third(latent))))
