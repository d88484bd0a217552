"""The likelihood of a periodogram: its derivatives, its maximum, its standard errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vardax.covariances.matern import MaternLinearOperator
from vardax.covariances.periodogram import expected_periodogram, mean_periodogram, window_of
from vardax.covariances.scoring import maximise_likelihood, standard_errors

DTYPE = jnp.result_type(float)
STEP = jnp.ones(1)


def periodic(n=24):
    return window_of(jnp.ones((n,), bool), (False,), DTYPE)


@pytest.mark.x64
def test_it_finds_the_maximum_of_the_likelihood_of_a_periodic_field():
    """The density of N(0, σ² ρ(length)), written with its matrix, has no slope at the estimate."""
    x = MaternLinearOperator((24,), 3.0, 2.0, 1.5).sample(jax.random.key(0), 4)
    scored = maximise_likelihood(mean_periodogram(x, periodic()), 1.5, 1, STEP, 0.0, periodic())

    def minus_log_density(theta):
        matrix = MaternLinearOperator((24,), jnp.exp(theta[0]), jnp.exp(theta[1]), 1.5).as_matrix()
        return jnp.sum(x * jnp.linalg.solve(matrix, x.T).T) / 2 + len(x) * jnp.linalg.slogdet(matrix)[1] / 2

    slope, curvature = jax.jit(jax.grad(minus_log_density)), jax.jit(jax.hessian(minus_log_density))
    np.testing.assert_allclose(slope(scored.theta), 0, atol=1e-4)
    assert np.all(np.linalg.eigvalsh(curvature(scored.theta)) > 0)
    errors = standard_errors(scored.theta, 1.5, STEP, 0.0, periodic(), jax.random.split(jax.random.key(0), 1), True)
    observed = np.sqrt(np.diag(np.linalg.inv(curvature(scored.theta))))
    np.testing.assert_allclose(errors / np.sqrt(len(x)), observed, rtol=0.3)


@pytest.mark.parametrize("nu", [0.5, 2.5, np.inf])
@pytest.mark.parametrize("free", [False, True])
def test_the_mean_periodogram_is_fitted_by_the_parameters_that_it_has(nu, free):
    window = window_of(jnp.ones((40,), bool), (free,), DTYPE)
    power = 4 * expected_periodogram(jnp.array([3.0]), nu, window)
    scored = maximise_likelihood(power, nu, 1, STEP, 0.0, window)
    np.testing.assert_allclose(np.exp(scored.theta), [3.0, 2.0], rtol=1e-3)


def test_simulated_errors_of_a_periodic_field_are_those_of_the_likelihood():
    theta, window = jnp.log(jnp.array([3.0, 2.0])), periodic(64)
    draws = jax.random.split(jax.random.key(1), 1000)
    exact = standard_errors(theta, 1.5, STEP, 0.0, window, draws, True)
    np.testing.assert_allclose(standard_errors(theta, 1.5, STEP, 0.0, window, draws, False), exact, rtol=0.1)


def test_white_noise_is_told_from_the_signal():
    window = periodic(64)
    power = 4 * expected_periodogram(jnp.array([5.0]), np.inf, window) + 0.3**2
    scored = maximise_likelihood(power, np.inf, 1, STEP, 0.3, window)
    np.testing.assert_allclose(np.exp(scored.theta), [5.0, 2.0], rtol=1e-3)
