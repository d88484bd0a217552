"""The latent prior: its moments in both spaces, and what it refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vardax.covariances.diagonal import DiagonalCovariance
from vardax.latent.eof import EOFBasis
from vardax.latent.identity import IdentityLatentMap
from vardax.latent.prior import LatentPrior
from vardax.protocols import Prior

RANDOM = np.random.default_rng(4)
STATES = RANDOM.normal(size=(40, 6)) @ RANDOM.normal(size=(6, 6))


def test_a_prior_of_samples_has_their_moments():
    prior = LatentPrior.from_samples(IdentityLatentMap(6), STATES)
    np.testing.assert_allclose(prior.z_b, STATES.mean(axis=0), atol=1e-5)
    np.testing.assert_allclose(prior.B_z_op.as_matrix(), np.cov(STATES.T), rtol=1e-4, atol=1e-4)


def test_samples_are_decoded_draws():
    basis = EOFBasis.from_samples(STATES, 2)
    drawn = np.asarray(basis.prior().sample(jax.random.key(0), 4000))
    V = np.asarray(basis.modes).T
    expected = V @ np.diag(basis.variances) @ V.T
    np.testing.assert_allclose(np.cov(drawn.T), expected, atol=0.1 * np.trace(expected))


def test_it_reconstructs_states_as_a_prior_does():
    basis = EOFBasis.from_samples(STATES, 2)
    prior = basis.prior()
    assert isinstance(prior, Prior)
    once = prior(jnp.asarray(STATES[0]))
    np.testing.assert_allclose(prior(once), once, atol=1e-4)


def test_bad_input_is_refused_in_words():
    one, B = IdentityLatentMap(2), DiagonalCovariance(jnp.ones(2))
    with pytest.raises(TypeError, match="`latent_map` is int without encode and decode, expected an object with"):
        LatentPrior(3, jnp.zeros(2), B)
    with pytest.raises(TypeError, match="`B_z_op` is ndarray, expected a covariance.*DenseCovariance"):
        LatentPrior(one, jnp.zeros(2), np.eye(2))
    with pytest.raises(ValueError, match=r"`z_b` has shape \(3,\), expected \(2,\), on which `B_z_op` acts"):
        LatentPrior(one, jnp.zeros(3), B)
    with pytest.raises(ValueError, match="`z_b` has 1 non-finite entries"):
        LatentPrior(one, jnp.array([0.0, jnp.nan]), B)
    with pytest.raises(ValueError, match="`latent_dim` is 0"):
        IdentityLatentMap(0)
