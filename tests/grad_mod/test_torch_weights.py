"""Weights with the names of the PyTorch programs go where they belong."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vardax.grad_mod.conv_lstm import ConvLSTMGradMod2D

N_TIME, HIDDEN, SIZE = 2, 3, 3
CLOSE = 1e-5


def weights(prefix="grad_mod."):
    rng = np.random.default_rng(0)
    shapes = {
        "gates.weight": (4 * HIDDEN, N_TIME + HIDDEN, SIZE, SIZE),
        "gates.bias": (4 * HIDDEN,),
        "conv_out.weight": (N_TIME, HIDDEN, SIZE, SIZE),
        "conv_out.bias": (N_TIME,),
    }
    return {prefix + name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def test_the_update_is_that_of_the_programs():
    """One cell of a 5x5 grid away from its edges, in the order of the programs: gates of [gradient, memory]."""
    found = ConvLSTMGradMod2D.from_torch(weights())
    grad = np.random.default_rng(1).standard_normal((N_TIME, 5, 5)).astype(np.float32)
    update, carry = jax.jit(lambda m, g: m(g, g, m.init_carry(g)))(found, grad)

    arrays = weights("")

    def convolved(layer, x):
        """With zeros beyond the edges."""
        wide = np.pad(x, ((0, 0), (1, 1), (1, 1)))
        kernel = arrays[f"{layer}.weight"]
        cells = [
            [np.tensordot(kernel, wide[:, i : i + SIZE, j : j + SIZE], 3) for j in range(x.shape[2])]
            for i in range(x.shape[1])
        ]
        return np.moveaxis(np.array(cells), -1, 0) + arrays[f"{layer}.bias"][:, None, None]

    enter, remember, leave, content = np.split(convolved("gates", np.concatenate([grad, np.zeros((HIDDEN, 5, 5))])), 4)
    cell = np.tanh(content) / (1 + np.exp(-enter))
    hidden = np.tanh(cell) / (1 + np.exp(-leave))
    np.testing.assert_allclose(np.moveaxis(carry.c, -1, 0), cell, atol=CLOSE)
    np.testing.assert_allclose(update, convolved("conv_out", hidden), atol=CLOSE)
    assert update.dtype == jnp.float32
    assert not np.allclose(remember, enter)


@pytest.mark.parametrize("rename", [lambda name: name, lambda name: "solver.grad_mod." + name])
def test_any_prefix_and_underscores_for_dots_will_do(rename):
    named = {rename(name).replace(".", "__"): value for name, value in weights("").items()}
    found = ConvLSTMGradMod2D.from_torch(named, downsampling=2)
    np.testing.assert_array_equal(found.readout.bias, weights("")["conv_out.bias"])
    assert (found.state_channels, found.hidden_dim, found.gates.kernel_size) == (N_TIME, HIDDEN, SIZE)


def test_weights_that_are_not_those_of_one_network_are_named():
    complete = weights()
    with pytest.raises(ValueError, match=r"`state_dict` has 0 names that end in gates.weight"):
        ConvLSTMGradMod2D.from_torch({"conv_out.weight": np.ones(1)})
    with pytest.raises(ValueError, match=r"`state_dict` lacks grad_mod.conv_out.bias"):
        ConvLSTMGradMod2D.from_torch({n: v for n, v in complete.items() if n != "grad_mod.conv_out.bias"})
    with pytest.raises(ValueError, match=r"`state_dict`: gates.bias has shape \(1,\), expected \(12,\)"):
        ConvLSTMGradMod2D.from_torch({**complete, "grad_mod.gates.bias": np.ones(1, np.float32)})
