"""The identity prior: nothing is changed and nothing costs anything."""

import jax
import jax.numpy as jnp

from vardax.primitives.costs import prior_cost
from vardax.priors.identity import IdentityPrior
from vardax.protocols import Prior


def test_every_state_is_plausible():
    prior, x = IdentityPrior(), {"u": jnp.arange(3.0), "v": jnp.ones((2, 2))}
    assert isinstance(prior, Prior)
    assert prior(x) is x
    assert prior.state_signature is None
    cost, gradient = jax.value_and_grad(lambda state: prior_cost(state, prior_fn=prior))(x)
    assert float(cost) == 0
    assert not any(leaf.any() for leaf in jax.tree.leaves(gradient))
