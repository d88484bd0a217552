"""A linear problem is solved alike by factorisation and by iteration."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vardax.covariances.diagonal import DiagonalCovariance
from vardax.covariances.functions import half
from vardax.covariances.matern import MaternLinearOperator
from vardax.minimisers import closed_form
from vardax.minimisers.blue import solve_blue_problem
from vardax.minimisers.observed import read_samples, restrict_samples
from vardax.minimisers.problem import BatchedProblem
from vardax.minimisers.transforms import Identity
from vardax.minimisers.windows import Snapshot
from vardax.obs_operators.callable import CallableObs
from vardax.types import Batch1D, Status

X64 = jax.config.jax_enable_x64
N, M = 24, 15
RANDOM = np.random.default_rng(23)
WHERE = np.sort(RANDOM.choice(N, M, replace=False))
Y = RANDOM.normal(size=(2, M))
Y[0, :4] = np.nan


def posed(y=Y):
    """Two samples of an affine operator, x[WHERE] + 1."""
    prior = MaternLinearOperator((N,), 3.0)
    samples = read_samples(Batch1D.from_observations(y), (M,), window=False, owner="test")
    observed = restrict_samples(samples, DiagonalCovariance(np.full(M, 0.2)), "test")
    observe = Snapshot(CallableObs(lambda x: x[jnp.asarray(WHERE)] + 1.0))
    background = jnp.asarray(np.random.default_rng(1).normal(size=(2, N)))
    return BatchedProblem(background, observed, prior, half(prior), observe, Identity())


def solved(batched, **options):
    return batched.map_samples(lambda sample: solve_blue_problem(sample, **options))


@pytest.mark.parametrize("limit", [1024, 0], ids=["factorised", "iterated"])
def test_both_forms_are_the_dense_formula(limit, monkeypatch):
    monkeypatch.setattr(closed_form, "DENSE_LIMIT", limit)
    batched = posed()
    analysis = solved(batched, tol=1e-9 if X64 else 1e-5)
    B, H = np.asarray(batched.covariance.as_matrix()), np.eye(N)[WHERE]
    for sample in range(2):
        seen, x_b = np.isfinite(Y[sample]), np.asarray(batched.background[sample])
        G = H[seen]
        innovation = Y[sample][seen] - G @ x_b - 1.0
        expected = x_b + B @ G.T @ np.linalg.solve(G @ B @ G.T + 0.2 * np.eye(len(G)), innovation)
        np.testing.assert_allclose(analysis.state[sample], expected, atol=1e-7 if X64 else 2e-3)
    np.testing.assert_allclose(batched.cost(analysis.control), analysis.cost.last.total, rtol=1e-4)
    np.testing.assert_allclose(batched.control_to_state(analysis.control), analysis.state, atol=1e-5)


@pytest.mark.parametrize("max_steps", [1, 2, 4])
def test_a_truncated_iteration_is_better_than_the_background_and_says_so(max_steps, monkeypatch):
    monkeypatch.setattr(closed_form, "DENSE_LIMIT", 0)
    batched = posed()
    analysis = solved(batched, tol=1e-12, max_steps=max_steps)
    assert (batched.cost(analysis.control) < batched.cost(batched.zero_control())).all()
    assert (analysis.n_iterations == max_steps).all()
    assert (analysis.status == Status.MAX_STEPS).all()
    assert not analysis.converged.any()


@pytest.mark.slow
def test_more_iterations_are_better(monkeypatch):
    monkeypatch.setattr(closed_form, "DENSE_LIMIT", 0)
    batched = posed()
    costs = [batched.cost(solved(batched, tol=1e-12, max_steps=k).control) for k in (1, 2, 3, 5)]
    assert (np.diff(np.stack(costs), axis=0) <= 1e-6).all()


def test_converged_means_that_the_gradient_in_control_space_is_small(monkeypatch):
    monkeypatch.setattr(closed_form, "DENSE_LIMIT", 0)
    batched, tol = posed(), 1e-6 if X64 else 1e-4
    analysis = solved(batched, tol=tol)
    reference = jnp.linalg.norm(batched.gradient(batched.zero_control()), axis=1)
    reached = jnp.linalg.norm(batched.gradient(analysis.control), axis=1)
    assert analysis.converged.all()
    assert (reached <= 1.5 * tol * jnp.maximum(1.0, reference)).all()
    np.testing.assert_allclose(analysis.gradient_norm, reached, atol=tol)


def test_without_observations_the_iteration_is_finished_at_once(monkeypatch):
    monkeypatch.setattr(closed_form, "DENSE_LIMIT", 0)
    batched = posed(np.full((2, M), np.nan))
    analysis = solved(batched)
    np.testing.assert_allclose(analysis.state, batched.background, rtol=1e-6)
    assert analysis.converged.all()
    assert jnp.isfinite(analysis.state).all()


@pytest.mark.x64
@pytest.mark.parametrize("limit", [1024, 0], ids=["factorised", "iterated"])
def test_gradients_with_respect_to_the_data_are_those_of_the_gain(limit, monkeypatch):
    monkeypatch.setattr(closed_form, "DENSE_LIMIT", limit)
    weights = jnp.asarray(RANDOM.normal(size=N))

    def score(y):
        return jnp.sum(solved(posed(y), tol=1e-11).state[1] * weights)

    full = jnp.asarray(np.nan_to_num(Y))
    B, H = np.asarray(posed().covariance.as_matrix()), np.eye(N)[WHERE]
    gain = B @ H.T @ np.linalg.inv(H @ B @ H.T + 0.2 * np.eye(M))
    gradient = jax.grad(score)(full)
    np.testing.assert_allclose(gradient[1], gain.T @ weights, atol=1e-6)
    np.testing.assert_allclose(gradient[0], 0.0, atol=1e-12)
