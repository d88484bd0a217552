"""The posterior of Lanczos vectors: bounds, convergence, and what it costs, against dense algebra."""

import collections

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vardax.covariances.dense import DenseCovariance
from vardax.covariances.low_rank import LowRankCovariance
from vardax.dynamics.discrete import DiscreteForward
from vardax.dynamics.external_forward import ExternalForward
from vardax.minimisers.gauss_newton import DualCG, IncrementalConfig
from vardax.minimisers.transforms import Exp
from vardax.models.incremental_fourdvar import IncrementalFourDVar
from vardax.models.optimal_interpolation import OptimalInterpolation
from vardax.obs_operators.callable import CallableObs
from vardax.obs_operators.linear import LinearObs
from vardax.posterior.gauss_newton_hessian import GaussNewtonHessian
from vardax.posterior.laplace import LaplaceCovariance
from vardax.protocols import PosteriorAdapter
from vardax.types import Batch1D

X64 = jax.config.jax_enable_x64
TIGHT = {"rtol": 1e-7, "atol": 1e-9} if X64 else {"rtol": 2e-3, "atol": 2e-3}
RNG = np.random.default_rng(8)
N, T, M_OBS = 7, 3, 2
B = 0.5 * np.exp(-np.abs(np.subtract.outer(np.arange(N), np.arange(N))) / 2)
R = np.array([[0.2, 0.05], [0.05, 0.1]])
H, M = RNG.normal(size=(M_OBS, N)), 0.9 * np.roll(np.eye(N), 1, axis=0)
Y = RNG.normal(size=(2, T, M_OBS))
Y[0, 1, 0] = Y[1, 2] = np.nan
BATCH = Batch1D.from_observations(Y)
FORWARD = DiscreteForward(lambda x: jnp.asarray(M) @ x, 1.0)


def dense(y):
    """(B⁻¹ + Σ (H Mᵗ)ᵀ R⁻¹ H Mᵗ)⁻¹ over what was observed."""
    precision = np.linalg.inv(B)
    for t in range(T):
        seen = np.isfinite(y[t])
        G = (H @ np.linalg.matrix_power(M, t))[seen]
        precision = precision + G.T @ np.linalg.solve(R[np.ix_(seen, seen)], G)
    return np.linalg.inv(precision)


def incremental(config=None, forward=FORWARD):
    parts = (LinearObs(H), np.ones(N), DenseCovariance(B), DenseCovariance(R))
    return IncrementalFourDVar(forward, *parts, IncrementalConfig() if config is None else config)


@pytest.fixture(scope="module")
def posterior():
    return incremental().posterior(BATCH)


def test_it_is_the_default_of_the_incremental_method_and_an_adapter(posterior):
    assert isinstance(incremental().posterior_adapter, GaussNewtonHessian)
    assert isinstance(GaussNewtonHessian(), PosteriorAdapter)
    assert posterior.provenance["adapter"] == "GaussNewtonHessian"
    np.testing.assert_array_equal(posterior.provenance["instruments"], [[5], [4]])


def test_with_all_vectors_it_is_exact(posterior):
    for sample in range(2):
        P = dense(Y[sample])
        np.testing.assert_allclose(posterior.std()[sample], np.sqrt(np.diag(P)), **TIGHT)
        rows = [np.asarray(posterior.cov.mv(jnp.asarray(np.tile(np.eye(N)[i], (2, 1)))))[sample] for i in range(2)]
        np.testing.assert_allclose(rows, P[:2], **TIGHT)
        np.testing.assert_allclose(posterior.logdet()[sample], np.linalg.slogdet(P)[1], rtol=1e-4, atol=1e-3)
        gain = 0.5 * (np.linalg.slogdet(B)[1] - np.linalg.slogdet(P)[1])
        np.testing.assert_allclose(posterior.information_gain()[sample], gain, rtol=1e-4)


def test_samples_have_the_covariance(posterior):
    draws = np.asarray(posterior.sample(jax.random.key(3), 4000))
    for sample in range(2):
        P = dense(Y[sample])
        spread = np.sqrt(np.diag(P))
        np.testing.assert_array_less(np.abs(np.cov(draws[sample].T) - P), 6 * np.outer(spread, spread) / 4000**0.5)
        np.testing.assert_array_less(np.abs(draws[sample].mean(0) - posterior.mean[sample]), 5 * spread / 4000**0.5)


def test_for_every_number_of_vectors_it_lies_between_the_truth_and_the_prior(posterior):
    """The vectors of `posterior` are all there are; the first k of them are what k would have found."""
    method = incremental()
    analysis = method.for_posterior(GaussNewtonHessian()).analyse(BATCH)
    truth = np.stack([np.sqrt(np.diag(dense(y))) for y in Y])
    before = np.broadcast_to(np.sqrt(np.diag(B)), truth.shape)
    rounding = 1e-7 if X64 else 1e-4
    for k in (1, 3, 6):
        std = np.asarray(GaussNewtonHessian(k)(analysis, method, BATCH).std())
        assert np.all(std >= truth * (1 - rounding))
        assert np.all(std <= before * (1 + rounding))
        before = std
    np.testing.assert_allclose(std, truth, **TIGHT)


@pytest.mark.x64
def test_the_model_is_not_run_again_and_products_are_counted():
    """One pair of products a vector, and one that finds nothing more; an analysis at hand is linearised once."""
    calls = collections.Counter()

    def product(name, matrix, v):
        calls[name] += 1
        return matrix @ np.asarray(v)

    forward = ExternalForward(
        lambda x: product("step", M, x),
        lambda x, dx: product("tangent", M, dx),
        lambda x, a: product("adjoint", M.T, a),
    )
    one = Batch1D.from_observations(Y[:1])
    method = incremental(forward=forward)
    analysis = jax.block_until_ready(method.analyse(one))
    alone = collections.Counter(calls)
    calls.clear()
    jax.block_until_ready(method.posterior(one).std())
    assert calls["step"] == alone["step"]
    n_obs, n_intervals = int(np.isfinite(Y[0]).sum()), T - 1
    for name in ("tangent", "adjoint"):
        extra = (calls[name] - alone[name]) / n_intervals
        assert n_obs <= extra <= n_obs + 1
    calls.clear()
    posterior = method.posterior_adapter(analysis, method, one)
    np.testing.assert_allclose(posterior.std()[0], np.sqrt(np.diag(dense(Y[0]))), rtol=1e-7)
    assert calls["step"] == n_intervals
    assert calls["tangent"] <= n_intervals * (n_obs + 1)
    calls.clear()
    posterior.sample(jax.random.key(0), 5), posterior.information_gain(), posterior.std()
    assert not calls


@pytest.mark.slow
@pytest.mark.parametrize("form", ["dual", "simplified"])
def test_every_form_of_the_inner_loop_ends_in_the_hessian_of_the_full_problem(form):
    """Also one that stalls before it gets there, and leaves no vectors behind."""
    coarse = DiscreteForward(lambda x: 0.8 * jnp.roll(x, 1), 1.0)
    config = IncrementalConfig(**({"inner_solver": DualCG()} if form == "dual" else {"inner_forward": coarse}))
    posterior = incremental(config).posterior(BATCH, force=True)
    assert posterior.provenance["converged"].all() == (form == "dual")
    for sample in range(2):
        np.testing.assert_allclose(posterior.std()[sample], np.sqrt(np.diag(dense(Y[sample]))), **TIGHT)


@pytest.mark.slow
def test_it_is_laplaces_approximation_of_a_nonlinear_problem():
    """With a transform and trees of states; linearised at the analysis, as the adapter of the other methods."""
    step = DiscreteForward(lambda x: {"a": x["a"] * (1 + 0.1 * x["b"]), "b": jnp.roll(x["b"], 1)}, 1.0)
    seen = CallableObs(lambda x: jnp.sin(x["a"][:2]) + x["b"][:2] ** 2)
    prior = {"a": np.linspace(0.5, 1.0, 3), "b": np.full(3, 0.7)}
    scale = jax.tree.map(lambda x: 0.1 * jnp.ones_like(jnp.asarray(x)), prior)
    slots = (step, seen, prior, LowRankCovariance(jax.tree.map(lambda s: jnp.stack([s, -2 * s, s**2], -1), scale)))
    options = {"control_transform": Exp()}
    R_op = DenseCovariance(0.01 * R)
    method = IncrementalFourDVar(*slots, R_op, IncrementalConfig(n_outer=10), **options)
    found = method.posterior(BATCH)
    expected = LaplaceCovariance()(method.analyse(BATCH), method, BATCH)
    for name in ("a", "b"):
        np.testing.assert_allclose(found.std()[name], expected.std()[name], rtol=1e-4)
    np.testing.assert_allclose(found.information_gain(), expected.information_gain(), rtol=1e-4)


def test_any_method_may_have_it():
    """A Lanczos process of its own, from a state alone, on one time and a singular B."""
    X = RNG.normal(size=(3, N))
    method = OptimalInterpolation(LinearObs(H), np.zeros(N), LowRankCovariance(X.T), DenseCovariance(R))
    y = Batch1D.from_observations(Y[:, 0])
    posterior = GaussNewtonHessian()(method(y), method, y)
    for sample in range(2):
        seen = np.isfinite(Y[sample, 0])
        G = X @ H[seen].T
        inner = np.linalg.inv(np.eye(3) + G @ np.linalg.solve(R[np.ix_(seen, seen)], G.T))
        np.testing.assert_allclose(posterior.std()[sample], np.sqrt(np.diag(X.T @ inner @ X)), **TIGHT)


def test_without_observations_it_is_the_prior():
    posterior = incremental().posterior(Batch1D.from_observations(np.full((2, T, M_OBS), np.nan)))
    np.testing.assert_allclose(posterior.std()[0], np.sqrt(np.diag(B)), rtol=1e-6)
    np.testing.assert_array_equal(posterior.information_gain(), [0.0, 0.0])


@pytest.mark.slow
def test_it_works_under_jit():
    method = incremental(IncrementalConfig(n_outer=1))
    std = eqx.filter_jit(lambda m, b: m.posterior(b, adapter=GaussNewtonHessian(6)).std())(method, BATCH)
    np.testing.assert_allclose(std[0], np.sqrt(np.diag(dense(Y[0]))), **TIGHT)


def test_a_number_of_vectors_below_one_is_refused():
    with pytest.raises(ValueError, match=r"GaussNewtonHessian: `n_krylov` is 0, expected at least 1"):
        GaussNewtonHessian(0)
