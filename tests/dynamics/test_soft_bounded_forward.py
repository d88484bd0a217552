"""SoftBoundedForward: the model itself where states belong, finite values and gradients where they do not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vardax.dynamics import DiscreteForward, Lorenz96, SoftBoundedForward, rollout
from vardax.dynamics.soft_bounded_forward import soft_bound
from vardax.protocols import ForwardModel

BOUND = jnp.asarray(8.0)


def test_the_bound_is_the_identity_within_its_half_and_never_passed():
    inside = jnp.linspace(-4.0, 4.0, 17)
    np.testing.assert_array_equal(soft_bound(inside, BOUND), inside)
    far = jnp.array([-jnp.inf, -1e30, -5.0, 5.0, 1e30, jnp.inf])
    squashed = soft_bound(far, BOUND)
    assert jnp.all(jnp.abs(squashed) <= 8.0)
    assert jnp.all(jnp.diff(soft_bound(jnp.linspace(-12.0, 12.0, 200), BOUND)) > 0)


@pytest.mark.x64
def test_the_bound_is_twice_continuously_differentiable():
    slope = jax.grad(lambda x: soft_bound(x, BOUND))
    curvature = jax.grad(slope)
    for edge in (-4.0, 4.0):
        np.testing.assert_allclose([slope(edge - 1e-7), slope(edge), slope(edge + 1e-7)], 1.0, atol=1e-6)
        np.testing.assert_allclose([curvature(edge - 1e-7), curvature(edge + 1e-7)], 0.0, atol=1e-6)
    assert float(slope(0.0)) == 1.0
    assert float(slope(jnp.inf)) == 0.0


def test_states_that_belong_move_as_without_it():
    x = jnp.asarray(2.0 + np.random.default_rng(0).normal(size=8))
    model = SoftBoundedForward(Lorenz96(8), 100.0)
    assert isinstance(model, ForwardModel)
    assert (model.dt, model.state_signature.shape) == (0.05, (8,))
    np.testing.assert_array_equal(rollout(model, x, 10), rollout(Lorenz96(8), x, 10))


def test_a_bad_start_has_a_finite_run_and_gradient():
    x = 1e6 * jnp.asarray(np.random.default_rng(1).normal(size=8))
    cost = lambda model: lambda x: jnp.sum(rollout(model, x, 20) ** 2)  # noqa: E731
    assert not jnp.isfinite(cost(Lorenz96(8))(x))
    value, gradient = jax.value_and_grad(cost(SoftBoundedForward(Lorenz96(8), 60.0)))(x)
    assert jnp.isfinite(value)
    assert jnp.isfinite(gradient).all()


def test_bounds_per_variable_and_the_time_reach_the_model():
    def driven(state, dt, *, t0):
        return {"x": state["x"] + 10.0 * t0, "v": state["v"] + t0}

    state = {"x": jnp.zeros(2), "v": jnp.zeros(2)}
    model = SoftBoundedForward(DiscreteForward(driven, 1.0), {"x": np.array([1.0, 4.0]), "v": 50.0})
    after = rollout(model, state, 1, t0=3.0)
    np.testing.assert_allclose(after["x"][1], [1.0, 4.0], rtol=1e-6)
    np.testing.assert_allclose(after["v"][1], 3.0)


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="`bound` is .*, expected positive numbers"):
        SoftBoundedForward(Lorenz96(8), 0.0)
    with pytest.raises(ValueError, match="`bound` has the structure .*expected a scalar"):
        SoftBoundedForward(Lorenz96(8), {"x": 1.0}).step(jnp.ones(8), 0.05)
    with pytest.raises(TypeError, match="`forward` is a function, expected a model"):
        SoftBoundedForward(lambda x: x, 1.0)
