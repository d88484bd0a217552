"""The optimal interpolation problem of the OI benchmarks.

A square grid of unit cells, a Matérn covariance (nu = 3/2, a length of 20 cells, sigma 1), observations of single
cells: at random, or along satellite-like straight tracks whose spacing leaves gaps. Truth and errors are drawn from B
and R, so the analysis error is drawn from the posterior. Single precision.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vardax import Batch1D, OptimalInterpolation
from vardax.covariances import DiagonalCovariance, MaternLinearOperator
from vardax.obs_operators import PointObs

LENGTH = 20.0


class Problem(NamedTuple):
    """Cells (row-major) that are observed, and the variance of the observation error."""

    size: int
    cells: np.ndarray
    variance: float
    boundary: str


def problem(size: int, n_obs: int, boundary: str, pattern: str) -> Problem:
    """`pattern` is "random" (error variance 0.05), "tracks" or "sparse-tracks" (0.05²; 1 and 5 observations a cell)."""
    rng = np.random.default_rng(0)
    if pattern == "random":
        return Problem(size, rng.integers(0, size * size, n_obs), 0.05, boundary)
    per_track = {"tracks": 1000, "sparse-tracks": 5000}[pattern]
    n_tracks = max(2, round(n_obs / per_track * 1024 / size))
    return Problem(size, _tracks(rng, size, n_obs, n_tracks), 0.05**2, boundary)


def _tracks(rng: np.random.Generator, size: int, n_obs: int, n_tracks: int) -> np.ndarray:
    """Ascending and descending lines at about 65 degrees, wrapped around the domain, all equally long."""
    along = np.linspace(0, size, -(-n_obs // n_tracks), endpoint=False)
    slopes = np.tan(np.deg2rad(rng.normal(65, 1, n_tracks))) * np.where(np.arange(n_tracks) % 2, 1, -1)
    columns = np.mod(rng.uniform(0, size, n_tracks)[:, None] + along / slopes[:, None], size)
    rows = np.broadcast_to(along, columns.shape)
    return (rows.astype(int) * size + columns.astype(int)).ravel()[:n_obs]


def covariance(case: Problem, dtype=jnp.float32) -> MaternLinearOperator:
    return MaternLinearOperator((case.size, case.size), LENGTH, nu=1.5, boundary=case.boundary, dtype=dtype)


def method(case: Problem, tol: float, max_steps: int, dtype=jnp.float32) -> OptimalInterpolation:
    """Optimal interpolation on this problem, with a zero background."""
    background = jnp.zeros((case.size, case.size), dtype)
    R = DiagonalCovariance(jnp.full(case.cells.size, case.variance, dtype))
    B = covariance(case, dtype)
    return OptimalInterpolation(PointObs(case.cells), background, B, R, tol=tol, max_steps=max_steps)


def draw(case: Problem, B: MaternLinearOperator, key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(truth, observations) drawn from N(0, B) and R."""
    truth_key, error_key = jax.random.split(key)
    truth = B.sample(truth_key, 1)[0]
    error = jnp.sqrt(case.variance) * jax.random.normal(error_key, case.cells.shape, truth.dtype)
    return truth, truth.ravel()[case.cells] + error


def batch(observations: jax.Array) -> Batch1D:
    """One sample, everything observed."""
    return Batch1D(observations[None], jnp.ones_like(observations)[None])
