"""Networks are trained, and what is known of physics and of errors is not, unless it is asked for."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest

from vardax.covariances.diagonal import DiagonalCovariance
from vardax.dynamics.lorenz63 import Lorenz63
from vardax.dynamics.neural_forward import NeuralForward
from vardax.models.optimal_interpolation import OptimalInterpolation
from vardax.obs_operators.linear import LinearObs
from vardax.priors.dynamical import DynamicalPrior
from vardax.priors.gaussian import GaussianPrior
from vardax.training.trainable import learned

NET = eqx.nn.Linear(3, 3, key=jax.random.key(0))
B = DiagonalCovariance(jnp.ones(3))


class Modulator(eqx.Module):
    net: Any
    ages: jax.Array
    scaled_by_itself: bool = eqx.field(static=True, default=False)


class Solver(eqx.Module):
    """A model with the slots of a learned 4DVar."""

    prior: Any
    obs_op: Any
    grad_mod: Any
    obs_cov_op: Any = None


def solver(prior, **slots):
    return Solver(prior, LinearObs(jnp.eye(3)), Modulator(NET, jnp.arange(3)), **slots)


def shapes(model, trainable=None):
    return [leaf.shape for leaf in jax.tree.leaves(learned(model, trainable))]


def test_of_a_learned_4dvar_prior_and_modulator_are_trained():
    assert shapes(solver(NET, obs_cov_op=B)) == [(3, 3), (3,)] * 2


@pytest.mark.parametrize(
    "prior", [GaussianPrior(jnp.zeros(3), B), DynamicalPrior(Lorenz63()), {"forward": NeuralForward(len, jnp.ones(()))}]
)
def test_what_is_analytic_in_a_prior_is_not(prior):
    assert shapes(solver(prior)) == [(3, 3), (3,)]


def test_the_network_of_a_forward_model_is():
    trained = learned(solver(DynamicalPrior(NeuralForward(NET, jnp.asarray(0.1)), t0=1.0)))
    assert [leaf.shape for leaf in jax.tree.leaves(trained)] == [(3, 3), (3,)] * 2
    assert trained.prior.forward.dt is None
    assert trained.prior.intervals.t0 is None


def test_any_other_model_is_trained_outside_of_what_is_analytic():
    assert shapes({"net": NET, "H": LinearObs(jnp.eye(3)), "R": B, "n": jnp.arange(2), "f": jax.nn.relu}) == [
        (3, 3),
        (3,),
    ]


def test_parts_that_are_asked_for_are_trained_whole():
    model = solver(NET, obs_cov_op=B)
    assert shapes(model, lambda m: m.obs_cov_op) == [(3,)]
    assert shapes(model, lambda m: (m.grad_mod, m.obs_op)) == [(3, 3), (3, 3), (3,)]


def test_nothing_to_train_is_an_error():
    fixed = Solver(GaussianPrior(jnp.zeros(3), B), LinearObs(jnp.eye(3)), Modulator(NET, jnp.arange(3), True))
    with pytest.raises(ValueError, match="Solver has nothing to train by default.*`trainable=lambda model"):
        learned(fixed)
    with pytest.raises(ValueError, match="in the parts that `trainable` selects"):
        learned(solver(NET), lambda m: m.grad_mod.ages)
    with pytest.raises(ValueError, match="OptimalInterpolation has nothing to train"):
        learned(OptimalInterpolation(LinearObs(jnp.eye(3)), jnp.zeros(3), B, B))
