"""Sub-windows: the model errs between them; run one after another, or side by side, they have the same minimum."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optimistix as optx
import pytest

from vardax.covariances.dense import DenseCovariance
from vardax.covariances.diagonal import DiagonalCovariance
from vardax.covariances.low_rank import LowRankCovariance
from vardax.dynamics.discrete import DiscreteForward
from vardax.minimisers.gauss_newton import DualCG, GaussNewtonKrylov, IncrementalConfig
from vardax.models.biases import ForcingBias
from vardax.models.weak_fourdvar import WeakFourDVar
from vardax.obs_operators.linear import LinearObs
from vardax.types import Batch1D

N, M, T = 4, 3, 6
RANDOM = np.random.default_rng(41)


def random_covariance(n, scale):
    root = RANDOM.normal(size=(n, n))
    return scale * (root @ root.T / n + 0.5 * np.eye(n))


B, Q, R = random_covariance(N, 1.0), random_covariance(N, 0.1), random_covariance(M, 0.3)
H, MODEL = RANDOM.normal(size=(M, N)), np.eye(N) + 0.3 * RANDOM.normal(size=(N, N))
BACKGROUND = RANDOM.normal(size=N)
Y = RANDOM.normal(size=(2, T + 1, M))
Y[0, 2], Y[1, 4, 1] = np.nan, np.nan
BATCH = Batch1D.from_observations(Y)
SINGLE = not jax.config.jax_enable_x64
GAUSS_NEWTON = GaussNewtonKrylov(IncrementalConfig(n_outer=20, n_inner=40, cg_atol=0.0, cg_rtol=0.0))


def weak(**slots):
    forward = DiscreteForward(lambda x: jnp.asarray(MODEL, x.dtype) @ x, 1.0)
    covariances = (DenseCovariance(B), DenseCovariance(R), DenseCovariance(Q))
    options = {"minimiser": GAUSS_NEWTON, "tol": None if SINGLE else 1e-11} | slots
    return WeakFourDVar(forward, LinearObs(H), BACKGROUND, *covariances, **options)


def dense(sub_windows, sample):
    """x_0*, the jumps and their standard deviations, by the dense formula on all of them at once."""
    length, jumps = T // sub_windows, sub_windows - 1
    at = np.eye(N, N * (1 + jumps))
    maps = [at]
    for t in range(1, T + 1):
        at = MODEL @ at
        if t % length == 0 and t < T:
            at = at + np.eye(N, N * (1 + jumps), k=N * (t // length))
        maps.append(at)
    prior = np.kron(np.eye(1 + jumps), Q)
    prior[:N, :N] = B
    seen = np.isfinite(Y[sample]).ravel()
    G = np.concatenate([H @ at for at in maps])[seen]
    errors = np.kron(np.eye(T + 1), R)[np.ix_(seen, seen)]
    gain = prior @ G.T @ np.linalg.inv(G @ prior @ G.T + errors)
    mean = np.concatenate([BACKGROUND, np.zeros(N * jumps)])
    analysis = mean + gain @ (Y[sample].ravel()[seen] - G @ mean)
    deviation = np.sqrt(np.diag(prior - gain @ G @ prior))
    return analysis[:N], analysis[N:].reshape(jumps, N), deviation


@pytest.mark.parametrize("parallel", [False, True])
@pytest.mark.parametrize("sub_windows", [2, 3])
def test_it_is_the_dense_analysis_of_the_start_and_the_jumps(sub_windows, parallel):
    model = weak(sub_windows=sub_windows, parallel=parallel)
    analysis, tolerance = model.analyse(BATCH), 1e-3 if SINGLE else 1e-9
    start, jumps, _ = zip(*(dense(sub_windows, sample) for sample in range(2)), strict=True)
    np.testing.assert_allclose(analysis.state[0], np.stack(start), atol=tolerance)
    np.testing.assert_allclose(analysis.state[1], np.stack(jumps), atol=tolerance)
    cost = analysis.cost.last
    J_q = 0.5 * np.einsum("bji,ik,bjk->b", jumps, np.linalg.inv(Q), jumps)
    np.testing.assert_allclose(cost.J_q, J_q, rtol=tolerance)
    np.testing.assert_allclose(analysis.trajectory[:, 0], analysis.state[0], rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("minimiser", [None, optx.LevenbergMarquardt(1e-10, 1e-10)], ids=["L-BFGS", "Levenberg"])
@pytest.mark.x64
def test_every_minimiser_finds_the_minimum_side_by_side(minimiser):
    analysis = weak(sub_windows=3, parallel=True, minimiser=minimiser).analyse(BATCH)
    for sample in range(2):
        start, jumps, _ = dense(3, sample)
        np.testing.assert_allclose(analysis.state[0][sample], start, atol=1e-8)
        np.testing.assert_allclose(analysis.state[1][sample], jumps, atol=1e-8)


def test_the_posterior_is_that_of_the_start_and_the_jumps():
    deviation = weak(sub_windows=3, parallel=True).posterior(BATCH).std()
    for sample in range(2):
        found = np.concatenate([np.ravel(part[sample]) for part in deviation])
        np.testing.assert_allclose(found, dense(3, sample)[2], rtol=1e-4 if SINGLE else 1e-10)


@pytest.mark.slow
def test_samples_of_the_posterior_spread_as_it_says():
    posterior = weak(sub_windows=2, parallel=True).posterior(BATCH)
    draws = posterior.sample(jax.random.key(3), 4000)
    for part, deviation in zip(draws, posterior.std(), strict=True):
        np.testing.assert_allclose(np.std(part, axis=1), deviation, rtol=0.06)


def test_every_interval_side_by_side_is_weak_4dvar():
    """J_T, the last error, is at the end of the window: as many errors as intervals."""
    together, one_by_one = weak(parallel=True).analyse(BATCH), weak().analyse(BATCH)
    assert together.state[1].shape == (2, T, N)
    for a, b in zip(together.state, one_by_one.state, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-3 if SINGLE else 1e-9)
    np.testing.assert_allclose(together.trajectory, one_by_one.trajectory, atol=1e-3 if SINGLE else 1e-9)
    np.testing.assert_allclose(together.cost.first.total, one_by_one.cost.first.total, rtol=1e-5)


def test_a_nonlinear_model_that_knows_the_time_has_one_minimum_both_ways():
    """With a background for each sample, a first guess, and a forcing bias beside the jumps."""

    class Driven(eqx.Module):
        dt: float = 0.5
        state_signature: None = None

        def step(self, state, dt, *, t0):
            return state + dt * (jnp.sin(jnp.roll(state, 1)) - 0.1 * state**2 + jnp.cos(t0))

    bias = ForcingBias(np.asarray(0.1), DiagonalCovariance(0.2))
    options = {"minimiser": None, "tol": 1e-4 if SINGLE else 1e-9}
    model = weak(sub_windows=2, joint=bias, **options).with_(forward=Driven())
    background = BACKGROUND + np.array([[0.0], [0.4]])
    alone = model.analyse(BATCH, background=background)
    beside = model.with_(parallel=True).analyse(BATCH, background=background)
    for a, b in zip(alone.state, beside.state, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-3 if SINGLE else 1e-7)
    np.testing.assert_allclose(alone.cost.last.total, beside.cost.last.total, rtol=1e-4 if SINGLE else 1e-9)
    again = model.with_(parallel=True).analyse(BATCH, background=background, first_guess=alone.state)
    np.testing.assert_allclose(again.history.total[:, 0], alone.cost.last.total, rtol=1e-4)
    assert np.all(again.n_iterations < beside.n_iterations / 2)


@pytest.mark.x64
def test_the_gradient_of_the_analysis_is_that_of_differences():
    def mean_start(scale, model=weak(sub_windows=2, parallel=True)):  # noqa: B008
        return jnp.sum(model.with_(model_err_cov_op=DenseCovariance(scale * jnp.asarray(Q)))(BATCH)[0])

    slope = jax.grad(mean_start)(jnp.asarray(1.0))
    np.testing.assert_allclose(slope, (mean_start(1.001) - mean_start(0.999)) / 0.002, rtol=1e-5)


def test_it_compiles_once(count_compilations):
    model, other = weak(sub_windows=2, parallel=True), Batch1D.from_observations(Y + 1)
    model.analyse(BATCH)
    with count_compilations() as compiled:
        model.analyse(other)
    assert compiled.n == 0, compiled.names


@pytest.mark.parametrize(
    ("slots", "words"),
    [
        ({"sub_windows": 4}, r"`sub_windows` is 4, expected a divisor of the 6 intervals"),
        ({"sub_windows": 1}, "`sub_windows` is 1, expected at least 2"),
        (
            {"parallel": True, "minimiser": GaussNewtonKrylov(IncrementalConfig(inner_solver=DualCG()))},
            "DualCG and `cvt=False` need a prior for every part of the control",
        ),
    ],
)
def test_bad_sub_windows(slots, words):
    with pytest.raises(ValueError, match=words):
        weak(**slots).analyse(BATCH)


def test_jumps_without_an_inverse_covariance_are_refused_side_by_side():
    low_rank = LowRankCovariance(0.1 * jnp.ones((N, 1)))
    with pytest.raises(ValueError, match="low rank|LowRankCovariance"):
        weak(sub_windows=2, parallel=True).with_(model_err_cov_op=low_rank).analyse(BATCH)
    assert weak(sub_windows=2).with_(model_err_cov_op=low_rank).analyse(BATCH).converged.all()
