"""An ensemble as a posterior: the sample covariance, inflated, and never dense."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vardax.covariances.diagonal import DiagonalCovariance
from vardax.models.optimal_interpolation import OptimalInterpolation
from vardax.obs_operators.identity import MaskedIdentity
from vardax.posterior.ensemble import EnsembleCovariance
from vardax.protocols import PosteriorAdapter
from vardax.types import Batch1D

MEMBERS = np.random.default_rng(2).normal(size=(7, 4)) + np.arange(4.0)


@pytest.mark.parametrize("inflation", [1.0, 1.3])
def test_mean_and_covariance_are_those_of_the_members(inflation):
    posterior = EnsembleCovariance(7, inflation)(jnp.asarray(MEMBERS))
    covariance = inflation**2 * np.cov(MEMBERS.T)
    np.testing.assert_allclose(posterior.mean, MEMBERS.mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(posterior.cov.as_matrix(), covariance, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(posterior.std(), np.sqrt(np.diag(covariance)), rtol=1e-5)
    v = np.arange(4.0)
    np.testing.assert_allclose(posterior.cov.mv(jnp.asarray(v)), covariance @ v, rtol=1e-4, atol=1e-5)


def test_the_samples_have_the_inflated_spread():
    posterior = EnsembleCovariance(7, inflation=2.0)(jnp.asarray(MEMBERS))
    np.testing.assert_allclose(np.std(np.asarray(posterior.samples), axis=0, ddof=1), posterior.std(), rtol=1e-5)
    np.testing.assert_allclose(EnsembleCovariance(7)(jnp.asarray(MEMBERS)).samples, MEMBERS, rtol=1e-5)


def test_draws_stay_in_the_span_of_the_members():
    posterior = EnsembleCovariance(3)(jnp.asarray(MEMBERS[:3]))
    draws = np.asarray(posterior.sample(jax.random.key(0), 20)) - MEMBERS[:3].mean(axis=0)
    anomalies = MEMBERS[:3] - MEMBERS[:3].mean(axis=0)
    outside = draws - draws @ np.linalg.pinv(anomalies) @ anomalies
    np.testing.assert_allclose(outside, np.zeros_like(draws), atol=1e-5)


def test_a_large_state_needs_no_large_matrix():
    members = jnp.asarray(np.random.default_rng(0).normal(size=(5, 200_000)), "float32")
    posterior = EnsembleCovariance(5)(members)
    np.testing.assert_allclose(posterior.std(), np.std(np.asarray(members), axis=0, ddof=1), rtol=1e-4)
    assert posterior.cov.mv(members[0]).shape == (200_000,)


def test_members_may_be_pytrees():
    tree = {"u": jnp.asarray(MEMBERS), "c": jnp.asarray(MEMBERS[:, :2])}
    posterior = EnsembleCovariance(7)(tree)
    assert posterior.mean["u"].shape == (4,)
    np.testing.assert_allclose(posterior.std()["c"], np.std(MEMBERS[:, :2], axis=0, ddof=1), rtol=1e-5)


def test_one_member_has_no_spread():
    posterior = EnsembleCovariance(1, inflation=3.0)(jnp.asarray(MEMBERS[:1]))
    np.testing.assert_array_equal(posterior.mean, jnp.asarray(MEMBERS[0]))
    np.testing.assert_array_equal(posterior.std(), np.zeros(4))
    np.testing.assert_array_equal(posterior.sample(jax.random.key(0), 2), jnp.broadcast_to(posterior.mean, (2, 4)))


def test_it_is_an_adapter_and_says_where_the_members_come_from():
    adapter, one = EnsembleCovariance(7, inflation=1.1), DiagonalCovariance(jnp.ones(4))
    assert isinstance(adapter, PosteriorAdapter)
    method = OptimalInterpolation(MaskedIdentity(), jnp.zeros(4), one, one)
    batch = Batch1D.from_observations(jnp.zeros((1, 4)))
    for model in (method, method.as_analysis_step()):
        record = adapter(jnp.asarray(MEMBERS), model, batch).provenance
        assert record["method"] == "OptimalInterpolation"
        assert record["adapter"] == "EnsembleCovariance"
        assert record["n_members"] == 7
        assert record["inflation"] == pytest.approx(1.1)
        assert record["instruments"].tolist() == [[4]]
    assert adapter(jnp.asarray(MEMBERS)).provenance["versions"]["jax"] == jax.__version__


def test_a_gradient_with_respect_to_the_inflation_is_twice_the_variance():
    total = lambda f: jnp.sum(EnsembleCovariance(7, f)(jnp.asarray(MEMBERS)).std() ** 2)  # noqa: E731
    expected = 2 * np.sum(np.var(MEMBERS, axis=0, ddof=1))
    np.testing.assert_allclose(jax.grad(total)(jnp.asarray(1.0)), expected, rtol=1e-5)


def test_what_is_no_ensemble_is_refused():
    with pytest.raises(ValueError, match=r"`members` has shape \(7, 4\), expected \(6, \*state\)"):
        EnsembleCovariance(6)(jnp.asarray(MEMBERS))
    with pytest.raises(ValueError, match=r"`members\['c'\]` has shape \(2,\)"):
        EnsembleCovariance(7)({"c": jnp.zeros(2), "u": jnp.asarray(MEMBERS)})
    with pytest.raises(ValueError, match="`n_members` is 0, expected at least 1"):
        EnsembleCovariance(0)
    with pytest.raises(ValueError, match="`inflation` is -1, expected a positive number"):
        EnsembleCovariance(3, inflation=-1.0)
    with pytest.raises(ValueError, match="entries that are not finite"):
        EnsembleCovariance(2)(jnp.array([[1.0], [jnp.nan]]))
