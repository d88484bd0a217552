"""NeuralForward: the network's own precision, its one time step, its weights as leaves."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vardax.dynamics import NeuralForward, rollout
from vardax.protocols import ForwardModel

KEY = jax.random.key(0)


def mlp(dtype):
    return eqx.nn.MLP(3, 3, 8, 1, jnp.tanh, dtype=dtype, key=KEY)


def test_a_step_is_the_network():
    net, x = mlp(jnp.result_type(float)), jnp.array([0.1, -0.4, 0.8])
    model = NeuralForward(net, 0.5)
    assert isinstance(model, ForwardModel)
    np.testing.assert_allclose(rollout(model, x, 2)[-1], net(net(x)), rtol=1e-6)


@pytest.mark.parametrize(("weights", "state"), [("bfloat16", "float32"), ("float32", "float16")])
def test_the_network_computes_in_its_precision_and_the_state_keeps_its_own(weights, state):
    net, x = mlp(jnp.dtype(weights)), jnp.array([0.1, -0.4, 0.8], state)
    after = NeuralForward(net, 0.5).step(x, 0.5)
    assert after.dtype == state
    np.testing.assert_array_equal(after, net(x.astype(weights)).astype(state))


def test_dropout_is_off_and_functions_are_networks():
    net = eqx.nn.Sequential([eqx.nn.Dropout(0.5), eqx.nn.Lambda(lambda x: 2 * x)])
    np.testing.assert_array_equal(NeuralForward(net, 1.0).step(jnp.ones(3), 1.0), 2.0)
    np.testing.assert_array_equal(NeuralForward(lambda x: x + 1, 1.0).step(jnp.ones(3), 1.0), 2.0)


def test_weights_are_differentiated():
    model = NeuralForward(mlp(jnp.result_type(float)), 0.5)
    gradient = eqx.filter_grad(lambda m: jnp.sum(rollout(m, jnp.ones(3), 3)[-1]))(model)
    norms = [float(jnp.linalg.norm(leaf)) for leaf in jax.tree.leaves(eqx.filter(gradient.net, eqx.is_array))]
    assert len(norms) == 4
    assert min(norms) > 0


def test_another_time_step_is_refused():
    with pytest.raises(ValueError, match="`dt` is 0.25, but the network predicts over 0.5.*`n_substeps`"):
        NeuralForward(lambda x: x, 0.5).step(jnp.ones(3), 0.25)


def test_bad_arguments_are_named():
    with pytest.raises(TypeError, match="`net` is None, expected a network"):
        NeuralForward(None, 0.5)
    with pytest.raises(TypeError, match="`net` returns the structure .*expected that of the state"):
        NeuralForward(lambda x: (x, x), 0.5).step(jnp.ones(3), 0.5)
