"""The closed form in control and in observation space: the same analysis, whichever side is factorised."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vardax.covariances.dense import DenseCovariance
from vardax.covariances.functions import half
from vardax.minimisers import closed_form
from vardax.minimisers.closed_form import closed_form_analysis, factorise, in_control_space, is_dense_case
from vardax.minimisers.observed import read_samples, restrict_samples
from vardax.minimisers.problem import BatchedProblem
from vardax.minimisers.transforms import Identity
from vardax.minimisers.windows import Snapshot
from vardax.obs_operators.linear import LinearObs
from vardax.types import Batch1D, Status

X64 = jax.config.jax_enable_x64
TOLERANCE = {"rtol": 1e-9, "atol": 1e-9} if X64 else {"rtol": 2e-3, "atol": 2e-3}
RANDOM = np.random.default_rng(19)
N = 5


def posed(m, R=None):
    H, y = RANDOM.normal(size=(m, N)), RANDOM.normal(size=(1, 1, m))
    y[0, 0, 0] = np.nan
    root = RANDOM.normal(size=(N, N))
    prior = DenseCovariance(root @ root.T / N + 0.5 * np.eye(N))
    R = DenseCovariance(0.3 * np.eye(m) + 0.1) if R is None else R
    samples = read_samples(Batch1D.from_observations(y), (m,), window=False, owner="test")
    observed = restrict_samples(samples, R, "test")
    background = jnp.asarray(RANDOM.normal(size=(1, N)))
    return BatchedProblem(background, observed, prior, half(prior), Snapshot(LinearObs(H)), Identity())


def normal(batched):
    """I + GᵀG and Gᵀd as dense arrays."""
    G = -batched.map_samples(lambda p: jax.jacobian(lambda c: p.residual(c).ravel())(p.zero_control()))[0]
    d = batched.residual(batched.zero_control())[0].ravel()
    return np.asarray(jnp.eye(N) + G.T @ G), np.asarray(G.T @ d)


@pytest.mark.parametrize(("m", "side"), [(3, False), (8, True)], ids=["observation space", "control space"])
def test_the_analysis_solves_the_normal_equation(m, side):
    batched = posed(m)
    assert batched.map_samples(lambda p: jnp.asarray(in_control_space(p))).item() is side
    analysis = batched.map_samples(lambda p: closed_form_analysis(p, 1e-6 if X64 else 1e-4))
    matrix, right = normal(batched)
    np.testing.assert_allclose(analysis.control[0], np.linalg.solve(matrix, right), **TOLERANCE)
    assert analysis.converged.all()
    assert (analysis.status == Status.CONVERGED).all()
    np.testing.assert_allclose(analysis.cost.first.total, batched.cost(batched.zero_control()), **TOLERANCE)
    np.testing.assert_allclose(analysis.cost.last.total, batched.cost(analysis.control), **TOLERANCE)


@pytest.mark.parametrize("m", [3, 8], ids=["observation space", "control space"])
def test_the_factor_solves_any_right_side(m):
    batched, v = posed(m), jnp.asarray(RANDOM.normal(size=(1, N)))

    def solved(sample, v):
        _, G, GT = sample.linearise(sample.zero_control())
        return factorise(sample, G, GT).solve(v)

    np.testing.assert_allclose(
        batched.map_samples(solved, v)[0], np.linalg.solve(normal(batched)[0], v[0]), **TOLERANCE
    )


@pytest.mark.parametrize("m", [3, 8], ids=["observation space", "control space"])
def test_only_the_smaller_side_is_built(m):
    batched = posed(m)

    def factor(sample):
        _, G, GT = sample.linearise(sample.zero_control())
        return factorise(sample, G, GT).cholesky

    assert batched.map_samples(factor).shape == (1, min(m, N), min(m, N))


def test_the_limit_is_that_of_the_smaller_side(monkeypatch):
    batched = posed(8)
    for limit, expected in ((N - 1, False), (N, True), (8, True)):
        monkeypatch.setattr(closed_form, "DENSE_LIMIT", limit)
        assert batched.map_samples(lambda p: jnp.asarray(is_dense_case(p))).item() is expected


def test_a_prediction_that_is_not_finite_returns_the_background():
    batched = posed(3)
    broken = BatchedProblem(
        batched.background.at[0, 0].set(jnp.nan),
        *(getattr(batched, f) for f in ("observed", "covariance", "half")),
        batched.observe,
        batched.transform,
    )
    analysis = broken.map_samples(lambda p: closed_form_analysis(p, 1e-6))
    assert (analysis.control == 0).all()
    assert (analysis.status == Status.NON_FINITE).all()
    assert not analysis.converged.any()
