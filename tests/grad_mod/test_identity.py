"""The modulator that is not learned is one step of gradient descent."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vardax.grad_mod.identity import IdentityGradMod


def test_the_update_is_minus_alpha_times_the_gradient_in_every_leaf():
    grad = {"a": jnp.array([1.0, -2.0]), "b": jnp.ones((2, 2), jnp.bfloat16)}
    update, carry = IdentityGradMod(0.5)(grad, grad, None)
    assert update["a"].tolist() == [-0.5, 1.0]
    assert update["b"].dtype == jnp.bfloat16
    assert carry is None


def test_it_is_not_scaled_by_the_solver():
    assert IdentityGradMod.scaled_by_itself


def test_an_array_is_trained_and_a_number_is_not():
    def loss(modulator):
        return jnp.sum(modulator(jnp.array([2.0, 4.0]), jnp.zeros(2), None)[0])

    slope = jax.grad(loss)(IdentityGradMod(jnp.asarray(0.5)))
    assert float(slope.alpha) == -6.0
    assert isinstance(IdentityGradMod(0.5).alpha, float)
    assert isinstance(IdentityGradMod(np.float32(0.5)).alpha, jax.Array)


@pytest.mark.parametrize("alpha", [0.0, -1.0, float("nan"), [0.1, 0.2]])
def test_a_step_size_that_is_none_is_named(alpha):
    with pytest.raises(ValueError, match=r"IdentityGradMod: `alpha` is .*, expected one positive number"):
        IdentityGradMod(alpha)
