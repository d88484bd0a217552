"""Perturbed states and model errors have the covariances that they are drawn from."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vardax.covariances import DenseCovariance, DiagonalCovariance, LowRankCovariance
from vardax.dynamics import Lorenz63, Lorenz96, rollout
from vardax.minimisers import Exp
from vardax.simulation import perturb, simulate_trajectory

DRAWS = 4000
B = jnp.array([[2.0, 0.8, 0.0], [0.8, 1.0, -0.3], [0.0, -0.3, 0.5]])
KEYS = jax.random.split(jax.random.key(4), DRAWS)


def assert_moments(draws, mean, covariance, n_errors=5.0):
    """Sample mean and covariance within so many of their standard errors, the latter for Gaussian draws."""
    draws, variances = np.asarray(draws, np.float64), np.diag(covariance)
    assert np.all(np.abs(draws.mean(axis=0) - mean) <= n_errors * np.sqrt(variances / len(draws)) + 1e-6)
    error = np.sqrt((np.outer(variances, variances) + np.asarray(covariance) ** 2) / len(draws))
    assert np.all(np.abs(np.cov(draws.T) - covariance) <= n_errors * error + 1e-6)


def test_a_background_scatters_about_the_truth_with_covariance_b():
    truth = jnp.array([10.0, -3.0, 0.0])
    draws = jax.vmap(functools.partial(perturb, state=truth, covariance=DenseCovariance(B)))(KEYS)
    assert_moments(draws, truth, B)


def test_a_wrong_covariance_would_be_seen():
    draws = jax.vmap(functools.partial(perturb, state=jnp.zeros(3), covariance=DenseCovariance(1.2 * B)))(KEYS)
    with pytest.raises(AssertionError):
        assert_moments(draws, np.zeros(3), B)


def test_a_positive_state_stays_positive_and_its_logarithm_has_covariance_b():
    truth, around = jnp.array([1.0, 2.0, 3.0]), DenseCovariance(B)
    draws = jax.vmap(lambda key: perturb(key, truth, around, control_transform=Exp()))(KEYS)
    assert np.all(np.asarray(draws) > 0)
    assert_moments(jnp.log(draws), jnp.log(truth), B)


def test_a_low_rank_covariance_stays_in_its_range():
    moved = perturb(jax.random.key(0), jnp.ones(3), LowRankCovariance([[1.0], [2.0], [0.0]])) - 1
    assert moved[0] != 0
    np.testing.assert_allclose(moved, float(moved[0]) * np.array([1, 2, 0]), rtol=1e-5)


def test_the_key_fixes_the_numbers_and_the_state_their_dtype():
    draw = lambda key: perturb(jax.random.key(key), jnp.zeros(3, "float32"), DenseCovariance(B))  # noqa: E731
    assert draw(0).dtype == np.float32
    np.testing.assert_array_equal(draw(0), draw(0))
    assert not np.any(np.asarray(draw(0)) == np.asarray(draw(1)))


def test_a_state_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"perturb: `state` has shape \(2, 3\), expected \(3,\).*`jax.vmap` over keys"):
        perturb(jax.random.key(0), jnp.zeros((2, 3)), DenseCovariance(B))


def defects(trajectory, model):
    """x_t - M(x_{t-1})."""
    return trajectory[1:] - jax.vmap(lambda x: model.step(x, model.dt))(trajectory[:-1])


def test_a_model_errs_with_covariance_q_at_every_interval():
    model, Q = Lorenz63(dt=0.01), DenseCovariance(0.01 * B)
    x0 = jnp.array([1.0, 2.0, 20.0])
    runs = jax.vmap(lambda key: defects(simulate_trajectory(key, model, x0, 2, Q), model))(KEYS)
    both = np.kron(np.eye(2), 0.01 * np.asarray(B))  # independent from one interval to the next
    assert_moments(runs.reshape(DRAWS, 6), np.zeros(6), both)


def test_errors_of_a_window_may_be_correlated_in_time():
    model = Lorenz96(4, dt=0.01)
    Q = LowRankCovariance(jnp.broadcast_to(jnp.array([1.0, 2.0])[:, None, None], (2, 4, 1)))
    found = defects(simulate_trajectory(jax.random.key(2), model, jnp.ones(4), 2, Q), model)
    np.testing.assert_allclose(found[1], 2 * found[0], rtol=1e-4)
    np.testing.assert_allclose(found[0], jnp.broadcast_to(found[0, 0], (4,)), rtol=1e-4)


def test_without_variance_it_is_the_model():
    model, x0 = Lorenz96(4), jnp.arange(4.0)
    run = simulate_trajectory(jax.random.key(0), model, x0, 3, DiagonalCovariance(jnp.zeros(4)), n_substeps=2)
    np.testing.assert_array_equal(run, rollout(model, x0, 3, n_substeps=2))


def test_a_covariance_of_other_errors_is_refused():
    with pytest.raises(ValueError, match=r"`model_err_cov_op` acts on shape \(3,\), expected \(4,\).*or \(2, 4\)"):
        simulate_trajectory(jax.random.key(0), Lorenz96(4), jnp.ones(4), 2, DenseCovariance(B))
