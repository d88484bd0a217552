"""What the forms share: dtypes, the record, and when a result counts as converged."""

import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest

from vardax.covariances.dense import DenseCovariance
from vardax.covariances.diagonal import DiagonalCovariance
from vardax.minimisers.krylov_result import Observing, krylov_result

H = lx.MatrixLinearOperator(jnp.array([[1.0, 2.0, 0.0], [0.0, 1.0, -1.0]], jnp.float32))
B = DenseCovariance(jnp.diag(jnp.array([1.0, 2.0, 3.0])))


@pytest.mark.x64
def test_products_are_those_of_the_matrices_in_the_dtype_of_the_observations():
    R = DiagonalCovariance(jnp.array([0.5, 0.25])).restrict(jnp.ones(2))
    observing, w = Observing(B, H, R, jnp.dtype(jnp.float64)), jnp.array([1.0, -2.0])
    matrix, covariance = np.asarray(H.matrix, float), np.asarray(B.as_matrix())
    assert observing.covariance(w).dtype == jnp.float64
    np.testing.assert_allclose(observing.covary(w), covariance @ matrix.T @ w)
    np.testing.assert_allclose(observing.covariance(w), matrix @ covariance @ matrix.T @ w)
    np.testing.assert_allclose(observing.control(B.half(), w), B.half().as_matrix().T @ matrix.T @ w, rtol=1e-6)
    x = jnp.array([1.0, 0.5, -1.0])
    np.testing.assert_allclose(observing.weigh(x), matrix.T @ (matrix @ x / np.array([0.5, 0.25])), rtol=1e-6)


@pytest.mark.parametrize(("first", "last", "converged"), [(100.0, 0.9, True), (100.0, 1.1, False), (1e-3, 5e-3, True)])
def test_converged_is_relative_to_the_background_or_to_one(first, last, converged):
    norms = jnp.array([first, jnp.nan, last, jnp.nan])
    result = krylov_result(jnp.ones(3), jnp.ones(3), jnp.ones(2), (jnp.asarray(2), norms, norms), 0.01)
    assert result.converged == converged
    np.testing.assert_allclose(result.gradient_norm, last, rtol=1e-6)


def test_not_a_number_is_not_converged():
    norms = jnp.array([jnp.nan, jnp.nan])
    assert not krylov_result(jnp.ones(3), jnp.ones(3), jnp.ones(2), (jnp.asarray(0), norms, norms), 0.01).converged
