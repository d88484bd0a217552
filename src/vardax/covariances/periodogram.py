"""Periodograms of windowed fields, and what they are on average: the likelihood of a spectrum also with edges and land.

A field x is seen through a window g: 0 on land and outside the domain, 1 inside, less towards free edges. On a box that
holds all lags of the domain (twice as long as a free axis, as long as a periodic one)

    P(k) = |F(g x)(k)|² / Σ g²,      E P = F(a c) / Σ g²,     a = F⁻¹|F g|²

for the covariance c(d) of the field: exactly, whatever the window. Where nothing is cut off, a is constant and E P are
the eigenvalues of the covariance, which are independent: Σ P/E P + log E P is then twice the negative logarithm of the
likelihood. Otherwise its derivatives still have mean zero at the true parameters, so its minimum is a consistent
estimate; only its standard errors are not those of a likelihood.

Reference: Guillaumin, Sykulski, Olhede and Simons (2022), The debiased spatial Whittle likelihood, *Journal of the
Royal Statistical Society B* 84.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from vardax.covariances.box import fast_size
from vardax.covariances.spectral import apply_spectrum, matern_amplitude, spectral_weights, to_modes

__all__ = ["Window", "expected_periodogram", "mean_periodogram", "periodogram", "random_field", "window_of"]

TAPERED = 0.1
"""The part of a free axis along which the window falls off, at each end. It keeps large scales from leaking."""

Shape = tuple[int, ...]


class Window(NamedTuple):
    """g, its autocorrelation a / Σ g² on the box, and how many modes each entry of a real transform stands for."""

    weights: Float[Array, "..."]
    overlap: Float[Array, "..."]
    multiplicity: Float[Array, "..."]

    @property
    def box(self) -> Shape:
        return self.overlap.shape


def window_of(mask: Bool[Array, "..."], free: tuple[bool, ...], dtype: jnp.dtype) -> Window:
    """The window of a domain whose `free` axes have edges."""
    shape = mask.shape
    weights = mask.astype(dtype)
    for axis, (n, is_free) in enumerate(zip(shape, free, strict=True)):
        if is_free and n > 1:
            profile = jnp.asarray(_profile(n), dtype)
            weights = weights * profile.reshape([-1 if k == axis else 1 for k in range(len(shape))])
    box = tuple(fast_size(2 * n) if is_free and n > 1 else n for n, is_free in zip(shape, free, strict=True))
    modes = to_modes(weights, box)
    overlap = jnp.fft.irfftn(modes.real**2 + modes.imag**2, s=box, axes=range(len(box))) / jnp.sum(weights**2)
    return Window(weights, overlap, jnp.asarray(np.broadcast_to(spectral_weights(box), modes.shape), dtype))


def _profile(n: int) -> np.ndarray:
    """1 inside, sin² towards both ends."""
    from_end = np.minimum(np.arange(n) + 0.5, n - np.arange(n) - 0.5) / n
    return np.sin(np.pi / 2 * np.minimum(from_end / TAPERED, 1)) ** 2


def periodogram(field: Float[Array, "..."], window: Window) -> Float[Array, "..."]:
    """P, in the layout of `rfftn`; the field is zero on land."""
    modes = to_modes(window.weights * field, window.box)
    return (modes.real**2 + modes.imag**2) / jnp.sum(window.weights**2)


@jax.jit
def mean_periodogram(samples: Float[Array, "n ..."], window: Window) -> Float[Array, "..."]:
    """The mean of P over samples."""
    add = lambda total, sample: (total + periodogram(sample, window), None)  # noqa: E731
    return jax.lax.scan(add, jnp.zeros_like(window.multiplicity), samples)[0] / len(samples)


def expected_periodogram(cells: Float[Array, "axes"], nu: float, window: Window) -> Float[Array, "..."]:
    """E P of a Matérn field of variance 1; `cells` are the lengths in cells. What rounding makes negative is 0."""
    row = jnp.fft.irfftn(matern_amplitude(window.box, nu, cells, _one(cells)) ** 2, s=window.box, axes=_axes(window))
    return jnp.maximum(jnp.fft.rfftn(window.overlap * row, axes=_axes(window)).real, 0.0)


def random_field(key: Array, cells: Float[Array, "axes"], nu: float, window: Window) -> Float[Array, "..."]:
    """A Matérn field of variance 1 on the domain."""
    noise = jax.random.normal(key, window.box, cells.dtype)
    return apply_spectrum(matern_amplitude(window.box, nu, cells, _one(cells)), noise, window.box, window.weights.shape)


def _one(cells: Array) -> Array:
    return jnp.ones((), cells.dtype)


def _axes(window: Window) -> tuple[int, ...]:
    return tuple(range(len(window.box)))
