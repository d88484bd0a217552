"""Windows on their own: cut from one truth, observed now and then, each analysed once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vardax.covariances.diagonal import DiagonalCovariance
from vardax.dynamics.lorenz96 import Lorenz96
from vardax.dynamics.rollout import rollout
from vardax.experiments.twin import Row
from vardax.experiments.windows import Windows, assimilate_windows, observe_windows, score_windows, simulate_windows
from vardax.models.optimal_interpolation import OptimalInterpolation
from vardax.models.strong_fourdvar import StrongFourDVar
from vardax.obs_operators.point import PointObs

N, ENTRIES, WINDOWS = 6, 5, 3
SEEN = np.array([0, 2, 4])


@pytest.fixture(scope="module")
def windows():
    forward, R = Lorenz96(N, dt=0.02), DiagonalCovariance(jnp.full(3, 0.25))
    truth = simulate_windows(
        jax.random.key(0), forward, jnp.full(N, 2.0), n_windows=WINDOWS, n_steps=ENTRIES - 1, gap=20, spin_up=50
    )
    y = observe_windows(jax.random.key(1), truth, PointObs(SEEN), R, every=2)
    return Windows(forward, PointObs(SEEN), R, SEEN, jnp.full(N, 2.3), truth, y)


def method(windows, cls, *forward):
    prior = DiagonalCovariance(jnp.full(N, 9.0))
    return cls(*forward, windows.obs_op, windows.prior_mean, prior, windows.obs_cov_op)


def test_windows_are_pieces_of_one_trajectory(windows):
    assert windows.truth.shape == (WINDOWS, ENTRIES, N)
    onwards = rollout(windows.forward, windows.truth[0, 0], 1, n_substeps=20)[1]
    np.testing.assert_allclose(windows.truth[1, 0], onwards, rtol=1e-3)
    np.testing.assert_allclose(rollout(windows.forward, windows.truth[2, 0], 4), windows.truth[2], rtol=1e-4)


def test_every_second_state_is_observed_with_the_right_noise(windows):
    seen = np.isfinite(np.asarray(windows.observations))
    np.testing.assert_array_equal(seen, np.broadcast_to((np.arange(ENTRIES) % 2 == 0)[None, :, None], seen.shape))
    noise = np.asarray(windows.observations[:, ::2]) - np.asarray(windows.truth[:, ::2][..., SEEN])
    assert 0.3 < noise.std() < 0.7
    placed = windows.in_state_space.reshape(windows.truth.shape)
    np.testing.assert_array_equal(placed[..., SEEN], windows.observations)
    assert np.isnan(placed[..., 1]).all()


def test_a_method_for_one_time_takes_each_state_alone(windows):
    row = Row("OptimalInterpolation", "", windows.forward, method(windows, OptimalInterpolation))
    estimate = assimilate_windows(windows, row)
    expected = np.full(windows.truth.shape, 2.3)
    expected[:, ::2][..., SEEN] += 9.0 / 9.25 * (np.asarray(windows.observations)[:, ::2] - 2.3)
    np.testing.assert_allclose(estimate.history.analysis, expected.reshape(-1, N), rtol=1e-4)
    assert estimate.history.n_observed.tolist() == [3] * 9  # states without observations are no analyses
    assert estimate.history.report.cost.shape == (9,)


def test_a_method_for_a_window_gets_it_whole(windows):
    model = method(windows, StrongFourDVar, windows.forward)
    estimate = assimilate_windows(windows, Row("StrongFourDVar", "", windows.forward, model, takes_window=True))
    states = estimate.history.analysis.reshape(windows.truth.shape)
    for window in states:
        np.testing.assert_allclose(rollout(windows.forward, jnp.asarray(window[0]), 4), window, rtol=1e-3, atol=1e-4)
    assert estimate.history.n_observed.tolist() == [9] * WINDOWS
    assert estimate.run_seconds > 0
    background = rollout(windows.forward, windows.prior_mean, 4)
    np.testing.assert_allclose(estimate.history.forecast[:ENTRIES], background, rtol=1e-5)


def test_rows_without_observations_and_the_scores(windows):
    rows = [
        Row("climatology", "", windows.forward),
        Row("background", "", windows.forward, takes_window=True),
        Row("OptimalInterpolation", "", windows.forward, method(windows, OptimalInterpolation)),
    ]
    results = score_windows(windows, rows, expected={}, left_out={}, watch=None)
    error = np.sqrt(np.mean((np.asarray(windows.truth) - 2.3) ** 2, axis=2)).mean()
    assert results.scores[0].rmse == pytest.approx(error, rel=1e-4)
    assert results.scores[2].rmse < results.scores[0].rmse
    assert results.scores[0].converged is None
    assert results.truth.shape == results.observations.shape == (WINDOWS * ENTRIES, N)
    np.testing.assert_allclose(results.time, 0.02 * np.arange(WINDOWS * ENTRIES))
