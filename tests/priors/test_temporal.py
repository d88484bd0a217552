"""Priors at given times: strong and weak constraint, and the loss that trains a model."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vardax.dynamics.lorenz63 import Lorenz63, simulate_lorenz63
from vardax.primitives.costs import prior_cost
from vardax.priors.dynamical import DynamicalPrior
from vardax.priors.temporal import DynIncrements, DynTrajectory
from vardax.protocols import Prior, TemporalPrior

X = simulate_lorenz63(jax.random.key(0), 6, dt=0.02, spin_up=100)
TS = np.array([0.0, 0.02, 0.04, 0.06, 0.08, 0.10, 0.12])
CLASSES = [DynIncrements, DynTrajectory]


@pytest.mark.parametrize("cls", CLASSES)
def test_a_trajectory_of_the_model_is_reconstructed_with_and_without_times(cls):
    prior = cls(Lorenz63(dt=0.02))
    assert isinstance(prior, TemporalPrior)
    assert isinstance(prior, Prior)
    np.testing.assert_allclose(prior(X), X, rtol=1e-4)
    np.testing.assert_allclose(prior(X, TS), X, rtol=1e-4)


@pytest.mark.parametrize("cls", CLASSES)
def test_times_decide_how_long_a_step_is(cls):
    """Uneven intervals in as many steps each, of 0.005 and of 0.01, end on a trajectory of finer steps."""
    kept = np.array([0, 16, 48])
    fine = simulate_lorenz63(jax.random.key(0), 48, dt=0.0025, spin_up=100)[kept]
    np.testing.assert_allclose(cls(Lorenz63(dt=0.01), 8)(fine, 0.0025 * kept), fine, rtol=1e-4, atol=1e-3)


def test_an_error_stays_with_its_entry_or_is_run_away_from():
    wrong = X.at[3].add(1.0)
    by_entry, from_first = (cls(Lorenz63(dt=0.02)) for cls in CLASSES)
    np.testing.assert_allclose(from_first(wrong), X, rtol=1e-4)
    np.testing.assert_allclose(
        by_entry(wrong)[jnp.array([0, 1, 2, 3, 5, 6])], X[jnp.array([0, 1, 2, 3, 5, 6])], rtol=1e-4
    )
    assert float(jnp.max(jnp.abs(by_entry(wrong)[4] - X[4]))) > 0.5
    np.testing.assert_array_equal(by_entry(wrong), DynamicalPrior(Lorenz63(dt=0.02))(wrong))


@pytest.mark.parametrize("cls", CLASSES)
def test_the_loss_is_the_cost_or_the_distance_to_the_truth(cls):
    prior, x = cls(Lorenz63(dt=0.02)), X + 0.1
    np.testing.assert_allclose(prior.loss(x), prior_cost(x, prior_fn=prior), rtol=1e-6)
    np.testing.assert_allclose(prior.loss(x, TS, X), np.sum((X - prior(x, TS)) ** 2), rtol=1e-6)


def test_the_loss_trains_the_parameters_that_it_is_given():
    """Gradient steps on rho alone find the one that made the trajectory."""
    prior = DynIncrements(Lorenz63(rho=25.0, dt=0.02))
    wanted = jax.tree.map(lambda _: False, prior)
    wanted = eqx.tree_at(lambda p: p.forward.rho, wanted, True)
    params, rest = eqx.partition(prior, wanted)
    loss = jax.jit(jax.value_and_grad(lambda p: prior.loss(X, TS, params=p)))
    start, gradient = loss(params)
    np.testing.assert_allclose(start, prior.loss(X), rtol=1e-4)
    slope = lambda rho: float(loss(eqx.tree_at(lambda p: p.forward.rho, params, rho))[1].forward.rho)  # noqa: E731
    assert slope(params.forward.rho) == float(gradient.forward.rho) < 0
    # the prediction of one step is almost linear in rho: a secant step ends at the root
    low, high = slope(jnp.asarray(25.0, X.dtype)), slope(jnp.asarray(30.0, X.dtype))
    np.testing.assert_allclose(25 - low * 5 / (high - low), 28.0, rtol=1e-3)
    assert eqx.combine(params, rest).forward.rho == 25.0


def test_bad_input_is_refused_in_words():
    with pytest.raises(ValueError, match=r"DynTrajectory.loss: `x_gt` has shape \(6, 3\), expected \(7, 3\)"):
        DynTrajectory(Lorenz63()).loss(X, None, X[1:])
    with pytest.raises(ValueError, match="DynIncrements: `n_steps` is 0"):
        DynIncrements(Lorenz63(), 0)
    with pytest.raises(ValueError, match="DynTrajectory: `n_steps` is -1"):
        DynTrajectory(Lorenz63(), -1)
