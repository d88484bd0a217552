r"""Effective resolution: the smallest scale at which an estimate still resembles the truth.

    score(k) = 1 - E_error(k) / E_truth(k)

is 1 where an estimate is perfect and 0 where it is no better than nothing. The effective resolution is the smallest
wavelength 1 / k at which the score is 0.5, interpolated linearly between the wavelengths of the spectrum, as the SSH
mapping challenges define it (ocean-data-challenges, from zonal-wavenumber/frequency spectra). If the score is above 0.5
at all wavelengths it is the shortest of them, and if it is below at all it is infinite. A grid far finer than what is
resolved may cross 0.5 again in the noise at its end; the smallest crossing is taken all the same.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vardax.metrics.spectra import Spectrum, WavenumberFrequencySpectrum

__all__ = ["effective_resolution", "effective_resolutions", "spectral_score"]

LEVEL = 0.5


def spectral_score(
    error: Spectrum | WavenumberFrequencySpectrum, truth: Spectrum | WavenumberFrequencySpectrum
) -> Float[Array, "..."]:
    """1 - E_error / E_truth; minus infinity where the truth has no power but the error has."""
    if error.density.shape != truth.density.shape:
        raise ValueError(
            f"spectral_score: the spectra of error and truth have shapes {error.density.shape} and "
            f"{truth.density.shape}, expected the same."
        )
    there = truth.density > 0
    ratio = error.density / jnp.where(there, truth.density, 1)
    return 1 - jnp.where(there, ratio, jnp.where(error.density > 0, jnp.inf, 0))


def effective_resolution(error: Spectrum, truth: Spectrum) -> Float[Array, "..."]:
    """The smallest wavelength at which the score of each spectrum (..., k) is 0.5; average the spectra, not this."""
    return _along(spectral_score(error, truth)[..., 1:], truth.wavelength[1:])


def effective_resolutions(
    error: WavenumberFrequencySpectrum, truth: WavenumberFrequencySpectrum
) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    """The smallest wavelength and the smallest period on the line where the score of (f, k) is 0.5.

    Frequencies of both signs are folded first. The mean in space and in time is left out: it has no scale.
    """
    error, truth = error.folded(), truth.folded()
    score = spectral_score(error, truth)[..., 1:, 1:]
    wavelength, period = 1 / truth.wavenumber[1:], 1 / truth.frequency[1:]
    return _smallest(score, wavelength), _smallest(jnp.swapaxes(score, -1, -2), period)


@jax.jit
def _smallest(score: Float[Array, "... rows n"], scale: Float[Array, "n"]) -> Float[Array, "..."]:
    """The smallest scale on the line: where it crosses a row, and the scales at which it passes between two rows."""
    in_rows = jnp.min(_crossings(score, scale), axis=(-2, -1), initial=jnp.inf)
    above = score >= LEVEL
    between = jnp.any(above[..., 1:, :] != above[..., :-1, :], axis=-2)
    on_columns = jnp.min(
        jnp.where(between, scale.reshape(*(1,) * (between.ndim - 1), -1), jnp.inf), axis=-1, initial=jnp.inf
    )
    return _or_ends(jnp.minimum(in_rows, on_columns), above, (-2, -1), scale)


@jax.jit
def _along(score: Float[Array, "... n"], scale: Float[Array, "n"]) -> Float[Array, "..."]:
    return _or_ends(jnp.min(_crossings(score, scale), axis=-1, initial=jnp.inf), score >= LEVEL, -1, scale)


def _crossings(score: Array, scale: Array) -> Array:
    """Where the score passes 0.5 between neighbouring scales, infinite where it does not."""
    scale = jnp.broadcast_to(scale.reshape(*(1,) * (score.ndim - 1), -1), score.shape)
    before, after = score[..., :-1], score[..., 1:]
    crosses = (before >= LEVEL) != (after >= LEVEL)
    slope = jnp.where(crosses & jnp.isfinite(after - before), after - before, jnp.inf)
    part = jnp.where(jnp.isfinite(slope), (LEVEL - before) / slope, jnp.where(before >= LEVEL, 0, 1))
    return jnp.where(crosses, scale[..., :-1] + part * (scale[..., 1:] - scale[..., :-1]), jnp.inf)


def _or_ends(found: Array, above: Array, axes: int | tuple[int, ...], scale: Array) -> Array:
    return jnp.where(jnp.all(above, axis=axes), jnp.min(scale), found)
