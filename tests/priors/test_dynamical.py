"""Models as priors: the closed form of a linear model, the cost of weak-constraint 4D-Var, derivatives, any model."""

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import optimistix as optx
import pytest

from vardax.dynamics.discrete import DiscreteForward
from vardax.dynamics.lorenz96 import Lorenz96
from vardax.dynamics.rollout import rollout
from vardax.primitives.costs import prior_cost
from vardax.priors.dynamical import DynamicalPrior
from vardax.protocols import Prior

RANDOM = np.random.default_rng(1)
T, N, STEPS = 4, 5, 2
M = RANDOM.normal(size=(N, N)) / np.sqrt(N)
X = RANDOM.normal(size=(T, N))
TIGHT = 1e-12 if jax.config.jax_enable_x64 else 1e-5


@pytest.fixture(scope="module")
def linear():
    matrix = jnp.asarray(M)
    return DynamicalPrior(DiscreteForward(lambda x: matrix @ x, 1.0), STEPS)


def blocks():
    """I - phi' of the linear model, on ravelled trajectories."""
    D = np.eye(T * N)
    D[:N, :N] = 0
    for t in range(1, T):
        D[t * N : (t + 1) * N, (t - 1) * N : t * N] = -np.linalg.matrix_power(M, STEPS)
    return D


def test_the_cost_of_a_linear_model_is_its_closed_form(linear):
    assert isinstance(linear, Prior)
    cost, gradient = jax.value_and_grad(lambda x: prior_cost(x, prior_fn=linear))(jnp.asarray(X))
    D, x = blocks(), X.ravel()
    np.testing.assert_allclose(cost, x @ D.T @ D @ x, rtol=TIGHT)
    np.testing.assert_allclose(gradient.ravel(), 2 * D.T @ D @ x, rtol=10 * TIGHT, atol=10 * TIGHT)


def test_a_trajectory_of_the_model_costs_nothing():
    model = Lorenz96(6)
    trajectory = rollout(model, jnp.asarray(8 + RANDOM.normal(size=6)), 3, n_substeps=2)
    prior = DynamicalPrior(model, 2)
    np.testing.assert_allclose(prior(trajectory), trajectory, rtol=1e-5)
    errors = jnp.zeros_like(trajectory).at[2].set(0.3)  # the third entry, and what follows from it
    later = rollout(model, trajectory[2] + errors[2], 1, n_substeps=2)
    bent = trajectory.at[2:].set(later)
    np.testing.assert_allclose(prior_cost(bent, prior_fn=prior), 6 * 0.3**2, rtol=1e-4)


@pytest.mark.x64
def test_the_gradient_is_that_of_finite_differences():
    prior, x = DynamicalPrior(Lorenz96(N), STEPS), jnp.asarray(3 * X)
    cost = jax.jit(lambda s: prior_cost(s, prior_fn=prior))
    direction = jnp.asarray(RANDOM.normal(size=(T, N)))
    slope = jnp.vdot(jax.grad(cost)(x), direction)
    step = 1e-5
    np.testing.assert_allclose(slope, (cost(x + step * direction) - cost(x - step * direction)) / (2 * step), rtol=1e-8)


def test_slots_are_seen_and_replaced(linear):
    assert (linear.n_steps, linear.state_signature, linear.forward.dt) == (STEPS, None, 1.0)
    changed = linear.with_forward_adjoint(diffrax.DirectAdjoint())
    assert type(changed.forward_adjoint).__name__ == "DirectAdjoint"
    assert isinstance(linear.forward_adjoint, optx.RecursiveCheckpointAdjoint)
    np.testing.assert_array_equal(changed(jnp.asarray(X)), linear(jnp.asarray(X)))
    with pytest.raises(ValueError, match="a discrete step has none"):
        linear.with_forward_adjoint(diffrax.BacksolveAdjoint())


def test_a_vector_field_is_a_model():
    class Decay:
        dt = 0.5

        def vector_field(self, t, x, args):
            return -x

    found = DynamicalPrior(forward=Decay(), n_steps=2, forward_adjoint=diffrax.BacksolveAdjoint())(jnp.asarray(X))
    np.testing.assert_allclose(found[1:], X[:-1] * np.exp(-1.0), rtol=1e-4)
