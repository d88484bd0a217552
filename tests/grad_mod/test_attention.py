"""Attention over space: its formula for one head, and that it knows of places only by their offsets."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vardax.grad_mod.attention import AttentionGradMod
from vardax.grad_mod.inputs import GradientOnly

DTYPE = jnp.result_type(float)
CLOSE = 1e-11 if jax.config.jax_enable_x64 else 1e-4


@pytest.fixture(scope="module")
def run():
    """One update, compiled once for each kind of modulator and shape."""
    return eqx.filter_jit(lambda modulator, grad, state: modulator(grad, state, None)[0])


def noise(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape).astype(DTYPE))


def unit(x):
    return x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + 1e-6)


def test_one_head_is_its_closed_form(run):
    modulator = AttentionGradMod(2, 4, 1)
    grad, state = noise(2, 5), noise(2, 5, seed=1)

    m = jax.tree.map(np.asarray, modulator)
    t = np.concatenate([state, grad]).T @ m.embed.T
    scores = (
        unit(t @ m.to_query.T) @ unit(t @ m.to_key.T).T / 2 + np.asarray(jax.jit(lambda b: b((5,)))(modulator.bias))[0]
    )
    weights = np.exp(scores) / np.sum(np.exp(scores), axis=1, keepdims=True)
    y = t + weights @ (t @ m.to_value.T) @ m.mix.T
    expected = (y + np.tanh(y @ m.widen.T) @ m.narrow.T) @ m.readout.T
    np.testing.assert_allclose(run(modulator, grad, state), expected.T, atol=CLOSE)


def test_without_offsets_places_may_be_in_any_order(run):
    modulator = AttentionGradMod(2, 4, 2)
    modulator = eqx.tree_at(lambda m: m.bias.weight, modulator, replace_fn=lambda w: 0.0 * w)
    grad, state, order = noise(2, 5), noise(2, 5, seed=1), [3, 0, 4, 1, 2]
    moved = run(modulator, grad[:, order], state[:, order])
    np.testing.assert_allclose(moved, run(modulator, grad, state)[:, order], atol=CLOSE)


@pytest.mark.parametrize("patch_size", [1, 2])
def test_on_periodic_axes_the_update_moves_with_the_field(run, patch_size):
    modulator = AttentionGradMod(2, 4, 2, n_spatial=2, periodic=True, patch_size=patch_size)
    grad, state = noise(2, 4, 6), noise(2, 4, 6, seed=1)
    rolled = lambda x: jnp.asarray(np.roll(x, (2, 4), (1, 2)))  # noqa: E731
    moved = run(modulator, rolled(grad), rolled(state))
    np.testing.assert_allclose(moved, rolled(run(modulator, grad, state)), atol=CLOSE)


@pytest.mark.parametrize("shape", [(2, 4, 6), (2, 2, 4, 2)])
def test_patches_go_back_to_where_they_came_from(run, shape):
    """With nothing between embedding and readout, and both the identity, the update is the gradient."""
    given = 2 * 2 ** (len(shape) - 1)
    modulator = AttentionGradMod(2, given, 1, n_spatial=len(shape) - 1, patch_size=2, inputs=GradientOnly())
    parts = lambda m: (m.embed, m.readout, m.mix, m.narrow)  # noqa: E731
    identity, nothing, narrow = (np.eye(given), np.zeros((given, given)), np.zeros((given, 2 * given)))
    modulator = eqx.tree_at(
        parts, modulator, tuple(jnp.asarray(a, DTYPE) for a in (identity, identity, nothing, narrow))
    )
    np.testing.assert_allclose(run(modulator, noise(*shape), noise(*shape)), noise(*shape), atol=CLOSE)


def test_weights_shared_over_times_are_a_loop_over_them(run):
    modulator = AttentionGradMod(1, 4, 2)
    grad, state = noise(3, 5), noise(3, 5, seed=1)
    update = run(modulator, grad, state)
    for t in range(3):
        np.testing.assert_allclose(update[t], run(modulator, grad[t], state[t]), atol=CLOSE)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: AttentionGradMod(1, 6, 4), "`hidden_dim` is 6, expected a multiple of `n_heads`, 4"),
        (lambda: AttentionGradMod(1, 4, n_spatial=4), "`n_spatial` is 4, expected 1, 2 or 3"),
        (lambda: AttentionGradMod(patch_size=0), "AttentionGradMod: `patch_size` is 0"),
        (
            lambda: AttentionGradMod(1, 4, 2, patch_size=2)(noise(1, 5), noise(1, 5), None),
            r"the grid \(5,\) is not a multiple of `patch_size`, 2; choose one that divides it, or 1",
        ),
    ],
)
def test_settings_that_do_not_fit_are_named(call, words):
    with pytest.raises(ValueError, match=words):
        call()
