"""Restricted conjugate gradients on the weights: the steps of control space, and right derivatives."""

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest

from vardax.covariances.diagonal import DiagonalCovariance
from vardax.minimisers import krylov, observation_form

pytestmark = pytest.mark.slow  # compiles many programs

RANDOM = np.random.default_rng(5)
solve_blue = eqx.filter_jit(krylov.solve_blue)
solve_in_observations = eqx.filter_jit(observation_form.solve_in_observations)


@pytest.mark.x64
def test_takes_the_steps_of_control_space_conjugate_gradients(case):
    for n_steps, expected in enumerate(case.textbook(6), start=1):
        result = case.in_observations(tol=0.0, max_steps=n_steps)
        np.testing.assert_allclose(np.ravel(result.increment), expected, atol=1e-10)


@pytest.mark.x64
def test_gradient_norms_are_those_of_the_cost_in_control_space(case):
    result = case.in_observations(tol=0.0, max_steps=3)
    residual = case.R.solve(case.innovation - case.H.mv(result.increment))
    gradient = result.control - case.B.half().transpose().mv(case.H.transpose().mv(residual))
    np.testing.assert_allclose(result.gradient_norm, jnp.linalg.norm(gradient), rtol=1e-8)


@pytest.mark.x64
def test_gradients_are_right_where_weights_are_not_seen():
    """B has rank 2 and one cell is observed twice: many weights give the same increment, one gives the derivative."""
    H = jnp.asarray(np.eye(5)[[0, 0, 2, 3]])
    variance, innovation = jnp.array([0.3, 0.1, 0.2, 0.4]), jnp.array([1.0, -2.0, 0.5, 1.5])
    start = jnp.asarray(RANDOM.normal(size=(5, 2)))

    def dense(factor, variance):
        cross = factor @ factor.T @ H.T
        return jnp.sum(jnp.sin(cross @ jnp.linalg.solve(H @ cross + jnp.diag(variance), innovation)))

    def krylov(factor, variance):
        half = lx.MatrixLinearOperator(factor)
        R = DiagonalCovariance(variance).restrict(jnp.ones(4))
        result = solve_blue(half @ half.T, half, lx.MatrixLinearOperator(H), R, innovation, tol=1e-11, max_steps=50)
        return jnp.sum(jnp.sin(result.increment))

    expected = jax.grad(dense, argnums=(0, 1))(start, variance)
    for found, right in zip(jax.grad(krylov, argnums=(0, 1))(start, variance), expected, strict=True):
        np.testing.assert_allclose(found, right, atol=1e-9)


@pytest.mark.x64
def test_cost_decreases_at_every_truncation(case, cost_decreases):
    cost_decreases(case, lambda n_steps: case.in_observations(tol=0.0, max_steps=n_steps))


@pytest.mark.x64
def test_gradients_equal_finite_differences(gradients_are_right):
    options = {"tol": 1e-11, "max_steps": 200}
    gradients_are_right(lambda B, H, R, d: solve_in_observations(B, B.half(), H, R, d, **options))
