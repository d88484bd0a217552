"""Every exported model is fit for a window: `forward_model_test` on all of them, and adjoints through `rollout`.

A class joins by being exported from `vardax.dynamics`; the test of the recipes then asks for examples of it.
"""

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optimistix as optx
import pytest

import vardax.dynamics
from vardax.dynamics import (
    AdvectionDiffusion1D,
    DiffraxForward,
    DiscreteForward,
    ExternalForward,
    GaussianPlume,
    Lorenz63,
    Lorenz96,
    NeuralForward,
    QuasiGeostrophic2D,
    ShallowWater2D,
    SoftBoundedForward,
    TwoLevelLorenz96,
    rollout,
)
from vardax.protocols import ForwardModel
from vardax.validation import adjoint_test, forward_model_test, taylor_test

EXPORTED = [getattr(vardax.dynamics, name) for name in vardax.dynamics.__all__]
CLASSES = [cls for cls in EXPORTED if isinstance(cls, type) and not cls.__name__.startswith("Abstract")]

DTYPE = jnp.result_type(float).name  # float64, and float32 where the suite runs without x64


def array(values, dtype):
    return jnp.asarray(values, dtype)


def noise(shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def oscillator(state, dt):
    return {"x": state["x"] + dt * state["v"], "v": state["v"] - dt * jnp.sin(state["x"])}


def driven(t, x, args):
    return {"x": x["v"], "v": jnp.cos(t) - jnp.sin(x["x"])}


def newton(dtype):
    return optx.Newton(1e-10, 1e-10) if dtype == "float64" else optx.Newton(1e-5, 1e-5)


def numpy_step(x, dt):
    return x + dt * np.sin(np.roll(x, 1))


def numpy_tangent(x, dx, dt):
    return dx + dt * np.cos(np.roll(x, 1)) * np.roll(dx, 1)


def numpy_adjoint(x, a, dt):
    return a + dt * np.roll(np.cos(np.roll(x, 1)) * a, -1)


# (model, state) of each exported class, by name.
RECIPES = {
    "AdvectionDiffusion1D": {
        "winds of both signs": lambda dtype: (
            AdvectionDiffusion1D(8, array(noise(8), dtype), array(np.full(8, 0.01), dtype), dt=0.01),
            array(noise(8, 1), dtype),
        ),
    },
    "DiffraxForward": {
        "explicit, depends on time, pytree": lambda dtype: (
            DiffraxForward(driven, 0.1, n_substeps=2),
            {"x": array(noise(3), dtype), "v": array(noise(3, 1), dtype)},
        ),
        "implicit": lambda dtype: (
            DiffraxForward(lambda t, x, a: -(x**3), 0.1, solver=diffrax.ImplicitEuler(root_finder=newton(dtype))),
            array(noise(3), dtype),
        ),
    },
    "ExternalForward": {
        "numpy": lambda dtype: (
            ExternalForward(numpy_step, numpy_tangent, numpy_adjoint, dt=0.1),
            array(noise(5), dtype),
        ),
    },
    "GaussianPlume": {
        "two sources": lambda dtype: (
            GaussianPlume(array([[0, 0, 5], [100, 50, 2]], dtype), array(np.ones((4, 2)), dtype)),
            array([1.0, 0.5], dtype),
        ),
    },
    "Lorenz63": {"classical": lambda dtype: (Lorenz63(), array([1.5, -1.5, 25.5], dtype))},
    "NeuralForward": {
        "perceptron": lambda dtype: (
            NeuralForward(eqx.nn.MLP(4, 4, 8, 1, jnp.tanh, dtype=jnp.dtype(dtype), key=jax.random.key(1)), 0.5),
            array(noise(4), dtype),
        ),
    },
    "QuasiGeostrophic2D": {
        "waves and friction": lambda dtype: (
            QuasiGeostrophic2D((6, 8), 3.0, beta=1.0, deformation_radius=0.5, drag=0.1, viscosity=1e-4, dt=0.02),
            array(noise((6, 8)), dtype),
        ),
    },
    "ShallowWater2D": {
        "over a bottom": lambda dtype: (
            ShallowWater2D((4, 5), (1.0, 1.2), 1.0 + 0.1 * array(noise((4, 5)), dtype), 1.0, 0.5, 0.01, dt=0.05),
            {name: array(0.1 * noise((4, 5), k), dtype) for k, name in enumerate(("h", "u", "v"))},
        ),
    },
    "SoftBoundedForward": {
        "partly beyond": lambda dtype: (
            SoftBoundedForward(Lorenz96(6), 12.0),
            array(2.5 + 3.5 * noise(6), dtype),
        ),
    },
    "TwoLevelLorenz96": {"small": lambda dtype: (TwoLevelLorenz96(4, 2), array(noise(12), dtype))},
    "DiscreteForward": {
        "function": lambda dtype: (DiscreteForward(lambda x, dt: x - dt * x**3, 0.1), array(noise(5), dtype)),
        "state only": lambda dtype: (DiscreteForward(lambda x: jnp.roll(x, 1), 1.0), array(noise((3, 4)), dtype)),
        "depends on time": lambda dtype: (
            DiscreteForward(lambda x, dt, *, t0: x + dt * jnp.sin(t0) * x, 0.1),
            array(noise(5), dtype),
        ),
        "pytree": lambda dtype: (
            DiscreteForward(oscillator, 0.1),
            {"x": array(noise(4), dtype), "v": array(noise(4, 1), dtype)},
        ),
        "network": lambda dtype: (
            DiscreteForward(eqx.nn.MLP(6, 6, 8, 1, dtype=jnp.dtype(dtype), key=jax.random.key(0)), 1.0),
            array(noise(6), dtype),
        ),
        "one number": lambda dtype: (DiscreteForward(lambda x: jnp.cos(x), 1.0), array(0.4, dtype)),
    },
    "Lorenz96": {
        "40": lambda dtype: (Lorenz96(), array(2.5 + 3.5 * noise(40), dtype)),
        "the smallest": lambda dtype: (Lorenz96(4, 6.0), array(noise(4), dtype)),
        "odd, forcing per variable": lambda dtype: (
            Lorenz96(9, array(8 + noise(9), dtype), 0.02),
            array(2.5 + 3.5 * noise(9), dtype),
        ),
        "many at once": lambda dtype: (Lorenz96(10), array(2.5 + 3.5 * noise((3, 10)), dtype)),
    },
}

EXAMPLES = [
    pytest.param(recipe, id=f"{cls}-{name}") for cls, recipes in RECIPES.items() for name, recipe in recipes.items()
]

ADJOINTS = {
    "direct": diffrax.DirectAdjoint(),
    "checkpoints": optx.RecursiveCheckpointAdjoint(),
    "3 checkpoints": optx.RecursiveCheckpointAdjoint(checkpoints=3),
    "forward mode": diffrax.ForwardMode(),
}


def test_every_exported_class_has_examples():
    assert {cls.__name__ for cls in CLASSES} == set(RECIPES)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", EXAMPLES)
def test_a_model_is_fit_for_a_window(recipe):
    model, state = recipe(DTYPE)
    assert isinstance(model, ForwardModel)
    report = forward_model_test(model, state, t0=0.7)
    assert report, str(report)


@pytest.mark.parametrize("recipe", EXAMPLES)
def test_float32_stays_float32(recipe):
    model, state = recipe("float32")
    results = (
        jax.eval_shape(lambda s: model.step(s, model.dt), state),
        jax.eval_shape(lambda s: rollout(model, s, 2), state),
    )
    assert {leaf.dtype.name for leaf in jax.tree.leaves(results)} == {"float32"}


@pytest.mark.slow
@pytest.mark.parametrize("name", ADJOINTS)
@pytest.mark.parametrize("n_substeps", [1, 2])
def test_the_whole_trajectory_has_the_right_tangent_and_adjoint(name, n_substeps):
    model, state = RECIPES["Lorenz96"]["odd, forcing per variable"](DTYPE)
    run = lambda x: rollout(model, x, 7, forward_adjoint=ADJOINTS[name], n_substeps=n_substeps)  # noqa: E731
    for test in (adjoint_test, taylor_test):
        report = test(run, state)
        assert report, str(report)


@pytest.mark.parametrize("recipe", EXAMPLES)
def test_a_model_goes_through_jit_and_vmap(recipe):
    model, state = recipe("float32")
    stack = jax.tree.map(lambda leaf: jnp.stack([leaf, 0.5 * leaf]), state)
    together = eqx.filter_jit(lambda m, states: jax.vmap(lambda s: rollout(m, s, 3))(states))(model, stack)
    for k in range(2):
        alone = rollout(model, jax.tree.map(lambda leaf, k=k: leaf[k], stack), 3)
        for a, b in zip(jax.tree.leaves(alone), jax.tree.leaves(together), strict=True):
            np.testing.assert_allclose(a, b[k], rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("recipe", EXAMPLES)
def test_a_rollout_is_its_steps_and_starts_at_the_state(recipe):
    model, state = recipe("float32")
    entries = rollout(model, state, 2, t0=0.3)
    first = jax.tree.map(lambda leaf: leaf[0], entries)
    for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(state), strict=True):
        np.testing.assert_array_equal(a, b)
        assert a.dtype == b.dtype
    again = rollout(model, jax.tree.map(lambda leaf: leaf[1], entries), 1, t0=0.3 + model.dt)
    for a, b in zip(jax.tree.leaves(again), jax.tree.leaves(entries), strict=True):
        np.testing.assert_allclose(a[1], b[2], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("recipe", EXAMPLES)
def test_it_comes_back_from_a_registry(recipe, comes_back):
    comes_back(lambda: recipe(DTYPE)[0])
