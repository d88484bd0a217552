"""DiscreteForward: a model from a step function."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vardax.dynamics import DiscreteForward, rollout
from vardax.protocols import ForwardModel


class Decay(eqx.Module):
    rate: jax.Array

    def __call__(self, state, dt):
        return state * (1 - self.rate * dt)


@pytest.mark.parametrize(
    "step_fn",
    [lambda state: 0.5 * state, lambda state, dt: state - dt * state, lambda state, dt, *, t0: state - dt * state],
    ids=["state", "dt", "time"],
)
def test_every_signature_makes_a_forward_model(step_fn):
    forward = DiscreteForward(step_fn, 0.5)
    assert isinstance(forward, ForwardModel)
    assert forward.state_signature is None
    np.testing.assert_allclose(forward.step(jnp.full(2, 4.0), forward.dt), 2.0)


def test_gets_the_model_time():
    forward = DiscreteForward(lambda state, dt, *, t0: state + t0, 0.5)
    assert float(forward.step(jnp.asarray(1.0), 0.5, t0=3.0)) == 4.0
    assert float(forward.step(jnp.asarray(1.0), 0.5)) == 1.0


def test_parameters_of_a_module_are_traced(count_compilations):
    run = eqx.filter_jit(lambda forward, x: forward.step(x, forward.dt))
    run(DiscreteForward(Decay(jnp.asarray(1.0)), 0.5), jnp.ones(3))
    with count_compilations() as compiled:
        after = run(DiscreteForward(Decay(jnp.asarray(2.0)), 0.5), jnp.ones(3))
        after.block_until_ready()
    assert compiled.n == 0, compiled.names
    np.testing.assert_allclose(after, 0.0, atol=1e-7)


def test_differentiates_with_respect_to_parameters_and_dt():
    def end(rate, dt):
        return rollout(DiscreteForward(Decay(rate), dt), jnp.asarray(1.0), 2)[-1]

    rate, dt = jnp.asarray(0.5), jnp.asarray(0.1)
    by_rate, by_dt = jax.grad(end, argnums=(0, 1))(rate, dt)
    np.testing.assert_allclose(by_rate, -2 * 0.1 * (1 - 0.05), rtol=1e-5)
    np.testing.assert_allclose(by_dt, -2 * 0.5 * (1 - 0.05), rtol=1e-5)


def test_carries_the_state_signature():
    signature = {"u": jax.ShapeDtypeStruct((3,), jnp.float32)}
    assert DiscreteForward(lambda s: s, 1.0, state_signature=signature).state_signature == signature


def test_bad_arguments_are_named():
    with pytest.raises(TypeError, match="`step_fn` is None, expected a function"):
        DiscreteForward(None, 1.0)
    with pytest.raises(ValueError, match="DiscreteForward: `dt` is inf, expected a finite time step"):
        DiscreteForward(lambda s: s, float("inf"))
    with pytest.raises(TypeError, match="`step_fn` has the signature"):
        DiscreteForward(lambda t, y, args: y, 1.0)
