"""4DEnVar: `ThreeDVar` on the trajectory, with the covariance of an ensemble of trajectories, and no adjoint.

The oracles are the dense formula with the localised sample covariance, and strong 4D-Var where both must agree.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vardax
from vardax.covariances import (
    DiagonalCovariance,
    KroneckerCovariance,
    LocalizedEnsembleCovariance,
    MaternLinearOperator,
    half,
)
from vardax.dynamics import DiscreteForward, rollout

pytestmark = pytest.mark.x64

N, ENTRIES, MEMBERS = 12, 4, 6
SEEN = (slice(None), slice(0, None, 3))


@pytest.fixture(scope="module")
def rng():
    return np.random.default_rng(0)


@pytest.fixture(scope="module")
def members(rng):
    return jnp.asarray(2.0 + rng.standard_normal((MEMBERS, ENTRIES, N)).cumsum(1))


@pytest.fixture(scope="module")
def localisation():
    return MaternLinearOperator((N,), length_scale=2.0, nu=np.inf)


def dense(members, localisation):
    """C ∘ (A Aᵀ) over the flattened trajectory: C in space, one in time."""
    anomalies = np.asarray(members).reshape(MEMBERS, -1)
    anomalies = anomalies - anomalies.mean(0)
    in_time = np.ones((ENTRIES, ENTRIES))
    return np.kron(in_time, np.asarray(localisation.as_matrix())) * (anomalies.T @ anomalies / (MEMBERS - 1))


def method(members, B, obs_op=None):
    observe = vardax.CallableObs(lambda states: states[SEEN]) if obs_op is None else obs_op
    R = DiagonalCovariance(jnp.full((ENTRIES, N // 3), 0.3))
    return vardax.ThreeDVar(observe, members.mean(0), B, R, tol=1e-12)


def test_linear_observations_give_the_dense_analysis(members, localisation, rng):
    y = jnp.asarray(rng.normal(2.0, 1.0, (ENTRIES, N // 3)))
    model = method(members, LocalizedEnsembleCovariance(members, localisation))
    found = model.analyse_one(y)
    B = dense(members, localisation)
    H = np.eye(ENTRIES * N).reshape(ENTRIES, N, -1)[SEEN].reshape(-1, ENTRIES * N)
    x_b = np.asarray(members.mean(0)).ravel()
    gain = B @ H.T @ np.linalg.inv(H @ B @ H.T + 0.3 * np.eye(len(H)))
    expected = x_b + gain @ (np.asarray(y).ravel() - H @ x_b)
    assert bool(found.converged)
    np.testing.assert_allclose(found.state.ravel(), expected, atol=1e-8)
    std = model.posterior(vardax.Batch2D.from_observations(y[None])).std()[0]
    np.testing.assert_allclose(std.ravel() ** 2, np.diag(B - gain @ H @ B), atol=1e-8)


def test_nonlinear_observations_end_where_the_dense_gradient_vanishes(members, localisation, rng):
    """x - x_b = B H'(x)ᵀ R⁻¹ (y - H(x)), with B of dense algebra."""
    square = vardax.CallableObs(lambda states: states[SEEN] ** 2)
    y = jnp.asarray(rng.normal(5.0, 1.0, (ENTRIES, N // 3)))
    x = method(members, LocalizedEnsembleCovariance(members, localisation), square).analyse_one(y).state
    weighted = jnp.zeros_like(x).at[SEEN].set(2.0 * x[SEEN] * (y - x[SEEN] ** 2) / 0.3)
    expected = dense(members, localisation) @ np.asarray(weighted).ravel()
    np.testing.assert_allclose((x - members.mean(0)).ravel(), expected, atol=1e-6)
    assert np.abs(expected).max() > 0.1


def test_localisation_in_time_is_a_kronecker_product(members, localisation):
    """Where correlations are to fade with time as well."""
    in_time = MaternLinearOperator((ENTRIES,), length_scale=3.0, nu=np.inf, boundary="free")
    faded = LocalizedEnsembleCovariance(members, KroneckerCovariance(in_time, localisation))
    fading = np.kron(np.asarray(in_time.as_matrix()), np.ones((N, N)))
    np.testing.assert_allclose(faded.as_matrix(), fading * dense(members, localisation), atol=1e-12)


def test_an_ensemble_that_spans_B_gives_strong_4dvar_of_a_linear_model(rng):
    """Members x_b ± √(m - 1) / √2 · the columns of B^{1/2}, run by the model: their sample covariance is M B Mᵀ."""
    M = np.linalg.qr(rng.standard_normal((N, N)))[0] + 0.1 * rng.standard_normal((N, N))
    model = DiscreteForward(lambda x: jnp.asarray(M) @ x, 1.0)
    B = MaternLinearOperator((N,), length_scale=1.5, sigma=0.8)
    columns = half(B).as_matrix()
    count, x_b = 2 * columns.shape[1], jnp.asarray(rng.standard_normal(N))
    shifts = np.sqrt((count - 1) / 2) * np.concatenate([columns.T, -columns.T])
    trajectories = jax.vmap(lambda x: rollout(model, x, ENTRIES - 1))(jnp.asarray(np.asarray(x_b) + shifts))
    y = jnp.asarray(rng.standard_normal((ENTRIES, N // 3)))
    ensemble = method(trajectories, LocalizedEnsembleCovariance(trajectories, None)).analyse_one(y)
    R = DiagonalCovariance(jnp.full(N // 3, 0.3))
    strong = vardax.StrongFourDVar(model, vardax.PointObs(jnp.arange(0, N, 3)), x_b, B, R, tol=1e-12).analyse_one(y)
    np.testing.assert_allclose(ensemble.state, strong.trajectory, atol=1e-7)
    np.testing.assert_allclose(ensemble.cost.last.total, strong.cost.last.total, rtol=1e-10)
