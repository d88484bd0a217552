"""Rank histograms count ranks, break ties at random, and see ensembles that are biased, too narrow or too wide."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from vardax.diagnostics.rank_histogram import rank_histogram, uniformity_test

N, ENTRIES = 9, 5000


def ensemble(shift=0.0, width=1.0, seed=0):
    random = np.random.default_rng(seed)
    centre = random.normal(size=ENTRIES)
    members = centre + shift + width * random.normal(size=(N, ENTRIES))
    return members.astype(jnp.result_type(float)), (centre + random.normal(size=ENTRIES)).astype(jnp.result_type(float))


def test_ranks_by_hand():
    members = jnp.array([[1.0, 1.0, 1.0], [2.0, 2.0, 2.0]])
    np.testing.assert_array_equal(rank_histogram(members, jnp.array([0.0, 1.5, 1.7])).counts, [1, 2, 0])


def test_a_calibrated_ensemble_is_flat():
    found = rank_histogram(*ensemble())
    assert found.counts.sum() == ENTRIES
    assert found.p_value > 0.01
    assert abs(found.slope) < 3
    assert abs(found.convexity) < 3


@pytest.mark.parametrize(
    ("fault", "part", "sign"),
    [({"shift": -0.15}, "slope", 1), ({"shift": 0.15}, "slope", -1), ({"width": 0.85}, "convexity", 1)]
    + [({"width": 1.2}, "convexity", -1)],
    ids=["too low", "too high", "too narrow", "too wide"],
)
def test_a_fault_is_seen_and_named(fault, part, sign):
    found = rank_histogram(*ensemble(**fault))
    assert found.p_value < 1e-3
    parts = {name: float(getattr(found, name)) for name in ("slope", "convexity")}
    assert sign * parts.pop(part) > 5
    assert abs(parts.popitem()[1]) < 3.5


def test_the_p_value_is_that_of_the_chi_square_distribution():
    counts = np.array([12.0, 8.0, 15.0, 5.0, 10.0])
    found, expected = uniformity_test(counts), scipy.stats.chisquare(counts)
    np.testing.assert_allclose(found.chi_square, expected.statistic, rtol=1e-5)
    np.testing.assert_allclose(found.p_value, expected.pvalue, rtol=1e-4)


def test_the_parts_are_standard_normal_and_the_p_value_uniform_for_flat_histograms():
    counts = np.random.default_rng(3).multinomial(2000, np.full(8, 1 / 8), size=2000).astype(jnp.result_type(float))
    found = jax.vmap(uniformity_test)(jnp.asarray(counts))
    for part in (found.slope, found.convexity):
        assert abs(np.mean(part)) < 0.1
        assert np.std(part) == pytest.approx(1, abs=0.07)
    assert np.mean(np.asarray(found.p_value) < 0.1) == pytest.approx(0.1, abs=0.03)


def test_ties_are_broken_at_random_by_key():
    members, truth = jnp.zeros((3, 4000)), jnp.zeros(4000)
    first, again = (rank_histogram(members, truth, key=jax.random.key(1)).counts for _ in range(2))
    other = rank_histogram(members, truth, key=jax.random.key(2)).counts
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    assert uniformity_test(first).p_value > 1e-3
    np.testing.assert_allclose(first, 1000, rtol=0.1)


def test_missing_entries_are_left_out():
    members = jnp.array([[0.0, 0.0, jnp.nan], [1.0, 1.0, 1.0]])
    np.testing.assert_array_equal(rank_histogram(members, jnp.array([2.0, jnp.nan, 2.0])).counts, [0, 0, 1])


def test_wrong_shapes_are_refused():
    with pytest.raises(ValueError, match=r"`members` has shape \(4, 3\) and `truth` \(4,\).*members on the first axis"):
        rank_histogram(np.zeros((4, 3)), np.zeros(4))
    with pytest.raises(ValueError, match="at least 2 bins"):
        uniformity_test(jnp.array([3.0]))
