"""What follows from products alone, against dense algebra; and the iterative forms, which large sizes take."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vardax.covariances import by_products
from vardax.covariances.block_diagonal import BlockDiagonalCovariance
from vardax.covariances.dense import DenseCovariance
from vardax.covariances.diagonal import DiagonalCovariance
from vardax.covariances.hybrid import HybridCovariance
from vardax.covariances.matern import MaternLinearOperator

SHAPE = (6, 7)


def blend(nugget=1.0):
    rough, smooth = MaternLinearOperator(SHAPE, 0.7, 2.0), MaternLinearOperator(SHAPE, 1.5, boundary="free")
    return HybridCovariance(rough, smooth, (nugget, 0.5))


def spd(n):
    a = np.random.default_rng(0).normal(size=(n, n))
    return a @ a.T / n + np.eye(n)


def test_matrix_and_diagonal_come_row_by_row():
    for covariance in (DenseCovariance(spd(6), shape=(2, 3)), BlockDiagonalCovariance({"u": DenseCovariance(spd(6))})):
        np.testing.assert_allclose(by_products.matrix_by_products(covariance), spd(6), atol=1e-5)
        found = jax.flatten_util.ravel_pytree(by_products.diagonal_by_products(covariance))[0]
        np.testing.assert_allclose(found, np.diag(spd(6)), rtol=1e-5)


@pytest.mark.x64
def test_beyond_the_dense_limit_the_inverse_is_iterative(monkeypatch):
    """The limit is lowered, so that the dense answer is there to compare with."""
    covariance, v = blend(), jnp.cos(jnp.arange(42.0)).reshape(SHAPE)
    exact = covariance.inv_mv(v)
    np.testing.assert_allclose(covariance.mv(exact), v, atol=1e-9)
    monkeypatch.setattr(by_products, "DENSE_LIMIT", 10)
    found = covariance.inv_mv(v)
    assert 0 < np.max(np.abs(found - exact)) < 1e-6 * np.max(np.abs(exact))
    assert np.linalg.norm(covariance.mv(found) - v) < 3e-8 * np.linalg.norm(v)


@pytest.mark.x64
def test_a_solve_that_does_not_converge_is_never_silent(monkeypatch):
    monkeypatch.setattr(by_products, "DENSE_LIMIT", 10)
    monkeypatch.setattr(by_products, "MOST_STEPS", 3)
    covariance, v = blend(1e-6), jnp.cos(jnp.arange(42.0) ** 2).reshape(SHAPE)
    with pytest.raises(ValueError, match="HybridCovariance.inv_mv: conjugate gradients stopped at a relative residual"):
        covariance.inv_mv(v)
    assert np.all(np.isnan(jax.jit(lambda B: B.inv_mv(v))(covariance)))


@pytest.mark.x64
def test_beyond_the_dense_limit_the_determinant_is_an_estimate_with_an_error(monkeypatch):
    covariance = blend()
    exact = float(covariance.logdet())
    estimate, error = by_products.logdet_estimate(covariance, jax.random.key(2), n_probes=64)
    assert 0.01 < error < 2.0
    assert abs(estimate - exact) < 4 * error
    monkeypatch.setattr(by_products, "DENSE_LIMIT", 10)
    assert 0 < abs(float(covariance.logdet()) - exact) < 6 * error


def test_restriction_of_pytrees_and_of_large_sizes_is_refused():
    pair = BlockDiagonalCovariance({"u": DiagonalCovariance([1.0])})
    both = HybridCovariance(pair, pair, (0.5, 0.5))
    with pytest.raises(TypeError, match="HybridCovariance.restrict: the fields are pytrees"):
        both.restrict(jnp.ones(1))
    large = MaternLinearOperator(600, 3.0)
    with pytest.raises(ValueError, match="HybridCovariance.restrict: a correlated R of 600 entries"):
        HybridCovariance(large, large, (0.5, 0.5)).restrict(jnp.ones(600))
    np.testing.assert_allclose(
        blend().restrict(jnp.ones(SHAPE)).logdet(),
        np.linalg.slogdet(np.asarray(blend().as_matrix(), float))[1],
        rtol=1e-3,
    )
