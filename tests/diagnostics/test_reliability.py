"""Spread against error and coverage: by hand, and right for what is calibrated."""

import jax.numpy as jnp
import numpy as np
import pytest

from vardax.diagnostics.reliability import ensemble_coverage, interval_coverage, spread_skill

RANDOM = np.random.default_rng(9)
LEVELS = jnp.array([0.5, 0.9, 0.99])


def array(values):
    return jnp.asarray(values, jnp.result_type(float))


def test_bins_are_sorted_by_spread_and_hold_equally_many():
    std, error = array([3.0, 1.0, 2.0, 4.0]), array([1.0, 2.0, -2.0, -7.0])
    found = spread_skill(error, std, jnp.zeros_like(std), bins=2)
    np.testing.assert_allclose(found.spread, [np.sqrt((1 + 4) / 2), np.sqrt((9 + 16) / 2)], rtol=1e-6)
    np.testing.assert_allclose(found.error, [2.0, 5.0], rtol=1e-6)
    np.testing.assert_array_equal(found.count, [2, 2])
    np.testing.assert_allclose(found.ratio, np.sqrt(30 / 58), rtol=1e-6)


def test_calibrated_spread_is_the_error_in_every_bin():
    std = RANDOM.uniform(0.5, 3, 20000)
    found = spread_skill(array(std * RANDOM.normal(size=20000)), array(std), jnp.zeros(20000), bins=5)
    np.testing.assert_allclose(found.spread, found.error, rtol=0.05)
    assert np.all(np.diff(found.spread) > 0)


def test_the_mean_of_few_members_is_allowed_its_error():
    members, truth = RANDOM.normal(size=(4, 30000)), RANDOM.normal(size=30000)
    moments = array(members.mean(axis=0)), array(members.std(axis=0, ddof=1))
    assert spread_skill(*moments, array(truth), n_members=4).ratio == pytest.approx(1, abs=0.02)
    assert spread_skill(*moments, array(truth)).ratio == pytest.approx(1 / np.sqrt(1.25), abs=0.02)


def test_missing_entries_are_left_out():
    mean, std, truth = array([0.0, 0.0, 0.0]), array([1.0, np.nan, 1.0]), array([1.0, 1.0, np.nan])
    found = spread_skill(mean, std, truth, bins=1)
    assert found.count[0] == 1
    assert found.ratio == 1
    assert interval_coverage(mean, std, truth, 0.99) == 1
    assert ensemble_coverage(jnp.stack([mean - std, mean + std]), array([np.nan, 0.0, 5.0]), 0.3) == 0


@pytest.mark.parametrize("n", [19, 100])
def test_intervals_cover_what_they_say(n):
    truth, members = array(RANDOM.normal(size=20000)), array(RANDOM.normal(size=(n, 20000)))
    reachable = (n - 1) / (n + 1)
    np.testing.assert_allclose(ensemble_coverage(members, truth, LEVELS), np.minimum(LEVELS, reachable), atol=0.01)
    np.testing.assert_allclose(interval_coverage(0 * truth, 1 + 0 * truth, truth, LEVELS), LEVELS, atol=0.01)


def test_coverage_by_hand():
    members = array(np.arange(9.0)[:, None] * np.ones(4))  # 10 gaps: the central 80 % are 0 to 8
    truth = array([0.0, -0.1, 8.0, 8.1])
    assert ensemble_coverage(members, truth, 0.8) == 0.5
    assert ensemble_coverage(members, array([1.0, 7.0, 0.9, 7.1]), 0.6) == 0.5
    assert ensemble_coverage(members, array([0.51, 0.4, 7.49, 7.6]), 0.7) == 0.5


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match=r"`level` is 90.0, expected numbers between 0 and 1"):
        interval_coverage(0.0, 1.0, 0.0, 90.0)
    with pytest.raises(ValueError, match=r"have shapes \[\(2,\), \(2,\), \(3,\)\]"):
        interval_coverage(np.zeros(2), np.ones(2), np.zeros(3))
    with pytest.raises(ValueError, match="`bins` is 5, expected 1 to 2"):
        spread_skill(np.zeros(2), np.ones(2), np.zeros(2), bins=5)
    with pytest.raises(ValueError, match="`n_members` is 1"):
        spread_skill(np.zeros(2), np.ones(2), np.zeros(2), bins=1, n_members=1)
