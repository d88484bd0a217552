r"""What a method expects of its own errors, and whether it is right: the spread and the coverage of the table.

    spread     sqrt(mean σ²) of the posterior, to be compared with the RMSE
    coverage   the share of the truth's entries within the posterior's central 90 % intervals: 90 % where it is right

Both are of the posterior at the times that are scored. For windows, whose posterior is that of the window's start (and
of the model errors), samples are carried through the window by the model, and the intervals are those of the samples.
Analyses that did not converge are counted in the table; here they count like the others.
"""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from vardax.diagnostics.reliability import ensemble_coverage, interval_coverage
from vardax.dynamics.rollout import rollout
from vardax.experiments.twin import Estimate, Row, Twin
from vardax.types import Batch1D

__all__ = ["LEVEL", "Uncertainty", "uncertainty_of_cycles", "uncertainty_of_windows"]

LEVEL = 0.9

POSTERIORS, DRAWS = 50, 200
"""Cycles whose posterior is looked at, and samples of each for windows."""

WINDOWS, TRAJECTORIES = 20, 100
"""The same of single windows, of which whole trajectories are kept."""


class Uncertainty(NamedTuple):
    """The spread and the coverage of a row; None for what has no posterior."""

    spread: float | None
    coverage: float | None


def uncertainty_of_cycles(twin: Twin, estimate: Estimate, first: int) -> Uncertainty:
    """At analysis time, over cycles from `first` on."""
    row = estimate.row
    if not hasattr(row.model, "posterior"):
        return Uncertainty(estimate.spread, None)
    chosen = np.unique(np.linspace(max(first, 1), twin.n_cycles - 1, POSTERIORS).astype(int))
    observations, truth = twin.observations[chosen], twin.truth[1:][chosen]
    if not row.takes_window:
        background = jnp.asarray(estimate.history.forecast[chosen])
        return _of_gaussian(row.model.posterior(_batch(observations), background=background, force=True), truth)
    window = jnp.stack([jnp.full_like(observations, jnp.nan), observations], axis=1)
    background = jnp.asarray(estimate.history.analysis[chosen - 1])
    posterior = row.model.posterior(_batch(window), background=background, force=True)
    return _of_samples(_carried(twin.forward, posterior.sample(jax.random.key(0), DRAWS), 1)[:, :, -1], truth)


def uncertainty_of_windows(windows: Any, row: Row) -> Uncertainty:
    """At all times of the first windows."""
    if not hasattr(row.model, "posterior"):
        return Uncertainty(row.spread, None)
    truth, observations = windows.truth[:WINDOWS], windows.observations[:WINDOWS]
    if not row.takes_window:
        alone = observations.reshape(-1, 1, observations.shape[-1])
        posterior = row.model.posterior(_batch(alone), force=True)
        return _of_gaussian(posterior, truth.reshape(-1, truth.shape[-1]))
    posterior = row.model.posterior(_batch(observations), force=True)
    samples = posterior.sample(jax.random.key(0), TRAJECTORIES)
    return _of_samples(_carried(windows.forward, samples, truth.shape[1] - 1), truth)


def _batch(observations: Array) -> Batch1D:
    return Batch1D.from_observations(observations)


def _of_gaussian(posterior: Any, truth: Float[Array, "samples n"]) -> Uncertainty:
    std = posterior.std()
    covered = interval_coverage(posterior.mean, std, truth, LEVEL)
    return Uncertainty(float(jnp.sqrt(jnp.mean(std**2))), float(covered))


def _of_samples(samples: Float[Array, "cycles draws ..."], truth: Float[Array, "cycles ..."]) -> Uncertainty:
    covered = ensemble_coverage(jnp.swapaxes(samples, 0, 1), truth, LEVEL)
    return Uncertainty(float(jnp.sqrt(jnp.mean(jnp.var(samples, axis=1, ddof=1)))), float(covered))


@eqx.filter_jit
def _carried(forward: Any, samples: Any, n_steps: int) -> Float[Array, "cycles draws entries n"]:
    """The trajectory from each sample: of a window's start, or of start and model errors."""

    def one(sample: Any) -> Array:
        start, errors = sample if isinstance(sample, tuple) else (sample, None)
        return rollout(forward, start, n_steps, increments=errors)

    return jax.vmap(jax.vmap(one))(samples)
