"""Preconditioned conjugate gradients on H B Hᵀ + R against dense algebra, whatever the preconditioner."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vardax.covariances.diagonal import DiagonalCovariance
from vardax.covariances.functions import restrict
from vardax.covariances.matern import MaternLinearOperator
from vardax.minimisers.factor_plan import plan_factor
from vardax.minimisers.krylov_result import Observing
from vardax.minimisers.preconditioned_form import solve_preconditioned
from vardax.obs_operators.point import PointObs

RANDOM = np.random.default_rng(14)
SHAPE, M = (8, 6), 70
INDICES = np.concatenate([np.arange(48), RANDOM.integers(0, 48, M - 48)])
MASK = np.arange(M) % 7 != 3
VARIANCES = RANDOM.uniform(0.001, 0.01, M)
INNOVATION = np.where(MASK, RANDOM.normal(size=M), 0.0)
DTYPE = jnp.ones(0).dtype


def covariance(sigma=1.3, length=1.5):
    return MaternLinearOperator(SHAPE, length, sigma=sigma, boundary="free", padding=8)


@eqx.filter_jit
def solve(B, variances, innovation, mask=MASK, *, factor=True, tol=1e-10, max_steps=200):
    """With the factor, or without a preconditioner."""
    R = restrict(DiagonalCovariance(variances), jnp.asarray(mask, variances.dtype))
    H = PointObs(INDICES).linearize(jnp.zeros(SHAPE, B.dtype))
    inverse = lambda r: r  # noqa: E731
    if factor:
        inverse = plan_factor(Observing(B, H, R, innovation.dtype), innovation.shape, tol).inverse(B)
    return solve_preconditioned(B, B.half(), H, R, innovation, R.mask, inverse, tol=tol, max_steps=max_steps)


def data(dtype=DTYPE):
    return jnp.asarray(VARIANCES, dtype), jnp.asarray(INNOVATION, dtype)


B_MATRIX = np.asarray(covariance().as_matrix())
SEEN = np.flatnonzero(MASK)
H_MATRIX = np.eye(48)[INDICES[SEEN]]


def dense():
    cross = B_MATRIX @ H_MATRIX.T
    weights = np.linalg.solve(H_MATRIX @ cross + np.diag(VARIANCES[SEEN]), INNOVATION[SEEN])
    return cross @ weights, weights


def cost(result):
    misfit = INNOVATION[SEEN] - H_MATRIX @ np.ravel(result.increment)
    return 0.5 * np.sum(np.asarray(result.control) ** 2) + 0.5 * np.sum(misfit**2 / VARIANCES[SEEN])


@pytest.mark.x64
@pytest.mark.parametrize("factor", [True, False])
def test_increment_and_weights_equal_the_dense_formula(factor):
    result = solve(covariance(), *data(), factor=factor)
    increment, weights = dense()
    assert result.converged
    np.testing.assert_allclose(np.ravel(result.increment), increment, atol=1e-8)
    np.testing.assert_allclose(np.asarray(result.weights)[SEEN], weights, rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(np.asarray(result.weights)[~MASK], 0)
    np.testing.assert_allclose(covariance().half().mv(result.control), result.increment, atol=1e-10)


@pytest.mark.x64
def test_the_factor_needs_fewer_steps():
    with_factor, without = (solve(covariance(), *data(), factor=factor) for factor in (True, False))
    assert 2 * int(with_factor.n_iterations) < int(without.n_iterations)


@pytest.mark.slow
@pytest.mark.x64
@pytest.mark.parametrize("factor", [True, False])
def test_cost_is_never_above_the_background_and_is_what_is_recorded(factor):
    first = 0.5 * np.sum(INNOVATION[SEEN] ** 2 / VARIANCES[SEEN])
    for n_steps in (0, 1, 2, 4):
        result = solve(covariance(), *data(), factor=factor, tol=1e-13, max_steps=n_steps)
        assert result.n_iterations == n_steps
        assert not result.converged
        assert cost(result) <= first * (1 + 1e-12)
        np.testing.assert_allclose(cost(result), result.costs[n_steps], rtol=1e-8)
        np.testing.assert_allclose(result.costs[0], cost(result) if n_steps == 0 else first, rtol=1e-10)
        assert np.isfinite(result.costs).sum() == np.isfinite(result.gradient_norms).sum() == min(n_steps, 1) + 1


@pytest.mark.slow
@pytest.mark.x64
@pytest.mark.parametrize("n_steps", [0, 2, 200])
def test_gradient_norm_is_that_of_the_cost_in_control_space(n_steps):
    B = covariance()
    result = solve(B, *data(), tol=1e-6, max_steps=n_steps)
    H = PointObs(INDICES).linearize(jnp.zeros(SHAPE))
    pulled = jnp.where(MASK, (jnp.asarray(INNOVATION) - H.mv(result.increment)) / VARIANCES, 0)
    gradient = result.control - B.half().transpose().mv(H.transpose().mv(pulled))
    np.testing.assert_allclose(result.gradient_norm, jnp.linalg.norm(gradient), rtol=1e-5)
    assert result.converged == (result.gradient_norm <= 1e-6 * result.gradient_norms[0])


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["nothing", "infinite"])
def test_the_background_stays_where_there_is_nothing_to_learn(kind):
    variances, innovation = data()
    mask = np.zeros(M) if kind == "nothing" else MASK
    innovation = jnp.zeros_like(innovation) if kind == "nothing" else innovation.at[0].set(jnp.inf)
    result = solve(covariance(), variances, innovation, mask, tol=1e-4)
    np.testing.assert_array_equal(result.increment, 0)
    assert result.n_iterations == 0
    assert result.converged == (kind == "nothing")


def test_single_precision_stays_and_comes_close():
    B = MaternLinearOperator(SHAPE, 1.5, sigma=1.3, boundary="free", padding=8, dtype=jnp.float32)
    result = solve(B, *data(jnp.float32), tol=1e-4)
    assert {leaf.dtype for leaf in jax.tree.leaves(eqx.filter(result, eqx.is_inexact_array))} == {jnp.dtype("float32")}
    assert result.converged
    np.testing.assert_allclose(np.ravel(result.increment), dense()[0], atol=2e-3)


@pytest.mark.x64
@pytest.mark.slow
def test_gradients_equal_finite_differences():
    @jax.jit
    def value(parameters):
        sigma, length, variances, innovation = parameters
        result = solve(covariance(sigma, length), variances, jnp.where(MASK, innovation, 0), tol=1e-12)
        return jnp.sum(jnp.sin(result.increment)) + 0.1 * jnp.sum(result.control**2) + 1e-3 * jnp.sum(result.weights)

    parameters = (jnp.array(1.3), jnp.array(1.5), *data())
    scales = (1.0, 1.0, VARIANCES, 1.0)
    direction = tuple(jnp.asarray(RANDOM.normal(size=p.shape) * s) for p, s in zip(parameters, scales, strict=True))
    gradient = jax.jit(jax.grad(value))(parameters)
    along = sum(jnp.vdot(g, v) for g, v in zip(gradient, direction, strict=True))
    _, tangent = jax.jvp(value, (parameters,), (direction,))
    shifted = [jax.tree.map(lambda p, v, s=s: p + s * v, parameters, direction) for s in (1e-5, -1e-5)]
    difference = (value(shifted[0]) - value(shifted[1])) / 2e-5
    np.testing.assert_allclose(along, difference, rtol=1e-5)
    np.testing.assert_allclose(tangent, difference, rtol=1e-5)
