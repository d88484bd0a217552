r"""The scores of the sea surface height mapping challenges (ocean-data-challenges, 2020 on).

    score(t) = 1 - RMSE(t) / RMS(truth(t))          μ and σ: its mean and standard deviation over time
    λ_x, λ_t                                        effective resolution in space and time (`resolution`)

of a map (T, Y, X) against the truth. The spectra are zonal-wavenumber/frequency spectra, detrended, tapered, and
averaged over latitudes. Land is NaN in the truth or the map: cells without a value at some time are left out of the
score at that time, latitudes with such cells out of the spectra.

Published for the NATL60 challenge (μ, σ, λ_x in degrees, λ_t in days): OI 0.83, 0.04, 2.25, 15.67; DUACS 0.92, 0.01,
1.42, 12.13; 4DVarNet 0.94, 0.01, 0.83, 8.03.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from vardax.metrics.resolution import effective_resolutions
from vardax.metrics.spectra import WavenumberFrequencySpectrum, wavenumber_frequency_spectrum
from vardax.types import float_array

__all__ = ["SSHScores", "rmse_score", "ssh_scores"]


class SSHScores(NamedTuple):
    """μ and σ of the RMSE-based score, and the effective resolutions in the units of `dx` and `dt`."""

    mu: Float[Array, ""]
    sigma: Float[Array, ""]
    lambda_x: Float[Array, ""]
    lambda_t: Float[Array, ""]

    def __str__(self) -> str:
        values = (float(v) for v in self)
        return "μ {:.3f}  σ {:.3f}  λ_x {:.3g}  λ_t {:.3g}".format(*values)


def rmse_score(estimate: ArrayLike, truth: ArrayLike) -> Float[Array, "T"]:
    """1 - RMSE(t) / RMS(truth(t)) of (T, ...); NaN at times without values.

    >>> rmse_score(jnp.array([[3.0, 4.0], [0.0, 0.0]]), jnp.array([[3.0, 4.0], [3.0, 4.0]])).tolist()
    [1.0, 0.0]
    """
    estimate, truth = _both(estimate, truth, "rmse_score", 2)
    return _rmse_score(estimate, truth)


def ssh_scores(estimate: ArrayLike, truth: ArrayLike, *, dt: float | int, dx: float | int) -> SSHScores:
    """The four scores of a map (T, Y, X), steps `dt` in time and `dx` in longitude (days and degrees, say)."""
    estimate, truth = _both(estimate, truth, "ssh_scores", 3)
    series = _rmse_score(estimate, truth)
    complete = jnp.all(jnp.isfinite(estimate) & jnp.isfinite(truth), axis=(0, 2))
    rows = lambda field: jnp.where(complete[None, :, None], field, 0)  # noqa: E731
    error, signal = (
        _averaged(wavenumber_frequency_spectrum(rows(f), dt, dx), complete) for f in (estimate - truth, truth)
    )
    lambda_x, lambda_t = effective_resolutions(error, signal)
    unknown = ~jnp.any(complete)
    return SSHScores(
        jnp.nanmean(series),
        jnp.nanstd(series),
        jnp.where(unknown, jnp.nan, lambda_x),
        jnp.where(unknown, jnp.nan, lambda_t),
    )


def _averaged(spectrum: WavenumberFrequencySpectrum, complete: Array) -> WavenumberFrequencySpectrum:
    """The mean over the latitudes that are complete."""
    weights = complete.astype(spectrum.density.dtype)
    mean = jnp.tensordot(weights, spectrum.density, axes=1, precision="highest") / jnp.maximum(jnp.sum(weights), 1)
    return WavenumberFrequencySpectrum(spectrum.frequency, spectrum.wavenumber, mean)


@jax.jit
def _rmse_score(estimate: Float[Array, "T ..."], truth: Float[Array, "T ..."]) -> Float[Array, "T"]:
    known = jnp.isfinite(estimate) & jnp.isfinite(truth)
    axes = tuple(range(1, truth.ndim))
    square = lambda v: jnp.sum(jnp.where(known, v, 0) ** 2, axis=axes)  # noqa: E731
    error, signal = square(jnp.where(known, estimate, 0) - jnp.where(known, truth, 0)), square(truth)
    return 1 - jnp.sqrt(jnp.where(signal > 0, error / jnp.where(signal > 0, signal, 1), jnp.nan))


def _both(estimate: ArrayLike, truth: ArrayLike, owner: str, rank: int) -> tuple[Array, Array]:
    estimate, truth = float_array(estimate), float_array(truth)
    if estimate.shape != truth.shape or truth.ndim < rank or (owner == "ssh_scores" and truth.ndim != rank):
        axes = "(T, Y, X)" if owner == "ssh_scores" else "(T, ...)"
        raise ValueError(
            f"{owner}: `estimate` has shape {estimate.shape} and `truth` {truth.shape}, expected the same, {axes}."
        )
    return estimate, truth.astype(estimate.dtype)
