"""Convolutional autoencoders: turning a circle, any length, one's own networks, an analysis in their latent space."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vardax.covariances.diagonal import DiagonalCovariance
from vardax.latent.prior import LatentPrior
from vardax.models.latent_threedvar import LatentThreeDVar
from vardax.obs_operators.identity import MaskedIdentity
from vardax.priors.convolutional import ConvAEPrior, ConvAEPrior1D
from vardax.priors.dense_autoencoders import MLPAEPrior1D
from vardax.protocols import LatentMap, Prior
from vardax.types import Batch2D

RANDOM = np.random.default_rng(5)
T, N = 2, 12
X = jnp.asarray(RANDOM.normal(size=(T, N)))
CLOSE = 1e-10 if jax.config.jax_enable_x64 else 1e-5


@pytest.fixture(scope="module")
def circle():
    return ConvAEPrior1D(N, T, 2, 4, kernel_size=3, downsampling=2)


def test_turning_the_circle_turns_the_reconstruction(circle):
    np.testing.assert_allclose(circle(jnp.roll(X, 4, axis=1)), jnp.roll(circle(X), 4, axis=1), atol=CLOSE)
    assert not np.allclose(circle(jnp.roll(X, 1, axis=1)), jnp.roll(circle(X), 1, axis=1), atol=1e-4)
    every_cell = ConvAEPrior1D(N, T, 2, 4, kernel_size=3)
    np.testing.assert_allclose(every_cell(jnp.roll(X, 1, axis=1)), jnp.roll(every_cell(X), 1, axis=1), atol=CLOSE)


def test_it_is_a_latent_map_with_a_signature(circle):
    assert isinstance(circle, Prior)
    assert isinstance(circle, LatentMap)
    assert circle.state_signature == jax.ShapeDtypeStruct((T, N), jnp.result_type(float))
    latent = circle.encode(X)
    assert latent.shape == (circle.latent_dim, N // 2) == (2, 6)
    np.testing.assert_allclose(circle.decode(latent), circle(X), atol=CLOSE)
    anywhere = ConvAEPrior1D(None, T, 2, 4, kernel_size=3, downsampling=2)
    assert anywhere.state_signature is None
    np.testing.assert_allclose(anywhere(X), circle(X), atol=CLOSE)


@pytest.mark.slow
def test_an_analysis_runs_in_its_latent_space(circle):
    truth = circle.decode(jnp.asarray(RANDOM.normal(size=(2, 6))))
    latent = LatentPrior(circle, jnp.zeros((2, 6)), DiagonalCovariance(np.full((2, 6), 4.0)))
    method = LatentThreeDVar(
        circle, MaskedIdentity(), latent, DiagonalCovariance(np.full((T, N), 1e-4)), max_steps=2000
    )
    analysis = method.analyse(Batch2D.from_observations(truth[None, None]))
    assert analysis.latent.shape == (1, 2, 6)
    np.testing.assert_allclose(analysis.state[0], truth, atol=5e-3)


def test_ones_own_networks_are_a_prior_and_a_latent_map():
    dense = MLPAEPrior1D(N, T, 3, 4)
    own = ConvAEPrior(dense.encode, dense.decode, latent_dim=3, state_signature=dense.state_signature)
    np.testing.assert_array_equal(own(X), dense(X))
    assert (own.latent_dim, own.state_signature.shape) == (3, (T, N))
    drop = ConvAEPrior(eqx.nn.Dropout(0.5), eqx.nn.Dropout(0.5))
    np.testing.assert_array_equal(drop(X), X)
    assert drop.latent_dim is drop.state_signature is None


def test_ones_own_networks_compute_in_their_precision():
    keys = jax.random.split(jax.random.key(0))
    layers = [eqx.nn.Conv1d(T, T, 3, padding=1, dtype=jnp.float16, key=key) for key in keys]
    prior, x = ConvAEPrior(*layers), X.astype("float32")
    assert prior.encode(x).dtype == prior(x).dtype == "float32"
    np.testing.assert_allclose(prior(x), layers[1](layers[0](x.astype("float16"))), atol=1e-2)


def test_bad_input_is_refused_in_words(circle):
    with pytest.raises(ValueError, match=r"ConvAEPrior1D: the state has shape \(3, 12\), expected \(2, width\)"):
        circle(jnp.zeros((3, N)))
    with pytest.raises(ValueError, match="`downsampling` is 5, which does not divide `state_dim`, 12"):
        ConvAEPrior1D(N, T, downsampling=5)
    with pytest.raises(ValueError, match=r"the grid \(11,\) has a periodic axis, which cannot be continued"):
        circle(X[:, :11])
    with pytest.raises(ValueError, match=r"decoder\(encoder\(x\)\) has shape \(2, 6\), expected \(2, 12\)"):
        ConvAEPrior(lambda x: x[:, ::2], lambda z: z)(X)
    with pytest.raises(TypeError, match="ConvAEPrior: `decoder` is 3, expected a network or a function"):
        ConvAEPrior(jnp.sin, 3)
    with pytest.raises(ValueError, match="ConvAEPrior: `latent_dim` is 0"):
        ConvAEPrior(jnp.sin, jnp.sin, latent_dim=0)
    with pytest.raises(ValueError, match="ConvAEPrior1D: `hidden_dim` is 0"):
        ConvAEPrior1D(N, T, 2, 0)
