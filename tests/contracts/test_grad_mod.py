"""Every exported modulator is fit for a learned solver: shapes, precision, transformations, derivatives, persistence.

A class joins by being exported from `vardax.grad_mod`; the test of the recipes then asks for examples of it.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vardax.grad_mod
from vardax.grad_mod import (
    AttentionGradMod,
    ConvLSTMGradMod1D,
    ConvLSTMGradMod2D,
    ConvLSTMGradMod3D,
    GradientOnly,
    IdentityGradMod,
    MLPGradMod,
)
from vardax.protocols import GradModulator

EXPORTED = [getattr(vardax.grad_mod, name) for name in vardax.grad_mod.__all__]
CLASSES = [cls for cls in EXPORTED if isinstance(cls, type) and not cls.__name__.startswith("Abstract")]
PARTS = {"GradientOnly", "StateAndGradient"}  # what modulators are made of

X64 = jax.config.jax_enable_x64
RANDOM = np.random.default_rng(0)


def noise(*shape):
    return RANDOM.normal(size=shape)


# (modulator, a state) of each exported class, by name; a state is one window, without a batch axis.
RECIPES = {
    "AttentionGradMod": {
        "times as channels": lambda: (AttentionGradMod(2, 4, 2), noise(2, 5)),
        "patches, shared": lambda: (
            AttentionGradMod(1, 4, 2, n_spatial=2, patch_size=2, periodic=True, inputs=GradientOnly()),
            noise(2, 2, 4),
        ),
    },
    "ConvLSTMGradMod1D": {
        "times as channels": lambda: (ConvLSTMGradMod1D(2, 3), noise(2, 5)),
        "shared": lambda: (ConvLSTMGradMod1D(1, 3, padding="periodic", inputs=GradientOnly()), noise(2, 5)),
    },
    "ConvLSTMGradMod2D": {
        "coarser memory": lambda: (ConvLSTMGradMod2D(2, 3, downsampling=2, padding="reflect"), noise(2, 5, 4)),
        "variables": lambda: (ConvLSTMGradMod2D(2, 3), noise(2, 2, 3, 4)),
    },
    "ConvLSTMGradMod3D": {"times as channels": lambda: (ConvLSTMGradMod3D(2, 3), noise(2, 2, 3, 4))},
    "IdentityGradMod": {"pytree": lambda: (IdentityGradMod(0.1), {"a": noise(2), "b": noise(3, 2)})},
    "MLPGradMod": {"pytree": lambda: (MLPGradMod(8, 4, 1), {"a": noise(2), "b": noise(3, 2)})},
}
EXAMPLES = [
    pytest.param(recipe, id=f"{cls}-{name}") for cls, recipes in RECIPES.items() for name, recipe in recipes.items()
]


def example(recipe, dtype=None):
    modulator, x = recipe()
    return modulator, jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype or jnp.result_type(float)), x)


def described(tree):
    return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype.name), tree)


def rms(tree):
    leaves = [np.ravel(np.asarray(leaf)) for leaf in jax.tree.leaves(tree)]
    return np.sqrt(np.mean(np.concatenate(leaves) ** 2))


def iterated(modulator, grad, state):
    """The second of two updates with their memory, as the solver makes them, and the memory after it."""
    carry = modulator.init_carry(state)
    update, carry = modulator(grad, state, carry)
    moved = jax.tree.map(lambda x, u: x + 0.2 * u, state, update)
    return modulator(grad, moved, carry)


def test_every_exported_class_has_examples():
    assert {cls.__name__ for cls in CLASSES} - PARTS == set(RECIPES)


@pytest.mark.parametrize("recipe", EXAMPLES)
@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "float64"] if X64 else ["bfloat16", "float32"])
def test_an_update_is_like_the_gradient_and_the_memory_stays_like_itself(recipe, dtype):
    modulator, x = example(recipe, dtype)
    assert isinstance(modulator, GradModulator)
    carry = jax.eval_shape(modulator.init_carry, x)
    update, after = jax.eval_shape(modulator, x, x, carry)
    assert described(update) == described(x)
    assert described(after) == described(carry)


@pytest.mark.parametrize("recipe", EXAMPLES)
def test_an_untrained_modulator_hardly_moves(recipe):
    """Beside the normalised gradient, of which a solver takes alpha times the update."""
    modulator, x = example(recipe)
    update, _ = eqx.filter_jit(lambda m, x: m(x, x, m.init_carry(x)))(modulator, x)
    assert 0 < rms(update) <= 0.1 * rms(x) * (1 + 1e-6)


@pytest.mark.slow
@pytest.mark.x64
@pytest.mark.parametrize("recipe", EXAMPLES)
def test_it_goes_through_jit_and_vmap_and_its_gradients_are_those_of_differences(recipe):
    """By the state, the gradient and the weights at once, along one direction."""
    modulator, x = example(recipe)
    grad, weights = jax.tree.map(lambda leaf: 0.5 * leaf[::-1], x), [jnp.asarray([1.0, -2.0])]
    trained, fixed = eqx.partition(modulator, eqx.is_inexact_array)

    @jax.jit
    def value_and_slopes(arguments):
        def total(arguments):
            trained, grads, states = arguments
            updates, carries = jax.vmap(lambda g, s: iterated(eqx.combine(trained, fixed), g, s))(grads, states)
            terms = [
                weights[0] @ jnp.sum(leaf.reshape(2, -1) ** 2, axis=1) for leaf in jax.tree.leaves((updates, carries))
            ]
            return sum(terms), updates

        return jax.value_and_grad(total, has_aux=True)(arguments)

    pair = lambda tree: jax.tree.map(lambda leaf: jnp.stack([leaf, 0.7 * leaf]), tree)  # noqa: E731
    arguments = (trained, pair(grad), pair(x))
    direction = jax.tree.map(lambda leaf: jnp.asarray(noise(*leaf.shape)), arguments)
    (_, updates), slopes = value_and_slopes(arguments)
    h = 1e-6
    ahead, behind = (
        value_and_slopes(jax.tree.map(lambda a, d, s=s: a + s * h * d, arguments, direction))[0][0] for s in (1, -1)
    )
    slope = sum(jnp.vdot(a, b) for a, b in zip(*map(jax.tree.leaves, (slopes, direction)), strict=True))
    np.testing.assert_allclose(slope, (ahead - behind) / (2 * h), rtol=1e-6, atol=1e-9)

    alone, _ = eqx.filter_jit(iterated)(modulator, grad, x)
    for a, b in zip(jax.tree.leaves(alone), jax.tree.leaves(updates), strict=True):
        np.testing.assert_allclose(a, b[0], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("recipe", EXAMPLES)
def test_it_comes_back_from_a_registry(recipe, comes_back):
    comes_back(lambda: recipe()[0])
