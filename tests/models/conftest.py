"""One small linear-Gaussian problem for all methods, with correlated B and R, a rectangular H, gaps and two samples."""

from types import SimpleNamespace

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vardax.covariances.dense import DenseCovariance
from vardax.dynamics.discrete import DiscreteForward
from vardax.models.optimal_interpolation import OptimalInterpolation
from vardax.models.strong_fourdvar import StrongFourDVar
from vardax.models.threedvar import ThreeDVar
from vardax.obs_operators.linear import LinearObs
from vardax.types import Batch1D

N, M, ENTRIES, SAMPLES = 4, 3, 3, 2
METHODS = {cls.__name__: cls for cls in (OptimalInterpolation, ThreeDVar, StrongFourDVar)}


class Rotation(eqx.Module):
    """x -> A x, a model step."""

    matrix: jax.Array

    def __call__(self, state):
        return self.matrix.astype(state.dtype) @ state


def _covariance(random, n):
    root = random.normal(size=(n, n))
    return root @ root.T / n + 0.5 * np.eye(n)


def _numbers(seed=5):
    random = np.random.default_rng(seed)
    y = random.normal(size=(SAMPLES, ENTRIES, M))
    y[0, 0, 1] = y[1, 1, 0] = y[1, 2, 2] = np.nan
    return SimpleNamespace(
        A=np.linalg.qr(random.normal(size=(N, N)))[0],
        H=random.normal(size=(M, N)),
        B=_covariance(random, N),
        R=_covariance(random, M),
        mean=random.normal(size=N),
        background=random.normal(size=(SAMPLES, N)),
        y=y,
    )


def _build(name, numbers, dtype=None, **options):
    """The method `name` with its slots from `numbers`."""
    dtype = jnp.result_type(float) if dtype is None else dtype
    array = lambda a: jnp.asarray(a, dtype)  # noqa: E731
    slots = {
        "obs_op": LinearObs(array(numbers.H)),
        "prior_mean": array(numbers.mean),
        "prior_cov_op": DenseCovariance(array(numbers.B)),
        "obs_cov_op": DenseCovariance(array(numbers.R)),
    }
    if name == "StrongFourDVar":
        slots["forward"] = DiscreteForward(Rotation(array(numbers.A)), dt=1.0)
    return METHODS[name](**(slots | options))


def _batch(name, numbers, dtype=None, **fields):
    """The window for a 4D method, its first entry for the others."""
    y = numbers.y if name == "StrongFourDVar" else numbers.y[:, :1]
    return Batch1D.from_observations(jnp.asarray(y, jnp.result_type(float) if dtype is None else dtype), **fields)


def _dense(name, numbers, sample, *, background=None, B=None, R=None, H=None):
    """(analysis, posterior covariance, cost at the analysis) of one sample by the textbook formulas."""
    B, R, H = (getattr(numbers, key) if value is None else value for key, value in (("B", B), ("R", R), ("H", H)))
    x_b = numbers.mean if background is None else background
    entries = ENTRIES if name == "StrongFourDVar" else 1
    G = np.concatenate([H @ np.linalg.matrix_power(numbers.A, t) for t in range(entries)])
    y = numbers.y[sample, :entries].ravel()
    seen = np.isfinite(y)
    G, y, R = G[seen], y[seen], np.kron(np.eye(entries), R)[np.ix_(seen, seen)]
    S = G @ B @ G.T + R
    gain = B @ G.T @ np.linalg.inv(S)
    innovation = y - G @ x_b
    cost = 0.5 * innovation @ np.linalg.solve(S, innovation)
    return x_b + gain @ innovation, B - gain @ G @ B, cost


@pytest.fixture
def numbers():
    return _numbers()


@pytest.fixture
def other_numbers():
    """The same shapes, other values, other gaps."""
    other = _numbers(seed=6)
    other.y = np.where(np.isnan(other.y), 0.3, other.y)
    other.y[0, 0, 0] = other.y[1, 0, 2] = np.nan
    return other


@pytest.fixture
def build():
    return _build


@pytest.fixture
def make_batch():
    return _batch


@pytest.fixture
def dense():
    return _dense


@pytest.fixture(params=METHODS)
def name(request):
    return request.param
