"""Variances from the observations near each cell: exact where these are all, above the exact ones and close beyond."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vardax.covariances.dense import DenseCovariance
from vardax.covariances.diagonal import DiagonalCovariance
from vardax.covariances.matern import MaternLinearOperator
from vardax.minimisers.transforms import Exp, Identity
from vardax.models.optimal_interpolation import OptimalInterpolation
from vardax.models.threedvar import ThreeDVar
from vardax.obs_operators.linear import LinearObs
from vardax.obs_operators.point import PointObs
from vardax.posterior.covariance import PosteriorCovariance
from vardax.posterior.inverses import IterativeInverse
from vardax.posterior.laplace import LaplaceCovariance
from vardax.posterior.local_variances import is_cellwise, looks_at_cells
from vardax.types import Batch1D

X64 = jax.config.jax_enable_x64
RNG = np.random.default_rng(5)
SHAPES = {2: (14, 11), 3: (6, 5, 7)}


def case(shape, n_obs, *, transform=Identity(), boundary="periodic", error=0.05, length=3.0):  # noqa: B008
    """(problem, control, batch, method): two samples, cells observed twice, gaps."""
    cells = RNG.integers(0, int(np.prod(shape)), n_obs)
    cells[1] = cells[0]
    prior = MaternLinearOperator(shape, length, sigma=0.8, boundary=boundary)
    R = DiagonalCovariance(error * RNG.uniform(0.5, 1.5, n_obs))
    slots = (PointObs(cells), np.full(shape, 1.5), prior, R)
    linear = isinstance(transform, Identity)
    method = OptimalInterpolation(*slots) if linear else ThreeDVar(*slots, control_transform=transform)
    y = np.ones((2, n_obs))
    y[0, 3:7] = np.nan
    batch = Batch1D.from_observations(y)
    problem = method.problem(batch)
    control = jax.tree.map(lambda c: 0.3 * jnp.asarray(RNG.normal(size=c.shape), c.dtype), problem.zero_control())
    return problem, control, batch, method


def by_iteration(problem, control):
    return PosteriorCovariance(problem, control, IterativeInverse())


@pytest.mark.parametrize("ndim", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_with_few_observations_they_are_exact(ndim):
    """All observations are neighbours; with gaps, repeated cells and unequal errors."""
    problem, control, batch, method = case(SHAPES[ndim], 30, boundary="free" if ndim == 3 else "periodic")
    assert is_cellwise(problem)
    assert looks_at_cells(problem, control).all()
    expected = method.posterior(batch).cov.diagonal()
    rtol = 1e-7 if X64 else 1e-3
    np.testing.assert_allclose(by_iteration(problem, control).diagonal(), expected, rtol=rtol, atol=rtol)


@pytest.mark.slow
def test_a_transform_scales_them():
    problem, control, _, _ = case(SHAPES[2], 20, transform=Exp())
    state = problem.control_to_state(control)
    dense = LaplaceCovariance().of_problem(state, problem)
    found = by_iteration(problem, dense.cov.control)
    np.testing.assert_allclose(found.diagonal(), dense.cov.diagonal(), rtol=1e-5 if X64 else 1e-2)


@pytest.mark.slow
def test_with_many_observations_they_are_close_and_never_too_sure():
    """Neighbours are an eighth of the observations: the standard deviation is good to 1 % everywhere."""
    problem, control, batch, method = case((40, 40), 1000, length=6.0)
    found = np.sqrt(by_iteration(problem, control).diagonal())
    expected = np.asarray(method.posterior(batch).std())
    assert np.all(found >= expected * (1 - (1e-6 if X64 else 1e-3)))
    np.testing.assert_allclose(found, expected, rtol=0.01)
    assert np.mean(found / expected - 1) < 2e-3


@pytest.mark.parametrize("what", ["an average of cells", "correlated errors"])
def test_other_observations_are_not_looked_at_in_this_way(what):
    prior, H, R = MaternLinearOperator((12,), 3.0), np.eye(12)[:4], np.eye(4)
    if what == "an average of cells":
        H[0, 1] = 0.5
    else:
        R[0, 1] = R[1, 0] = 0.3
    method = OptimalInterpolation(LinearObs(H), np.zeros(12), prior, DenseCovariance(R))
    problem = method.problem(Batch1D.from_observations(np.ones((1, 4))))
    assert is_cellwise(problem)
    assert not looks_at_cells(problem, problem.zero_control()).any()


def test_a_covariance_that_does_not_know_its_cells_is_not_asked():
    B, R = DenseCovariance(np.eye(4)), DenseCovariance(np.eye(3))
    method = OptimalInterpolation(PointObs(np.arange(3)), np.zeros(4), B, R)
    assert not is_cellwise(method.problem(Batch1D.from_observations(np.ones((1, 3)))))
