"""Correlation of fields with kernels, and the derivatives of it that are fast inside a loop on a CPU.

    correlate:  y[n, p, o] = sum_{s, i} x[n, p + s, i] w[s, i, o]         (n, *space, in), (*kernel, in, out)
    kernels:    w[s, i, o] = sum_{n, p} x[n, p + s, i] g[n, p, o]         (n, *space, in), (n, *grid, out)

x is zero past its edges, by `padding` cells before and after each axis. Both are bilinear, and each is the transpose of
the other: with respect to x that of `correlate` is `correlate` with the kernel turned round, with respect to w it is
`kernels`; the transposes of `kernels` are correlations. So the two are closed under differentiation of any order and
mode, and a gradient of a gradient runs the same code as the forward pass. That is why they are primitives.

What XLA's CPU compiler does well is the convolution with channels last, outside and inside of loops. The transposes
that JAX would derive have other layouts: outside of a loop these are rewritten, inside they fall to a scalar loop (a
hundred times slower), and the gradient of the kernel, a convolution whose kernel is as large as the grid, overruns the
caches. Here both are put as the fast convolution; `kernels` goes band by band through the first axis of space. On one
core, GFLOP/s, 4 samples, 3x3 kernel, float32:

| | 63 -> 192 channels on 64x64 | 48 -> 15 on 64x64 | 63 -> 192 on 128x128 |
|---|---|---|---|
| correlate | 100 | 60 | 66 |
| kernels, derived by JAX (outside of a loop) | 43 | 19 | 10 |
| kernels, here | 79 | 67 | 73 |

Accelerators run what JAX derives; types that the CPU has no fast convolution for run as matrix products.
"""

import itertools
import math
from collections.abc import Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax
from jax.core import ShapedArray
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jaxtyping import Array, Float

from vardax.adjoints.direct import worth_keeping

__all__ = ["correlate", "kernels"]

Around: TypeAlias = tuple[tuple[int, int], ...]
"""Zeros before and after each axis of space."""

_LAYOUTS = {1: ("NWC", "WIO", "NWC"), 2: ("NHWC", "HWIO", "NHWC"), 3: ("NDHWC", "DHWIO", "NDHWC")}
_BAND = 1024  # cells of a band: its rows and their cotangents stay in the cache
_LANES = 16  # numbers in a vector register


def correlate(x: Float[Array, "n *space in"], w: Float[Array, "*kernel in out"], padding: Around) -> Array:
    """The correlation of each of n fields with a kernel: (n, *space, out)."""
    return _correlate_p.bind(x, w, padding=tuple(padding))


def kernels(x: Float[Array, "n *space in"], g: Float[Array, "n *grid out"], padding: Around) -> Array:
    """The derivative of <correlate(x, w), g> with respect to w: (*kernel, in, out)."""
    return _kernels_p.bind(x, g, padding=tuple(padding))


def _kernel_shape(x: Any, g: Any, padding: Around) -> tuple[int, ...]:
    """The kernel that takes fields like x to fields like g."""
    grids = zip(x.shape[1:-1], g.shape[1:-1], padding, strict=True)
    return tuple(n + before + after - m + 1 for n, m, (before, after) in grids)


def _opposite(kernel: Sequence[int], padding: Around) -> Around:
    """The padding of the transposed correlation."""
    return tuple((k - 1 - before, k - 1 - after) for k, (before, after) in zip(kernel, padding, strict=True))


def _turned(w: Array) -> Array:
    """The kernel of the transposed correlation: reflected through its middle, inputs and outputs exchanged."""
    return jnp.flip(w, tuple(range(w.ndim - 2))).swapaxes(-1, -2)


# -- how they are computed -------------------------------------------------------------------------------------------


def _by_convolution(x: Array, w: Array, *, padding: Around) -> Array:
    return lax.conv_general_dilated(x, w, (1,) * len(padding), padding, dimension_numbers=_LAYOUTS[len(padding)])


def _derived(x: Array, g: Array, *, padding: Around) -> Array:
    """`kernels` as the transpose that JAX knows of the convolution."""
    w = jax.ShapeDtypeStruct((*_kernel_shape(x, g, padding), x.shape[-1], g.shape[-1]), x.dtype)
    return jax.linear_transpose(lambda w: _by_convolution(x, w, padding=padding), w)(g)[0]


def _by_bands(x: Array, g: Array, *, padding: Around) -> Array:
    """`kernels` as convolutions, of each channel of g over the samples, with bands of x as kernels.

    With the channels of g as samples and the samples as channels, <g[., p - s, o], x[., p, i]> summed over p is a
    correlation. It has the fast layout, and a band of it is a product of matrices that fit the caches.
    """
    n_rows, n_in = x.shape[1], x.shape[-1]
    band = max(1, min(n_rows, _BAND // math.prod(x.shape[2:-1])))
    beyond = -n_rows % band
    kernel = _kernel_shape(x, g, padding)
    (before, after), *others = _opposite(kernel, padding)
    x = jnp.pad(x, ((0, 0), (0, beyond), *[(0, 0)] * (x.ndim - 3), (0, -n_in % _LANES)))
    g = lax.pad(g, jnp.zeros((), g.dtype), ((0, 0, 0), (before, after + beyond, 0), *[(0, 0, 0)] * (g.ndim - 2)))

    def of_band(start: int | Array) -> Array:
        rows = lax.dynamic_slice_in_dim(x, start, band, axis=1)
        around = lax.dynamic_slice_in_dim(g, start, band + kernel[0] - 1, axis=1)
        samples_last = jnp.moveaxis(jnp.moveaxis(around, -1, 0), 1, -1)
        return _by_convolution(samples_last, jnp.moveaxis(rows, 0, -2), padding=((0, 0), *others))

    starts = range(0, n_rows + beyond, band)
    if len(starts) == 1:
        total = of_band(0)
    else:
        first = jnp.zeros((g.shape[-1], *kernel, x.shape[-1]), x.dtype)
        total = lax.scan(lambda total, start: (total + of_band(start), None), first, jnp.asarray(starts))[0]
    return jnp.moveaxis(jnp.flip(total, tuple(range(1, total.ndim - 1))), 0, -1)[..., :n_in, :]


def _stacked(x: Array, grid: Sequence[int], kernel: Sequence[int], padding: Around) -> Array:
    """What the kernel sees at each cell: (n * cells, kernel cells * channels)."""
    wide = jnp.pad(x, ((0, 0), *padding, (0, 0)))
    shifts = itertools.product(*map(range, kernel))
    seen = [wide[(slice(None), *(slice(s, s + m) for s, m in zip(shift, grid, strict=True)))] for shift in shifts]
    return jnp.concatenate(seen, axis=-1).reshape(-1, math.prod(kernel) * x.shape[-1])


def _product(x: Array, w: Array, *, padding: Around) -> Array:
    grid = _space(x, w, padding)
    seen = _stacked(x, grid, w.shape[:-2], padding)
    return (seen @ w.reshape(-1, w.shape[-1])).reshape(x.shape[0], *grid, w.shape[-1])


def _product_of_fields(x: Array, g: Array, *, padding: Around) -> Array:
    kernel = _kernel_shape(x, g, padding)
    seen = _stacked(x, g.shape[1:-1], kernel, padding)
    return (seen.T @ g.reshape(-1, g.shape[-1])).reshape(*kernel, x.shape[-1], g.shape[-1])


def _space(x: Any, w: Any, padding: Around) -> tuple[int, ...]:
    grids = zip(x.shape[1:-1], w.shape[:-2], padding, strict=True)
    return tuple(n + before + after - k + 1 for n, k, (before, after) in grids)


def _correlate_on_cpu(x: Array, w: Array, *, padding: Around) -> Array:
    return (_by_convolution if x.dtype == jnp.float32 else _product)(x, w, padding=padding)


def _kernels_on_cpu(x: Array, g: Array, *, padding: Around) -> Array:
    return (_by_bands if x.dtype == jnp.float32 else _product_of_fields)(x, g, padding=padding)


# -- the primitives --------------------------------------------------------------------------------------------------

_correlate_p, _kernels_p = Primitive("vardax_correlate"), Primitive("vardax_kernels")
worth_keeping(_correlate_p)  # a step of 4DVarNet that is made again makes what lies between two convolutions


def _merged(arguments: Sequence[Array], axes: Sequence[int | None], *, padding: Around) -> tuple[Array, int]:
    """The members of a batch are further samples, unless each has its own kernel."""
    (x, w), (of_x, of_w) = arguments, axes
    if of_x is None or of_w is not None:
        return _one_by_one(correlate, arguments, axes, padding=padding)
    x = jnp.moveaxis(x, of_x, 0)
    y = correlate(x.reshape(-1, *x.shape[2:]), w, padding)
    return y.reshape(*x.shape[:2], *y.shape[1:]), 0


def _one_by_one(
    function: Any, arguments: Sequence[Array], axes: Sequence[int | None], *, padding: Around
) -> tuple[Array, int]:
    stacked = [jnp.moveaxis(a, axis, 0) for a, axis in zip(arguments, axes, strict=True) if axis is not None]

    def one(members: list[Array]) -> Array:
        rest = iter(members)
        chosen = [a if axis is None else next(rest) for a, axis in zip(arguments, axes, strict=True)]
        return function(*chosen, padding)

    return lax.map(one, stacked), 0


_correlate_p.def_abstract_eval(
    lambda x, w, *, padding: ShapedArray((x.shape[0], *_space(x, w, padding), w.shape[-1]), x.dtype)
)
_kernels_p.def_abstract_eval(
    lambda x, g, *, padding: ShapedArray((*_kernel_shape(x, g, padding), x.shape[-1], g.shape[-1]), x.dtype)
)
for _primitive, _on_cpu, _elsewhere in (
    (_correlate_p, _correlate_on_cpu, _by_convolution),
    (_kernels_p, _kernels_on_cpu, _derived),
):
    _primitive.def_impl(jax.jit(_primitive.bind, static_argnames="padding"))
    mlir.register_lowering(_primitive, mlir.lower_fun(_elsewhere, multiple_results=False))
    mlir.register_lowering(_primitive, mlir.lower_fun(_on_cpu, multiple_results=False), platform="cpu")
ad.defbilinear(
    _correlate_p,
    lambda g, x, w, *, padding: correlate(g, _turned(w), _opposite(w.shape[:-2], padding)),
    lambda g, x, w, *, padding: kernels(x, g, padding),
)
ad.defbilinear(
    _kernels_p,
    lambda w, x, g, *, padding: correlate(g, _turned(w), _opposite(w.shape[:-2], padding)),
    lambda w, x, g, *, padding: correlate(x, w, padding),
)
batching.primitive_batchers[_correlate_p] = _merged
batching.primitive_batchers[_kernels_p] = lambda arguments, axes, *, padding: _one_by_one(
    kernels, arguments, axes, padding=padding
)
