"""OMB, OMA and their statistics are those of the observed entries alone."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vardax.diagnostics.innovations import Innovations, innovations
from vardax.minimisers.problem import ControlSpaceProblem


@pytest.fixture(scope="module")
def found(small_case):
    return innovations(small_case.problem, small_case.analysis)


def of_all(case, of_one):
    return np.concatenate([of_one(s) for s in case.samples])


def departures(case):
    """OMB, OMA, R⁻¹OMB, R⁻¹OMA and instruments of all observed entries, by dense algebra."""
    before = of_all(case, lambda s: s.y - s.H @ s.x_b)
    after = of_all(case, lambda s: (np.eye(len(s.y)) - s.H @ s.K) @ (s.y - s.H @ s.x_b))
    weighted = of_all(case, lambda s: np.linalg.solve(s.R, s.y - s.H @ s.x_b))
    weighted_after = of_all(case, lambda s: np.linalg.solve(s.R, (np.eye(len(s.y)) - s.H @ s.K) @ (s.y - s.H @ s.x_b)))
    return before, after, weighted, weighted_after, of_all(case, lambda s: s.instrument)


def test_innovations_are_those_of_the_dense_analysis(small_case, found, close):
    seen = np.stack([s.seen for s in small_case.samples]).reshape(found.mask.shape)
    before, after, weighted, weighted_after, _ = departures(small_case)
    np.testing.assert_array_equal(found.mask, seen)
    close(np.asarray(found.background)[seen], before)
    close(np.asarray(found.analysis)[seen], after, atol=1e-6)
    close(np.asarray(found.weighted_background)[seen], weighted)
    close(np.asarray(found.weighted_analysis)[seen], weighted_after, atol=1e-6)
    close(np.asarray(found.increment)[seen], before - after, atol=1e-6)
    for values in (found.background, found.analysis, found.increment, found.weighted_analysis):
        assert not np.asarray(values)[~seen].any()


def test_statistics_by_instrument(small_case, found, close):
    before, after, weighted, weighted_after, instrument = departures(small_case)
    statistics = found.by_instrument()
    for i in (0, 1):
        mine = instrument == i
        assert int(statistics.count[i]) == mine.sum()
        close(statistics.background_mean[i], before[mine].mean())
        close(statistics.background_std[i], before[mine].std(ddof=1))
        close(statistics.background_chi_square[i], (before * weighted)[mine].mean())
        close(statistics.analysis_mean[i], after[mine].mean(), atol=1e-6)
        close(statistics.analysis_std[i], after[mine].std(ddof=1), atol=1e-6)
        close(statistics.analysis_chi_square[i], (after * weighted_after)[mine].mean(), atol=1e-6)
        close(statistics.increment_mean[i], (before - after)[mine].mean(), atol=1e-6)
        close(statistics.increment_std[i], (before - after)[mine].std(ddof=1), atol=1e-6)


def test_statistics_by_entry_use_the_samples_that_were_observed(small_case, found, close):
    statistics = found.by_entry()
    first, second = np.asarray(found.background)
    np.testing.assert_array_equal(statistics.count, np.asarray(found.mask).sum(axis=0))
    assert statistics.count[0, 1] == 1
    close(statistics.background_mean[0, 1], second[0, 1])
    assert np.isnan(statistics.background_std[0, 1])
    close(statistics.background_mean[0, 0], (first[0, 0] + second[0, 0]) / 2)
    close(statistics.background_std[0, 0], abs(first[0, 0] - second[0, 0]) / np.sqrt(2))


def test_the_chi_square_is_twice_the_cost_of_the_observations(small_case, found, close):
    statistics = found.by_instrument()
    expected = 2 * np.sum(small_case.analysis.cost.last.J_o_by_instrument, axis=0)
    close(statistics.analysis_chi_square * statistics.count, expected, atol=1e-6)


def test_joined_innovations_are_those_of_all_samples(found, close):
    parts = [jax.tree.map(lambda leaf, i=i: leaf[i : i + 1], found) for i in (0, 1)]
    assert eqx.tree_equal(Innovations.joined(parts), found)
    with pytest.raises(ValueError, match="no parts"):
        Innovations.joined([])


def test_one_sample_is_a_batch_of_one(small_case, found, close):
    first = lambda tree: jax.tree.map(lambda leaf: leaf[0] if eqx.is_array(leaf) else leaf, tree)  # noqa: E731
    p = small_case.problem
    one = ControlSpaceProblem(first(p.background), first(p.observed), p.covariance, p.half, p.observe, p.transform)
    close(innovations(one, first(small_case.analysis)).background[0], found.background[0])


def test_an_instrument_without_observations_has_no_statistics(found):
    blind = eqx.tree_at(lambda f: f.mask, found, jnp.where(found.instrument == 1, found.mask, 0.0))
    statistics = blind.by_instrument()
    assert statistics.count[0] == 0
    assert np.isnan(statistics.background_mean[0])
    assert np.isfinite(statistics.background_mean[1])


def test_the_table_has_a_line_for_each_instrument(found):
    lines = found.by_instrument().table(["buoys", "satellite"]).splitlines()
    assert [line.split()[0] for line in lines] == ["instrument", "buoys", "satellite"]
    assert lines[1].split()[1] == str(int(found.by_instrument().count[0]))
    with pytest.raises(ValueError, match="`instruments` has 3 names, expected 2"):
        found.by_instrument().table(["a", "b", "c"])
