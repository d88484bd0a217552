"""Bilinear autoencoders of fields: the usual prior of 4DVarNet, in two and three dimensions.

    phi(x) = up(decode(encode(down(x)))),      encode and decode: convolutions (`vardax.priors.bilinear_forms`)

Time is the channels: all times of the window go into every convolution, so the prior learns how the field moves. Fields
are best near unit variance; the weights start small, so that phi(x) starts near zero.
"""

from collections.abc import Mapping
from typing import Any, SupportsIndex

import equinox as eqx
from jaxtyping import PRNGKeyArray

from vardax.dynamics.stepping import checked_count
from vardax.networks.convolution import Convolution, Padding, closed_axes
from vardax.priors.bilinear_forms import AbstractBilinearForm, Gated, Product, Square
from vardax.priors.grid_autoencoder import (
    AbstractGridAutoencoderPrior,
    GridAutoencoder,
    Window,
    as_dtype,
    as_key,
    time_axes,
)
from vardax.priors.resampling import AbstractUpsampling, CellCentred, CornerAligned, Resampling
from vardax.priors.torch_weights import bilinear_weights, with_torch_weights

__all__ = ["BilinAEPrior2D", "BilinAEPrior2DMultivar", "BilinAEPrior3D"]


class BilinAEPrior2D(AbstractGridAutoencoderPrior):
    """For windows (T, H, W) of one variable.

    - `n_time`: T; None for states (H, W) without a time axis.
    - `latent_dim`: latent numbers for each cell of the coarse grid.
    - `form`: `Gated()`, z = ReLU(A x) ⊙ tanh(B x), or `Product()` or `Square()`.
    - `kernel_size` of all convolutions, odd; `padding`: "zeros", "periodic" or "reflect", what lies beyond the edges,
      or one for each axis.
    - `downsampling`: the factor to the coarse grid, by means; `upsampling`: back, `CellCentred()` or `CornerAligned()`.
    - `key`: of the first weights, `jax.random.key(0)` by default; `dtype`: theirs.

    It trains on patches and runs on any grid of at least `kernel_size` coarse cells each way (`GridAutoencoder`).

    >>> import jax.numpy as jnp
    >>> prior = BilinAEPrior2D(n_time=5, latent_dim=8)
    >>> prior(jnp.zeros((5, 16, 20))).shape, prior.encode(jnp.zeros((5, 16, 20))).shape
    ((5, 16, 20), (8, 16, 20))
    """

    net: GridAutoencoder

    def __init__(
        self,
        n_time: SupportsIndex | None,
        latent_dim: SupportsIndex = 32,
        *,
        form: AbstractBilinearForm = Gated(),  # noqa: B008  (an immutable value)
        kernel_size: int = 3,
        padding: Padding = "zeros",
        downsampling: SupportsIndex = 1,
        upsampling: AbstractUpsampling = CellCentred(),  # noqa: B008  (an immutable value)
        key: PRNGKeyArray | None = None,
        dtype: Any = None,
    ):
        window = Window("BilinAEPrior2D", time_axes(n_time, "BilinAEPrior2D"), 2)
        self.net = _net(window, latent_dim, form, kernel_size, padding, downsampling, upsampling, key, dtype)

    @property
    def state_signature(self) -> None:
        """A window on any grid."""
        return None

    @classmethod
    def from_torch(
        cls,
        state_dict: Mapping[str, Any],
        *,
        form: AbstractBilinearForm = Product(),  # noqa: B008  (an immutable value)
        downsampling: SupportsIndex = 1,
    ) -> "BilinAEPrior2D":
        """The prior of the PyTorch programs with their weights: the same output.

        `state_dict` has arrays, or tensors, under the names conv_in, conv_hidden, bilin_1, bilin_21, bilin_22 and
        conv_out, each with `.weight` and `.bias`, also below a prefix (`prior_cost.conv_in.weight`, or with `__` for
        every dot). `form` is `Product()`, or `Square()` for their `bilin_quad`; `downsampling` is their `downsamp`.
        """
        if not isinstance(form, Product | Square):
            raise TypeError(f"BilinAEPrior2D.from_torch: `form` is {form!r}, expected Product() or Square().")
        weights = bilinear_weights(state_dict)
        n_hidden, n_time, kernel_size, _ = weights["conv_in.weight"].shape
        prior = cls(
            n_time,
            n_hidden,
            form=form,
            kernel_size=kernel_size,
            downsampling=downsampling,
            upsampling=CornerAligned(),
            dtype=weights["conv_in.weight"].dtype,
        )
        return eqx.tree_at(lambda p: p.net.layers, prior, with_torch_weights(prior.net.layers, weights))


class BilinAEPrior2DMultivar(AbstractGridAutoencoderPrior):
    """For windows (T, C, H, W) of several variables, which are channels too. Other arguments as for `BilinAEPrior2D`.

    - `n_variables`: C.

    >>> import jax.numpy as jnp
    >>> BilinAEPrior2DMultivar(n_time=3, n_variables=2, latent_dim=4)(jnp.zeros((3, 2, 8, 8))).shape
    (3, 2, 8, 8)
    """

    net: GridAutoencoder

    def __init__(
        self,
        n_time: SupportsIndex,
        n_variables: SupportsIndex,
        latent_dim: SupportsIndex = 32,
        *,
        form: AbstractBilinearForm = Gated(),  # noqa: B008  (an immutable value)
        kernel_size: int = 3,
        padding: Padding = "zeros",
        downsampling: SupportsIndex = 1,
        upsampling: AbstractUpsampling = CellCentred(),  # noqa: B008  (an immutable value)
        key: PRNGKeyArray | None = None,
        dtype: Any = None,
    ):
        owner = "BilinAEPrior2DMultivar"
        window = Window(owner, time_axes(n_time, owner, n_variables), 2)
        self.net = _net(window, latent_dim, form, kernel_size, padding, downsampling, upsampling, key, dtype)

    @property
    def state_signature(self) -> None:
        """A window on any grid."""
        return None


class BilinAEPrior3D(AbstractGridAutoencoderPrior):
    """For windows (T, D, H, W). Arguments as for `BilinAEPrior2D`.

    >>> import jax.numpy as jnp
    >>> BilinAEPrior3D(n_time=2, latent_dim=4)(jnp.zeros((2, 4, 5, 6))).shape
    (2, 4, 5, 6)
    """

    net: GridAutoencoder

    def __init__(
        self,
        n_time: SupportsIndex | None,
        latent_dim: SupportsIndex = 32,
        *,
        form: AbstractBilinearForm = Gated(),  # noqa: B008  (an immutable value)
        kernel_size: int = 3,
        padding: Padding = "zeros",
        downsampling: SupportsIndex = 1,
        upsampling: AbstractUpsampling = CellCentred(),  # noqa: B008  (an immutable value)
        key: PRNGKeyArray | None = None,
        dtype: Any = None,
    ):
        window = Window("BilinAEPrior3D", time_axes(n_time, "BilinAEPrior3D"), 3)
        self.net = _net(window, latent_dim, form, kernel_size, padding, downsampling, upsampling, key, dtype)

    @property
    def state_signature(self) -> None:
        """A window on any grid."""
        return None


def _net(
    window: Window,
    latent_dim: Any,
    form: AbstractBilinearForm,
    kernel_size: Any,
    padding: Padding,
    downsampling: Any,
    upsampling: AbstractUpsampling,
    key: PRNGKeyArray | None,
    dtype: Any,
) -> GridAutoencoder:
    """The autoencoder of a window, its arguments checked."""
    owner, dtype = window.owner, as_dtype(dtype)
    latent_dim = checked_count(latent_dim, "latent_dim", owner, least=1)
    factor = checked_count(downsampling, "downsampling", owner, least=1)
    for name, option, kind in (("form", form, AbstractBilinearForm), ("upsampling", upsampling, AbstractUpsampling)):
        if not isinstance(option, kind):
            one = "Gated(), Product() or Square()" if name == "form" else "CellCentred() or CornerAligned()"
            raise TypeError(f"{owner}: `{name}` is {option!r}, expected {one}.")

    def convolution(n_in: int, n_out: int, key: PRNGKeyArray) -> Convolution:
        return Convolution(window.n_spatial, n_in, n_out, kernel_size, padding=padding, dtype=dtype, key=key)

    periodic = closed_axes(padding, window.n_spatial, owner)
    layers = form.layers(
        convolution, window.n_channels, latent_dim, Resampling(factor, upsampling, periodic), as_key(key)
    )
    return GridAutoencoder(window, layers, latent_dim, factor, periodic)
