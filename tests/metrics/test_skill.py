"""Skill and anomaly correlation by hand, and Murphy's relation between them."""

import jax.numpy as jnp
import numpy as np

from vardax.metrics.skill import anomaly_correlation, skill_score


def test_skill_is_one_for_perfect_and_zero_for_the_reference():
    np.testing.assert_allclose(skill_score(jnp.array([0.0, 2.0, 1.0]), 2.0), [1.0, 0.0, 0.5])
    np.testing.assert_allclose(skill_score(jnp.array([0.9, 0.5]), 0.5, perfect=1.0), [0.8, 0.0], rtol=1e-6)
    assert np.isnan(skill_score(1.0, 0.0))


def test_the_correlation_is_that_of_numpy_about_the_mean():
    random = np.random.default_rng(0)
    truth, estimate = random.normal(size=(2, 50)), random.normal(size=(2, 50))
    climatology = random.normal(size=50)
    found = anomaly_correlation(jnp.asarray(estimate), jnp.asarray(truth), jnp.asarray(climatology), axis=1)
    a, b = estimate - climatology, truth - climatology
    expected = [(x @ y) / np.sqrt((x @ x) * (y @ y)) for x, y in zip(a, b, strict=True)]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_the_skill_of_the_best_amplitude_is_the_squared_correlation():
    random = np.random.default_rng(1)
    truth, pattern = random.normal(size=30), random.normal(size=30)
    estimate = (truth @ pattern) / (pattern @ pattern) * pattern
    skill = skill_score(jnp.asarray(np.mean((estimate - truth) ** 2)), jnp.asarray(np.mean(truth**2)))
    correlation = anomaly_correlation(jnp.asarray(estimate), jnp.asarray(truth), jnp.zeros(30))
    np.testing.assert_allclose(skill, correlation**2, rtol=1e-4)


def test_climatology_itself_has_no_correlation():
    assert np.isnan(anomaly_correlation(jnp.ones(3), jnp.arange(3.0), jnp.ones(3)))
