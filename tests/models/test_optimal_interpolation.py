"""Optimal interpolation: the closed form in control and observation space and by iteration, with its posterior."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vardax.covariances.dense import DenseCovariance
from vardax.covariances.diagonal import DiagonalCovariance
from vardax.covariances.matern import MaternLinearOperator
from vardax.minimisers import closed_form
from vardax.models.optimal_interpolation import OptimalInterpolation
from vardax.models.threedvar import ThreeDVar
from vardax.obs_operators.identity import MaskedIdentity
from vardax.obs_operators.interp import InterpObs
from vardax.obs_operators.linear import LinearObs
from vardax.obs_operators.point import PointObs
from vardax.types import Batch1D, Batch2D, Observations, Status

X64 = jax.config.jax_enable_x64
TIGHT = {"rtol": 1e-8, "atol": 1e-8} if X64 else {"rtol": 2e-3, "atol": 2e-3}
RANDOM = np.random.default_rng(2)


def dense_blue(B, R, H, x_b, y):
    """(analysis, posterior covariance) from the observed entries of y."""
    seen = np.isfinite(y)
    H, R, y = H[seen], R[np.ix_(seen, seen)], y[seen]
    gain = B @ H.T @ np.linalg.inv(H @ B @ H.T + R)
    return x_b + gain @ (y - H @ x_b), B - gain @ H @ B


def covariance(n):
    root = RANDOM.normal(size=(n, n))
    return root @ root.T / n + 0.5 * np.eye(n)


@pytest.mark.parametrize(("n", "m"), [(3, 7), (7, 3), (5, 5)], ids=["control space", "observation space", "square"])
def test_both_forms_are_the_dense_formula(n, m):
    B, R, H, x_b, y = (
        covariance(n),
        covariance(m),
        RANDOM.normal(size=(m, n)),
        RANDOM.normal(size=n),
        RANDOM.normal(size=m),
    )
    y[1] = np.nan
    model = OptimalInterpolation(LinearObs(H), x_b, DenseCovariance(B), DenseCovariance(R))
    batch = Batch1D.from_observations(y[None])
    analysis, posterior = model.analyse(batch), model.posterior(batch)
    state, cov = dense_blue(B, R, H, x_b, y)
    np.testing.assert_allclose(analysis.state[0], state, **TIGHT)
    np.testing.assert_allclose(posterior.std()[0], np.sqrt(np.diag(cov)), **TIGHT)
    np.testing.assert_allclose(posterior.cov.as_matrix(), cov, **TIGHT)
    assert analysis.n_iterations[0] == 1
    assert analysis.gradient_norm[0] <= (1e-10 if X64 else 1e-3)


def test_the_history_is_the_background_and_the_analysis():
    cov = DiagonalCovariance(jnp.ones(4))
    model = OptimalInterpolation(MaskedIdentity(), jnp.full(4, 3.0), cov, cov)
    analysis = model.analyse(Batch1D.from_observations([[5.0, 7.0, -9.0, -5.0]]))
    np.testing.assert_allclose(analysis.history.total[0], [114.0, 57.0], rtol=1e-6)
    np.testing.assert_allclose(analysis.cost.first.total, 114.0, rtol=1e-6)
    np.testing.assert_allclose([analysis.cost.last.J_b[0], analysis.cost.last.J_o[0]], 28.5, rtol=1e-6)
    np.testing.assert_allclose(analysis.state[0], [4.0, 5.0, -3.0, -1.0], rtol=1e-6)


# -- too large to factorise ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def large():
    """1200 controls and 1100 observations: beyond `DENSE_LIMIT` on both sides, with gaps."""
    n, m = 1200, 1100
    random = np.random.default_rng(0)
    where, y = np.sort(random.choice(n, m, replace=False)), random.normal(size=m)
    y[:60] = np.nan
    prior = MaternLinearOperator((n,), 5.0)
    model = OptimalInterpolation(PointObs(where), jnp.zeros(n), prior, DiagonalCovariance(np.full(m, 0.3)), tol=1e-6)
    batch = Batch1D.from_observations(y[None])
    dense = dense_blue(np.asarray(prior.as_matrix()), 0.3 * np.eye(m), np.eye(n)[where], np.zeros(n), y)
    return model, batch, dense


def test_a_large_problem_is_beyond_the_limit(large):
    posed = large[0].problem(large[1])
    assert posed.map_samples(lambda sample: jnp.asarray(closed_form.is_dense_case(sample))).item() is False


def test_the_iterative_form_is_the_dense_formula(large):
    model, batch, (state, _) = large
    analysis = model.analyse(batch)
    np.testing.assert_allclose(analysis.state[0], state, rtol=1e-3, atol=1e-4 if X64 else 1e-3)
    assert analysis.converged.all()
    assert analysis.n_iterations[0] > 1
    posed = model.problem(batch)
    norm = jnp.linalg.norm(posed.gradient(analysis.control))
    assert norm <= 2 * model.tol * max(1.0, float(jnp.linalg.norm(posed.gradient(posed.zero_control())))) + (
        0 if X64 else 1e-3
    )


@pytest.mark.slow
@pytest.mark.parametrize("max_steps", [1, 2, 5])
def test_a_truncated_iteration_is_better_than_the_background(large, max_steps):
    model, batch, _ = large
    model = model.with_(max_steps=max_steps, tol=1e-12)
    analysis, posed = model.analyse(batch), model.problem(batch)
    assert (analysis.n_iterations <= max_steps).all()
    assert (analysis.status == Status.MAX_STEPS).all()
    np.testing.assert_allclose(posed.cost(analysis.control), analysis.cost.last.total, rtol=1e-4)
    assert (posed.cost(analysis.control) < posed.cost(posed.zero_control())).all()


def test_the_posterior_of_a_large_problem_is_estimated_to_its_stated_error(large):
    model, batch, (_, cov) = large
    posterior = model.posterior(batch)
    v = np.random.default_rng(1).normal(size=cov.shape[0])
    np.testing.assert_allclose(posterior.cov.mv(jnp.asarray(v)[None])[0], cov @ v, rtol=1e-2, atol=1e-3)
    ratio = np.asarray(posterior.std()[0]) / np.sqrt(np.diag(cov))
    relative = 1 / np.sqrt(2 * posterior.cov.n_samples)
    assert abs(ratio.mean() - 1) < 0.02
    assert ratio.std() < 1.3 * relative


# -- fields, points, limits ------------------------------------------------------------------------------------------


def test_a_field_keeps_its_shape():
    prior = MaternLinearOperator((6, 5), 1.5)
    y = RANDOM.normal(size=(2, 1, 6, 5))
    y[0, 0, 2:4] = np.nan
    model = OptimalInterpolation(MaskedIdentity(), jnp.zeros((6, 5)), prior, DiagonalCovariance(np.full((6, 5), 0.2)))
    batch = Batch2D.from_observations(y)
    analysis, posterior = model.analyse(batch), model.posterior(batch)
    matrix = np.asarray(prior.as_matrix())
    for sample in range(2):
        state, cov = dense_blue(matrix, 0.2 * np.eye(30), np.eye(30), np.zeros(30), y[sample].ravel())
        np.testing.assert_allclose(analysis.state[sample].ravel(), state, **TIGHT)
        np.testing.assert_allclose(posterior.std()[sample].ravel(), np.sqrt(np.diag(cov)), **TIGHT)
    assert posterior.sample(jax.random.key(0), 3).shape == (2, 3, 6, 5)


def test_scattered_points_bring_their_positions_and_errors():
    grid = np.arange(8.0)
    positions, values, errors = np.array([0.5, 3.25, 6.0]), np.array([1.0, -1.0, 2.0]), np.array([0.1, 0.5, 0.2])
    obs = Observations(values, errors, 0.0, positions[:, None])
    prior = MaternLinearOperator((8,), 2.0, boundary="free")
    model = OptimalInterpolation(InterpObs([grid]), jnp.zeros(8), prior, DiagonalCovariance(np.ones(3)))
    H = np.zeros((3, 8))
    for row, position in enumerate(positions):
        left = int(position)
        H[row, left] += 1 - (position - left)
        H[row, min(left + 1, 7)] += position - left
    state, _ = dense_blue(np.asarray(prior.as_matrix()), np.diag(errors**2), H, np.zeros(8), values)
    np.testing.assert_allclose(model([obs])[0], state, **TIGHT)
    np.testing.assert_allclose(model([obs.pad_to(3)])[0], state, **TIGHT)


def test_thirty_days_of_points_compile_at_most_three_times(count_compilations):
    """30 counts in three buckets. What is counted is the analysis and what is compiled around it for a new shape."""
    random = np.random.default_rng(4)
    prior = MaternLinearOperator((8,), 2.0, boundary="free")

    def analyse(p):
        obs = Observations(random.normal(size=p), 0.5, 0.0, random.uniform(0, 7, size=(p, 1))).pad_to([4, 8, 16])
        size = obs.value.shape[0]
        model = OptimalInterpolation(InterpObs([np.arange(8.0)]), np.zeros(8), prior, DiagonalCovariance(np.ones(size)))
        return model([obs])

    counts = [1 + day % 16 for day in range(30)]
    with count_compilations() as compiled:
        states = [analyse(p) for p in counts]
    assert all(jnp.isfinite(state).all() for state in states)
    assert sum("_analyse" in name for name in compiled.names) == 3, compiled.names


def test_a_padded_point_has_no_influence():
    obs = Observations([1.0, 2.0], 0.5, 0.0, [[1.0], [2.5]])
    prior = MaternLinearOperator((8,), 2.0, boundary="free")

    def model(p):
        operator = InterpObs([np.arange(8.0)])
        return OptimalInterpolation(operator, np.zeros(8), prior, DiagonalCovariance(np.ones(p)))

    np.testing.assert_allclose(model(8)([obs.pad_to(8)]), model(2)([obs]), **TIGHT)


def test_perfect_and_useless_observations():
    prior, y = DenseCovariance(covariance(4)), RANDOM.normal(size=(1, 4))
    for variance, expected in ((1e-10 if X64 else 1e-5, y), (1e10 if X64 else 1e6, np.zeros((1, 4)))):
        model = OptimalInterpolation(MaskedIdentity(), np.zeros(4), prior, DiagonalCovariance(np.full(4, variance)))
        np.testing.assert_allclose(model(Batch1D.from_observations(y)), expected, atol=1e-3)


def test_it_is_the_minimum_that_3dvar_finds():
    prior, R, y = DenseCovariance(covariance(4)), DenseCovariance(covariance(3)), RANDOM.normal(size=(2, 3))
    slots = (LinearObs(RANDOM.normal(size=(3, 4))), RANDOM.normal(size=4), prior, R)
    batch = Batch1D.from_observations(y)
    closed, iterated = OptimalInterpolation(*slots).analyse(batch), ThreeDVar(*slots).analyse(batch)
    np.testing.assert_allclose(closed.state, iterated.state, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(closed.cost.last.total, iterated.cost.last.total, rtol=1e-5)
    np.testing.assert_allclose(closed.control, iterated.control, rtol=1e-3, atol=1e-3)


def test_chi_square_is_one_when_the_covariances_are_right():
    """2 J(x*) / p has mean 1 and variance 2 / p over realisations."""
    n, m, samples = 5, 3, 2000
    B, R, H = covariance(n), covariance(m), RANDOM.normal(size=(m, n))
    truth = RANDOM.multivariate_normal(np.zeros(n), B, size=samples)
    y = truth @ H.T + RANDOM.multivariate_normal(np.zeros(m), R, size=samples)
    model = OptimalInterpolation(LinearObs(H), np.zeros(n), DenseCovariance(B), DenseCovariance(R))
    chi_square = 2 * np.asarray(model.analyse(Batch1D.from_observations(y)).cost.last.total) / m
    assert abs(chi_square.mean() - 1) < 4 * np.sqrt(2 / m / samples)


@pytest.mark.slow
@pytest.mark.parametrize("count", [60, 150], ids=["fewer points than cells", "more points than cells"])
@pytest.mark.parametrize("boundary", ["periodic", "free"])
def test_a_covariance_by_fourier_transforms_is_factorised(boundary, count):
    """XLA on CPU once handed the order of a factorised matrix on to the transforms, which failed at this size."""
    rng, n = np.random.default_rng(0), 120
    prior, position = MaternLinearOperator((n,), 6.0, boundary=boundary), rng.uniform(0, n - 1, (count, 1))
    obs = Observations(rng.normal(size=count), 0.5, 0.0, position)
    model = OptimalInterpolation(InterpObs([np.arange(float(n))]), np.zeros(n), prior, None)
    H = np.stack([np.interp(np.asarray(obs.coords)[:, 0], np.arange(n), unit) for unit in np.eye(n)], axis=1)
    R = 0.25 * np.eye(count)
    state, cov = dense_blue(np.asarray(prior.as_matrix()), R, H, np.zeros(n), np.asarray(obs.value, float))
    posterior = model.posterior([obs])
    np.testing.assert_allclose(posterior.mean[0], state, **TIGHT)
    np.testing.assert_allclose(posterior.std()[0], np.sqrt(np.diag(cov)), **TIGHT)
