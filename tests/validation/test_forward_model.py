"""A model test sees wrong tangents and adjoints, hidden state, and runs that blow up."""

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import pytest

from vardax.dynamics.discrete import DiscreteForward
from vardax.dynamics.lorenz96 import Lorenz96
from vardax.validation import forward_model_test

DTYPES = ["float32", pytest.param("float64", marks=pytest.mark.x64)]


def state(n=40, dtype="float32", seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(2.5, 3.5, n), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("seed", [0, 1])
def test_lorenz_96_passes(dtype, seed):
    report = forward_model_test(Lorenz96(), state(40, dtype, seed), n_steps=20)
    assert report, str(report)
    assert "adjoint of the run" in {row.name for row in report.rows}


class External:
    """Advection on a circle by an external program: NumPy, with tangent and adjoint written by hand."""

    dt = 0.5
    state_signature = None

    def __init__(self, defect=""):
        self.defect = defect

    def step(self, state, dt):
        x = np.asarray(state)
        if self.defect == "writes":
            state[0] = 1.0
        return x - np.float32(dt) * (x * x - np.roll(x * x, 1)) / 4

    def tangent(self, state, dstate):
        x, d = np.asarray(state), np.asarray(dstate)
        term = 1.01 if self.defect == "1 % of a term" else 1.0
        lag = 0.1 if self.defect == "affine" else 0.0
        return (d - np.float32(self.dt) * (x * d - term * np.roll(x * d, 1)) / 2 + lag).astype(x.dtype)

    def adjoint(self, state, costate):
        x, c = np.asarray(state), np.asarray(costate)
        result = c - np.float32(self.dt) * x * (c - np.roll(c, -1)) / 2
        if self.defect == "one sign":
            result[5] *= -1
        return result.astype(x.dtype)


def test_an_external_model_with_its_own_tangent_and_adjoint_passes():
    report = forward_model_test(External(), np.asarray(state(30)) / 10)
    assert report, str(report)
    assert report["run, finite"].passed


@pytest.mark.parametrize(
    ("defect", "row"),
    [
        ("1 % of a term", "tangent"),
        ("affine", "zero perturbation"),
        ("one sign", "adjoint"),
        ("writes", "input unchanged"),
    ],
)
def test_the_defects_of_an_external_model_are_seen(defect, row):
    report = forward_model_test(External(defect), np.asarray(state(30)) / 10)
    assert not report[row].passed


def test_a_model_without_adjoint_is_checked_without():
    class Half(External):
        adjoint = None

    report = forward_model_test(Half(), np.asarray(state(30)) / 10)
    assert report
    assert "no adjoint" in report.notes[0]


class WrongRule(eqx.Module):
    """A model in JAX whose hand-written derivative rule is wrong by 1 % in one of its terms."""

    dt: float = 0.1
    factor: float = 1.0

    def step(self, state, dt):
        import jax

        @jax.custom_jvp
        def advection(x):
            return x * jnp.roll(x, 1)

        @advection.defjvp
        def rule(primals, tangents):
            (x,), (dx,) = primals, tangents
            return advection(x), dx * jnp.roll(x, 1) + self.factor * x * jnp.roll(dx, 1)

        return state - dt * advection(state)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_wrong_derivative_rule_is_seen(dtype):
    assert forward_model_test(WrongRule(), state(30, dtype) / 10)
    report = forward_model_test(WrongRule(factor=1.01), state(30, dtype) / 10)
    assert not report["tangent"].passed
    assert report["adjoint"].passed  # JAX transposes what the rule says


def test_a_run_that_blows_up_says_when():
    report = forward_model_test(DiscreteForward(lambda x: x + 5 * x**3, 1.0), jnp.ones(4, jnp.float32), n_steps=12)
    assert not report["run, finite"].passed
    assert "not finite from step 5 of 12 on: check the stability limit of the scheme" in report.verdict


def test_growth_without_bound_fails_before_it_overflows():
    model = DiscreteForward(lambda x: 3 * x, 1.0)
    report = forward_model_test(model, jnp.ones(4, jnp.float32), n_steps=10)
    assert [row.name for row in report.failures] == ["run, growth"]
    assert forward_model_test(model, jnp.ones(4, jnp.float32), n_steps=10, tolerances={"growth": 1e6})
    assert forward_model_test(model, jnp.ones(4, jnp.float32), n_steps=5)


def test_a_start_at_rest_has_no_size_of_its_own():
    report = forward_model_test(DiscreteForward(lambda x: x + 1, 1.0), jnp.zeros(4, jnp.float32), n_steps=100)
    assert report, str(report)
    assert forward_model_test(DiscreteForward(lambda x: 0 * x, 1.0), jnp.zeros(4, jnp.float32))


class Counter:
    """A model with a memory that its state does not show."""

    dt, state_signature = 1.0, None

    def __init__(self):
        self.calls = 0

    def step(self, state, dt):
        self.calls += 1
        return state + self.calls


def test_a_hidden_memory_is_seen():
    report = forward_model_test(Counter(), state(5))
    assert [row.name for row in report.failures] == ["deterministic"]


@pytest.mark.parametrize(
    ("step_fn", "words"),
    [
        (lambda x: x[:-1], r"found float32\[4\], expected float32\[5\]"),
        (lambda x: {"x": x}, "found the structure"),
        (lambda x: x.astype(jnp.float16), r"found float16\[5\], expected float32\[5\]"),
    ],
)
def test_a_step_into_another_space_is_a_failing_row(step_fn, words):
    import re

    report = forward_model_test(DiscreteForward(step_fn, 1.0), state(5))
    assert [row.name for row in report.failures] == ["structure"]
    assert re.search(words, report.verdict)


@pytest.mark.parametrize("dtype", DTYPES)
def test_pytree_states_pass(dtype):
    step = lambda s, dt: {"u": s["u"] - dt * s["p"] / 1e4, "p": s["p"] - dt * 1e4 * s["u"]}  # noqa: E731
    model = DiscreteForward(step, 0.1)
    report = forward_model_test(model, {"u": state(6, dtype), "p": 1e4 * state(6, dtype, 1)})
    assert report, str(report)


def test_a_model_that_depends_on_time_gets_it():
    model = DiscreteForward(lambda x, dt, *, t0: x * jnp.cos(dt * t0), 0.1)
    report = forward_model_test(model, state(5), t0=3.0)
    assert report, str(report)


def test_dt_can_be_given():
    class Model:
        state_signature = None

        def step(self, state, dt):
            return state * (1 - dt)

    assert forward_model_test(Model(), state(5), dt=0.1)
    assert not forward_model_test(Model(), state(5), dt=30.0)["run, growth"].passed


@pytest.mark.parametrize(
    ("arguments", "options", "error", "words"),
    [
        ((object(), jnp.ones(2)), {}, TypeError, "`model` is object, expected a forward model"),
        ((Lorenz96(), jnp.ones(40)), {"n_steps": 0}, ValueError, "`n_steps` is 0"),
        ((Lorenz96(), jnp.ones(40, jnp.int32)), {}, TypeError, "`state` has dtype int32"),
    ],
)
def test_unusable_input_is_refused_by_name(arguments, options, error, words):
    with pytest.raises(error, match=words):
        forward_model_test(*arguments, **options)
