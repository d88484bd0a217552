"""What a network sees."""

import jax.numpy as jnp
import numpy as np
import pytest

from vardax.grad_mod.inputs import GradientOnly, StateAndGradient

GRAD, STATE = jnp.full((2, 3), 1.0), jnp.full((2, 3), 7.0)


def test_the_state_comes_before_its_gradient():
    seen = StateAndGradient()(GRAD, STATE)
    np.testing.assert_array_equal(seen, np.repeat([7.0, 1.0], 2)[:, None] * np.ones((4, 3)))
    assert len(seen) == StateAndGradient.n_fields * len(STATE)


def test_the_gradient_may_be_all():
    assert GradientOnly()(GRAD, STATE) is GRAD
    assert GradientOnly.n_fields == 1


def test_the_state_may_be_standardised():
    seen = StateAndGradient(mean=2.0, scale=4.0)(GRAD, STATE)
    np.testing.assert_allclose(seen, np.concatenate([(np.asarray(STATE) - 2) / 4, np.asarray(GRAD)]), rtol=1e-6)
    with pytest.raises(ValueError, match="`scale` is 0.0, expected a positive number"):
        StateAndGradient(scale=0.0)
