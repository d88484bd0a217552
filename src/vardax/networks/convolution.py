"""Convolution on the grid of a field: (channels, *space) -> (channels, *space).

    y[o, p] = b[o] + sum_{i, s} w[o, i, s] x~[i, p + s - h],        h = (kernel_size - 1) / 2

x~ is x, continued past its edges by `padding`: zeros, periodic, or reflect (the edge cell is not repeated), the same
along all axes or one for each: a map of the globe is ("reflect", "periodic"). The kernel lies as PyTorch's does,
(out, in, *kernel) and not flipped, so that its weights can be taken over as they are.

The sum itself has the channels last (`vardax.networks.correlation`), the layout that is fast; the compiler lays out
what comes between two convolutions the same way, so the transposes cost next to nothing.
"""

import math
from collections.abc import Sequence
from typing import Literal, TypeAlias, get_args

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from vardax.networks.correlation import correlate

__all__ = ["Convolution", "Edge", "Padding", "closed_axes", "edges"]

Edge: TypeAlias = Literal["zeros", "periodic", "reflect"]
"""What is past the edge: nothing, the other side, or the field mirrored at its outermost cells."""

Padding: TypeAlias = Edge | Sequence[Edge]
"""One for all axes of space, or one for each."""

_MODES = {"periodic": "wrap", "reflect": "reflect"}


class Convolution(eqx.Module):
    """A convolution on 1 to 3 axes with an odd kernel, that gives a field on the same grid.

    `n_spatial` axes of space, `in_channels` and `out_channels`; `padding` says what is past the edges. The weights are
    drawn uniformly within 1/sqrt(number of inputs of one output) by `key`, which is `jax.random.key(0)` if not given.
    It computes, and answers, in the dtype of its weights: `dtype`, or JAX's default float.

    >>> smooth = Convolution(2, 1, 4, kernel_size=3, padding="periodic")
    >>> smooth(jnp.ones((1, 8, 6))).shape
    (4, 8, 6)
    """

    weight: Float[Array, "out in *kernel"]
    bias: Float[Array, "out"] | None
    padding: tuple[Edge, ...] = eqx.field(static=True)

    def __init__(
        self,
        n_spatial: int,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 3,
        *,
        padding: Padding = "zeros",
        use_bias: bool = True,
        dtype: jnp.dtype | type | None = None,
        key: PRNGKeyArray | None = None,
    ):
        if n_spatial not in (1, 2, 3):
            raise ValueError(f"Convolution: `n_spatial` is {n_spatial}, expected 1, 2 or 3 axes of space.")
        for name, count in (("in_channels", in_channels), ("out_channels", out_channels)):
            if count < 1:
                raise ValueError(f"Convolution: `{name}` is {count}, expected at least 1.")
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(
                f"Convolution: `kernel_size` is {kernel_size}, expected an odd number: the kernel has a cell in its "
                "middle."
            )
        self.padding = edges(padding, n_spatial, "Convolution")
        for_weight, for_bias = jax.random.split(jax.random.key(0) if key is None else key)
        dtype = jnp.result_type(float) if dtype is None else dtype
        bound = 1 / math.sqrt(in_channels * kernel_size**n_spatial)
        shape = (out_channels, in_channels, *[kernel_size] * n_spatial)
        self.weight = jax.random.uniform(for_weight, shape, dtype, -bound, bound)
        self.bias = jax.random.uniform(for_bias, (out_channels,), dtype, -bound, bound) if use_bias else None

    @property
    def kernel_size(self) -> int:
        return self.weight.shape[-1]

    @property
    def in_channels(self) -> int:
        return self.weight.shape[1]

    def __call__(self, x: Float[Array, "in *space"]) -> Float[Array, "out *space"]:
        """The convolved field, in the dtype of the weights."""
        self._check(x.shape)
        return jnp.moveaxis(self._summed(jnp.moveaxis(x, 0, -1)), -1, 0)

    def channels_last(self, x: Float[Array, "*space in"]) -> Float[Array, "*space out"]:
        """The same for a field whose channels are its last axis, as a network keeps it between its layers."""
        self._check((x.shape[-1], *x.shape[:-1]))
        return self._summed(x)

    def _summed(self, x: Float[Array, "*space in"]) -> Float[Array, "*space out"]:
        x, reach = x.astype(self.weight.dtype), self.kernel_size // 2
        around = ((reach, reach),) * (x.ndim - 1)
        for edge, mode in _MODES.items():
            if edge in self.padding:
                here = [ends if kind == edge else (0, 0) for ends, kind in zip(around, self.padding, strict=True)]
                x = jnp.pad(x, (*here, (0, 0)), mode=mode)
        around = tuple(ends if kind == "zeros" else (0, 0) for ends, kind in zip(around, self.padding, strict=True))
        kernel = jnp.moveaxis(self.weight, (0, 1), (-1, -2))
        out = correlate(x[None], kernel, around)[0]
        return out if self.bias is None else out + self.bias.reshape(*[1] * (x.ndim - 1), -1)

    def _check(self, shape: tuple[int, ...]) -> None:
        n_spatial, channels = self.weight.ndim - 2, self.in_channels
        if len(shape) != n_spatial + 1 or shape[0] != channels:
            raise ValueError(
                f"Convolution: the field has shape {shape}, expected {channels} channels on {n_spatial} "
                f"{'axis' if n_spatial == 1 else 'axes'} of space."
            )
        reach = self.kernel_size // 2
        least = {"zeros": 1, "periodic": max(reach, 1), "reflect": reach + 1}
        for n, edge in zip(shape[1:], self.padding, strict=True):
            if n < least[edge]:
                raise ValueError(
                    f"Convolution: the grid {shape[1:]} is smaller than the kernel needs: {self.kernel_size} cells "
                    f"with padding {edge!r} need {least[edge]} or more along an axis. Use a larger grid, a smaller "
                    "`kernel_size`, or zeros as padding."
                )


def edges(padding: Padding, n_spatial: int, owner: str) -> tuple[Edge, ...]:
    """The padding of each axis of space, checked.

    >>> edges("zeros", 2, "Owner")
    ('zeros', 'zeros')
    """
    each = (padding,) * n_spatial if isinstance(padding, str) else tuple(padding)
    if len(each) != n_spatial or not set(each) <= set(get_args(Edge)):
        raise ValueError(
            f"{owner}: `padding` is {padding!r}, expected one of {', '.join(get_args(Edge))}, or one of these for each "
            f"of {n_spatial} axes of space."
        )
    return each


def closed_axes(padding: Padding, n_spatial: int, owner: str) -> tuple[bool, ...]:
    """Which axes of space close on themselves."""
    return tuple(edge == "periodic" for edge in edges(padding, n_spatial, owner))
