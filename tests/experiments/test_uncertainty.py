"""What a row expects of its errors is its posterior, and how often it is right is counted against the truth."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vardax.covariances.diagonal import DiagonalCovariance
from vardax.dynamics.lorenz96 import Lorenz96
from vardax.experiments.twin import Row, assimilate, climatology_forward, simulate
from vardax.experiments.uncertainty import uncertainty_of_cycles, uncertainty_of_windows
from vardax.experiments.windows import Windows
from vardax.models.optimal_interpolation import OptimalInterpolation
from vardax.models.strong_fourdvar import StrongFourDVar
from vardax.obs_operators.identity import MaskedIdentity
from vardax.obs_operators.point import PointObs

N = 6


@pytest.fixture(scope="module")
def twin():
    R = DiagonalCovariance(jnp.full(N, 0.5))
    start = {"first_guess": jnp.ones(N), "x0_variance": 0.1, "n_cycles": 12}
    return simulate(jax.random.key(0), Lorenz96(N), MaskedIdentity(), R, **start)


def slots(twin):
    return twin.obs_op, twin.first_guess, DiagonalCovariance(jnp.ones(N)), twin.obs_cov_op


def test_of_one_time_it_is_that_of_the_posterior(twin):
    """B = I and R = 0.5 I, all observed: P = I / 3."""
    estimate = assimilate(twin, Row("OptimalInterpolation", "", twin.forward, OptimalInterpolation(*slots(twin))))
    found = uncertainty_of_cycles(twin, estimate, 2)
    assert found.spread == pytest.approx(np.sqrt(1 / 3), rel=1e-5)
    error = np.abs(estimate.history.analysis - np.asarray(twin.truth[1:]))[2:]
    assert found.coverage == pytest.approx(np.mean(error <= 1.6448536 * np.sqrt(1 / 3)), abs=1e-6)


def test_of_a_window_it_is_that_of_its_end(twin):
    model = StrongFourDVar(twin.forward, *slots(twin))
    estimate = assimilate(twin, Row("StrongFourDVar", "", twin.forward, model, takes_window=True))
    found = uncertainty_of_cycles(twin, estimate, 1)
    variances = []
    jacobian = jax.jit(jax.jacobian(lambda x: twin.forward.step(x, twin.forward.dt)))
    for start in estimate.history.analysis[:-1]:
        # The linear oracle at the background: (M Mᵀ)^-1 and R^-1 added.
        M = np.asarray(jacobian(jnp.asarray(start)))
        variances.append(np.diag(np.linalg.inv(np.linalg.inv(M @ M.T) + 2 * np.eye(N))))
    assert found.spread == pytest.approx(np.sqrt(np.mean(variances)), rel=0.03)
    error = np.abs(estimate.history.analysis - np.asarray(twin.truth[1:]))[1:]
    assert found.coverage == pytest.approx(np.mean(error <= 1.645 * np.sqrt(variances)), abs=0.05)


def test_a_row_without_a_method_says_its_spread_itself(twin):
    free = Row("climatology", "", climatology_forward(twin), spread=2.0)
    assert uncertainty_of_cycles(twin, assimilate(twin, free), 1) == (2.0, None)


@pytest.mark.slow
def test_single_windows_drawn_from_the_prior_are_covered_as_they_say():
    """Truths from N(mean, B), as the method believes: 90 % within the limits of 20 windows, and the right spread."""
    forward, R, B = Lorenz96(N, dt=0.02), DiagonalCovariance(jnp.full(2, 0.25)), DiagonalCovariance(jnp.full(N, 0.04))
    obs_op, mean, entries = PointObs(np.array([0, 3])), 2.0 + jnp.arange(N) / 3, 3
    for_start, for_noise = jax.random.split(jax.random.key(5))
    starts = mean[None] + B.sample(for_start, 20)
    truth = jnp.stack([starts, *_steps(forward, starts, entries - 1)], axis=1)
    y = jax.vmap(jax.vmap(obs_op))(truth) + R.sample(for_noise, 20 * entries).reshape(20, entries, 2)
    windows = Windows(forward, obs_op, R, np.array([0, 3]), mean, truth, y)
    whole = Row("StrongFourDVar", "", forward, StrongFourDVar(forward, obs_op, mean, B, R), takes_window=True)
    alone = Row("OptimalInterpolation", "", forward, OptimalInterpolation(obs_op, mean, B, R))
    found = uncertainty_of_windows(windows, whole)
    assert found.coverage == pytest.approx(0.9, abs=0.06)
    posterior = 1 / (1 / 0.04 + 1 / 0.25)
    assert uncertainty_of_windows(windows, alone).spread == pytest.approx(
        np.sqrt((2 * posterior + 4 * 0.04) / 6), rel=1e-4
    )
    assert found.spread < np.sqrt((2 * posterior + 4 * 0.04) / 6)
    assert uncertainty_of_windows(windows, Row("climatology", "", forward)) == (None, None)


def _steps(forward, states, n):
    for _ in range(n):
        states = jax.vmap(lambda x: forward.step(x, forward.dt))(states)
        yield states
