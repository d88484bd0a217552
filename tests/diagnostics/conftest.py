"""Linear-Gaussian windows with correlated B and R, a rectangular H, gaps, two instruments, and their dense matrices."""

import functools
from types import SimpleNamespace

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vardax.minimisers.closed_form as closed_form
from vardax.covariances.dense import DenseCovariance
from vardax.dynamics.discrete import DiscreteForward
from vardax.models.strong_fourdvar import StrongFourDVar
from vardax.obs_operators.linear import LinearObs
from vardax.types import Batch1D

M, ENTRIES, SAMPLES = 3, 3, 2
FORMS = {"control space": (4, 1024), "observation space": (12, 1024), "by iteration": (4, 0)}
"""Size of the state, and up to which size a side is factorised: 9 observations, of which some are missing."""


class Linear(eqx.Module):
    """x -> A x, a model step."""

    matrix: jax.Array

    def __call__(self, state):
        return jnp.matmul(self.matrix.astype(state.dtype), state, precision="highest")


def covariance(random, n):
    root = random.normal(size=(n, n))
    return root @ root.T / n + 0.5 * np.eye(n)


@functools.cache
def linear_case(n):
    """A window of `n` variables: method, batch, problem, analysis, and of each sample the dense matrices."""
    random = np.random.default_rng(n)
    A, H, B, R = np.linalg.qr(random.normal(size=(n, n)))[0], random.normal(size=(M, n)), covariance(random, n), None
    R = covariance(random, M)
    y = random.normal(size=(SAMPLES, ENTRIES, M))
    y[0, 0, 1] = y[1, 1, 0] = y[1, 2, 2] = np.nan
    instrument = np.broadcast_to(np.array([0, 1, 1]), y.shape)
    array = lambda a: jnp.asarray(a, jnp.result_type(float))  # noqa: E731
    method = StrongFourDVar(
        DiscreteForward(Linear(array(A)), dt=1.0),
        LinearObs(array(H)),
        array(random.normal(size=n)),
        DenseCovariance(array(B)),
        DenseCovariance(array(R)),
        tol=1e-10 if jax.config.jax_enable_x64 else 1e-5,
    )
    batch = Batch1D.from_observations(
        array(y), instrument=instrument, obs_err=array(0.5 + random.uniform(size=y.shape))
    )
    problem = method.problem(batch)
    case = SimpleNamespace(method=method, batch=batch, problem=problem, analysis=method.analyse(batch), B=B, y=y)
    stacked = np.concatenate([H @ np.linalg.matrix_power(A, t) for t in range(ENTRIES)])
    case.samples = [_dense(case, stacked, R, sample) for sample in range(SAMPLES)]
    return case


def _dense(case, stacked, R, sample):
    """H, R, P, K of the observed entries of one sample, from textbook formulas."""
    y = case.y[sample].ravel()
    seen = np.isfinite(y)
    own = np.asarray(case.batch.obs_err[sample], float).ravel() / np.tile(np.sqrt(np.diag(R)), ENTRIES)
    full = own[:, None] * np.kron(np.eye(ENTRIES), R) * own[None, :]
    H, R, B = stacked[seen], full[np.ix_(seen, seen)], case.B
    K = B @ H.T @ np.linalg.inv(H @ B @ H.T + R)
    x_b = np.asarray(case.method.prior_mean, float)
    instrument = np.tile([0, 1, 1], ENTRIES)[seen]
    return SimpleNamespace(H=H, R=R, B=B, K=K, y=y[seen], x_b=x_b, seen=seen, instrument=instrument)


@pytest.fixture(params=["control space", "observation space", pytest.param("by iteration", marks=pytest.mark.slow)])
def case(request, monkeypatch):
    """Each form of the linear-Gaussian case."""
    n, limit = FORMS[request.param]
    found = linear_case(n)
    found.exact = limit > 0
    if found.exact:
        yield found
        return
    jax.clear_caches()  # what was compiled has the usual limit in it
    monkeypatch.setattr(closed_form, "DENSE_LIMIT", limit)
    yield found
    jax.clear_caches()


@pytest.fixture(scope="module")
def small_case():
    """The case whose control is small."""
    return linear_case(4)


@pytest.fixture(scope="session")
def dense_case():
    """A function that makes the case with a given size of the state."""
    return linear_case


@pytest.fixture(scope="session")
def close():
    """Agreement up to rounding, in either precision."""
    tolerance = {"rtol": 1e-7, "atol": 1e-9} if jax.config.jax_enable_x64 else {"rtol": 2e-3, "atol": 2e-3}

    def check(found, expected, **options):
        np.testing.assert_allclose(np.asarray(found), expected, **(tolerance | options))

    return check
