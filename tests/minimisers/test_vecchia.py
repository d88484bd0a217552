"""The approximate inverse against the dense one: exact where a block sees all before it, close to it elsewhere."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vardax.covariances.matern import MaternLinearOperator
from vardax.minimisers.neighbours import BLOCK
from vardax.minimisers.observed_cells import ObservedCells
from vardax.minimisers.vecchia import vecchia_inverse

RANDOM = np.random.default_rng(13)


@jax.jit
def _matrix_of(B, observed, variances):
    inverse = vecchia_inverse(B.between_cells(), observed, variances, B.shape)
    return jax.vmap(inverse)(jnp.eye(variances.size, dtype=variances.dtype))


def compare(B, flat, variances, gain=None):
    """(M⁻¹ on the observed entries, H B Hᵀ + R there, M⁻¹ on all)."""
    gain = np.ones(flat.size) if gain is None else gain
    cells = tuple(jnp.asarray(c) for c in np.unravel_index(flat, B.shape))
    observed = ObservedCells(jnp.asarray(gain, B.dtype), cells, jnp.ones(flat.size, bool))
    matrix = np.asarray(_matrix_of(B, observed, jnp.asarray(variances, B.dtype)))
    seen = variances > 0
    covariance = np.asarray(B.as_matrix())[np.ix_(flat, flat)] * np.outer(gain, gain) + np.diag(variances)
    return matrix[np.ix_(seen, seen)], covariance[np.ix_(seen, seen)], matrix


@pytest.mark.x64
@pytest.mark.parametrize("shape", [(90,), (9, 10), (5, 3, 6)], ids=str)
def test_exact_for_one_block_with_gains_gaps_and_shared_cells(shape):
    B = MaternLinearOperator(shape, 3.0, sigma=1.5, boundary="free")
    flat = np.concatenate([RANDOM.choice(90, BLOCK - 2, replace=False)] * 2)
    variances = RANDOM.uniform(0.1, 0.4, flat.size)
    variances[[3, 7]] = 0
    gain = np.where(np.arange(flat.size) % 3, 1.0, -2.0)
    inverse, covariance, everywhere = compare(B, flat, variances, gain)
    np.testing.assert_allclose(inverse @ covariance, np.eye(len(inverse)), atol=1e-10)
    np.testing.assert_array_equal(everywhere[3], 0)


@pytest.mark.x64
def test_exact_where_all_earlier_entries_are_neighbours():
    B = MaternLinearOperator((80,), 6.0)
    flat = RANDOM.choice(80, 3 * BLOCK, replace=False)
    inverse, covariance, _ = compare(B, flat, np.full(flat.size, 0.1))
    np.testing.assert_allclose(inverse @ covariance, np.eye(len(inverse)), atol=1e-10)


@pytest.mark.slow
@pytest.mark.x64
@pytest.mark.parametrize("shape", [(600,), (24, 30), (9, 8, 10)], ids=str)
@pytest.mark.parametrize("boundary", ["periodic", "free"])
def test_definite_and_close_enough_to_the_inverse_to_precondition(shape, boundary):
    B = MaternLinearOperator(shape, 4.0, boundary=boundary)
    flat = RANDOM.choice(np.prod(shape), 200, replace=False)
    variances = np.where(np.arange(200) % 9 == 4, 0.0, 0.0005)
    inverse, covariance, _ = compare(B, flat, variances)
    np.testing.assert_allclose(inverse, inverse.T, atol=1e-10 * np.abs(inverse).max())
    half = np.linalg.cholesky(covariance)
    values = np.linalg.eigvalsh(half.T @ inverse @ half)
    assert values.min() > 0
    assert values.max() / values.min() < 0.05 * np.linalg.cond(covariance)


def test_rounding_of_a_smooth_covariance_does_not_spoil_it():
    """A Gaussian correlation is singular in float32; the observations are nearly perfect."""
    B = MaternLinearOperator((24, 24), 6.0, nu=np.inf, dtype=jnp.float32)
    flat = RANDOM.choice(24 * 24, 300, replace=False)
    inverse, _, _ = compare(B, flat, np.full(300, 1e-9, np.float32))
    assert np.isfinite(inverse).all()
    assert (np.diagonal(inverse) > 0).all()
