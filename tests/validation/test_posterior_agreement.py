"""A right posterior agrees with its oracle; a wrong mean, spread or correlation is seen and named."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vardax.covariances import DenseCovariance, DiagonalCovariance
from vardax.posterior import Posterior
from vardax.validation import ValidationError, assert_posterior_agreement

RANDOM = np.random.default_rng(8)
ROOT = RANDOM.normal(size=(6, 6))
P = ROOT @ ROOT.T / 6 + 0.2 * np.eye(6)
SD = np.sqrt(np.diag(P))
MEAN = RANDOM.normal(size=6)
EXACT = Posterior(jnp.asarray(MEAN), DenseCovariance(P))
SAMPLES = MEAN + RANDOM.normal(size=(4000, 6)) @ np.linalg.cholesky(P).T


def of_samples(samples):
    return Posterior(jnp.asarray(samples.mean(axis=0)), samples=jnp.asarray(samples))


def failures(posterior, oracle=EXACT, **tolerances):
    with pytest.raises(ValidationError) as caught:
        assert_posterior_agreement(posterior, oracle, **tolerances)
    return " ".join(str(caught.value).split())


def test_a_posterior_agrees_with_itself_exactly():
    report = assert_posterior_agreement(EXACT, EXACT, mean=1e-6, spread=1e-6, covariance=1e-5)
    assert [row.name for row in report.rows] == ["mean", "spread", "covariance"]


def test_samples_agree_within_their_own_error_and_no_tolerance_more():
    none = {"mean": 0.0, "spread": 0.0, "covariance": 0.0}
    assert assert_posterior_agreement(EXACT, of_samples(SAMPLES), **none)
    assert assert_posterior_agreement(of_samples(SAMPLES[:2000]), of_samples(SAMPLES[2000:]), **none)
    assert "4000 independent samples" in str(assert_posterior_agreement(EXACT, of_samples(SAMPLES)))


def test_a_chain_is_worth_fewer_samples():
    stuck = np.repeat(SAMPLES[:100], 40, axis=0)  # 4000 draws of which 100 differ
    assert "mean" in failures(EXACT, of_samples(stuck), mean=0.0, spread=0.0, covariance=None)
    assert assert_posterior_agreement(EXACT, of_samples(stuck), mean=0.0, spread=0.0, covariance=None, n_effective=100)


@pytest.mark.parametrize("oracle", [EXACT, of_samples(SAMPLES)], ids=["covariance", "samples"])
def test_a_seeded_miscalibration_fails(oracle):
    wide = Posterior(EXACT.mean, DenseCovariance(1.5 * P))
    assert "FAILED: 2 of 3 checks: spread; covariance. Look at: the posterior is too wide" in failures(wide, oracle)
    narrow = Posterior(EXACT.mean, DenseCovariance(P / 1.5))
    assert "the posterior is too narrow" in failures(narrow, oracle)
    biased = Posterior(jnp.asarray(MEAN + 0.3 * SD), EXACT.cov)
    assert "FAILED: 1 of 3 checks: mean" in failures(biased, oracle)


def test_the_entry_that_is_off_is_named():
    biased = Posterior(EXACT.mean.at[4].add(0.5 * SD[4]), EXACT.cov)
    text = failures(biased)
    assert "the mean is off, most at [4]: by +0.5 of the oracle's standard deviations" in text
    assert "furthest from the oracle: [4] mean +0.500 sd spread x 1.000" in text


def test_correlations_are_looked_at_beyond_the_spread():
    uncorrelated = Posterior(EXACT.mean, DiagonalCovariance(jnp.asarray(SD**2)))
    text = failures(uncorrelated)
    assert "FAILED: 1 of 3 checks: covariance" in text
    assert assert_posterior_agreement(uncorrelated, EXACT, covariance=None)


def test_pytrees_and_a_sample_axis_of_one():
    split = lambda x: {"a": jnp.asarray(x[..., :2])[None], "b": jnp.asarray(x[..., 2:])[None]}  # noqa: E731
    tree = Posterior(split(MEAN), samples=jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), split(SAMPLES)))
    flat = jax.tree.map(lambda x: x[0], tree.mean), jax.tree.map(lambda x: x[:, 0], tree.samples)
    assert assert_posterior_agreement(Posterior(flat[0], samples=flat[1]), tree, mean=0.0, spread=1e-6)
    shifted = Posterior({"a": flat[0]["a"], "b": flat[0]["b"].at[1].add(9.0)}, samples=flat[1])
    assert "most at ['b'][0, 1]" in failures(shifted, tree)


def test_known_entries_have_to_be_known():
    known = Posterior(jnp.zeros(2), DiagonalCovariance(jnp.array([1.0, 0.0])))
    assert assert_posterior_agreement(known, known)
    unsure = Posterior(jnp.zeros(2), DiagonalCovariance(jnp.array([1.0, 0.3])))
    assert "spread" in failures(unsure, known)


def test_not_a_number_fails():
    assert "FAILED" in failures(Posterior(EXACT.mean.at[0].set(jnp.nan), EXACT.cov))


def test_what_cannot_be_compared_is_refused():
    with pytest.raises(ValueError, match=r"`posterior.mean` has shapes \(\(2,\),\), expected \(\(6,\),\)"):
        assert_posterior_agreement(Posterior(jnp.zeros(2), DiagonalCovariance(jnp.ones(2))), EXACT)
    with pytest.raises(TypeError, match="`oracle` is .*expected an object with `mean` and `std"):
        assert_posterior_agreement(EXACT, jnp.zeros((10, 6)))
