"""A right posterior passes simulation-based calibration; each seeded miscalibration fails, with the right words."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vardax.covariances import DenseCovariance, DiagonalCovariance
from vardax.models import OptimalInterpolation
from vardax.obs_operators import PointObs
from vardax.types import Batch1D
from vardax.validation import ValidationError, simulation_based_calibration

N, SEEN = 5, [0, 2, 3]
DISTANCE = np.abs(np.subtract.outer(np.arange(N), np.arange(N)))
B = np.exp(-DISTANCE / 2)
R = 0.2 * np.exp(-np.abs(np.subtract.outer(np.arange(3), np.arange(3))))
METHOD = OptimalInterpolation(PointObs(SEEN), jnp.asarray(np.zeros(N)), DenseCovariance(B), DenseCovariance(R))
LIKE = Batch1D.from_observations(np.array([[0.0, np.nan, 0.0]]))

WRONG = {
    "the posterior is too wide": {"prior_cov_op": DenseCovariance(1.5 * B)},
    "the posterior is too narrow": {"prior_cov_op": DenseCovariance(B / 1.5)},
    "the posterior lies too high": {"prior_mean": jnp.asarray(np.full(N, 0.4))},
    "narrow": {"obs_cov_op": DenseCovariance(R / 3)},
}


def test_the_right_posterior_passes_and_the_same_key_gives_the_same_ranks():
    report = simulation_based_calibration(METHOD, LIKE)
    assert report, str(report)
    assert report.raise_if_failed() is report
    assert list(report.ranks) == ["x[0]", "x[1]", "x[2]", "x[3]", "x[4]"]
    assert {name: r.shape for name, r in report.ranks.items()} == dict.fromkeys(report.ranks, (1000,))
    again = simulation_based_calibration(METHOD, LIKE)
    np.testing.assert_array_equal(again.ranks["x[1]"], report.ranks["x[1]"])
    other = simulation_based_calibration(METHOD, LIKE, key=jax.random.key(1))
    assert other.passed
    assert not np.array_equal(other.ranks["x[1]"], report.ranks["x[1]"])


@pytest.mark.parametrize("words", WRONG)
def test_a_seeded_miscalibration_fails(words):
    report = simulation_based_calibration(METHOD.with_(**WRONG[words]), LIKE, generator=METHOD)
    assert not report
    assert words in report.verdict
    with pytest.raises(ValidationError, match="simulation_based_calibration of OptimalInterpolation"):
        report.raise_if_failed()


class Draws(eqx.Module):
    """Draws from N(y / 2, spread² / 2), for spread 1 the posterior of x ~ N(0, 1) observed with variance 1."""

    spread: jax.Array = eqx.field(default=1.0, converter=jnp.asarray)
    limit: jax.Array = eqx.field(default=np.inf, converter=jnp.asarray)

    def __call__(self, key, batch, n):
        mean = batch.input[:, :1] / 2
        noise = jax.random.normal(key, (mean.shape[0], n, 1), mean.dtype)
        return jnp.where(mean > self.limit, jnp.nan, mean)[:, None] + self.spread * jnp.sqrt(0.5) * noise


ONE = DiagonalCovariance(jnp.ones(1))
OPTIONS = {
    "generator": OptimalInterpolation(PointObs([0]), jnp.zeros(1), ONE, ONE),
    "statistics": {"square": lambda x: x[0] ** 2, "coin": lambda x: jnp.zeros(())},
    "n_simulations": 500,
}
MANY = Batch1D.from_observations(jnp.zeros((60, 1)))


def test_any_function_that_draws_may_be_tested_with_any_statistic():
    report = simulation_based_calibration(Draws(), MANY, **OPTIONS)
    assert report, str(report)
    assert len(report.ranks["square"]) == 500
    assert set(report.p_values) == {"square", "coin"}  # ties of a constant are broken at random: uniform
    narrow = simulation_based_calibration(Draws(0.7), MANY, **OPTIONS)
    assert narrow.p_values["square"] < 1e-6 < narrow.p_values["coin"]
    assert not narrow


def test_draws_that_are_not_finite_fail():
    report = simulation_based_calibration(Draws(limit=0.8), MANY, **OPTIONS)
    assert not report["finite"].passed
    assert np.sum(report.ranks["square"] == -1) == report["finite"].measured > 0


def test_what_cannot_be_tested_is_refused():
    with pytest.raises(ValueError, match="`generator` is missing; `method` is a function"):
        simulation_based_calibration(Draws(), MANY)
    with pytest.raises(ValueError, match="`n_simulations` is 3, expected at least 20"):
        simulation_based_calibration(METHOD, LIKE, n_simulations=3)
    with pytest.raises(ValueError, match="`statistics` gives shape .1,., expected a scalar"):
        simulation_based_calibration(Draws(), MANY, **OPTIONS | {"statistics": {"x": lambda x: x}})
    with pytest.raises(ValueError, match=r"draws states of shape \(60, 1\), expected \(60, 99, 1\)"):
        simulation_based_calibration(lambda key, batch, n: batch.input, MANY, **OPTIONS)
