"""One step is k = 1."""

import jax
import jax.numpy as jnp
import numpy as np
import optimistix as optx

from vardax.adjoints.k_step import KStepAdjoint
from vardax.adjoints.one_step import OneStepAdjoint


def test_it_is_the_k_step_adjoint_of_one_step():
    assert isinstance(OneStepAdjoint(), KStepAdjoint)
    assert OneStepAdjoint().k == 1
    assert repr(OneStepAdjoint()) == "OneStepAdjoint(k=1)"


def test_its_derivative_is_that_of_the_step_at_the_last_iterate():
    def step(y, a):
        return jnp.cos(a * y)

    def run(a):
        solver = optx.FixedPointIteration(rtol=0.0, atol=0.0)
        y0 = jnp.array([0.3, 1.0])
        return optx.fixed_point(step, solver, y0, a, adjoint=OneStepAdjoint(), max_steps=7, throw=False).value

    a, y = jnp.array([0.5, 0.8]), jnp.array([0.3, 1.0])
    for _ in range(6):
        y = step(y, a)
    np.testing.assert_allclose(jax.jacrev(run)(a), jax.jacrev(step, argnums=1)(y, a), rtol=1e-6)
