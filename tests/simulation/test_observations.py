"""Simulated observations are exact up to errors of covariance R, and missing where they are said to be."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vardax.covariances import BlockDiagonalCovariance, DenseCovariance, DiagonalCovariance, LowRankCovariance
from vardax.obs_operators import PointObs
from vardax.simulation import observe

R = np.array([[1.0, 0.6], [0.6, 2.0]])
TRAJECTORY = jnp.broadcast_to(jnp.array([5.0, -1.0, 3.0]), (6000, 3))


def test_errors_of_an_entry_have_covariance_r():
    errors = np.asarray(observe(jax.random.key(0), TRAJECTORY, PointObs([0, 2]), DenseCovariance(R))) - [5.0, 3.0]
    n, variances = len(errors), np.diag(R)
    assert np.all(np.abs(errors.mean(axis=0)) < 5 * np.sqrt(variances / n))
    assert np.all(np.abs(np.cov(errors.T) - R) < 5 * np.sqrt((np.outer(variances, variances) + R**2) / n))
    # Independent from entry to entry.
    lagged = np.mean(errors[1:] * errors[:-1], axis=0) / variances
    assert np.all(np.abs(lagged) < 5 / np.sqrt(n))


def test_errors_of_a_window_may_be_correlated_in_time():
    Rt = LowRankCovariance(jnp.array([1.0, 3.0, 2.0]).reshape(3, 1, 1))
    y = observe(jax.random.key(1), jnp.zeros((3, 4)), PointObs([1]), Rt)
    assert y[0, 0] != 0
    np.testing.assert_allclose(y[:, 0] / y[0, 0], [1.0, 3.0, 2.0], rtol=1e-5)


def test_what_is_masked_is_missing_and_changes_nothing_else():
    arguments = (jax.random.key(2), TRAJECTORY[:4], PointObs([0, 2]), DenseCovariance(R))
    whole = np.asarray(observe(*arguments))
    entries = np.asarray(observe(*arguments, mask=[1, 0, 1, 0]))
    np.testing.assert_array_equal(entries, np.where(np.array([1, 0, 1, 0])[:, None], whole, np.nan))
    single = np.random.default_rng(0).random((4, 2)) < 0.5
    np.testing.assert_array_equal(observe(*arguments, mask=single), np.where(single, whole, np.nan))


def test_states_may_be_pytrees_and_operators_nonlinear():
    run = {"u": jnp.full((3, 2), 3.0), "v": jnp.full((3, 2), 4.0)}
    exact = DiagonalCovariance(jnp.zeros(2))
    speed = observe(jax.random.key(0), run, lambda x: jnp.sqrt(x["u"] ** 2 + x["v"] ** 2), exact)
    np.testing.assert_allclose(speed, np.full((3, 2), 5.0), rtol=1e-6)


def test_what_does_not_fit_is_refused():
    key, run, H = jax.random.key(0), jnp.zeros((4, 3)), PointObs([0, 2])
    with pytest.raises(ValueError, match=r"`obs_cov_op` acts on shape \(3,\), expected \(2,\).*or \(4, 2\)"):
        observe(key, run, H, DiagonalCovariance(jnp.ones(3)))
    with pytest.raises(ValueError, match=r"`mask` has shape \(2,\), expected \(4,\) or \(4, 2\)"):
        observe(key, run, H, DenseCovariance(R), mask=[1, 0])
    with pytest.raises(TypeError, match=r"`obs_op` gives dict, expected one array.*to_observation_operator"):
        observe(key, run, lambda x: {"a": x}, DenseCovariance(R))
    blocks = BlockDiagonalCovariance([DiagonalCovariance(jnp.ones(1)), DiagonalCovariance(jnp.ones(1))])
    with pytest.raises(TypeError, match=r"`obs_cov_op` acts on a pytree.*joined_along=0"):
        observe(key, run, H, blocks)
