"""How steps are called: read from their signature."""

import functools

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import pytest

from vardax.dynamics.stepping import StepConvention, checked_dt, in_state_dtype, step_convention


class Model:
    def step(self, state, dt, *, t0=0.0):
        return state + dt * t0


class Network(eqx.Module):
    def __call__(self, state, dt):
        return state * dt


STEPS = {
    "state": (lambda state: state, (None, ())),
    "state and an option": (lambda state, forcing=8.0: state, (None, ())),
    "state, dt": (lambda state, dt: state, ("dt", ())),
    "any name for dt": (lambda x, h: x, ("h", ())),
    "optional dt": (lambda state, dt=0.1: state, ("dt", ())),
    "time t": (lambda state, dt, t: state, ("dt", ("t",))),
    "keyword t0": (lambda state, dt, *, t0: state, ("dt", ("t0",))),
    "keyword dt": (lambda state, *, dt, t0=0.0: state, ("dt", ("t0",))),
    "interval": (lambda state, t0, t1: state, (None, ("t0", "t1"))),
    "time only": (lambda state, *, t: state, (None, ("t",))),
    "method": (Model().step, ("dt", ("t0",))),
    "module": (Network(), ("dt", ())),
    "partial": (functools.partial(lambda a, state, dt: state, 1.0), ("dt", ())),
    "anything": (lambda *args: args[0], ("", ())),
    "further keywords": (lambda state, dt, **options: state, ("dt", ())),
}


@pytest.mark.parametrize("name", STEPS)
def test_convention_is_read_from_the_signature(name):
    step, (dt_name, time_names) = STEPS[name]
    assert step_convention(step, "step_fn") == StepConvention(dt_name, time_names)


@pytest.mark.parametrize("name", STEPS)
def test_every_convention_can_be_called(name):
    step, _ = STEPS[name]
    assert np.isfinite(step_convention(step, "step_fn")(step, 1.0, 0.1, 2.0))


def test_positional_only_dt_and_the_end_of_the_interval():
    def positional(state, dt, /):
        return state + dt

    def interval(state, t0, t1):
        return state + 10 * t0 + t1

    assert step_convention(positional, "f")(positional, 1.0, 0.5, 0.0) == 1.5
    assert step_convention(interval, "f")(interval, 0.0, 0.5, 2.0) == 22.5


def test_a_signature_that_cannot_be_read_is_called_with_state_and_dt():
    assert step_convention(max, "f") == StepConvention("", ())


@pytest.mark.parametrize("step", [lambda: 0, lambda t, y, args: y, lambda state, dt, other: state])
def test_refuses_other_signatures(step):
    with pytest.raises(TypeError, match=r"`step_fn` has the signature \(.*\); expected \(state\), \(state, dt\)"):
        step_convention(step, "step_fn")


def test_refuses_what_is_no_function():
    with pytest.raises(TypeError, match=r"`step_fn` is 3, expected a function `\(state\)`"):
        step_convention(3, "step_fn")


def test_numbers_meet_the_state_in_its_dtype():
    state = {"count": jnp.zeros(2, jnp.int32), "u": jnp.zeros(2, jnp.float32)}
    assert isinstance(in_state_dtype(np.float64(0.5), state), float)
    assert in_state_dtype(jnp.asarray(0.5), state).dtype == jnp.float32
    assert in_state_dtype(jnp.asarray(0.5), jnp.zeros(2, jnp.complex64)).dtype == jnp.float32


@pytest.mark.parametrize(
    ("dt", "error", "words"),
    [
        (0.0, ValueError, "`dt` is 0.0, expected a finite time step other than zero"),
        (float("nan"), ValueError, "`dt` is nan"),
        ("day", TypeError, "`dt` is 'day', expected a number"),
        (jnp.ones(2), ValueError, r"`dt` has shape \(2,\), expected a scalar"),
    ],
)
def test_refuses_a_time_step_that_is_none(dt, error, words):
    with pytest.raises(error, match=words):
        checked_dt(dt, "Model")
