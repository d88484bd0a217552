"""Inverse and log-determinant from products alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vardax.covariances.stochastic import conjugate_gradients, lanczos_logdet

pytestmark = pytest.mark.x64


def spd(n: int) -> jax.Array:
    a = np.random.default_rng(0).normal(size=(n, n))
    return jnp.asarray(a @ a.T / n + np.eye(n))


def test_conjugate_gradients_reach_their_tolerance_and_say_so():
    matrix, b = spd(30), jnp.arange(30.0)
    x, residual = conjugate_gradients(lambda v: matrix @ v, b, lambda r: r, tol=1e-9, max_steps=200)
    assert residual <= 1e-9
    np.testing.assert_allclose(x, np.linalg.solve(matrix, b), rtol=1e-7, atol=1e-7)
    _, residual = conjugate_gradients(lambda v: matrix @ v, b, lambda r: r, tol=1e-9, max_steps=2)
    assert residual > 1e-4


def test_conjugate_gradients_solve_for_zero():
    x, residual = conjugate_gradients(lambda v: 2 * v, jnp.zeros(3), lambda r: r, tol=1e-9, max_steps=5)
    assert residual == 0
    np.testing.assert_array_equal(x, 0)


def test_log_determinant_within_its_standard_error():
    matrix = spd(60)
    structure = jax.ShapeDtypeStruct((5, 12), matrix.dtype)
    found, error = lanczos_logdet(
        lambda v: (matrix @ v.ravel()).reshape(5, 12), structure, jax.random.key(0), n_probes=32, n_steps=30
    )
    assert 0 < error < 5
    assert abs(found - np.linalg.slogdet(matrix)[1]) < 3 * error


def test_log_determinant_of_a_diagonal_is_exact():
    """Random signs have no variance on a diagonal, and the Lanczos process ends after as many steps as eigenvalues."""
    d = jnp.array([1.0, 2.0, 3.0, 2.0, 1.0])
    structure = jax.ShapeDtypeStruct((5,), d.dtype)
    found, error = lanczos_logdet(lambda v: d * v, structure, jax.random.key(0), n_probes=4, n_steps=10)
    np.testing.assert_allclose(found, jnp.sum(jnp.log(d)), rtol=1e-10)
    np.testing.assert_allclose(error, 0.0, atol=1e-10)
