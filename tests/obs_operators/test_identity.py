"""MaskedIdentity: the state is what is observed."""

import jax.numpy as jnp
import lineax as lx

from vardax.obs_operators import MaskedIdentity
from vardax.protocols import ObservationOperator


def test_observes_the_state_itself():
    state = jnp.arange(6.0).reshape(2, 3)
    assert MaskedIdentity()(state) is state
    assert isinstance(MaskedIdentity(), ObservationOperator)


def test_is_linearised_as_the_identity_on_fields_and_pytrees():
    state = {"u": jnp.ones(3), "v": jnp.zeros((2, 2))}
    operator = MaskedIdentity().linearize(state)
    assert isinstance(operator, lx.IdentityLinearOperator)
    assert operator.mv(state) is state
    assert operator.T.mv(state) is state
