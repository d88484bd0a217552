"""Every exported observation operator is fit for an analysis: `observation_operator_test` on all of them.

A class joins by being exported from `vardax.obs_operators`; the test of the recipes then asks for examples of it.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest

import vardax.obs_operators
from vardax.covariances import DenseCovariance, DiagonalCovariance
from vardax.obs_operators import (
    AveragingKernel,
    CallableObs,
    ColumnRetrieval,
    CompositeObs,
    InstrumentSpec,
    InterpObs,
    LinearObs,
    MaskedIdentity,
    ModuleLinearOperator,
    MultiInstrumentFusion,
    PointObs,
    RetrievalKernel,
    interp_obs_from_coords,
    is_linear,
)
from vardax.protocols import ObservationOperator
from vardax.types import Grid, Observations
from vardax.validation import adjoint_test, observation_operator_test

EXPORTED = [getattr(vardax.obs_operators, name) for name in vardax.obs_operators.__all__]
CLASSES = [cls for cls in EXPORTED if isinstance(cls, type) and not cls.__name__.startswith("Abstract")]

DTYPE = jnp.result_type(float).name  # float64, and float32 where the suite runs without x64


def array(values, dtype):
    return jnp.asarray(values, dtype)


def noise(shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def axis(n, dtype):
    return array(np.arange(n), dtype)


def positions(shape, p, dtype, seed=1):
    """p positions inside a grid of unit spacing."""
    rng = np.random.default_rng(seed)
    return array(np.stack([rng.uniform(0, max(n - 1, 0), p) for n in shape], axis=1), dtype)


def bound(shape, p, **options):
    def recipe(dtype):
        H = InterpObs([axis(n, dtype) for n in shape], **options)
        return H.at(positions(shape, p, dtype)), array(noise(shape), dtype)

    return recipe


def observed_points(dtype):
    coords = positions((9, 7), 6, dtype)
    points = Observations(array(noise(6), dtype), 1.0, 0.0, coords, valid=[1, 1, 0, 1, 1, 0])
    return InterpObs(Grid([axis(9, dtype), axis(7, dtype)], periodic=(1,))).at(points), array(noise((9, 7)), dtype)


def beside_land(dtype):
    mask = np.arange(63).reshape(9, 7) % 5 != 0
    H = InterpObs(Grid([axis(9, dtype), axis(7, dtype)], mask=mask), outside="mask")
    return H.at(positions((9, 7), 20, dtype)), array(np.where(mask, noise((9, 7)), 0.0), dtype)


def curvilinear(dtype, levels):
    """A grid around the globe whose meridians are bent."""
    latitude, longitude = np.meshgrid(np.arange(-40.0, 41.0, 20.0), np.arange(0.0, 360.0, 45.0), indexing="ij")
    longitude = (longitude + 0.3 * latitude + 180) % 360 - 180
    axes = [axis(n, dtype) for n in levels] + [array(latitude, dtype), array(longitude, dtype)]
    H = InterpObs(axes, periodic={len(levels) + 1: 360.0}, outside="clamp")
    low, high = [0.0] * len(levels) + [-45.0, -200.0], [2.0] * len(levels) + [45.0, 200.0]
    where = np.random.default_rng(1).uniform(low, high, (12, len(low)))
    return H.at(array(where, dtype)), array(noise((*levels, 5, 8)), dtype)


def nonlinear(state):
    return jnp.log(1 + state["u"] ** 2)[::2] * jnp.sum(state["v"])


def profiles(p, levels, dtype, seed=2):
    """A kernel and an a priori for each of p profiles; the kernel of profile 1 has a gap."""
    kernels = 0.5 * np.eye(levels) + 0.1 * noise((p, levels, levels), seed)
    kernels[1, 0, 2] = np.nan
    return array(kernels, dtype), array(noise((p, levels), seed + 1), dtype)


def column_parts(p, layers, dtype, seed=3):
    """kernel, a priori, weights and boundaries of p soundings; sounding 2 has a gap."""
    rng = np.random.default_rng(seed)
    parts = {
        "kernel": rng.uniform(0.2, 1.2, (p, layers)),
        "prior": rng.standard_normal((p, layers)),
        "weights": rng.dirichlet(np.ones(layers), p),
        "levels": 1000.0 * (1 - np.arange(layers + 1) / layers) + rng.uniform(0, 30, (p, 1)),
    }
    parts["kernel"][2, 1] = np.nan
    return {name: array(part, dtype) for name, part in parts.items()}


def columns(state_shape, p=5, layers=4, **options):
    """Columns of a state (K, *horizontal) whose boundaries depend on the place."""

    def recipe(dtype):
        K, horizontal = state_shape[0], state_shape[1:]
        surface = 1000.0 + 20 * noise(horizontal)
        levels = array(np.linspace(0.0, 1.0, K + 1).reshape(-1, *(1,) * len(horizontal)) * surface, dtype)
        interp = InterpObs([axis(n, dtype) for n in horizontal], outside="mask")
        interp = interp.at(positions(horizontal, p, dtype).at[0, 0].set(-5.0))
        parts = column_parts(p, layers, dtype)
        return ColumnRetrieval(**parts, interp=interp, model_levels=levels, **options), array(noise(state_shape), dtype)

    return recipe


def scattered(dtype):
    """Stations and columns in one list, with entries that do not count."""
    grid = [axis(5, dtype), axis(4, dtype)]
    stations = CompositeObs(lambda state: state[0], InterpObs(grid), jnp.exp)
    satellite = ColumnRetrieval(interp=InterpObs(grid, outside="mask"), model_levels=array([0.0, 400.0, 1000.0], dtype))
    fusion = MultiInstrumentFusion(
        [InstrumentSpec(stations, instrument_id="a"), InstrumentSpec(satellite, None, None, "b")]
    )
    near = Observations(array(noise(3), dtype), 1.0, 0.0, positions((5, 4), 3, dtype), valid=[1, 0, 1])
    far = Observations(array(noise(4), dtype), 1.0, 0.0, positions((5, 4), 4, dtype), aux=column_parts(4, 3, dtype))
    joined = fusion.observations({"a": near, "b": far})
    return fusion.to_observation_operator().at(joined), array(0.3 * noise((2, 5, 4)), dtype)


def fused(second, second_error, mask=None):
    """An instrument with a matrix and correlated errors, and a second one."""

    def recipe(dtype):
        root = noise((3, 3), 5)
        R = DenseCovariance(array(root @ root.T + np.eye(3), dtype))
        first = InstrumentSpec(LinearObs(array(noise((3, 8), 6), dtype)), [1, 0, 1], R, "z first")
        other = InstrumentSpec(second, mask, DiagonalCovariance(array(second_error, dtype)), "a second")
        fusion = MultiInstrumentFusion([first, other], weights={"z first": 0.5})
        return fusion.to_observation_operator(), array(noise(8), dtype)

    return recipe


# (operator, state) of each exported class, by name.
RECIPES = {
    "MaskedIdentity": {
        "field": lambda dtype: (MaskedIdentity(), array(noise((4, 5)), dtype)),
        "one": lambda dtype: (MaskedIdentity(), array([0.3], dtype)),
        "pytree": lambda dtype: (MaskedIdentity(), {"u": array(noise(3), dtype), "v": array(1e5 * noise(2), dtype)}),
    },
    "LinearObs": {
        "matrix": lambda dtype: (LinearObs(array(noise((5, 12)), dtype)), array(noise(12), dtype)),
        "matrix on a field": lambda dtype: (LinearObs(noise((5, 12))), array(noise((3, 4)), dtype)),
        "field to field": lambda dtype: (LinearObs(array(noise((2, 2, 3, 4)), dtype)), array(noise((3, 4)), dtype)),
        "lineax": lambda dtype: (
            LinearObs(lx.DiagonalLinearOperator(array(noise(200), dtype))),
            array(noise(200), dtype),
        ),
        "callable": lambda dtype: (
            LinearObs(lambda s: s["u"][::2] - s["v"]),
            {"u": array(noise(6), dtype), "v": array(noise(3), dtype)},
        ),
    },
    "PointObs": {
        "ravelled": lambda dtype: (PointObs([0, 7, 7, 19]), array(noise((4, 5)), dtype)),
        "per axis": lambda dtype: (PointObs((np.array([0, 3]), np.array([4, 4]))), array(noise((4, 5)), dtype)),
        "none": lambda dtype: (PointObs(np.array([], int)), array(noise(5), dtype)),
        "many": lambda dtype: (
            PointObs(np.random.default_rng(0).integers(10_000, size=500)),
            array(noise(10_000), dtype),
        ),
    },
    "InterpObs": {
        "1-D": bound((9,), 5),
        "1-D, nearest": bound((9,), 5, order=0),
        "1-D, one point": bound((1,), 3),
        "2-D, periodic": bound((8, 11), 20, periodic=(0,)),
        "3-D": bound((4, 5, 6), 15),
        "3-D, clamped": bound((4, 5, 6), 15, outside="clamp"),
        "observations with gaps": observed_points,
        "beside land": beside_land,
        "curvilinear": lambda dtype: curvilinear(dtype, ()),
        "levels on a curvilinear grid": lambda dtype: curvilinear(dtype, (3,)),
        "several variables": lambda dtype: (
            InterpObs([axis(6, dtype)]).at(positions((6,), 4, dtype)),
            array(noise((3, 6)), dtype),
        ),
        "from coordinates": lambda dtype: (
            interp_obs_from_coords([axis(6, dtype), axis(5, dtype)], positions((6, 5), 7, dtype), periodic=(1,)),
            array(noise((6, 5)), dtype),
        ),
        "outside masked": lambda dtype: (
            interp_obs_from_coords([axis(6, dtype)], array([[0.5], [7.0], [-1.0]], dtype), outside="mask"),
            array(noise(6), dtype),
        ),
    },
    "CallableObs": {
        "nonlinear": lambda dtype: (CallableObs(jnp.sin), array(noise(7), dtype)),
        "pytree": lambda dtype: (CallableObs(nonlinear), {"u": array(noise(5), dtype), "v": array(noise(4), dtype)}),
        "network": lambda dtype: (
            CallableObs(eqx.nn.MLP(5, 3, 8, 1, activation=jax.nn.tanh, dtype=jnp.dtype(dtype), key=jax.random.key(0))),
            array(noise(5), dtype),
        ),
        "scalar": lambda dtype: (CallableObs(lambda x: jnp.sqrt(jnp.sum(x**2))), array(1 + noise(4) ** 2, dtype)),
    },
    "AveragingKernel": {
        "matrix": lambda dtype: (
            AveragingKernel(noise((3, 6)), noise(6, 1), [1, 1, 0.5, 0, 1, 1]),
            array(noise(6), dtype),
        ),
        "lineax": lambda dtype: (
            AveragingKernel(lx.MatrixLinearOperator(array(noise((4, 6)), dtype)), 0.0),
            array(noise(6), dtype),
        ),
    },
    "RetrievalKernel": {
        "profile": lambda dtype: (RetrievalKernel(0.2 * noise((6, 6)), noise(6, 1)), array(noise(6), dtype)),
        "profiles": lambda dtype: (RetrievalKernel(*profiles(5, 4, dtype)), array(noise((5, 4)), dtype)),
    },
    "ColumnRetrieval": {
        "surface-following layers": columns((6, 5, 4)),
        "the a priori beyond the model": columns((3, 7), outside="prior"),
        "by number": lambda dtype: (
            ColumnRetrieval(**column_parts(4, 3, dtype), interp=jnp.array([5, 0, 2, 2])),
            array(noise((3, 2, 3)), dtype),
        ),
    },
    "CompositeObs": {
        "sampled and averaged": lambda dtype: (
            CompositeObs(bound((8, 5), 6)(dtype)[0], AveragingKernel(array(noise((2, 6)), dtype), 1.0, 0.5)),
            array(noise((8, 5)), dtype),
        ),
        "nonlinear after gaps": lambda dtype: (
            CompositeObs(jnp.square, observed_points(dtype)[0], jnp.log),
            array(1 + noise((9, 7)) ** 2, dtype),
        ),
        "of a pytree": lambda dtype: (
            CompositeObs(lambda state: state["u"], PointObs([1, 1, 4]), jnp.sin),
            {"u": array(noise(5), dtype), "v": array(noise(2), dtype)},
        ),
    },
    "FusedObs": {
        "linear": fused(PointObs(np.array([[1, 7], [2, 2]])), np.full((2, 2), 0.5)),
        "nonlinear": fused(CallableObs(lambda x: jnp.sin(x[:4])), np.full(4, 0.5), [0, 1, 1, 1]),
        "an empty instrument": fused(PointObs(np.array([], int)), np.zeros(0)),
    },
    "ScatteredObs": {"stations and columns": scattered},
}

EXAMPLES = [
    pytest.param(recipe, id=f"{cls}-{name}") for cls, recipes in RECIPES.items() for name, recipe in recipes.items()
]


def test_every_exported_class_has_examples():
    operators = {cls.__name__ for cls in CLASSES if hasattr(cls, "linearize")}
    assert operators == set(RECIPES)
    assert {cls.__name__ for cls in CLASSES} - operators == {
        "InstrumentErrors",  # a covariance
        "InstrumentRegistry",  # what a fusion is made of
        "InstrumentSpec",
        "ModuleLinearOperator",  # what `linearize` returns
        "MultiInstrumentFusion",  # `.to_observation_operator()` is one
    }


def test_the_operator_of_a_linear_module_has_an_exact_transpose():
    class Weighted(eqx.Module):
        weights: jax.Array

        def __call__(self, state):
            return (self.weights * state["u"])[::2] + jnp.sum(state["v"])

    structure = {"u": jax.ShapeDtypeStruct((5,), DTYPE), "v": jax.ShapeDtypeStruct((2, 2), DTYPE)}
    operator = ModuleLinearOperator(Weighted(array(noise(5), DTYPE)), structure)
    for op in (operator, operator.T):
        report = adjoint_test(op)
        assert report, str(report)


@pytest.mark.parametrize("recipe", EXAMPLES)
def test_an_operator_is_fit_for_an_analysis(recipe):
    operator, state = recipe(DTYPE)
    assert isinstance(operator, ObservationOperator)
    report = observation_operator_test(operator, state)
    assert report, str(report)


@pytest.mark.parametrize("recipe", EXAMPLES)
def test_float32_stays_float32(recipe):
    operator, state = recipe("float32")
    linear = operator.linearize(state)
    results = (jax.eval_shape(operator, state), linear.out_structure(), linear.T.out_structure())
    assert {leaf.dtype.name for leaf in jax.tree.leaves(results)} == {"float32"}


@pytest.mark.parametrize("recipe", EXAMPLES)
def test_is_linear_agrees_with_what_the_operator_does(recipe):
    operator, state = recipe("float32")
    scaled = jax.tree.map(lambda leaf: -3 * leaf, state)
    zero = jax.tree.map(jnp.zeros_like, state)
    at_state, at_scaled, at_zero = (jax.tree.leaves(operator(s)) for s in (state, scaled, zero))
    differences = [(c - a, -3 * (b - a)) for a, b, c in zip(at_zero, at_state, at_scaled, strict=True)]
    affine = all(np.allclose(found, expected, rtol=1e-4, atol=1e-3) for found, expected in differences)
    assert is_linear(operator, state) == affine


@pytest.mark.parametrize("recipe", EXAMPLES)
def test_an_operator_goes_through_jit_and_vmap(recipe):
    operator, state = recipe("float32")
    stack = jax.tree.map(lambda leaf: jnp.stack([leaf, 2 * leaf]), state)
    together = eqx.filter_jit(lambda op, states: jax.vmap(op)(states))(operator, stack)
    for k in range(2):
        alone = operator(jax.tree.map(lambda leaf, k=k: leaf[k], stack))
        for a, b in zip(jax.tree.leaves(alone), jax.tree.leaves(together), strict=True):
            np.testing.assert_allclose(a, b[k], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("recipe", EXAMPLES)
def test_two_operators_of_one_structure_share_a_compilation(recipe, count_compilations):
    """Arrays of an operator are traced leaves: a new operator of the same shapes does not compile again."""
    operator, state = recipe("float32")
    run = eqx.filter_jit(lambda op, state: op(state))
    run(operator, state)
    arrays, rest = eqx.partition(operator, eqx.is_array)
    other = eqx.combine(jax.tree.map(lambda leaf: jnp.array(leaf), arrays), rest)
    with count_compilations() as compiled:
        run(other, state)
    assert compiled.n == 0, compiled.names


@pytest.mark.parametrize("recipe", EXAMPLES)
def test_it_comes_back_from_a_registry(recipe, comes_back):
    comes_back(lambda: recipe(DTYPE)[0])
