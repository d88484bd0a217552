"""The Taylor test sees a tangent that is 1 % wrong in one term, and passes right ones, smooth or not so smooth."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vardax.dynamics.lorenz96 import Lorenz96
from vardax.dynamics.rollout import rollout
from vardax.validation import taylor_test

DTYPES = ["float32", pytest.param("float64", marks=pytest.mark.x64)]


def l96_tendency(x):
    return (jnp.roll(x, -1) - jnp.roll(x, 2)) * jnp.roll(x, 1) - x + 8.0


def l96_tangent(x, dx, factor=1.0):
    """The tangent of the tendency; `factor` multiplies one of its five terms."""
    return (
        factor * jnp.roll(dx, -1) * jnp.roll(x, 1)
        - jnp.roll(dx, 2) * jnp.roll(x, 1)
        + (jnp.roll(x, -1) - jnp.roll(x, 2)) * jnp.roll(dx, 1)
        - dx
    )


def on_attractor(n, dtype, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(2.5, 3.5, n), dtype)


def triple(function, tangent):
    return (function, tangent, lambda x, dy: dy)


SMOOTH = {
    "sine": jnp.sin,
    "quadratic": lambda x: x**2,
    "linear": lambda x: 3 * x + 1,
    "constant": lambda x: jnp.ones_like(x),
    "scalar": lambda x: jnp.sum(jnp.exp(-(x**2))),
    "tendency": l96_tendency,
    "norm": lambda x: jnp.sqrt(jnp.sum(x**2)),
    "large values": lambda x: 1e3 + x,
    "conserved": lambda x: jnp.sin(x) ** 2 + jnp.cos(x) ** 2,
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", SMOOTH)
@pytest.mark.parametrize("n", [1, 40])
def test_derivatives_by_jax_pass(name, n, dtype):
    for seed in (0, 1):
        report = taylor_test(SMOOTH[name], on_attractor(n, dtype, seed), key=jax.random.key(seed))
        assert report, str(report)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_term_that_is_one_percent_wrong_fails(dtype, seed):
    x = on_attractor(40, dtype, seed)
    key = jax.random.key(seed)
    assert taylor_test(triple(l96_tendency, l96_tangent), x, key=key)
    report = taylor_test(triple(l96_tendency, lambda x, dx: l96_tangent(x, dx, 1.01)), x, key=key)
    assert not report["tangent"].passed
    assert "has a wrong factor" in report.verdict


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [40, 2000])
def test_one_component_that_is_one_percent_wrong_fails(n, dtype):
    x = on_attractor(n, dtype)
    wrong = lambda x, dx: l96_tangent(x, dx).at[n // 2].multiply(1.01)  # noqa: E731
    assert not taylor_test(triple(l96_tendency, wrong), x, n_probes=3)["tangent"].passed


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_step_whose_tangent_lacks_one_percent_of_a_term_fails(dtype):
    """In a whole Runge-Kutta-like step the wrong term is multiplied by dt, and most of the tangent is right."""
    x = on_attractor(40, dtype)
    step = lambda x: x + 0.05 * l96_tendency(x)  # noqa: E731
    tangent = lambda x, dx, factor=1.0: dx + 0.05 * l96_tangent(x, dx, factor)  # noqa: E731
    assert taylor_test(triple(step, tangent), x)
    assert not taylor_test(triple(step, lambda x, dx: tangent(x, dx, 1.01)), x)


@pytest.mark.x64
def test_an_error_of_a_millionth_is_seen_in_float64():
    wrong = lambda x, dx: l96_tangent(x, dx, 1 + 1e-6)  # noqa: E731
    assert not taylor_test(triple(l96_tendency, wrong), on_attractor(40, "float64"))


@pytest.mark.x64
def test_the_remainder_is_of_first_order_and_stays_where_the_tangent_is_wrong():
    x = on_attractor(40, "float64")
    right = taylor_test(triple(l96_tendency, l96_tangent), x)
    wrong = taylor_test(triple(l96_tendency, lambda x, dx: 1.01 * l96_tangent(x, dx)), x)
    assert right["order"].measured == pytest.approx(1.0, abs=0.01)
    assert right["ratio"].measured < 1e-7
    assert wrong["order"].measured == pytest.approx(0.0, abs=0.01)
    assert wrong["ratio"].measured == pytest.approx(0.01, rel=0.01)
    assert {row.name for row in wrong.failures} == {"tangent", "order", "ratio"}


@pytest.mark.parametrize(
    "wrong",
    [
        lambda x, dx: -jnp.cos(x) * dx,
        lambda x, dx: jnp.cos(x + 0.01) * dx,
        lambda x, dx: jnp.zeros_like(dx),
        lambda x, dx: (jnp.cos(x) * dx).at[3].multiply(-1),
        lambda x, dx: jnp.cos(x) * jnp.roll(dx, 1),
        lambda x, dx: jnp.full_like(dx, jnp.nan),
    ],
    ids=["sign", "other state", "zero", "one sign", "shifted", "nan"],
)
@pytest.mark.parametrize("dtype", DTYPES)
def test_other_defects_fail(wrong, dtype):
    assert not taylor_test(triple(jnp.sin, wrong), jnp.linspace(0.3, 2.0, 30, dtype=dtype))


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_chaotic_run_of_many_steps_passes(dtype):
    model, x = Lorenz96(), on_attractor(40, dtype)
    for n_steps in (1, 20) if dtype == "float32" else (1, 20, 100):
        report = taylor_test(lambda x, n=n_steps: rollout(model, x, n)[-1], x)
        assert report, str(report)


def test_a_run_too_sensitive_for_float32_says_that_it_cannot_tell():
    model, x = Lorenz96(), on_attractor(40, "float32")
    report = taylor_test(lambda x: rollout(model, x, 100)[-1], x)
    assert not report["resolution"].passed
    assert "cannot tell" in report.verdict


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_network_with_kinks_passes(dtype, seed):
    rng = np.random.default_rng(seed)
    first, second = (jnp.asarray(rng.standard_normal((64, 64)) / 8, dtype) for _ in range(2))
    net = lambda x: second @ jax.nn.relu(first @ x)  # noqa: E731
    report = taylor_test(net, jnp.asarray(rng.standard_normal(64), dtype), key=jax.random.key(seed))
    assert report, str(report)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_domain_of_positive_numbers_is_stayed_in(dtype):
    report = taylor_test(jnp.log, jnp.linspace(0.02, 3.0, 30, dtype=dtype))
    assert report, str(report)


def test_a_function_that_is_nowhere_finite_says_so():
    report = taylor_test(jnp.log, -jnp.ones(3))
    assert not report
    assert "F is not finite around the state" in report.verdict


def test_a_function_too_rough_for_differences_fails_instead_of_passing_blindly():
    x = jnp.linspace(1.0, 2.0, 20, dtype=jnp.float32)
    rough = lambda x: x + 1e-3 * jnp.sin(1e5 * x)  # noqa: E731
    report = taylor_test(rough, x)
    assert not report["resolution"].passed
    assert "cannot tell" in report["resolution"].meaning


@pytest.mark.parametrize("dtype", DTYPES)
def test_arrays_of_very_different_size_are_looked_at_each(dtype):
    state = {"p": jnp.linspace(9e4, 1e5, 20, dtype=dtype), "q": jnp.linspace(1e-4, 1e-2, 20, dtype=dtype)}
    function = lambda s: {"p": s["p"] * (1 + s["q"]), "q": s["q"] ** 2}  # noqa: E731
    tangent = lambda s, d: {"p": d["p"] * (1 + s["q"]) + s["p"] * d["q"], "q": 2 * s["q"] * d["q"]}  # noqa: E731

    def wrong(s, d):
        right = tangent(s, d)
        return {"p": right["p"], "q": right["q"].at[4].multiply(1.01)}

    assert taylor_test(triple(function, tangent), state)
    report = taylor_test(triple(function, wrong), state)
    assert not report["tangent"].passed
    assert "worst in result['q']" in report["tangent"].meaning


def test_a_direction_of_ones_own_is_used():
    wrong_in_first = triple(jnp.sin, lambda x, dx: (jnp.cos(x) * dx).at[0].multiply(2))
    state = jnp.linspace(0.3, 2.0, 4)
    along = lambda k: jnp.zeros(4).at[k].set(1.0)  # noqa: E731
    assert not taylor_test(wrong_in_first, state, along(0))
    assert taylor_test(wrong_in_first, state, along(2))
    with pytest.raises(ValueError, match="`direction` does not fit `state`"):
        taylor_test(jnp.sin, state, jnp.zeros(5))


def test_the_table_of_steps_is_a_note():
    (note,) = taylor_test(jnp.sin, jnp.ones(3)).notes
    assert "h = 1.0e-01  ratio" in note


def test_numpy_functions_with_their_own_tangent_are_called_as_they_are():
    function = lambda x: np.sin(np.asarray(x))  # noqa: E731
    tangent = lambda x, dx: np.cos(np.asarray(x)) * np.asarray(dx)  # noqa: E731
    state = np.linspace(0.3, 2.0, 8, dtype=np.float32)
    assert taylor_test(triple(function, tangent), state)
    assert not taylor_test(triple(function, lambda x, dx: 1.01 * tangent(x, dx)), state)


@pytest.mark.parametrize(("option", "value"), [("step", 0.0), ("n_probes", 0), ("n_halvings", 3)])
def test_unusable_options_are_refused_by_name(option, value):
    with pytest.raises(ValueError, match=f"`{option}` is {value}, expected"):
        taylor_test(jnp.sin, jnp.ones(3), **{option: value})
