"""CallableObs: any differentiable function, with its exact tangent and adjoint."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vardax.obs_operators import CallableObs
from vardax.protocols import ObservationOperator


def wind_speed(state):
    return jnp.sqrt(state["u"] ** 2 + state["v"] ** 2)


@pytest.fixture
def state():
    rng = np.random.default_rng(1)
    return {"u": jnp.asarray(rng.standard_normal(5)), "v": jnp.asarray(rng.standard_normal(5))}


def test_satisfies_the_protocol():
    assert isinstance(CallableObs(wind_speed), ObservationOperator)


def test_linearisation_is_the_jacobian(state):
    operator = CallableObs(wind_speed).linearize(state)
    dense = jax.jacfwd(wind_speed)(state)
    direction = jax.tree.map(jnp.cos, state)
    expected = dense["u"] @ direction["u"] + dense["v"] @ direction["v"]
    np.testing.assert_allclose(operator.mv(direction), expected, rtol=1e-5)


@pytest.mark.x64
def test_adjoint_identity(state):
    operator = CallableObs(wind_speed).linearize(state)
    dx, dy = jax.tree.map(jnp.sin, state), jnp.arange(5.0)
    back = operator.T.mv(dy)
    left = jnp.vdot(operator.mv(dx), dy)
    right = sum(jnp.vdot(dx[name], back[name]) for name in dx)
    np.testing.assert_allclose(left, right, rtol=1e-12)


@pytest.mark.x64
def test_taylor_remainder_is_of_second_order(state):
    H, dx = CallableObs(wind_speed), jax.tree.map(jnp.cos, state)
    tangent = H.linearize(state).mv(dx)
    remainders = []
    for step in (1e-2, 1e-3, 1e-4):
        moved = jax.tree.map(lambda a, b, step=step: a + step * b, state, dx)
        remainders.append(float(jnp.linalg.norm(H(moved) - H(state) - step * tangent)))
    np.testing.assert_allclose(np.array(remainders[:-1]) / np.array(remainders[1:]), 100.0, rtol=0.1)


def test_refuses_what_is_not_callable():
    with pytest.raises(TypeError, match="`fn` is 3, expected a function of the state"):
        CallableObs(3)
