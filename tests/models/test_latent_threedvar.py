"""Latent 3DVar: its sibling with an identity map, the dense formula with a linear one, a curved decoder."""

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
from vardax.obs_operators.callable import CallableObs
from vardax.obs_operators.linear import LinearObs
from vardax.primitives.latent import identity_latent_map
from vardax.types import Batch1D

RANDOM = np.random.default_rng(9)
N, K, M, SAMPLES = 10, 4, 6, 2
STATES = RANDOM.normal(size=(50, N)) @ RANDOM.normal(size=(N, N)) + 2
BASIS = EOFBasis.from_samples(STATES, K)
H = RANDOM.normal(size=(M, N))
Y = RANDOM.normal(size=(SAMPLES, M)) + STATES[:SAMPLES] @ H.T
Y[0, 1] = Y[1, 3] = np.nan
BATCH = Batch1D.from_observations(Y)


def covariance(n):
    root = RANDOM.normal(size=(n, n))
    return root @ root.T / n + 0.3 * np.eye(n)


B_Z, R = covariance(K), covariance(M)


class Curved:
    """A decoder that is not linear, whose encoder inverts it on its range."""

    latent_dim = 2

    def decode(self, z):
        return jnp.concatenate([jnp.sinh(z), z**2])

    def encode(self, x):
        return jnp.arcsinh(x[:2])


@pytest.fixture(scope="module")
def linear():
    """(method, analysis) with a linear map and a correlated B_z that is not that of the samples."""
    prior = LatentPrior(BASIS, jnp.ones(K), DenseCovariance(B_Z))
    method = LatentThreeDVar(BASIS, LinearObs(H), prior, DenseCovariance(R), tol=1e-11, max_steps=2000)
    return method, method.analyse(BATCH)


def dense(sample):
    """x* by the textbook formula with B = V B_z Vᵀ."""
    V = np.asarray(BASIS.modes, float).T
    B, seen = V @ B_Z @ V.T, np.isfinite(Y[sample])
    x_b = np.asarray(BASIS.mean, float) + V @ np.ones(K)
    Hs, Rs = H[seen], R[np.ix_(seen, seen)]
    gain = B @ Hs.T @ np.linalg.inv(Hs @ B @ Hs.T + Rs)
    return x_b + gain @ (Y[sample, seen] - Hs @ x_b)


@pytest.mark.x64
def test_with_a_linear_map_it_is_the_dense_formula_with_the_covariance_of_the_range(linear):
    _, analysis = linear
    for sample in range(SAMPLES):
        np.testing.assert_allclose(analysis.state[sample], dense(sample), atol=1e-9)


def test_the_analysis_is_what_its_latent_vector_decodes_to(linear):
    method, analysis = linear
    assert analysis.latent.shape == analysis.control.shape == (SAMPLES, K)
    np.testing.assert_array_equal(jax.vmap(BASIS.decode)(analysis.latent), analysis.state)
    half = method.problem(BATCH).half
    np.testing.assert_allclose(analysis.latent, 1 + jax.vmap(half.mv)(analysis.control), rtol=1e-5)


@pytest.mark.x64
def test_a_background_state_is_encoded(linear):
    method, _ = linear
    x_b = jnp.asarray(STATES[:SAMPLES])
    found = method.analyse(BATCH, background=x_b)
    first = method.with_(prior=LatentPrior(BASIS, BASIS.encode(x_b[0]), DenseCovariance(B_Z))).analyse(BATCH)
    np.testing.assert_allclose(found.state[0], first.state[0], atol=1e-9)
    nothing = Batch1D.from_observations(np.full_like(Y, np.nan))
    kept = method.analyse(nothing, background=x_b).state
    np.testing.assert_allclose(kept, jax.vmap(lambda x: BASIS.decode(BASIS.encode(x)))(x_b), atol=1e-12)


@pytest.mark.x64
def test_with_the_identity_map_it_is_3dvar_for_a_nonlinear_operator():
    B = DenseCovariance(covariance(N))
    observe = CallableObs(lambda x: jnp.asarray(H) @ (x + 0.05 * x**2))
    x_b, one, options = jnp.asarray(STATES[0]), identity_latent_map(N), {"tol": 1e-12, "max_steps": 2000}
    latent = LatentThreeDVar(one, observe, LatentPrior(one, x_b, B), DenseCovariance(R), **options).analyse(BATCH)
    state = ThreeDVar(observe, x_b, B, DenseCovariance(R), **options).analyse(BATCH)
    np.testing.assert_allclose(latent.state, state.state, atol=1e-10)
    np.testing.assert_allclose(latent.cost.last.total, state.cost.last.total, rtol=1e-12)


@pytest.mark.x64
def test_a_curved_decoder_ends_where_the_gradient_of_the_written_cost_vanishes():
    y, R2 = jnp.array([[0.8, -0.1, 0.9, 0.4]]), DiagonalCovariance(jnp.full(4, 0.04))
    prior = LatentPrior(Curved(), jnp.array([0.2, 0.1]), DiagonalCovariance(jnp.array([0.5, 0.3])))
    method = LatentThreeDVar(Curved(), LinearObs(np.eye(4)), prior, R2, tol=1e-11)

    def cost(z):
        background = jnp.sum((z - prior.z_b) ** 2 / jnp.array([0.5, 0.3]))
        return 0.5 * (background + jnp.sum((y[0] - Curved().decode(z)) ** 2) / 0.04)

    analysis = method.analyse(Batch1D.from_observations(y))
    z = analysis.latent[0]
    np.testing.assert_allclose(jax.grad(cost)(z), 0, atol=1e-8)
    np.testing.assert_allclose(analysis.cost.last.total[0], cost(z), rtol=1e-12)


def test_bad_input_is_refused_in_words(linear):
    method, _ = linear
    with pytest.raises(TypeError, match="`prior` is DenseCovariance, expected LatentPrior"):
        LatentThreeDVar(BASIS, LinearObs(H), DenseCovariance(B_Z), None)
    with pytest.raises(ValueError, match=r"`prior_cov_op` acts on shape \(10,\), expected \(4,\), that of `prior.z_b`"):
        method.analyse(BATCH, prior_cov_op=DenseCovariance(np.eye(N)))
    with pytest.raises(ValueError, match=r"background` has shape \(4,\), expected \(10,\) or \(2, 10\)"):
        method.analyse(BATCH, background=jnp.zeros(K))
    with pytest.raises(ValueError, match=r"`latent_map.decode` cannot be applied to a latent vector of shape \(3,\)"):
        method.with_(prior=LatentPrior(BASIS, jnp.zeros(3), DenseCovariance(np.eye(3)))).analyse(BATCH)
