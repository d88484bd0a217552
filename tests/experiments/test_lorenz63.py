"""The Lorenz-63 experiment: settings of the paper, one step of its model is an interval, scores in reach."""

import dataclasses

import numpy as np
import pytest

from vardax import models
from vardax.dynamics.lorenz63 import Lorenz63
from vardax.experiments import lorenz63
from vardax.experiments.config import ConfigError
from vardax.experiments.lorenz63 import EXPECTED, QUICK, Lorenz63Config, expected_scores
from vardax.experiments.lorenz63_twin import make_twin

TINY = Lorenz63Config(cycles=12, burn_in=0.5, precision="float32")


@pytest.fixture(scope="module")
def quick():
    """The results of `--quick`."""
    return lorenz63.run(Lorenz63Config(**QUICK))


def scores(results):
    return {score.name: score for score in results.scores}


def test_the_settings_are_those_of_the_paper():
    config = Lorenz63Config()
    assert (config.dt, config.steps, config.x0_variance, config.obs_variance) == (0.01, 25, 2.0, 2.0)
    assert (config.xB, config.first_scored) == (0.1, 64)


def test_the_twin_steps_from_one_observation_to_the_next():
    twin = make_twin(TINY)
    assert twin.truth.shape == (13, 3)
    assert twin.forward.dt == 0.25
    state = twin.truth[0]
    for _ in range(25):
        state = Lorenz63().step(state, 0.01)
    np.testing.assert_allclose(twin.truth[1], state, rtol=1e-4)
    noise = np.asarray(make_twin(dataclasses.replace(TINY, cycles=500)).observations) - np.asarray(
        make_twin(dataclasses.replace(TINY, cycles=500)).truth[1:]
    )
    assert noise.std() == pytest.approx(np.sqrt(2.0), rel=0.06)


@pytest.mark.slow
def test_a_short_run_has_every_method_and_scores_in_reach(quick):
    found = scores(quick)
    exported = {name for name in models.__all__ if hasattr(getattr(models, name), "as_analysis_step")}
    assert {name for name in exported if not name.startswith("Abstract")} <= {*found, *quick.left_out}
    for name, reach in {"climatology": 1.0, "OptimalInterpolation": 0.1, "ThreeDVar": 0.25}.items():
        assert found[name].rmse == pytest.approx(EXPECTED[name].measured, abs=reach)
    order = ["StrongFourDVar", "ThreeDVar", "OptimalInterpolation", "climatology", "background"]
    ordered = [found[name].rmse for name in order]
    assert ordered == sorted(ordered)
    assert found["WeakFourDVar"].rmse == pytest.approx(found["StrongFourDVar"].rmse, abs=0.05)


def test_expected_scores_belong_to_long_runs_with_the_default_settings():
    assert expected_scores(Lorenz63Config(seed=5, cycles=5000)) is EXPECTED
    assert expected_scores(Lorenz63Config(xB=0.2)) == {}
    assert expected_scores(Lorenz63Config(cycles=4999)) == {}


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"cycles": 60}, r"cycles is 60, expected more than 64: the first 16 units of time \(64 cycles\)"),
        ({"steps": 0}, "steps is 0, expected a positive number"),
        ({"seed": -1}, "burn_in and seed must not be negative"),
    ],
)
def test_settings_that_make_no_sense_are_refused(values, words):
    with pytest.raises(ConfigError, match=words):
        Lorenz63Config(**values)


@pytest.mark.slow
def test_the_full_run_reproduces_the_scores():
    """DAPPER's scores within four standard errors of the two together; 0.02 where none is stated."""
    for name, score in scores(lorenz63.run(Lorenz63Config())).items():
        if name in EXPECTED and name != "climatology":
            ours, theirs = score.rmse_half_width / 1.96, EXPECTED[name].standard_error or 0.005
            assert score.rmse == pytest.approx(EXPECTED[name].measured, abs=4 * np.hypot(ours, theirs)), name
