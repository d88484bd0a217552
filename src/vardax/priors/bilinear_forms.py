"""The two bilinear autoencoders that are called by that name, as layers on the coarse grid d of a field.

    Gated()             z = ReLU(A d) ⊙ tanh(B d)             phi = C z
    Product()           z = F ReLU(A d)                       phi = C [G z, (P z) ⊙ (Q z)]
    Square()            the same with Q = P                   phi = C [G z, (P z)²]

Capital letters are convolutions with a bias. `Gated` has a bilinear encoder and a linear decoder: every latent number
is a feature with a sign, passed on where a second feature is positive. `Product` is the prior of the programs that
4DVarNet is known by (its decoder is bilinear, as the quadratic terms of a flow are); weights trained with those go
into it.

Reference: R. Fablet et al., "Bilinear residual neural network for the identification and forecasting of geophysical
dynamics", EUSIPCO 2018.
"""

import abc
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from vardax.networks.convolution import Convolution
from vardax.priors.resampling import Resampling

__all__ = ["AbstractBilinearForm", "BilinearLayers", "Gated", "GatedLayers", "Product", "Square"]

MakeConvolution = Callable[[int, int, PRNGKeyArray], Convolution]


class AbstractBilinearForm(eqx.Module):
    """Which of the bilinear autoencoders a prior is."""

    @abc.abstractmethod
    def layers(
        self, convolution: MakeConvolution, n_channels: int, latent_dim: int, resampling: Resampling, key: PRNGKeyArray
    ) -> Any:
        """The layers, with `convolution(n_in, n_out, key)` between channels."""


class Gated(AbstractBilinearForm):
    """z = ReLU(A d) ⊙ tanh(B d), phi = C z."""

    def layers(
        self, convolution: MakeConvolution, n_channels: int, latent_dim: int, resampling: Resampling, key: PRNGKeyArray
    ) -> "GatedLayers":
        into, out = jax.random.split(key)
        return GatedLayers(
            convolution(n_channels, 2 * latent_dim, into), convolution(latent_dim, n_channels, out), resampling
        )


class Product(AbstractBilinearForm):
    """z = F ReLU(A d), phi = C [G z, (P z) ⊙ (Q z)]."""

    def layers(
        self, convolution: MakeConvolution, n_channels: int, latent_dim: int, resampling: Resampling, key: PRNGKeyArray
    ) -> "BilinearLayers":
        return _bilinear(convolution, n_channels, latent_dim, resampling, key, n_features=3)


class Square(AbstractBilinearForm):
    """z = F ReLU(A d), phi = C [G z, (P z)²]."""

    def layers(
        self, convolution: MakeConvolution, n_channels: int, latent_dim: int, resampling: Resampling, key: PRNGKeyArray
    ) -> "BilinearLayers":
        return _bilinear(convolution, n_channels, latent_dim, resampling, key, n_features=2)


class GatedLayers(eqx.Module):
    """`gates` are A and B in one convolution, `readout` is C."""

    gates: Convolution
    readout: Convolution
    resampling: Resampling

    def encode(self, channels: Float[Array, "channels *space"]) -> Float[Array, "latent *coarse"]:
        a, b = jnp.split(self.gates(self.resampling.down(channels)), 2)
        return jax.nn.relu(a) * jnp.tanh(b)

    def decode(self, latent: Float[Array, "latent *coarse"]) -> Float[Array, "channels *space"]:
        return self.resampling.up(self.readout(latent))


class BilinearLayers(eqx.Module):
    """`first` is A, `hidden` F, `features` G, P and Q (unless it is P) in one convolution, `readout` C."""

    first: Convolution
    hidden: Convolution
    features: Convolution
    readout: Convolution
    resampling: Resampling
    n_features: int = eqx.field(static=True)

    def encode(self, channels: Float[Array, "channels *space"]) -> Float[Array, "latent *coarse"]:
        return self.hidden(jax.nn.relu(self.first(self.resampling.down(channels))))

    def decode(self, latent: Float[Array, "latent *coarse"]) -> Float[Array, "channels *space"]:
        linear, *factors = jnp.split(self.features(latent), self.n_features)
        product = factors[0] * factors[-1]
        return self.resampling.up(self.readout(jnp.concatenate([linear, product])))


def _bilinear(
    convolution: MakeConvolution,
    n_channels: int,
    latent_dim: int,
    resampling: Resampling,
    key: PRNGKeyArray,
    *,
    n_features: int,
) -> BilinearLayers:
    keys = jax.random.split(key, 4)
    return BilinearLayers(
        first=convolution(n_channels, latent_dim, keys[0]),
        hidden=convolution(latent_dim, latent_dim, keys[1]),
        features=convolution(latent_dim, n_features * latent_dim, keys[2]),
        readout=convolution(2 * latent_dim, n_channels, keys[3]),
        resampling=resampling,
        n_features=n_features,
    )
