"""H after the decoder: exact derivative, positions from the observations, masks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vardax.latent.fourier import FourierBasis
from vardax.latent.lifted import LiftedObservationOperator
from vardax.obs_operators.interp import InterpObs
from vardax.obs_operators.linear import LinearObs
from vardax.obs_operators.linearisation import is_linear
from vardax.types import Observations

TIGHT = 1e-12 if jax.config.jax_enable_x64 else 1e-5
A = np.random.default_rng(6).normal(size=(4, 3))


def decode(z):
    return jnp.tanh(jnp.asarray(A, z.dtype) @ z)


def test_the_derivative_is_that_of_the_composition():
    H = np.random.default_rng(7).normal(size=(2, 4))
    observe, z = LiftedObservationOperator(decode, LinearObs(H)), jnp.array([0.3, -0.2, 0.5])
    linear = observe.linearize(z)
    expected = H @ np.asarray(jax.jacobian(decode)(z))
    np.testing.assert_allclose(linear.as_matrix(), expected, atol=TIGHT)
    np.testing.assert_allclose(linear.T.mv(jnp.ones(2)), expected.T @ np.ones(2), atol=TIGHT)
    np.testing.assert_allclose(observe(z), H @ np.asarray(decode(z)), atol=TIGHT)


def test_the_operator_inside_reads_positions():
    basis = FourierBasis(8, 2)
    coords = jnp.array([[1.0], [2.5], [30.0]])
    points = Observations(jnp.zeros(3), jnp.ones(3), jnp.zeros(3), coords)
    operator = InterpObs([np.arange(8.0)], outside="mask")
    observe = LiftedObservationOperator(basis, operator).at(points)
    z = jnp.arange(5.0)
    np.testing.assert_allclose(observe(z), operator.at(points)(basis.decode(z)), atol=TIGHT)
    np.testing.assert_array_equal(observe.mask, [1, 1, 0])


def test_it_is_linear_where_both_are():
    one = jax.ShapeDtypeStruct((5,), jnp.result_type(float))
    assert is_linear(LiftedObservationOperator(FourierBasis(8, 2), LinearObs(np.ones((1, 8)))), one)
    assert not is_linear(LiftedObservationOperator(FourierBasis(8, 2), jnp.tanh), one)


def test_bad_input_is_refused_in_words():
    with pytest.raises(TypeError, match="`decoder` is int, expected a latent map, or a function"):
        LiftedObservationOperator(3, LinearObs(np.eye(2)))
    with pytest.raises(TypeError, match="operator 1 is int"):
        LiftedObservationOperator(decode, 3)
