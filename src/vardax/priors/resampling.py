"""To a coarser grid and back: what a convolutional autoencoder sees of a field.

    down:  the mean of blocks of `factor` cells along each axis
    up:    linear interpolation to a grid of `factor` times as many cells

There are two conventions for the places of coarse cells. `CellCentred`: a coarse cell lies in the middle of its block,
so the interpolation is the same everywhere and what is trained on patches runs on grids of any size. `CornerAligned`:
the first and the last cells of both grids coincide, which stretches the coarse grid by an amount that depends on its
size; it is the convention of weights trained elsewhere (`align_corners` in PyTorch's upsampling).
"""

import abc
import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

__all__ = ["AbstractUpsampling", "CellCentred", "CornerAligned", "Resampling"]


class AbstractUpsampling(eqx.Module):
    """Linear interpolation to `factor` times as many cells."""

    @abc.abstractmethod
    def along(self, x: Float[Array, "..."], axis: int, factor: int, *, periodic: bool) -> Float[Array, "..."]:
        """Along one axis."""


class CellCentred(AbstractUpsampling):
    """Coarse cells in the middle of their blocks; beyond the outer ones the edge is repeated, or the axis closes.

    >>> CellCentred().along(jnp.array([0.0, 4.0]), 0, 2, periodic=False).tolist()
    [0.0, 1.0, 3.0, 4.0]
    """

    def along(self, x: Float[Array, "..."], axis: int, factor: int, *, periodic: bool) -> Float[Array, "..."]:
        around = [(1, 1) if i == axis else (0, 0) for i in range(x.ndim)]
        padded = jnp.pad(x, around, mode="wrap" if periodic else "edge")
        before, after = (jax.lax.slice_in_dim(padded, k, k + x.shape[axis], axis=axis) for k in (0, 2))
        fine = []
        for k in range(factor):  # cells of a block lie at offsets within half a block of its middle
            offset = (k + 0.5) / factor - 0.5
            neighbour = before if offset < 0 else after
            fine.append((1 - abs(offset)) * x + abs(offset) * neighbour)
        shape = [n * factor if i == axis else n for i, n in enumerate(x.shape)]
        return jnp.stack(fine, axis=axis + 1).reshape(shape)


class CornerAligned(AbstractUpsampling):
    """The first and last cells of both grids coincide.

    >>> CornerAligned().along(jnp.array([0.0, 3.0]), 0, 2, periodic=False).tolist()
    [0.0, 1.0, 2.0, 3.0]
    """

    def along(self, x: Float[Array, "..."], axis: int, factor: int, *, periodic: bool) -> Float[Array, "..."]:
        weights = jnp.asarray(_corner_weights(x.shape[axis], factor), x.dtype)
        fine = jnp.tensordot(weights, x, axes=(1, axis), precision=jax.lax.Precision.HIGHEST)
        return jnp.moveaxis(fine, 0, axis)


class Resampling(eqx.Module):
    """Means of blocks of `factor` cells and back, for (channels, *space); `periodic` says it of each axis of space."""

    factor: int = eqx.field(static=True)
    upsampling: AbstractUpsampling
    periodic: tuple[bool, ...] = eqx.field(static=True)

    def __check_init__(self):
        if any(self.periodic) and isinstance(self.upsampling, CornerAligned) and self.factor > 1:
            raise ValueError(
                "`upsampling` is CornerAligned, which a periodic axis has no corners for: take CellCentred()."
            )

    def down(self, x: Float[Array, "channels *space"]) -> Float[Array, "channels *coarse"]:
        if self.factor == 1:
            return x
        blocks = [size for n in x.shape[1:] for size in (n // self.factor, self.factor)]
        return jnp.mean(x.reshape(x.shape[0], *blocks), axis=tuple(range(2, 2 * x.ndim, 2)))

    def up(self, x: Float[Array, "channels *coarse"]) -> Float[Array, "channels *space"]:
        if self.factor == 1:
            return x
        for axis, periodic in enumerate(self.periodic, start=1):
            x = self.upsampling.along(x, axis, self.factor, periodic=periodic)
        return x


@functools.cache
def _corner_weights(n: int, factor: int) -> np.ndarray:
    """(factor n, n): the weights of the coarse cells in each fine one."""
    fine = factor * n
    place = np.arange(fine) * (n - 1) / max(fine - 1, 1)
    left = np.minimum(np.floor(place).astype(int), max(n - 2, 0))
    weights = np.zeros((fine, n))
    weights[np.arange(fine), left] = 1 - (place - left)
    weights[np.arange(fine), np.minimum(left + 1, n - 1)] += place - left
    return weights
