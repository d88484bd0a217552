"""The Lorenz priors: those of their models, with parameters to train."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vardax.dynamics.lorenz63 import Lorenz63, simulate_lorenz63
from vardax.dynamics.lorenz96 import Lorenz96
from vardax.primitives.costs import prior_cost
from vardax.priors.dynamical import DynamicalPrior
from vardax.priors.lorenz import L63Prior, L96Prior

RANDOM = np.random.default_rng(2)


def test_they_are_the_priors_of_their_models():
    x, y = jnp.asarray(RANDOM.normal(size=(4, 3))), jnp.asarray(RANDOM.normal(size=(4, 6)))
    np.testing.assert_array_equal(L63Prior(n_steps=2)(x), DynamicalPrior(Lorenz63(), 2)(x))
    np.testing.assert_array_equal(L96Prior(6, 7.0, 0.02)(y), DynamicalPrior(Lorenz96(6, 7.0, 0.02))(y))


@pytest.mark.x64
def test_parameters_have_gradients_and_can_be_replaced():
    x = simulate_lorenz63(jax.random.key(1), 5, spin_up=100)
    cost = eqx.filter_jit(eqx.filter_value_and_grad(lambda prior: prior_cost(x, prior_fn=prior)))
    with_rho = lambda rho: cost(eqx.tree_at(lambda p: p.forward.rho, L63Prior(), jnp.asarray(rho)))  # noqa: E731
    np.testing.assert_allclose(with_rho(28.0)[0], 0.0, atol=1e-20)
    differences = (with_rho(26.0 + 1e-4)[0] - with_rho(26.0 - 1e-4)[0]) / 2e-4
    np.testing.assert_allclose(with_rho(26.0)[1].forward.rho, differences, rtol=1e-7)


def test_wrong_states_and_steps_are_refused_in_words():
    with pytest.raises(ValueError, match=r"Lorenz63.step: `state` has shape \(4,\)"):
        L63Prior()(jnp.zeros((3, 4)))
    with pytest.raises(ValueError, match=r"Lorenz96.step: `state` has shape \(6,\), expected \(..., 40\)"):
        L96Prior()(jnp.zeros((3, 6)))
    with pytest.raises(ValueError, match="`dt` is 0.2, beyond the stability limit"):
        L96Prior(dt=0.2)
    with pytest.raises(ValueError, match="L63Prior: `n_steps` is 0"):
        L63Prior(n_steps=0)
