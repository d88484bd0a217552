"""Convolutional autoencoders of windows on a grid: everything but their layers.

    x (T, *space) or (T, C, *space)  -- time and variables are the channels -->  (T C, *space)
    encode:  (channels, *space) -> (latent_dim, *coarse)          decode:  back

The layers are convolutions, so their number of weights does not depend on the grid: what was trained on patches runs on
any grid, and away from the edges the reconstruction of a patch is the patch of the reconstruction. Where the layers go
to a coarser grid, a reconstruction first continues a grid that their factor does not divide by repeating its last
cells, and cuts them off at the end; `encode` alone refuses it.

The layers compute in the precision of their weights; states and latent fields keep their own.
"""

import abc
import contextlib
import math
from collections.abc import Iterator
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from vardax.dynamics.stepping import checked_count

__all__ = [
    "AbstractGridAutoencoderPrior",
    "GridAutoencoder",
    "Window",
    "as_dtype",
    "as_key",
    "in_precision_of",
    "on_multiples",
    "time_axes",
]


class Window(eqx.Module):
    """What a window is like, (*leading, *space), and how it becomes the channels of a convolution.

    >>> Window("Owner", (4, 2), 1).channels(jnp.zeros((4, 2, 10))).shape
    (8, 10)
    """

    owner: str = eqx.field(static=True)
    leading: tuple[int, ...] = eqx.field(static=True)
    n_spatial: int = eqx.field(static=True)

    @property
    def n_channels(self) -> int:
        return math.prod(self.leading)

    def channels(self, x: Float[Array, "..."]) -> Float[Array, "channels *space"]:
        n = len(self.leading)
        if x.ndim != n + self.n_spatial or x.shape[:n] != self.leading:
            expected = ", ".join([*map(str, self.leading), *("depth", "height", "width")[3 - self.n_spatial :]])
            raise ValueError(
                f"{self.owner}: the state has shape {x.shape}, expected ({expected}): one window, without a batch axis."
            )
        return x.reshape(self.n_channels, *x.shape[n:])

    @contextlib.contextmanager
    def on_grid(self, channels: Float[Array, "channels *space"]) -> Iterator[None]:
        """Within it, layers that cannot have a grid, mostly a coarser one, are answered with that of the state."""
        try:
            yield
        except ValueError as error:
            raise ValueError(f"{self.owner}: the grid {channels.shape[1:]} cannot be used. {error}") from error

    def from_channels(self, channels: Float[Array, "channels *space"]) -> Float[Array, "..."]:
        return channels.reshape(*self.leading, *channels.shape[1:])


class GridAutoencoder(eqx.Module):
    """Layers with `encode` and `decode` of channels, as a map of windows.

    - `factor`: the layers' latent grid has that many times fewer cells along each axis.
    - `periodic`: which axes of space close.
    """

    window: Window
    layers: Any
    latent_dim: int = eqx.field(static=True)
    factor: int = eqx.field(static=True)
    periodic: tuple[bool, ...] = eqx.field(static=True)

    @eqx.filter_jit
    def encode(self, x: Float[Array, "..."]) -> Float[Array, "latent *coarse"]:
        channels = self.window.channels(x)
        if any(n % self.factor for n in channels.shape[1:]):
            raise ValueError(
                f"{self.window.owner}: the grid {channels.shape[1:]} is not divided by `downsampling`, {self.factor}; "
                "continue it, or call the prior, which does."
            )
        with self.window.on_grid(channels):
            return in_precision_of(self.layers, self.layers.encode, channels)

    @eqx.filter_jit
    def decode(self, latent: Float[Array, "latent *coarse"]) -> Float[Array, "..."]:
        if latent.ndim != self.window.n_spatial + 1 or latent.shape[0] != self.latent_dim:
            raise ValueError(
                f"{self.window.owner}: the latent field has shape {latent.shape}, expected {self.latent_dim} channels "
                f"on {self.window.n_spatial} axes."
            )
        return self.window.from_channels(in_precision_of(self.layers, self.layers.decode, latent))

    @eqx.filter_jit
    def reconstruct(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        """D(E(x)) on a grid of any size."""
        channels = self.window.channels(x)
        continued = on_multiples(channels, self.factor, self.window.owner, periodic=self.periodic)
        both = lambda c: self.layers.decode(self.layers.encode(c))  # noqa: E731
        with self.window.on_grid(channels):
            phi = in_precision_of(self.layers, both, continued)
        return self.window.from_channels(phi[tuple(slice(n) for n in channels.shape)])


class AbstractGridAutoencoderPrior(eqx.Module):
    """A prior and `LatentMap` that is a convolutional autoencoder; a subclass says which, in its constructor."""

    net: eqx.AbstractVar[GridAutoencoder]

    @property
    def latent_dim(self) -> int:
        """Latent numbers for each cell of the latent grid."""
        return self.net.latent_dim

    @property
    @abc.abstractmethod
    def state_signature(self) -> jax.ShapeDtypeStruct | None:
        """What a state is like, where its size is fixed."""

    def encode(self, state: Float[Array, "..."]) -> Float[Array, "latent *coarse"]:
        return self.net.encode(state)

    def decode(self, latent: Float[Array, "latent *coarse"]) -> Float[Array, "..."]:
        return self.net.decode(latent)

    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        """D(E(x)), on a grid of any size."""
        return self.net.reconstruct(x)


def on_multiples(
    channels: Float[Array, "channels *space"], factor: int, owner: str, *, periodic: tuple[bool, ...]
) -> Float[Array, "channels *larger"]:
    """The field, each axis continued to a multiple of `factor` by its last cells."""
    beyond = [-n % factor for n in channels.shape[1:]]
    if not any(beyond):
        return channels
    if any(n > 0 and closes for n, closes in zip(beyond, periodic, strict=True)):
        raise ValueError(
            f"{owner}: the grid {channels.shape[1:]} has a periodic axis, which cannot be continued to a multiple "
            f"of {factor}, the factor to its coarsest grid."
        )
    return jnp.pad(channels, [(0, 0), *((0, n) for n in beyond)], mode="edge")


def in_precision_of(net: Any, function: Any, x: Array) -> Array:
    """function(x) in the precision of the weights of `net`; the result in that of `x`."""
    weights = [leaf.dtype for leaf in jax.tree.leaves(net) if eqx.is_inexact_array(leaf)]
    dtype = jnp.result_type(*weights) if weights else x.dtype
    return function(x.astype(dtype)).astype(x.dtype)


def as_key(key: PRNGKeyArray | None) -> PRNGKeyArray:
    """The key of the first weights: `jax.random.key(0)` unless one is given."""
    return jax.random.key(0) if key is None else key


def as_dtype(dtype: Any) -> Any:
    """The dtype of the weights: JAX's default float unless one is given."""
    return jnp.result_type(float) if dtype is None else jnp.dtype(dtype)


def time_axes(n_time: Any, owner: str, n_variables: Any = None) -> tuple[int, ...]:
    """The leading axes of a window, checked: (), (T,) or (T, C)."""
    counts = {"n_time": n_time, "n_variables": n_variables}
    return tuple(checked_count(n, name, owner, least=1) for name, n in counts.items() if n is not None)
