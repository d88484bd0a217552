"""Models in latent space: between decoder and encoder, and learned."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vardax.dynamics.discrete import DiscreteForward
from vardax.dynamics.lorenz96 import Lorenz96
from vardax.dynamics.rollout import rollout
from vardax.latent.eof import EOFBasis
from vardax.latent.forward import EncodedForwardModel, NeuralLatentForwardModel
from vardax.latent.identity import IdentityLatentMap
from vardax.protocols import LatentForwardModel

TIGHT = 1e-11 if jax.config.jax_enable_x64 else 1e-4
SAMPLES = np.random.default_rng(5).normal(size=(20, 8)) + 8


def test_with_a_map_that_loses_nothing_it_is_the_model():
    basis, model = EOFBasis.from_samples(SAMPLES, 8), Lorenz96(8, dt=0.02)
    latent = EncodedForwardModel(basis, model)
    assert isinstance(latent, LatentForwardModel)
    x0 = jnp.asarray(SAMPLES[0])
    expected = rollout(model, x0, 5)
    np.testing.assert_allclose(jax.vmap(basis.decode)(rollout(latent, basis.encode(x0), 5)), expected, atol=TIGHT * 10)


def test_each_step_keeps_what_can_be_decoded():
    basis, model = EOFBasis.from_samples(SAMPLES, 3), Lorenz96(8, dt=0.02)
    z = jnp.ones(3)
    expected = basis.encode(model.step(basis.decode(z), 0.02))
    np.testing.assert_allclose(EncodedForwardModel(basis, model).step(z, 0.02), expected, atol=TIGHT)


def test_the_model_inside_gets_the_time_of_the_window():
    model = DiscreteForward(lambda x, dt, t0: x + t0, 0.5)
    latent = EncodedForwardModel(IdentityLatentMap(1), model)
    np.testing.assert_allclose(rollout(latent, jnp.zeros(1), 3, t0=2.0)[:, 0], [0, 2, 4.5, 7.5])


def test_a_network_moves_the_latent_vector():
    net = eqx.nn.MLP(3, 3, width_size=4, depth=1, key=jax.random.key(0))
    latent = NeuralLatentForwardModel(net, dt=0.1, latent_signature=jax.ShapeDtypeStruct((3,), jnp.float32))
    assert isinstance(latent, LatentForwardModel)
    assert latent.latent_signature.shape == (3,)
    z = jnp.arange(3.0)
    np.testing.assert_allclose(rollout(latent, z, 2)[2], net(net(z)), rtol=1e-5)
    np.testing.assert_array_equal(latent.net.layers[0].weight, net.layers[0].weight)


def test_bad_input_is_refused_in_words():
    with pytest.raises(TypeError, match="NeuralLatentForwardModel: `net` is 3, expected a network"):
        NeuralLatentForwardModel(3)
    with pytest.raises(TypeError, match="EncodedForwardModel: `latent_map` is Lorenz96 without encode and decode"):
        EncodedForwardModel(Lorenz96(4), IdentityLatentMap(4))
    with pytest.raises(TypeError, match="`forward` is a IdentityLatentMap, expected a model"):
        EncodedForwardModel(IdentityLatentMap(4), IdentityLatentMap(4))
