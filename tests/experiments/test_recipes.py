"""A method joins the table by being exported, and by nothing else."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vardax import models
from vardax.experiments import lorenz96
from vardax.experiments.lorenz96 import Lorenz96Config
from vardax.experiments.recipes import exported_methods, lacking_slots

CONFIG = Lorenz96Config(cycles=20, burn_in=0.5, precision="float32")


@dataclasses.dataclass(frozen=True)
class Halfway:
    """A method of the future: halfway between forecast and observations."""

    obs_op: object
    prior_mean: object
    prior_cov_op: object
    obs_cov_op: object
    weight: float = 0.5

    def as_analysis_step(self):
        return lambda forecast, obs, *, obs_op, obs_err_cov: forecast + self.weight * (obs - forecast)


@dataclasses.dataclass(frozen=True)
class WindowEnd:
    """A method of the future with a window: the state at its end is the last entry."""

    forward: object
    obs_op: object

    def as_analysis_step(self):
        return lambda forecast, obs, *, obs_op, obs_err_cov: obs[-1]


@dataclasses.dataclass(frozen=True)
class Learned:
    """A method that the experiment cannot fill."""

    prior: object
    obs_op: object
    grad_mod: object

    def as_analysis_step(self):
        return lambda forecast, obs, *, obs_op, obs_err_cov: forecast


@dataclasses.dataclass(frozen=True)
class Untrained(Learned):
    """One that could make networks of its own, which nobody has trained."""

    prior: object = None
    obs_op: object = None
    grad_mod: object = None


@pytest.fixture
def exported(monkeypatch):
    """Export a class from `vardax.models`."""

    def export(method):
        monkeypatch.setattr(models, method.__name__, method, raising=False)
        monkeypatch.setattr(models, "__all__", [*models.__all__, method.__name__])

    return export


def test_the_methods_are_the_exported_classes_with_an_analysis_step():
    found = exported_methods()
    assert {"OptimalInterpolation", "ThreeDVar", "StrongFourDVar"} <= set(found)
    assert set(found) <= set(models.__all__)
    assert all(hasattr(method, "as_analysis_step") for method in found.values())


def test_a_configuration_class_is_no_method(monkeypatch):
    monkeypatch.setattr(models, "SomeConfig", type("SomeConfig", (), {}), raising=False)
    monkeypatch.setattr(models, "__all__", [*models.__all__, "SomeConfig"])
    assert "SomeConfig" not in exported_methods()


@pytest.mark.parametrize("method", [Halfway, WindowEnd])
def test_a_new_method_has_a_row(method, exported):
    exported(method)
    results = lorenz96.run(dataclasses.replace(CONFIG, methods=(method.__name__,)))
    row = results.estimates[-1]
    assert row.row.name == method.__name__
    if method is WindowEnd:
        np.testing.assert_allclose(row.history.analysis, results.observations, rtol=1e-6)
    else:
        halfway = (row.history.forecast + results.observations) / 2
        np.testing.assert_allclose(row.history.analysis, halfway, rtol=1e-5, atol=1e-6)
    score = results.scores[-1]
    assert np.isfinite(score.rmse)
    assert score.iterations is score.chi_square is score.spread is None


@pytest.mark.parametrize("method", [Learned, Untrained])
def test_a_method_that_needs_more_is_named(method, exported):
    exported(method)
    results = lorenz96.run(dataclasses.replace(CONFIG, methods=(method.__name__,)))
    assert results.left_out == {method.__name__: ["prior", "grad_mod"]}
    assert [score.name for score in results.scores] == ["climatology", "background"]
    assert lacking_slots(Halfway, {"obs_op": 1, "prior_mean": 1, "prior_cov_op": 1}) == ["obs_cov_op"]


def test_a_method_that_blows_up_is_a_row_of_nan(exported):
    class Broken(Halfway):
        def as_analysis_step(self):
            return lambda forecast, obs, *, obs_op, obs_err_cov: forecast * jnp.nan

    exported(Broken)
    score = lorenz96.run(dataclasses.replace(CONFIG, methods=("Broken",))).scores[-1]
    assert np.isnan(score.rmse)
    assert jax.config.jax_enable_x64 in (True, False)
