"""The two-level experiment: the settings of the reference, every method a row, errors at or below the stated ones."""

import dataclasses

import numpy as np
import pytest

from vardax import models
from vardax.experiments import lorenz96_two_level as experiment
from vardax.experiments.config import ConfigError
from vardax.experiments.lorenz96_two_level import EXPECTED, TwoLevelConfig, expected_scores
from vardax.experiments.lorenz96_two_level_windows import make_rows, make_windows
from vardax.experiments.report import write_report

SMALL = TwoLevelConfig(cycles=3, precision="float32")


def scores(results):
    return {score.name: score for score in results.scores}


def test_the_settings_are_those_of_the_reference():
    config = TwoLevelConfig()
    assert (config.K, config.J, config.forcing, config.dt, config.steps) == (8, 8, 20.0, 0.005, 40)
    assert (config.every, config.every_variable, config.obs_error) == (4, 2, 0.5)


def test_the_windows_are_what_the_settings_say():
    windows, variances = make_windows(SMALL)
    assert windows.truth.shape == (3, 41, 72)
    assert windows.observations.shape == (3, 41, 4)
    assert windows.observed.tolist() == [0, 2, 4, 6]
    assert int(np.isfinite(windows.observations).sum()) == 3 * 11 * 4
    slow, fast = windows.prior_mean[0], windows.prior_mean[-1]
    np.testing.assert_allclose([slow, fast], [3.6, 0.1], rtol=0.2)  # of long runs
    np.testing.assert_allclose(np.sqrt([variances[0], variances[-1]]), [7.1, 0.38], rtol=0.1)
    other, _ = make_windows(dataclasses.replace(SMALL, seed=1))
    assert not np.allclose(other.truth, windows.truth)


def test_every_exported_method_has_a_row_or_says_what_it_lacks():
    windows, variances = make_windows(SMALL)
    rows, left_out = make_rows(SMALL, windows, variances)
    names = {name for name in models.__all__ if hasattr(getattr(models, name), "as_analysis_step")}
    assert {name for name in names if not name.startswith("Abstract")} == {
        *(row.name for row in rows),
        *left_out,
    } - {"climatology", "background"}
    assert {"StrongFourDVar", "IncrementalFourDVar", "WeakFourDVar"} <= {r.name for r in rows if r.takes_window}


def test_a_few_windows_run_and_are_reported(tmp_path):
    config = dataclasses.replace(SMALL, precision="float64", methods=("OptimalInterpolation",))
    results = experiment.run(config)
    found = scores(results)
    assert found["OptimalInterpolation"].rmse < found["climatology"].rmse
    assert all(np.isfinite(e.history.analysis).all() for e in results.estimates)
    assert results.truth.dtype == np.float64
    assert results.observations.shape == results.truth.shape == (3 * 41, 72)
    files = {path.name for path in write_report(tmp_path / "run", "lorenz96-two-level", config, results)}
    assert {"metrics.json", "table.txt", "analysis.nc", "states.png"} <= files


def test_expected_scores_belong_to_the_default_settings():
    assert expected_scores(TwoLevelConfig(seed=5, cycles=60)) is EXPECTED
    assert expected_scores(TwoLevelConfig(forcing=10.0)) == {}
    assert expected_scores(TwoLevelConfig(cycles=6)) == {}


@pytest.mark.parametrize(
    ("values", "words"),
    [({"every": 0}, "every is 0, expected a positive number"), ({"cycles": 1}, "cycles must be at least 2 windows")],
)
def test_settings_that_make_no_sense_are_refused(values, words):
    with pytest.raises(ConfigError, match=words):
        TwoLevelConfig(**values)


@pytest.mark.slow
def test_errors_are_at_or_below_the_stated_ones_and_nothing_diverges():
    """20 windows; what we measured over 200 within four standard errors."""
    results = experiment.run(TwoLevelConfig(cycles=20, seed=2))
    found = scores(results)
    assert found["StrongFourDVar"].rmse < found["IncrementalFourDVar"].rmse < found["OptimalInterpolation"].rmse
    for name, score in found.items():
        assert np.isfinite(score.rmse), name
        if name in EXPECTED:
            stated, measured = EXPECTED[name].stated, EXPECTED[name].measured
            error = np.hypot(score.rmse_half_width / 1.96, EXPECTED[name].standard_error)
            assert score.rmse == pytest.approx(measured, abs=4 * error), name
            assert stated is None or score.rmse <= stated, name
