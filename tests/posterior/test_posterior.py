"""A posterior gives its spread and its samples from a covariance or from samples, with the batch axis of its mean."""

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest

from vardax.covariances.dense import DenseCovariance
from vardax.covariances.diagonal import DiagonalCovariance
from vardax.posterior.posterior import Posterior

MATRIX = jnp.array([[2.0, 0.5], [0.5, 1.0]])


def test_the_spread_is_the_root_of_the_diagonal():
    np.testing.assert_allclose(Posterior(jnp.zeros(2), DenseCovariance(MATRIX)).std(), np.sqrt([2.0, 1.0]), rtol=1e-6)


def test_a_foreign_covariance_has_a_spread_and_samples():
    posterior = Posterior(jnp.zeros(2), lx.MatrixLinearOperator(MATRIX, lx.positive_semidefinite_tag))
    np.testing.assert_allclose(posterior.std(), np.sqrt([2.0, 1.0]), rtol=1e-6)
    assert posterior.sample(jax.random.key(0), 3).shape == (3, 2)


def test_samples_have_the_moments():
    posterior = Posterior(jnp.array([5.0, -3.0]), DenseCovariance(MATRIX))
    draws = np.asarray(posterior.sample(jax.random.key(1), 20_000))
    np.testing.assert_allclose(draws.mean(axis=0), [5.0, -3.0], atol=0.05)
    np.testing.assert_allclose(np.cov(draws.T), MATRIX, atol=0.06)


def test_a_key_fixes_the_samples():
    posterior = Posterior(jnp.zeros(2), DenseCovariance(MATRIX))
    one, again, other = (posterior.sample(jax.random.key(k), 4) for k in (0, 0, 1))
    np.testing.assert_array_equal(one, again)
    assert not np.allclose(one, other)


def test_an_ensemble_is_a_posterior():
    members = np.random.default_rng(0).normal(size=(50, 3))
    posterior = Posterior(jnp.asarray(members.mean(axis=0)), samples=jnp.asarray(members))
    np.testing.assert_allclose(posterior.std(), members.std(axis=0, ddof=1), rtol=1e-5)
    draws = np.asarray(posterior.sample(jax.random.key(0), 200))
    assert draws.shape == (200, 3)
    assert all(any(np.allclose(draw, member) for member in members) for draw in draws[:20])


def test_quantiles_of_a_gaussian_and_of_an_ensemble():
    posterior = Posterior(jnp.array([5.0, -3.0]), DenseCovariance(MATRIX))
    expected = posterior.mean + 1.644854 * posterior.std()
    np.testing.assert_allclose(posterior.quantile(0.95), expected, rtol=1e-5)
    assert posterior.quantile([0.1, 0.5, 0.9]).shape == (3, 2)
    members = np.random.default_rng(2).normal(size=(50, 2))
    ensemble = Posterior(jnp.asarray(members.mean(axis=0)), samples=jnp.asarray(members))
    np.testing.assert_allclose(ensemble.quantile(0.2), np.quantile(members, 0.2, axis=0), rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match=r"Posterior.quantile: `q` is 1.5, expected numbers from 0 to 1"):
        posterior.quantile(1.5)


def test_the_determinant_is_that_of_the_covariance():
    np.testing.assert_allclose(Posterior(jnp.zeros(2), DenseCovariance(MATRIX)).logdet(), np.log(1.75), rtol=1e-6)
    with pytest.raises(ValueError, match=r"Posterior.logdet needs `cov`"):
        Posterior(jnp.zeros(2), samples=jnp.zeros((3, 2))).logdet()


@pytest.mark.parametrize("member", ["information_gain", "trajectory"])
def test_what_only_the_posterior_of_a_method_knows(member):
    posterior = Posterior(jnp.zeros(2), DenseCovariance(MATRIX))
    with pytest.raises(ValueError, match=rf"Posterior.{member} needs the posterior of a method.*DenseCovariance"):
        getattr(posterior, member)()


def test_a_state_may_be_a_pytree():
    cov = lx.DiagonalLinearOperator({"u": jnp.array([4.0]), "c": jnp.array([1.0, 9.0])})
    posterior = Posterior({"u": jnp.zeros(1), "c": jnp.ones(2)}, cov)
    np.testing.assert_allclose(posterior.std()["c"], [1.0, 3.0], rtol=1e-6)
    draws = posterior.sample(jax.random.key(0), 5)
    assert draws["u"].shape == (5, 1)
    assert draws["c"].shape == (5, 2)


def test_a_posterior_with_neither_covariance_nor_samples_says_so():
    posterior = Posterior(jnp.zeros(2))
    with pytest.raises(ValueError, match=r"Posterior.std needs `cov` or `samples`"):
        posterior.std()
    with pytest.raises(ValueError, match=r"Posterior.sample needs `cov` or `samples`"):
        posterior.sample(jax.random.key(0), 2)


def test_a_covariance_of_another_state_is_refused():
    with pytest.raises(ValueError, match=r"Posterior: `cov` acts on"):
        Posterior({"u": jnp.zeros(2)}, DiagonalCovariance(jnp.ones(2)))
    with pytest.raises(ValueError, match=r"Posterior: `cov` acts on .*\(3,\).*\(2,\)"):
        Posterior(jnp.zeros(2), DiagonalCovariance(jnp.ones(3)))


def test_the_provenance_is_kept():
    assert Posterior(jnp.zeros(2), provenance={"method": "OI"}).provenance["method"] == "OI"
    assert Posterior(jnp.zeros(2)).provenance == {}
