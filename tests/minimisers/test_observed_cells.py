"""Cells and gains of observations, read from products with H, against where the operators were put."""

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest

from vardax.covariances.diagonal import DiagonalCovariance
from vardax.minimisers.krylov_result import Observing
from vardax.minimisers.observed_cells import observed_cells
from vardax.obs_operators.interp import InterpObs
from vardax.obs_operators.point import PointObs
from vardax.types import Grid

RANDOM = np.random.default_rng(11)


def look(H, shape):
    observing = Observing(DiagonalCovariance(jnp.ones(shape)), H, None, jnp.ones(0).dtype)
    return observed_cells(observing, shape)


@pytest.mark.parametrize("shape", [(50,), (7, 33), (1, 40), (5, 6, 20)])
def test_cells_of_points_are_exact(shape):
    indices = RANDOM.integers(0, np.prod(shape), 60)
    found = look(PointObs(indices).linearize(jnp.zeros(shape)), shape)
    for axis, expected in enumerate(np.unravel_index(indices, shape)):
        np.testing.assert_array_equal(found.cells[axis], expected)
    np.testing.assert_allclose(found.gain, 1, rtol=1e-6)
    assert found.local.all()


def test_a_gain_may_be_negative():
    shape, indices, gain = (6, 20), np.array([0, 19, 45, 119]), np.array([2.0, -3.0, 0.5, -1.0])
    rows = jnp.asarray(gain[:, None] * np.eye(120)[indices], jnp.ones(0).dtype)
    ravel = lx.FunctionLinearOperator(jnp.ravel, jax.ShapeDtypeStruct(shape, rows.dtype))
    found = look(lx.MatrixLinearOperator(rows) @ ravel, shape)
    np.testing.assert_allclose(found.gain, gain, rtol=1e-6)
    np.testing.assert_array_equal(np.ravel_multi_index([np.asarray(c) for c in found.cells], shape), indices)


@pytest.mark.parametrize("periodic", [False, True])
def test_interpolation_is_seen_at_the_nearest_cell(periodic):
    axes = (jnp.arange(12.0), jnp.arange(40.0))
    last = 40.0 if periodic else 39.0
    positions = np.stack([RANDOM.uniform(0, 11, 50), RANDOM.uniform(0, last, 50)], axis=1)
    grid = Grid(axes, periodic=(False, periodic))
    found = look(InterpObs(grid).at(jnp.asarray(positions)).linearize(jnp.zeros((12, 40))), (12, 40))
    assert found.local.all()
    for axis, n in enumerate((12, 40)):
        away = np.abs(np.asarray(found.cells[axis]) - positions[:, axis])
        assert np.minimum(away, n - away).max() < 0.51


def test_a_wide_average_is_not_local():
    weights = np.zeros((2, 64))
    weights[0, 10:30], weights[1, 40:42] = 1 / 20, 1 / 2
    found = look(lx.MatrixLinearOperator(jnp.asarray(weights, jnp.ones(0).dtype)), (64,))
    np.testing.assert_array_equal(found.local, [False, True])
