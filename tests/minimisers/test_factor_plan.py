"""When a factor is taken: local observations, an uncorrelated R, and plain steps that would be many."""

import equinox as eqx
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest

from vardax.covariances.dense import DenseCovariance
from vardax.covariances.diagonal import DiagonalCovariance
from vardax.covariances.functions import restrict
from vardax.covariances.matern import MaternLinearOperator
from vardax.minimisers.factor_plan import LEAST_CELLS, MOST_OBSERVATIONS, can_be_factored, plan_factor
from vardax.minimisers.krylov_result import Observing
from vardax.obs_operators.point import PointObs

DTYPE = jnp.ones(0).dtype
SHAPE, M = (16, 64), 20
B = MaternLinearOperator(SHAPE, 6.0)
POINTS = PointObs(np.arange(M) * 50).linearize(jnp.zeros(SHAPE, B.dtype))


@eqx.filter_jit
def plan(H, R, tol=1e-6):
    return plan_factor(Observing(B, H, R, B.dtype), (M,), tol)


def uncorrelated(variance, missing=()):
    mask = np.isin(np.arange(M), missing, invert=True)
    return restrict(DiagonalCovariance(jnp.full(M, variance, B.dtype)), jnp.asarray(mask, B.dtype))


def test_accurate_points_are_worth_a_factor():
    found = plan(POINTS, uncorrelated(1e-3, missing=[4]))
    assert found.worthwhile
    np.testing.assert_allclose(found.variances, np.where(np.arange(M) == 4, 0, 1e-3), rtol=1e-5)


def test_inaccurate_points_are_not():
    assert not plan(POINTS, uncorrelated(10.0)).worthwhile


def test_a_loose_tolerance_pays_less():
    R = uncorrelated(3e-3)
    assert plan(POINTS, R, tol=1e-10).worthwhile
    assert not plan(POINTS, R, tol=0.5).worthwhile


def test_a_correlated_error_is_not():
    matrix = 1e-3 * (np.eye(M) + np.diag(np.full(M - 1, 0.4), 1) + np.diag(np.full(M - 1, 0.4), -1))
    assert not plan(POINTS, restrict(DenseCovariance(jnp.asarray(matrix, B.dtype)), jnp.ones(M))).worthwhile


def test_wide_averages_are_not():
    average = np.kron(np.ones((1, 16)), np.kron(np.eye(M), np.ones((1, 64 // 16)))[:, :64]) / 64
    rows = jnp.asarray(average[:, : 16 * 64], B.dtype)
    H = lx.FunctionLinearOperator(lambda x: rows @ jnp.ravel(x), B.in_structure())
    assert not plan(H, uncorrelated(1e-3)).worthwhile


@pytest.mark.parametrize("kind", ["large", "small grid", "too many", "foreign"])
def test_sizes_and_kinds_that_may_be_factored(kind):
    side = int(np.ceil(np.sqrt(LEAST_CELLS))) - (kind == "small grid")
    field = MaternLinearOperator((side, side), 8.0)
    B = lx.TaggedLinearOperator(field, lx.positive_semidefinite_tag) if kind == "foreign" else field
    n_obs = MOST_OBSERVATIONS + 1 if kind == "too many" else 5000
    assert can_be_factored(B, uncorrelated(1.0), n_obs) == (kind == "large")
