"""The decoded posterior against dense algebra, for a linear decoder and a curved one, and its samples."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vardax.covariances.dense import DenseCovariance
from vardax.covariances.diagonal import DiagonalCovariance
from vardax.latent.eof import EOFBasis
from vardax.latent.prior import LatentPrior
from vardax.models.latent_threedvar import LatentThreeDVar
from vardax.models.threedvar import ThreeDVar
from vardax.obs_operators.linear import LinearObs
from vardax.posterior.latent import LatentLaplaceCovariance
from vardax.protocols import PosteriorAdapter
from vardax.types import Batch1D

RANDOM = np.random.default_rng(12)
N, K, M, SAMPLES = 9, 3, 5, 2
BASIS = EOFBasis.from_samples(RANDOM.normal(size=(30, N)) @ RANDOM.normal(size=(N, N)), K)
V = np.asarray(BASIS.modes, float).T
H, ROOT = RANDOM.normal(size=(M, N)), RANDOM.normal(size=(K, K))
B_Z, R = ROOT @ ROOT.T + np.eye(K), np.diag([0.5, 1.0, 0.3, 2.0, 0.7]) + 0.1
Y = RANDOM.normal(size=(SAMPLES, M))
Y[0, 1] = Y[1, 3] = np.nan
BATCH = Batch1D.from_observations(Y)
X64 = jax.config.jax_enable_x64
ATOL = 1e-9 if X64 else 1e-3


@pytest.fixture(scope="module")
def case():
    """(method, posterior)."""
    prior = LatentPrior(BASIS, jnp.ones(K), DenseCovariance(B_Z))
    method = LatentThreeDVar(BASIS, LinearObs(H), prior, DenseCovariance(R), tol=1e-11 if X64 else None, max_steps=2000)
    return method, method.posterior(BATCH)


def dense(sample):
    """P_z."""
    seen = np.isfinite(Y[sample])
    G = H[seen] @ V
    return np.linalg.inv(np.linalg.inv(B_Z) + G.T @ np.linalg.solve(R[np.ix_(seen, seen)], G))


def blocks(posterior, n):
    """The diagonal blocks of the covariance; what is between samples is zero."""
    P = np.asarray(posterior.cov.as_matrix()).reshape(SAMPLES, n, SAMPLES, n)
    assert np.max(np.abs(P[0, :, 1])) < 1e-12
    return [P[sample, :, sample] for sample in range(SAMPLES)]


def test_the_covariance_of_the_state_is_that_of_the_latent_vector_decoded(case):
    _, posterior = case
    for sample, P in enumerate(blocks(posterior, N)):
        expected = V @ dense(sample) @ V.T
        np.testing.assert_allclose(P, expected, atol=ATOL)
        np.testing.assert_allclose(posterior.std()[sample] ** 2, np.diag(expected), atol=ATOL)
        assert np.linalg.matrix_rank(P, tol=1e-4 * np.trace(P)) == K


def test_the_posterior_of_the_latent_vector(case):
    method, posterior = case
    adapter = LatentLaplaceCovariance()
    assert isinstance(adapter, PosteriorAdapter)
    analysis = method.analyse(BATCH)
    found = adapter.latent(analysis, method, BATCH)
    np.testing.assert_allclose(found.mean, analysis.latent, atol=ATOL)
    np.testing.assert_allclose(jax.vmap(BASIS.decode)(found.mean), posterior.mean, atol=ATOL)
    for sample, P in enumerate(blocks(found, K)):
        np.testing.assert_allclose(P, dense(sample), atol=ATOL)
    assert posterior.provenance["method"] == "LatentThreeDVar"
    assert posterior.provenance["adapter"] == "LatentLaplaceCovariance"


def test_samples_stay_on_the_range_of_the_decoder(case):
    _, posterior = case
    draws = posterior.sample(jax.random.key(0), 300)
    again = jax.vmap(jax.vmap(lambda x: BASIS.decode(BASIS.encode(x))))(draws)
    np.testing.assert_allclose(draws, again, atol=1e-4)
    std = np.asarray(posterior.std())
    np.testing.assert_allclose(np.std(draws, axis=1), std, atol=0.2 * std.max())


class Curved:
    """A decoder that is not linear."""

    def decode(self, z):
        return jnp.concatenate([jnp.sinh(z), z**2])

    def encode(self, x):
        return jnp.arcsinh(x[:2])


@pytest.mark.x64
def test_a_curved_decoder_is_linearised_at_the_analysis():
    y, R2 = Batch1D.from_observations(np.array([[0.8, -0.1, 0.9, 0.4]])), DiagonalCovariance(jnp.full(4, 0.04))
    prior = LatentPrior(Curved(), jnp.array([0.2, 0.1]), DiagonalCovariance(jnp.array([0.5, 0.3])))
    method = LatentThreeDVar(Curved(), LinearObs(np.eye(4)), prior, R2, tol=1e-11)
    posterior = method.posterior(y)
    D = np.asarray(jax.jacobian(Curved().decode)(method.analyse(y).latent[0]))
    expected = D @ np.linalg.inv(np.diag([1 / 0.5, 1 / 0.3]) + D.T @ D / 0.04) @ D.T
    np.testing.assert_allclose(posterior.cov.as_matrix(), expected, atol=1e-8)
    x = np.asarray(posterior.sample(jax.random.key(1), 50))[0]
    np.testing.assert_allclose(x[:, 2:], np.arcsinh(x[:, :2]) ** 2, atol=1e-10)


def test_a_method_of_states_is_refused():
    state = ThreeDVar(LinearObs(H), jnp.zeros(N), DenseCovariance(np.eye(N)), DenseCovariance(R))
    with pytest.raises(TypeError, match="ThreeDVar is no latent method, it estimates states; take LaplaceCovariance"):
        LatentLaplaceCovariance()(jnp.zeros((SAMPLES, N)), state, BATCH)
