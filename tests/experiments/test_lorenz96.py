"""The Lorenz-96 experiment: settings of the paper, rows that are the algorithms, scores in reach."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vardax import models
from vardax.experiments import lorenz96
from vardax.experiments.config import ConfigError
from vardax.experiments.cycled import make_rows
from vardax.experiments.lorenz96 import EXPECTED, Lorenz96Config, expected_scores
from vardax.experiments.lorenz96_twin import make_twin
from vardax.experiments.twin import assimilate

TINY = Lorenz96Config(cycles=12, burn_in=0.2)


@pytest.fixture(scope="module")
def full():
    """The results of a run without options: programs cost more than cycles, so a shorter one would save little."""
    return lorenz96.run(Lorenz96Config())


@pytest.fixture
def twin():
    with jax.enable_x64(True):
        yield make_twin(TINY)


def scores(results):
    return {score.name: score for score in results.scores}


def numpy_step(x, dt=0.05, forcing=8.0):
    """One step of the paper's model, written out."""

    def slope(x):
        return (np.roll(x, -1) - np.roll(x, 2)) * np.roll(x, 1) - x + forcing

    a = slope(x)
    b = slope(x + dt / 2 * a)
    c = slope(x + dt / 2 * b)
    return x + dt / 6 * (a + 2 * b + 2 * c + slope(x + dt * c))


def test_the_settings_are_those_of_the_paper():
    config = Lorenz96Config()
    assert (config.n, config.forcing, config.dt, config.x0_variance, config.obs_variance) == (40, 8.0, 0.05, 0.001, 1.0)
    assert (config.cycles, config.burn_in, config.first_scored, config.xB) == (10_000, 20.0, 400, 0.02)


def test_the_twin_is_what_the_settings_say(twin):
    truth = np.asarray(twin.truth)
    assert truth.shape == (13, 40)
    assert twin.observations.shape == (12, 40)
    assert np.abs(truth[0] - np.eye(40)[0]).max() < 0.2
    for before, after in zip(truth, truth[1:], strict=False):
        np.testing.assert_allclose(after, numpy_step(before), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(twin.mean, truth.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(twin.covariance, np.cov(truth.T), rtol=1e-10, atol=1e-12)
    noise = np.asarray(twin.observations) - truth[1:]
    assert noise.std() == pytest.approx(1.0, abs=0.1)


def test_the_seed_decides_everything():
    first, again, other = (make_twin(dataclasses.replace(TINY, precision="float32", seed=s)) for s in (1, 1, 2))
    np.testing.assert_array_equal(first.observations, again.observations)
    assert not np.allclose(first.observations, other.observations)


def row_of(twin, name):
    rows, _ = make_rows(TINY, twin)
    return next(row for row in rows if row.name == name)


def test_optimal_interpolation_starts_from_the_climatology(twin):
    C, mean, y = np.asarray(twin.covariance), np.asarray(twin.mean), np.asarray(twin.observations)
    history = assimilate(twin, row_of(twin, "OptimalInterpolation")).history
    gain = C @ np.linalg.inv(C + np.eye(40))
    np.testing.assert_allclose(history.forecast, np.broadcast_to(mean, y.shape), rtol=1e-12)
    np.testing.assert_allclose(history.analysis, mean + (y - mean) @ gain.T, rtol=1e-7, atol=1e-8)


def test_three_d_var_is_the_cycled_kalman_gain(twin):
    B = 0.02 * np.asarray(twin.covariance)
    gain, state, expected = B @ np.linalg.inv(B + np.eye(40)), np.asarray(twin.first_guess), []
    for y in np.asarray(twin.observations):
        forecast = numpy_step(state)
        state = forecast + gain @ (y - forecast)
        expected.append(state)
    history = assimilate(twin, row_of(twin, "ThreeDVar")).history
    np.testing.assert_allclose(history.analysis, expected, rtol=1e-4, atol=1e-4)


def test_four_d_var_is_the_gauss_newton_loop_over_windows_of_one_interval(twin):
    """Lag 1: B at the previous analysis time, one observation at the end of the window."""
    B, state, expected = 0.02 * np.asarray(twin.covariance), np.asarray(twin.first_guess), []
    jacobian = jax.jit(jax.jacobian(lambda x: twin.forward.step(x, twin.forward.dt)))
    for y in np.asarray(twin.observations):
        start = state
        for _ in range(20):
            M = np.asarray(jacobian(jnp.asarray(start)))
            residual = y - numpy_step(start) - M @ (state - start)
            start = state + B @ M.T @ np.linalg.solve(M @ B @ M.T + np.eye(40), residual)
        state = numpy_step(start)
        expected.append(state)
    estimate = assimilate(twin, row_of(twin, "StrongFourDVar"))
    np.testing.assert_allclose(estimate.history.analysis, expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(estimate.history.time, 0.05 * np.arange(1, 13), rtol=1e-12)


def test_rows_without_observations_see_none(twin):
    free, mean = np.asarray(twin.first_guess), np.asarray(twin.mean)
    climatology = assimilate(twin, row_of(twin, "climatology"))
    np.testing.assert_allclose(climatology.history.analysis, np.broadcast_to(mean, (12, 40)), rtol=1e-12)
    background = assimilate(twin, row_of(twin, "background")).history
    for state in background.analysis:
        free = numpy_step(free)
        np.testing.assert_allclose(state, free, rtol=1e-10, atol=1e-10)
    assert background.report is None
    assert climatology.row.spread == pytest.approx(np.sqrt(np.mean(np.var(np.asarray(twin.truth), axis=0, ddof=1))))


def test_a_run_is_repeatable():
    config = Lorenz96Config(cycles=30, burn_in=0.5, methods=("OptimalInterpolation",), precision="float32")
    first, second = lorenz96.run(config), lorenz96.run(config)
    assert [e.row.name for e in first.estimates] == ["climatology", "background", "OptimalInterpolation"]
    for a, b in zip(first.estimates, second.estimates, strict=True):
        np.testing.assert_array_equal(a.history.analysis, b.history.analysis)
        assert a.history.analysis.dtype == np.float32


def test_expected_scores_belong_to_long_runs_with_the_default_settings():
    assert expected_scores(Lorenz96Config(seed=5, cycles=5000, precision="float32")) is EXPECTED
    assert expected_scores(Lorenz96Config(forcing=10.0)) == {}
    assert expected_scores(Lorenz96Config(cycles=4999)) == {}


BAD = {
    "too short": ({"cycles": 400}, r"cycles is 400, expected more than 400: the first 20 units of time \(400 cycles\)"),
    "no time step": ({"dt": 0.0}, "dt is 0.0, expected a positive number"),
    "a negative variance": ({"obs_variance": -1.0}, "obs_variance is -1.0, expected a positive"),
    "a negative seed": ({"seed": -1}, "burn_in and seed must not be negative"),
}


@pytest.mark.parametrize("case", BAD)
def test_settings_that_make_no_sense_are_refused(case):
    values, words = BAD[case]
    with pytest.raises(ConfigError, match=words):
        Lorenz96Config(**values)


def test_an_unknown_method_is_refused():
    config = dataclasses.replace(TINY, methods=("ThreDVar",), precision="float32")
    with pytest.raises(ConfigError, match="unknown method 'ThreDVar'; did you mean 'ThreeDVar'"):
        lorenz96.run(config)


# -- a full run ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_every_exported_method_has_a_row(full):
    assert {"climatology", "background", *full.left_out} | set(models.__all__) >= set(scores(full))
    assert {"OptimalInterpolation", "ThreeDVar", "StrongFourDVar"} <= set(scores(full))


@pytest.mark.slow
def test_a_latent_method_in_all_eofs_scores_as_its_sibling(full):
    found = scores(full)
    siblings = {"LatentThreeDVar": "ThreeDVar"} | dict.fromkeys(
        ("LatentStrongFourDVar", "LatentHybridFourDVar"), "StrongFourDVar"
    )
    for name, sibling in siblings.items():
        assert found[name].rmse == pytest.approx(found[sibling].rmse, rel=0.01)


@pytest.mark.slow
def test_better_methods_have_better_scores(full):
    found = scores(full)
    assert 0.33 < found["StrongFourDVar"].rmse < found["ThreeDVar"].rmse < 0.6
    order = ["StrongFourDVar", "ThreeDVar", "OptimalInterpolation", "climatology", "background"]
    ordered = [found[name].rmse for name in order]
    assert ordered == sorted(ordered)


@pytest.mark.slow
def test_methods_know_how_wrong_they_are(full):
    """Spread and chi-square agree with the errors as far as the settings, which are not the truth, let them."""
    found = scores(full)
    for name in ("OptimalInterpolation", "ThreeDVar", "StrongFourDVar"):
        assert found[name].spread == pytest.approx(found[name].rmse, rel=0.25)
        assert found[name].chi_square == pytest.approx(1.0, abs=0.15)
        assert found[name].converged == 1.0
        assert found[name].forecast_rmse > found[name].rmse
    assert found["OptimalInterpolation"].chi_square == pytest.approx(1.0, abs=0.03)
    assert found["climatology"].spread == pytest.approx(found["climatology"].rmse, rel=0.03)
    assert found["background"].spread is found["background"].chi_square is None


@pytest.mark.slow
def test_the_full_run_reproduces_the_scores(full):
    """DAPPER's measured scores within four standard errors of the two together."""
    for name, score in scores(full).items():
        if name in EXPECTED:
            ours, theirs = score.rmse_half_width / 1.96, EXPECTED[name].standard_error or 0.005
            assert score.rmse == pytest.approx(EXPECTED[name].measured, abs=4 * np.hypot(ours, theirs))
