"""Scores of analyses against a truth: errors, skill, and how well each scale is known.

- `scores`: root mean square errors, spread, and time means with confidence intervals
- `skill`: skill against a reference, anomaly correlation
- `spectra`: power spectra of lines, planes, and lines through time
- `resolution`: effective resolution; `ssh`: the scores of the sea surface height mapping challenges

Ensemble and probabilistic scores are in `vardax.diagnostics`.
"""

from vardax.metrics.resolution import effective_resolution, effective_resolutions, spectral_score
from vardax.metrics.scores import TimeMean, autocorrelation_time, rmse, spread, time_mean
from vardax.metrics.skill import anomaly_correlation, skill_score
from vardax.metrics.spectra import (
    Spectrum,
    WavenumberFrequencySpectrum,
    hann,
    isotropic_spectrum,
    no_taper,
    power_spectrum,
    remove_mean,
    remove_trend,
    wavenumber_frequency_spectrum,
)
from vardax.metrics.ssh import SSHScores, rmse_score, ssh_scores

__all__ = [
    "SSHScores",
    "Spectrum",
    "TimeMean",
    "WavenumberFrequencySpectrum",
    "anomaly_correlation",
    "autocorrelation_time",
    "effective_resolution",
    "effective_resolutions",
    "hann",
    "isotropic_spectrum",
    "no_taper",
    "power_spectrum",
    "remove_mean",
    "remove_trend",
    "rmse",
    "rmse_score",
    "skill_score",
    "spectral_score",
    "spread",
    "ssh_scores",
    "time_mean",
    "wavenumber_frequency_spectrum",
]
