"""Conjugate gradients in Fourier modes, their preconditioner, and when the observations cover a field evenly."""

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest

from vardax.covariances.diagonal import DiagonalCovariance
from vardax.covariances.functions import restrict
from vardax.covariances.matern import MaternLinearOperator
from vardax.minimisers import krylov, modes_form, observation_form
from vardax.minimisers.krylov import EVEN_COVERAGE
from vardax.minimisers.modes_form import observation_coverage
from vardax.obs_operators.point import PointObs

pytestmark = pytest.mark.slow  # compiles many programs

RANDOM = np.random.default_rng(5)
SHAPE, N = (8, 6), 48
GRID = jnp.zeros(SHAPE)
solve_blue = eqx.filter_jit(krylov.solve_blue)
solve_in_modes = eqx.filter_jit(modes_form.solve_in_modes)
solve_in_observations = eqx.filter_jit(observation_form.solve_in_observations)


def _ravel(shape, dtype):
    return lx.FunctionLinearOperator(jnp.ravel, jax.ShapeDtypeStruct(shape, dtype))


@pytest.mark.x64
def test_both_forms_agree_with_the_dense_formula(field_case):
    increment, _ = field_case.dense()
    for result in (field_case.in_observations(tol=1e-11, max_steps=200), field_case.in_modes(tol=1e-11, max_steps=200)):
        np.testing.assert_allclose(np.ravel(result.increment), increment, atol=1e-8)


@pytest.mark.x64
def test_takes_the_steps_of_control_space_conjugate_gradients(field_case):
    for n_steps in range(1, 8):
        modes = field_case.in_modes(tol=0.0, max_steps=n_steps)
        observations = field_case.in_observations(tol=0.0, max_steps=n_steps)
        np.testing.assert_allclose(modes.increment, observations.increment, atol=1e-10)
        np.testing.assert_allclose(modes.gradient_norms, observations.gradient_norms, rtol=1e-8)


@pytest.mark.x64
def test_preconditioner_needs_fewer_steps_for_the_same_answer():
    size = (24, 24)
    B = MaternLinearOperator(size, 3.0)
    cells = RANDOM.choice(24 * 24, 300, replace=False)
    H = PointObs(cells).linearize(jnp.zeros(size))
    R = restrict(DiagonalCovariance(jnp.full(300, 0.01)), jnp.ones(300))
    innovation = jnp.asarray(RANDOM.normal(size=300))
    plain = solve_in_observations(B, B.half(), H, R, innovation, tol=1e-6, max_steps=500)
    chosen = solve_blue(B, B.half(), H, R, innovation, tol=1e-6, max_steps=500)
    assert chosen.converged
    assert int(chosen.n_iterations) < 0.5 * int(plain.n_iterations)
    np.testing.assert_allclose(chosen.increment, plain.increment, atol=1e-4)


@pytest.mark.parametrize("boundary", ["periodic", "free"])
def test_coverage_of_a_fully_observed_field_is_even(boundary):
    B = MaternLinearOperator(SHAPE, 1.5, boundary=boundary)
    H = PointObs(np.arange(N)).linearize(GRID)
    R = restrict(DiagonalCovariance(jnp.full(N, 0.5)), jnp.ones(N))
    least, evenness = observation_coverage(B, H, R)
    np.testing.assert_allclose([least, evenness], [2.0, 1.0], rtol=1e-4)


@pytest.mark.parametrize("kind", ["gap", "average", "nothing"])
def test_uneven_coverage_takes_the_observation_form(kind):
    size = (32, 4)
    B = MaternLinearOperator(size, 2.0)
    if kind == "average":
        average = np.kron(np.eye(4), np.full((1, 32), 1 / 32))
        H = lx.MatrixLinearOperator(jnp.asarray(average, B.dtype)) @ _ravel(size, B.dtype)
        n_obs = 4
    else:
        H, n_obs = PointObs(np.arange(64)).linearize(jnp.zeros(size, B.dtype)), 64
    mask = jnp.zeros(n_obs) if kind == "nothing" else jnp.ones(n_obs)
    R = restrict(DiagonalCovariance(jnp.full(n_obs, 0.1)), mask)
    _, evenness = observation_coverage(B, H, R)
    assert evenness < EVEN_COVERAGE
    innovation = jnp.where(mask != 0, jnp.asarray(RANDOM.normal(size=n_obs), B.dtype), 0)
    options = {"tol": 1e-4, "max_steps": 50}
    chosen = solve_blue(B, B.half(), H, R, innovation, **options)
    plain = solve_in_observations(B, B.half(), H, R, innovation, **options)
    assert chosen.n_iterations == plain.n_iterations
    np.testing.assert_allclose(chosen.increment, plain.increment, atol=1e-5)


@pytest.mark.x64
@pytest.mark.parametrize("coverage", [0.0, 3.0])
def test_cost_decreases_at_every_truncation(field_case, cost_decreases, coverage):
    cost_decreases(field_case, lambda n: field_case.in_modes(coverage=coverage, tol=0.0, max_steps=n))


@pytest.mark.x64
def test_gradients_equal_finite_differences(gradients_are_right):
    options = {"coverage": 0.5, "tol": 1e-11, "max_steps": 200}
    gradients_are_right(lambda B, H, R, d: solve_in_modes(B, H, R, d, **options))
