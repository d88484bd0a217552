r"""Power spectra: how much variance there is at each scale.

    power_spectrum                  E(k)       of lines, ∫ E dk = variance
    isotropic_spectrum              E(|k|)     of fields on a plane, summed over directions
    wavenumber_frequency_spectrum   E(f, k)    of lines through time: what moves where, and how fast

Densities are one-sided and satisfy Parseval's theorem: summed over the wavenumbers, times their step, they give the
mean square of what was transformed. Wavenumbers are cycles per unit of length, so a wavelength is 1 / k.

A field that is not periodic leaks from large into small scales. So by default the linear trend is taken out
(`remove_trend`) and the rest tapered (`hann`, divided by its mean square, which keeps the level of the spectrum); for
periodic fields take `detrend=remove_mean, taper=no_taper`. Both are functions, and yours will do.

Press, W. and others (2007). Numerical Recipes, 3rd ed., section 13.4.
"""

import functools
from collections.abc import Callable, Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from vardax.types import float_array

__all__ = [
    "Spectrum",
    "WavenumberFrequencySpectrum",
    "hann",
    "isotropic_spectrum",
    "no_taper",
    "power_spectrum",
    "remove_mean",
    "remove_trend",
    "wavenumber_frequency_spectrum",
]

Detrend = Callable[[Array, int], Array]
Taper = Callable[[int], Array]


class Spectrum(eqx.Module):
    """A density (..., k) at `wavenumber` (k,), evenly spaced from 0 on."""

    wavenumber: Float[Array, "k"]
    density: Float[Array, "... k"]

    @property
    def wavelength(self) -> Float[Array, "k"]:
        """1 / k; infinite for the mean."""
        return jnp.where(self.wavenumber > 0, 1 / jnp.where(self.wavenumber > 0, self.wavenumber, 1), jnp.inf)

    def variance(self) -> Float[Array, "..."]:
        """The sum of the density times the step: the mean square of what was transformed."""
        return jnp.sum(self.density, axis=-1) * (self.wavenumber[1] - self.wavenumber[0])


class WavenumberFrequencySpectrum(eqx.Module):
    """A density (..., f, k) at `frequency` (f,), of both signs, and `wavenumber` (k,), from 0 on.

    Positive frequencies are waves that move towards larger positions.
    """

    frequency: Float[Array, "f"]
    wavenumber: Float[Array, "k"]
    density: Float[Array, "... f k"]

    def folded(self) -> "WavenumberFrequencySpectrum":
        """Both directions added: frequencies from 0 on."""
        zero = self.frequency.shape[0] // 2 if self.frequency.shape[0] % 2 else self.frequency.shape[0] // 2 - 1
        forward, backward = self.density[..., zero:, :], self.density[..., : zero + 1, :][..., ::-1, :]
        missing = forward.shape[-2] - backward.shape[-2]  # the frequency of Nyquist has one sign
        backward = jnp.pad(backward, (*((0, 0),) * (forward.ndim - 2), (0, missing), (0, 0)))
        both = forward + backward.at[..., 0, :].set(0)
        return WavenumberFrequencySpectrum(self.frequency[zero:], self.wavenumber, both)

    def variance(self) -> Float[Array, "..."]:
        """The sum of the density times both steps."""
        steps = (self.wavenumber[1] - self.wavenumber[0]) * (self.frequency[1] - self.frequency[0])
        return jnp.sum(self.density, axis=(-2, -1)) * steps


def remove_mean(values: Float[Array, "..."], n_axes: int) -> Float[Array, "..."]:
    """Values less their mean over the last `n_axes` axes."""
    return values - jnp.mean(values, axis=tuple(range(-n_axes, 0)), keepdims=True)


def remove_trend(values: Float[Array, "..."], n_axes: int) -> Float[Array, "..."]:
    """Values less the line or plane that fits them best over the last `n_axes` axes.

    >>> remove_trend(jnp.array([1.0, 3.0, 5.0]), 1).tolist()
    [0.0, 0.0, 0.0]
    """
    axes = tuple(range(-n_axes, 0))
    rest = remove_mean(values, n_axes)
    fitted = jnp.zeros_like(values)
    for axis in axes:
        n = values.shape[axis]
        along = jnp.asarray(np.arange(n) - (n - 1) / 2, values.dtype).reshape(-1, *(1,) * (-axis - 1))
        along = jnp.broadcast_to(along, values.shape[-n_axes:])  # these are orthogonal to each other and to the mean
        along = along.reshape(*(1,) * (values.ndim - n_axes), *along.shape)
        square = jnp.sum(along**2)
        slope = jnp.sum(rest * along, axis=axes, keepdims=True) / jnp.where(square > 0, square, 1)
        fitted = fitted + slope * along
    return rest - fitted


def hann(n: int) -> Float[Array, "n"]:
    """Hann's taper, periodic: sin²(π i / n)."""
    return jnp.sin(jnp.pi * jnp.linspace(0, 1, n, endpoint=False)) ** 2


def no_taper(n: int) -> Float[Array, "n"]:
    """Ones: for periodic fields."""
    return jnp.ones(n)


def power_spectrum(
    values: ArrayLike,
    spacing: float | int = 1.0,
    axis: int = -1,
    *,
    detrend: Detrend = remove_trend,
    taper: Taper = hann,
) -> Spectrum:
    """The spectrum along `axis` of every line; other axes stay, in front. Of a series in time, k is a frequency.

    >>> wave = jnp.cos(2 * jnp.pi * jnp.arange(8) / 4)
    >>> spectrum = power_spectrum(wave, detrend=remove_mean, taper=no_taper)
    >>> float(spectrum.wavelength[jnp.argmax(spectrum.density)]), round(float(spectrum.variance()), 4)
    (4.0, 0.5)
    """
    array = _real(values, "power_spectrum", [axis])
    _positive(spacing, "power_spectrum", "spacing")
    return _line_spectrum(jnp.moveaxis(array, axis, -1), float(spacing), detrend, taper)


def isotropic_spectrum(
    field: ArrayLike,
    spacing: float | int | Sequence[float | int] = 1.0,
    *,
    detrend: Detrend = remove_trend,
    taper: Taper = hann,
) -> Spectrum:
    """The spectrum of fields (..., H, W) by |k|, summed over rings as wide as the step of the longer axis' wavenumbers.

    Rings beyond the shorter of the two Nyquist wavenumbers are not whole, they hold the corners: with these the sum is
    the variance.
    """
    array = _real(field, "isotropic_spectrum", [-2, -1])
    steps = tuple(float(s) for s in (spacing if isinstance(spacing, Sequence) else (spacing, spacing)))
    if len(steps) != 2:
        raise ValueError(f"isotropic_spectrum: `spacing` has {len(steps)} entries, expected one, or two (dy, dx).")
    for step in steps:
        _positive(step, "isotropic_spectrum", "spacing")
    return _ring_spectrum(array, steps, detrend, taper)


def wavenumber_frequency_spectrum(
    field: ArrayLike,
    dt: float | int,
    dx: float | int,
    *,
    time_axis: int = 0,
    space_axis: int = -1,
    detrend: Detrend = remove_trend,
    taper: Taper = hann,
) -> WavenumberFrequencySpectrum:
    """The zonal-wavenumber/frequency spectrum of (T, ..., X); other axes stay, in front of the two of the spectrum."""
    array = _real(field, "wavenumber_frequency_spectrum", [time_axis, space_axis])
    for name, step in (("dt", dt), ("dx", dx)):
        _positive(step, "wavenumber_frequency_spectrum", name)
    moved = jnp.moveaxis(array, (time_axis, space_axis), (-2, -1))
    return _plane_spectrum(moved, float(dt), float(dx), detrend, taper)


def _prepared(values: Array, n_axes: int, detrend: Detrend, taper: Taper) -> Array:
    """Detrended and tapered, with the taper's mean square taken out."""
    values = detrend(values, n_axes)
    for axis in range(-n_axes, 0):
        window = taper(values.shape[axis]).astype(values.dtype)
        window = window / jnp.sqrt(jnp.mean(window**2))
        values = values * window.reshape(*(1,) * (values.ndim + axis), -1, *(1,) * (-axis - 1))
    return values


def _one_sided(n: int) -> np.ndarray:
    """How often each wavenumber of a real transform counts: the negative ones are left out of it."""
    weights = np.full(n // 2 + 1, 2.0)
    weights[0] = 1
    if n % 2 == 0:
        weights[-1] = 1
    return weights


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def _line_spectrum(lines: Float[Array, "... n"], spacing: float, detrend: Detrend, taper: Taper) -> Spectrum:
    n = lines.shape[-1]
    power = jnp.abs(jnp.fft.rfft(_prepared(lines, 1, detrend, taper))) ** 2
    weights = jnp.asarray(_one_sided(n) * spacing / n, power.dtype)
    return Spectrum(jnp.asarray(np.fft.rfftfreq(n, spacing), power.dtype), power * _last(weights, power))


@functools.partial(jax.jit, static_argnums=(1, 2, 3, 4))
def _plane_spectrum(
    planes: Float[Array, "... T X"], dt: float, dx: float, detrend: Detrend, taper: Taper
) -> WavenumberFrequencySpectrum:
    n_times, n = planes.shape[-2:]
    power = jnp.abs(jnp.fft.rfft2(_prepared(planes, 2, detrend, taper))) ** 2
    weights = jnp.asarray(_one_sided(n) * dt * dx / (n_times * n), power.dtype)
    frequency = -np.fft.fftfreq(n_times, dt)  # of cos(kx - ft) the transform in t has -f
    order = np.argsort(frequency)
    density = (power * _last(weights, power))[..., order, :]
    wavenumber = jnp.asarray(np.fft.rfftfreq(n, dx), power.dtype)
    return WavenumberFrequencySpectrum(jnp.asarray(frequency[order], power.dtype), wavenumber, density)


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def _ring_spectrum(
    fields: Float[Array, "... H W"], steps: tuple[float, ...], detrend: Detrend, taper: Taper
) -> Spectrum:
    (rows, columns), (dy, dx) = fields.shape[-2:], steps
    power = jnp.abs(jnp.fft.fft2(_prepared(fields, 2, detrend, taper))) ** 2 / (rows * columns) ** 2
    length = np.hypot(np.fft.fftfreq(rows, dy)[:, None], np.fft.fftfreq(columns, dx)[None, :])
    width = max(1 / (rows * dy), 1 / (columns * dx))
    ring = np.round(length / width).astype(int).ravel()
    n_rings = int(ring.max()) + 1
    flat = jnp.moveaxis(power.reshape(*power.shape[:-2], -1), -1, 0)
    density = jax.ops.segment_sum(flat, jnp.asarray(ring), num_segments=n_rings) / width
    return Spectrum(jnp.asarray(np.arange(n_rings) * width, power.dtype), jnp.moveaxis(density, 0, -1))


def _last(weights: Array, like: Array) -> Array:
    """`weights` on the last axis, with the rank of `like`."""
    return weights.reshape(*(1,) * (like.ndim - 1), -1)


def _real(values: ArrayLike, owner: str, axes: Sequence[int]) -> Array:
    array = float_array(values)
    if array.ndim < len(axes) or any(array.shape[axis] < 2 for axis in axes):
        raise ValueError(f"{owner}: the values have shape {array.shape}, expected at least 2 along the axes {axes}.")
    return array


def _positive(step: float | int, owner: str, name: str) -> None:
    if not 0 < step < np.inf:
        raise ValueError(f"{owner}: `{name}` is {step}, expected a positive number.")
