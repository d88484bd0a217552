"""A U-Net as a prior: several grids, from fine to coarse and back, each passing on what it saw.

    f_0 = block(x),       f_l = block(down(f_{l-1})),                      l = 1 .. depth
    g_depth = f_depth,    g_l = block([f_l, up(g_{l+1})]),                 l = depth - 1 .. 0
    phi(x) = C g_0

A block is two convolutions, each followed by a ReLU; `down` takes means of 2x2 cells, `up` interpolates, and the
channels double from grid to grid. It sees further than a plain autoencoder for less work, and has no latent space: the
finest features go straight through, so it regularises only as far as training on noisy or masked states makes it.

Reference: O. Ronneberger, P. Fischer and T. Brox, "U-Net: convolutional networks for biomedical image segmentation",
MICCAI 2015.
"""

from typing import Any, SupportsIndex

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from vardax.dynamics.stepping import checked_count
from vardax.networks.convolution import Convolution, Padding, closed_axes
from vardax.priors.grid_autoencoder import Window, as_dtype, as_key, in_precision_of, on_multiples, time_axes
from vardax.priors.resampling import CellCentred, Resampling

__all__ = ["Block", "UNetPrior2D"]


class UNetPrior2D(eqx.Module):
    """For windows (T, H, W), whose times are the channels.

    - `n_time`: T; None for states (H, W) without a time axis.
    - `hidden_dim`: channels on the finest grid; `depth`: how many times the grid is halved.
    - `kernel_size` of the blocks, odd; `padding`: "zeros", "periodic" or "reflect", what lies beyond the edges,
      or one for each axis.
    - `key`: of the first weights, `jax.random.key(0)` by default; `dtype`: theirs.

    It trains on patches and runs on any grid: one that 2^depth does not divide is continued to the next multiple by
    repeating its last cells, which are cut off at the end. A periodic axis has to be a multiple.

    >>> UNetPrior2D(n_time=3, hidden_dim=4)(jnp.zeros((3, 10, 13))).shape
    (3, 10, 13)
    """

    window: Window
    descent: tuple["Block", ...]
    ascent: tuple["Block", ...]
    readout: Convolution
    resampling: Resampling

    def __init__(
        self,
        n_time: SupportsIndex | None,
        hidden_dim: SupportsIndex = 16,
        depth: SupportsIndex = 2,
        *,
        kernel_size: int = 3,
        padding: Padding = "zeros",
        key: PRNGKeyArray | None = None,
        dtype: Any = None,
    ):
        width = checked_count(hidden_dim, "hidden_dim", "UNetPrior2D", least=1)
        depth = checked_count(depth, "depth", "UNetPrior2D", least=1)
        dtype = as_dtype(dtype)
        self.window = Window("UNetPrior2D", time_axes(n_time, "UNetPrior2D"), 2)
        n, widths = self.window.n_channels, [width * 2**level for level in range(depth + 1)]
        *keys, last = jax.random.split(as_key(key), 2 * depth + 2)
        block = lambda n_in, n_out, k: Block(n_in, n_out, kernel_size, padding, dtype, k)  # noqa: E731
        going_down = zip([n, *widths[:-1]], widths, keys[: depth + 1], strict=True)
        self.descent = tuple(block(*sizes) for sizes in going_down)
        going_up = zip(widths[:-1], widths[1:], keys[depth + 1 :], strict=True)
        self.ascent = tuple(block(fine + coarse, fine, k) for fine, coarse, k in going_up)
        self.readout = Convolution(2, width, n, 1, dtype=dtype, key=last)
        self.resampling = Resampling(2, CellCentred(), closed_axes(padding, 2, "UNetPrior2D"))

    @property
    def state_signature(self) -> None:
        """A window on any grid."""
        return None

    @property
    def depth(self) -> int:
        return len(self.ascent)

    @eqx.filter_jit
    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        channels = self.window.channels(x)
        continued = on_multiples(channels, 2**self.depth, "UNetPrior2D", periodic=self.resampling.periodic)
        with self.window.on_grid(channels):
            phi = in_precision_of(self.readout, self._through, continued)
        return self.window.from_channels(phi[:, : channels.shape[1], : channels.shape[2]])

    def _through(self, field: Float[Array, "channels h w"]) -> Float[Array, "channels h w"]:
        first, *rest = self.descent
        seen = [first(field)]
        for block in rest:
            seen.append(block(self.resampling.down(seen[-1])))
        field = seen.pop()
        for block in reversed(self.ascent):
            field = block(jnp.concatenate([seen.pop(), self.resampling.up(field)]))
        return self.readout(field)


class Block(eqx.Module):
    """Two convolutions, each followed by a ReLU."""

    first: Convolution
    second: Convolution

    def __init__(self, n_in: int, n_out: int, kernel_size: Any, padding: Padding, dtype: Any, key: PRNGKeyArray):
        keys = jax.random.split(key)
        options = {"padding": padding, "dtype": dtype}
        self.first = Convolution(2, n_in, n_out, kernel_size, key=keys[0], **options)
        self.second = Convolution(2, n_out, n_out, kernel_size, key=keys[1], **options)

    def __call__(self, field: Float[Array, "in h w"]) -> Float[Array, "out h w"]:
        return jax.nn.relu(self.second(jax.nn.relu(self.first(field))))
