"""The ConvLSTM is the recursion that its docstring says, on any grid, with weights shared as its channels say."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vardax.grad_mod.conv_lstm import ConvLSTMGradMod1D, ConvLSTMGradMod2D
from vardax.grad_mod.inputs import GradientOnly, StateAndGradient
from vardax.priors.resampling import CornerAligned
from vardax.types import LSTMState2D

DTYPE = jnp.result_type(float)
CLOSE = 1e-12 if jax.config.jax_enable_x64 else 1e-5


@pytest.fixture(scope="module")
def run():
    """One iteration, compiled once for each kind of modulator and shape."""
    return eqx.filter_jit(lambda modulator, grad, state, carry: modulator(grad, state, carry))


def noise(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape).astype(DTYPE))


def livened(modulator):
    """Weights large enough that every term of the recursion matters."""
    return jax.tree.map(lambda leaf: jnp.asarray(3 * np.asarray(leaf)) if eqx.is_array(leaf) else leaf, modulator)


def around(convolution, x):
    """A periodic convolution of (channels, *space), by rolling the field."""
    weight, axes = np.asarray(convolution.weight), tuple(range(1, x.ndim))
    out = np.asarray(convolution.bias).reshape(-1, *[1] * len(axes)) * np.ones((1, *x.shape[1:]))
    for shift in np.ndindex(weight.shape[2:]):
        moved = np.roll(x, [weight.shape[-1] // 2 - s for s in shift], axes)
        out += np.tensordot(weight[(slice(None), slice(None), *shift)], moved, 1)
    return out


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def by_hand(modulator, seen, h, c):
    """(V * h', h', c') with channels first."""
    enter, remember, leave, content = np.split(around(modulator.gates, np.concatenate([seen, h])), 4)
    c = sigmoid(remember) * c + sigmoid(enter) * np.tanh(content)
    h = sigmoid(leave) * np.tanh(c)
    return around(modulator.readout, h), h, c


@pytest.mark.parametrize("inputs", [StateAndGradient(), GradientOnly()])
def test_three_iterations_are_those_of_an_lstm(run, inputs):
    modulator = livened(ConvLSTMGradMod2D(2, 3, inputs=inputs, padding="periodic"))
    state = noise(2, 4, 5)
    carry, h, c = modulator.init_carry(state), np.zeros((3, 4, 5)), np.zeros((3, 4, 5))
    for k in range(3):
        grad = noise(2, 4, 5, seed=k + 1)
        update, carry = run(modulator, grad, state, carry)
        seen = np.concatenate([state, grad]) if inputs.n_fields == 2 else grad
        expected, h, c = by_hand(modulator, seen, h, c)
        np.testing.assert_allclose(update, expected, atol=CLOSE)
        np.testing.assert_allclose(np.moveaxis(carry.h, -1, 0), h, atol=CLOSE)
        np.testing.assert_allclose(np.moveaxis(carry.c, -1, 0), c, atol=CLOSE)


def test_downsampling_takes_means_and_interpolates_back(run):
    """11 cells are continued to 12 by the last one; six means; interpolated at 12 places, the last cut off."""
    modulator = livened(ConvLSTMGradMod1D(2, 3, 1, downsampling=2, upsampling=CornerAligned(), inputs=GradientOnly()))
    grad = noise(2, 11)
    update, carry = run(modulator, grad, jnp.zeros((2, 11)), modulator.init_carry(jnp.zeros((2, 11))))

    means = np.mean(np.concatenate([grad, grad[:, -1:]], axis=1).reshape(2, 6, 2), axis=-1)
    coarse, h, _ = by_hand(modulator, means, np.zeros((3, 6)), np.zeros((3, 6)))
    fine = [np.interp(np.linspace(0, 5, 12), np.arange(6), row)[:11] for row in coarse]
    np.testing.assert_allclose(update, fine, atol=CLOSE)
    np.testing.assert_allclose(carry.h.T, h, atol=CLOSE)


def test_weights_shared_over_times_are_a_loop_over_them(run):
    modulator = livened(ConvLSTMGradMod1D(1, 3))
    grad, state = noise(4, 6), noise(4, 6, seed=1)
    carry = modulator.init_carry(state)
    for _ in range(2):
        update, carry = run(modulator, grad, state, carry)

    for t in range(4):
        alone = modulator.init_carry(state[t])
        for _ in range(2):
            of_time, alone = run(modulator, grad[t], state[t], alone)
        np.testing.assert_allclose(update[t], of_time, atol=CLOSE)
        np.testing.assert_allclose(carry.c[t], alone.c, atol=CLOSE)


def test_variables_are_channels_and_times_share_the_weights(run):
    modulator = livened(ConvLSTMGradMod2D(2, 3))
    grad, state = noise(3, 2, 4, 5), noise(3, 2, 4, 5, seed=1)
    update, carry = run(modulator, grad, state, modulator.init_carry(state))
    of_time, _ = run(modulator, grad[1], state[1], modulator.init_carry(state[1]))
    np.testing.assert_allclose(update[1], of_time, atol=CLOSE)
    assert carry.h.shape == (3, 4, 5, 3)


def test_the_same_weights_run_on_any_grid(run):
    """The update of a patch is the patch of the update, where the edges are out of reach."""
    modulator = livened(ConvLSTMGradMod2D(2, 3))
    grad, state = noise(2, 9, 10), noise(2, 9, 10, seed=1)
    patch = (slice(None), slice(1, 8), slice(2, 8))
    whole, _ = run(modulator, grad, state, modulator.init_carry(state))
    part, _ = run(modulator, grad[patch], state[patch], modulator.init_carry(state[patch]))
    inside = (slice(None), slice(2, -2), slice(2, -2))
    np.testing.assert_allclose(part[inside], whole[patch][inside], atol=CLOSE)


def test_other_weights_and_values_do_not_compile_again(run, count_compilations):
    state = noise(2, 4, 5)
    first, second = (ConvLSTMGradMod2D(2, 3, key=jax.random.key(k)) for k in (1, 2))
    _, carry = run(first, state, state, first.init_carry(state))
    moved = state + 1.0
    with count_compilations() as compiled:
        run(second, moved, moved, carry)
    assert compiled.n == 0, compiled.names


def test_a_memory_of_another_grid_is_named():
    modulator, x = ConvLSTMGradMod2D(2, 3), jnp.zeros((2, 4, 5))
    with pytest.raises(ValueError, match=r"`carry` is \(4, 6, 3\), expected a LSTMState2D of shape \(4, 5, 3\): start"):
        modulator(x, x, LSTMState2D.zeros((4, 6), 3))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: ConvLSTMGradMod2D(0), "ConvLSTMGradMod2D: `state_channels` is 0, expected an integer of at least 1"),
        (lambda: ConvLSTMGradMod1D(hidden_dim=0), "ConvLSTMGradMod1D: `hidden_dim` is 0"),
        (lambda: ConvLSTMGradMod1D(2, 3, 2), "`kernel_size` is 2, expected an odd number"),
        (lambda: ConvLSTMGradMod1D(2, 3, 1, downsampling=0), "`downsampling` is 0"),
        (
            lambda: ConvLSTMGradMod2D(2, 3).init_carry(jnp.zeros((3, 5, 6))),
            "`state_channels` is 2, but the state has shape",
        ),
    ],
)
def test_settings_that_do_not_fit_are_named(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_a_grid_too_small_for_the_kernel_is_named():
    modulator, x = ConvLSTMGradMod2D(2, 3, padding="reflect"), jnp.zeros((2, 1, 6))
    with pytest.raises(ValueError, match=r"the grid \(1, 6\) is smaller than the kernel needs"):
        modulator(x, x, modulator.init_carry(x))
