"""The dense modulator is its layers, on the leaves of a state laid out one after the other."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vardax.grad_mod.inputs import GradientOnly
from vardax.grad_mod.mlp import MLPGradMod

CLOSE = 1e-12 if jax.config.jax_enable_x64 else 1e-5


def test_it_is_tanh_between_dense_layers_of_state_and_gradient():
    modulator = MLPGradMod(5, 4, 1)
    rng = np.random.default_rng(0)
    grad, state = ({"a": rng.normal(size=(2,)), "b": rng.normal(size=(3, 1))} for _ in range(2))
    as_arrays = lambda tree: jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.result_type(float)), tree)  # noqa: E731
    update, carry = eqx.filter_jit(modulator)(as_arrays(grad), as_arrays(state), None)

    flat = np.concatenate([state["a"], state["b"][:, 0], grad["a"], grad["b"][:, 0]])
    first, last = modulator.net.layers
    expected = last.weight @ np.tanh(first.weight @ flat + first.bias) + last.bias
    np.testing.assert_allclose(update["a"], expected[:2], atol=CLOSE)
    np.testing.assert_allclose(update["b"][:, 0], expected[2:], atol=CLOSE)
    assert carry is None


def test_it_may_see_the_gradient_alone():
    modulator, grad = MLPGradMod(3, 4, 1, inputs=GradientOnly()), jnp.arange(3.0)
    np.testing.assert_array_equal(modulator(grad, grad, None)[0], modulator(grad, grad + 1.0, None)[0])


def test_sizes_that_do_not_fit_are_named():
    with pytest.raises(
        ValueError, match=r"MLPGradMod: the gradient has 4 numbers, in \[\(4,\)\], expected `state_size`, 3"
    ):
        MLPGradMod(3, 4, 1)(jnp.ones(4), jnp.ones(4), None)
    with pytest.raises(ValueError, match="MLPGradMod: `hidden_dim` is 0, expected an integer of at least 1"):
        MLPGradMod(3, 0)
