"""Scores are what numpy says they are, and confidence intervals hold what they promise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vardax.metrics.scores import autocorrelation_time, rmse, spread, time_mean


def ar1(key, coefficient, length, n_series):
    """AR(1) series of unit variance: autocorrelation coefficient^k, autocorrelation time (1 + a) / (1 - a)."""
    first, rest = jax.random.split(key)
    start = jax.random.normal(first, (n_series,))
    noise = jax.random.normal(rest, (length - 1, n_series)) * np.sqrt(1 - coefficient**2)
    _, later = jax.lax.scan(lambda x, e: (coefficient * x + e,) * 2, start, noise)
    return jnp.concatenate([start[None], later]).T


def test_rmse_is_over_the_axes_asked_for():
    random = np.random.default_rng(0)
    estimate, truth = random.normal(size=(2, 7, 3, 5))
    np.testing.assert_allclose(rmse(estimate, truth), np.sqrt(np.mean((estimate - truth) ** 2)), rtol=1e-6)
    expected = np.sqrt(np.mean((estimate - truth) ** 2, axis=(1, 2)))
    np.testing.assert_allclose(rmse(estimate, truth, axis=(1, 2)), expected, rtol=1e-6)
    np.testing.assert_allclose(rmse(estimate, truth, axis=[-2, -1]), expected, rtol=1e-6)


def test_spread_is_the_root_mean_variance():
    std = np.array([[1.0, 2.0], [3.0, 4.0]])
    np.testing.assert_allclose(spread(std, axis=1), np.sqrt([2.5, 12.5]), rtol=1e-6)


def test_scores_keep_single_precision():
    series = jnp.ones(3, jnp.float32)
    assert rmse(series, series).dtype == spread(series).dtype == jnp.float32
    assert time_mean(series).standard_error.dtype == jnp.float32


def test_white_noise_has_an_autocorrelation_time_of_one():
    series = jax.random.normal(jax.random.key(1), (4000,))
    assert 1.0 <= float(autocorrelation_time(series)) < 1.3


@pytest.mark.parametrize("coefficient", [0.5, 0.9])
def test_autocorrelation_time_of_an_autoregressive_series(coefficient):
    expected = (1 + coefficient) / (1 - coefficient)
    measured = jax.vmap(autocorrelation_time)(ar1(jax.random.key(2), coefficient, 4000, 50))
    assert float(jnp.mean(measured)) == pytest.approx(expected, rel=0.08)


def test_the_confidence_interval_of_a_correlated_series_holds_its_promise():
    """The true mean, 0, is inside the 95 % interval in 94 % of 2,000 series of 220 independent values (sd 0.5 %)."""
    means = jax.vmap(time_mean)(ar1(jax.random.key(3), 0.8, 2000, 2000))
    covered = float(jnp.mean(jnp.abs(means.value) <= means.half_width))
    assert 0.925 < covered < 0.965


def test_a_constant_series_has_no_uncertainty():
    mean = time_mean(jnp.full(10, 2.5))
    assert (float(mean.value), float(mean.standard_error)) == (2.5, 0.0)
    assert str(mean) == "2.5 ± 0"


@pytest.mark.parametrize("series", [np.ones((2, 2)), 1.0, np.ones(0)])
def test_a_series_has_one_axis(series):
    with pytest.raises(ValueError, match=r"`series` has shape .*, expected \(T,\)"):
        time_mean(series)
