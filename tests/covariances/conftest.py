"""The two oracles of the covariances: the dense matrix, and finite differences."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vardax.covariances.factors import ravel, unravel

X64 = jnp.zeros(0).dtype == jnp.float64


@eqx.filter_jit
def _in_full(covariance):
    """(B by rows, Lᵀ by rows, L by columns, the diagonal, the matrix) in one program."""
    structure, root = covariance.in_structure(), covariance.half()
    controls = root.in_structure()
    units = jnp.eye(covariance.in_size(), dtype=covariance.dtype)
    control_units = jnp.eye(root.in_size(), dtype=covariance.dtype)
    return (
        jax.vmap(lambda unit: ravel(covariance.mv(unravel(unit, structure))))(units),
        jax.vmap(lambda unit: ravel(root.transpose().mv(unravel(unit, structure))))(units),
        jax.vmap(lambda unit: ravel(root.mv(unravel(unit, controls))))(control_units).T,
        ravel(covariance.diagonal()),
        covariance.as_matrix(),
    )


@pytest.fixture
def equals_matrix():
    """Assert that products, square root, its transpose, diagonal and matrix are those of a dense matrix."""

    def check(covariance, matrix, tolerance=1e-11 if X64 else 2e-5):
        scale = np.sqrt(np.maximum(np.diag(matrix), np.max(np.diag(matrix)) * 1e-3))
        atol = tolerance * np.outer(scale, scale) + 1e-30
        rows, transposed, root, diagonal, full = _in_full(covariance)
        assert np.all(np.abs(rows - matrix) <= atol)
        assert np.all(np.abs(full - matrix) <= atol)
        assert np.all(np.abs(root @ root.T - matrix) <= atol)
        np.testing.assert_allclose(transposed, root, atol=tolerance * np.max(scale))
        assert np.all(np.abs(diagonal - np.diag(matrix)) <= np.diag(atol))

    return check


@pytest.fixture
def inverts_matrix():
    """Assert that `inv_mv` and `logdet` are those of a dense matrix."""

    def check(covariance, matrix, tolerance=1e-9):
        v = unravel(jnp.sin(jnp.arange(1.0, 1 + len(matrix))), covariance.in_structure())
        expected = np.linalg.solve(matrix, np.asarray(ravel(v)))
        np.testing.assert_allclose(ravel(covariance.inv_mv(v)), expected, atol=tolerance * np.max(np.abs(expected)))
        np.testing.assert_allclose(covariance.logdet(), np.linalg.slogdet(matrix)[1], rtol=tolerance, atol=tolerance)

    return check


@pytest.fixture
def equals_differences():
    """Assert that the gradient of `fn(parameters)` is that of central differences along a random direction."""

    def check(fn, parameters, rtol=1e-6, step=1e-5):
        flat, back = jax.flatten_util.ravel_pytree(parameters)
        direction = jnp.asarray(np.random.default_rng(0).normal(size=flat.size))
        value = jax.jit(lambda t: fn(back(flat + t * direction)))
        expected = (value(step) - value(-step)) / (2 * step)
        np.testing.assert_allclose(jax.grad(value)(0.0), expected, rtol=rtol)

    return check
