"""The control-space problem against dense algebra: cost, gradient, tangent, adjoint, Gauss-Newton product, samples."""

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest

from vardax.covariances.dense import DenseCovariance
from vardax.covariances.diagonal import DiagonalCovariance
from vardax.covariances.functions import half
from vardax.covariances.matern import MaternLinearOperator
from vardax.dynamics.discrete import DiscreteForward
from vardax.minimisers.observed import read_samples, restrict_samples
from vardax.minimisers.problem import BatchedProblem, Snapshot, Window, tree_dot, tree_norm
from vardax.minimisers.transforms import Exp, Identity, Softplus
from vardax.obs_operators.callable import CallableObs
from vardax.obs_operators.linear import LinearObs
from vardax.types import Batch1D

RANDOM = np.random.default_rng(11)
N, M, E, SAMPLES = 5, 3, 3, 2
H = RANDOM.normal(size=(M, N))
MODEL = np.linalg.qr(RANDOM.normal(size=(N, N)))[0]
ROOT = RANDOM.normal(size=(N, N))
B = ROOT @ ROOT.T + 0.5 * np.eye(N)
R = np.array([[1.0, 0.4, 0.1], [0.4, 0.8, 0.3], [0.1, 0.3, 1.2]])
Y = RANDOM.normal(size=(SAMPLES, E, M))
MASK = np.array([[[1, 1, 0], [1, 0, 1], [1, 1, 1]], [[0, 0, 0], [1, 1, 1], [0, 1, 0]]])
X_B = RANDOM.uniform(0.5, 2.0, size=(SAMPLES, N))
CHI, V = RANDOM.normal(size=(2, SAMPLES, N))
X64 = jax.config.jax_enable_x64
TOLERANCE = {"rtol": 1e-10, "atol": 1e-10} if X64 else {"rtol": 1e-3, "atol": 1e-3}
pytestmark = pytest.mark.filterwarnings("error")


class Times(eqx.Module):
    """x -> M x."""

    matrix: jax.Array

    def __call__(self, state):
        return self.matrix @ state


def problem(
    *, obs_op=None, prior=None, obs_cov=None, transform=None, window=True, y=Y, mask=MASK, background=X_B, **batch_fields
):
    """The samples of one window (or of its first entry) of a rotating state."""
    obs_op = LinearObs(jnp.asarray(H)) if obs_op is None else obs_op
    prior = DenseCovariance(B) if prior is None else prior
    obs_cov = DenseCovariance(R) if obs_cov is None else obs_cov
    y, mask = (y, mask) if window else (y[:, :1], mask[:, :1])
    samples = read_samples(Batch1D(y, mask, **batch_fields), (M,), window=window, owner="test")
    model = DiscreteForward(Times(jnp.asarray(MODEL)), dt=1.0)
    observe = Window(model, obs_op, eqx.internal_adjoint if False else None, 0.0, E - 1, 1) if False else None
    import optimistix as optx

    observe = Window(model, obs_op, optx.RecursiveCheckpointAdjoint(), 0.0, E - 1, 1) if window else Snapshot(obs_op)
    return BatchedProblem(
        jnp.asarray(background),
        restrict_samples(samples, obs_cov, "test"),
        prior,
        half(prior),
        observe,
        Identity() if transform is None else transform,
    )
