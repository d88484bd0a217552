"""The verdict on ranks: uniform ones pass, each fault has its name, and false alarms are as rare as promised."""

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats

from vardax.validation.calibration import CalibrationReport

RANDOM = np.random.default_rng(5)


def report(ranks, n_draws=99, significance=1e-3, **options):
    named = ranks if isinstance(ranks, dict) else {"f": ranks}
    return CalibrationReport.of("ranks", named, n_draws, significance, **options)


def ranks_of(z, spread=1.0, bias=0.0, n_draws=99):
    """Ranks of standard normal truths among draws N(bias, spread²)."""
    u = scipy.special.ndtr((z - bias) / spread)
    return RANDOM.binomial(n_draws, u)


@pytest.mark.parametrize(
    ("fault", "row", "words"),
    [
        ({"spread": 1.2}, "spread", "too wide, most for f"),
        ({"spread": 0.8}, "spread", "too narrow, most for f"),
        ({"bias": 0.25}, "bias", "lies too high, most for f"),
        ({"bias": -0.25}, "bias", "lies too low, most for f"),
    ],
)
def test_each_fault_has_its_name(fault, row, words):
    z = RANDOM.normal(size=2000)
    assert report(ranks_of(z)), str(report(ranks_of(z)))
    found = report({"g": ranks_of(z), "f": ranks_of(z, **fault)})
    assert not found[row].passed
    assert words in found[row].meaning
    assert words in found.verdict


def test_a_lump_is_seen_by_the_tests_of_shape():
    ranks = np.concatenate([RANDOM.integers(0, 100, 900), np.full(100, 71)])
    found = report(ranks)
    assert not found["uniform"].passed
    assert found["bias"].passed == found["spread"].passed == (not found) or not found


def test_false_alarms_are_as_rare_as_they_are_said_to_be():
    alarms = [not report(RANDOM.integers(0, 100, 300), significance=0.1) for _ in range(60)]
    assert sum(alarms) <= scipy.stats.binom(60, 0.1).ppf(0.9999)


def test_p_values_and_bands_are_those_of_their_distributions():
    ranks = RANDOM.integers(0, 20, 400)
    found = report(ranks, n_draws=19, significance=0.04)
    counts = np.bincount(ranks, minlength=20)
    np.testing.assert_array_equal(found.histograms["f"].counts, counts)
    assert found.p_values["f"] == pytest.approx(scipy.stats.chisquare(counts).pvalue, rel=1e-4)
    position, difference = found.ecdf_difference("f")
    assert position[-1] == 1
    assert difference[-1] == pytest.approx(0, abs=1e-12)
    np.testing.assert_allclose(difference[:2], [counts[0] / 400 - 0.05, counts[:2].sum() / 400 - 0.1])
    # Massart: P(sup > e) <= 2 exp(-2 N e²), at the level of one of four tests.
    assert 2 * np.exp(-2 * 400 * found.ecdf_band**2) == pytest.approx(0.01)
    assert found["ECDF"].measured == pytest.approx(np.abs(difference).max())


def test_the_number_of_bins_divides_the_ranks_and_suits_the_simulations():
    assert len(report(RANDOM.integers(0, 100, 1000)).histograms["f"].counts) == 20
    assert len(report(RANDOM.integers(0, 100, 50)).histograms["f"].counts) == 5
    assert len(report(RANDOM.integers(0, 16, 1000), n_draws=15).histograms["f"].counts) == 16
    with pytest.raises(ValueError, match="`n_draws` is 100, and its 101 ranks cannot be cut.*take 99"):
        report(RANDOM.integers(0, 101, 1000), n_draws=100)


def test_what_is_left_out_is_said():
    ranks = RANDOM.integers(0, 100, 500)
    ranks[:3] = -1
    found = report(ranks, n_unconverged=7)
    assert not found["finite"].passed
    assert float(jnp.sum(found.histograms["f"].counts)) == 497
    assert "7 analyses did not converge" in str(found)
