"""P = S (I + GᵀG)⁻¹ Sᵀ against dense algebra, in both spaces and by iteration, with gaps, correlated R and models."""

import importlib.metadata

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest

import vardax.minimisers.closed_form as closed_form
from vardax.covariances.dense import DenseCovariance
from vardax.covariances.low_rank import LowRankCovariance
from vardax.covariances.matern import MaternLinearOperator
from vardax.dynamics.discrete import DiscreteForward
from vardax.minimisers.transforms import Exp, Identity, Softplus
from vardax.models.optimal_interpolation import OptimalInterpolation
from vardax.models.strong_fourdvar import StrongFourDVar
from vardax.models.threedvar import ThreeDVar
from vardax.obs_operators.callable import CallableObs
from vardax.obs_operators.linear import LinearObs
from vardax.posterior.inverses import IterativeInverse
from vardax.posterior.laplace import LaplaceCovariance
from vardax.posterior.posterior import Posterior
from vardax.posterior.quantities import Untransformed
from vardax.protocols import PosteriorAdapter
from vardax.types import Batch1D

X64 = jax.config.jax_enable_x64
TIGHT = {"rtol": 1e-7, "atol": 1e-8} if X64 else {"rtol": 5e-3, "atol": 5e-3}
RANDOM = np.random.default_rng(21)
N = 5
SAMPLES = 2


def covariance(n):
    root = RANDOM.normal(size=(n, n))
    return root @ root.T / n + 0.5 * np.eye(n)


def case(m):
    """(method, batch, dense posterior covariances) with m observations of N variables, correlated R and gaps."""
    B, R, H, y = covariance(N), covariance(m), RANDOM.normal(size=(m, N)), RANDOM.normal(size=(SAMPLES, m))
    y[0, 0] = y[1, -1] = np.nan
    model = OptimalInterpolation(LinearObs(H), RANDOM.normal(size=N), DenseCovariance(B), DenseCovariance(R))
    dense = []
    for row in y:
        seen = np.isfinite(row)
        dense.append(np.linalg.inv(np.linalg.inv(B) + H[seen].T @ np.linalg.solve(R[np.ix_(seen, seen)], H[seen])))
    return model, Batch1D.from_observations(y), np.stack(dense)


FORMS = {"control space": (8, None), "observation space": (3, None), "by iteration": (8, 0)}


@pytest.fixture(params=FORMS)
def form(request, monkeypatch):
    """(method, posterior, dense covariances) for each way to apply (I + GᵀG)⁻¹."""
    m, limit = FORMS[request.param]
    if limit is not None:
        monkeypatch.setattr(closed_form, "DENSE_LIMIT", limit)
    jax.clear_caches()
    model, batch, dense = case(m)
    analysis = model.analyse(batch)
    posterior = LaplaceCovariance(n_samples=4000)(analysis, model, batch)
    assert isinstance(posterior.cov.inverse, IterativeInverse) == (limit == 0)
    yield posterior, dense
    jax.clear_caches()


def test_products_are_those_of_the_dense_covariance(form):
    posterior, dense = form
    v = RANDOM.normal(size=(SAMPLES, N))
    product = posterior.cov.mv(jnp.asarray(v))
    np.testing.assert_allclose(product, np.einsum("bij,bj->bi", dense, v), rtol=1e-5, atol=1e-5 if X64 else 5e-3)


def test_the_spread_is_that_of_the_dense_covariance(form):
    posterior, dense = form
    expected = np.sqrt(np.diagonal(dense, axis1=1, axis2=2))
    estimated = isinstance(posterior.cov.inverse, IterativeInverse)
    np.testing.assert_allclose(posterior.std(), expected, **({"rtol": 5 / np.sqrt(8000)} if estimated else TIGHT))


def test_samples_have_the_moments_of_the_dense_covariance(form):
    posterior, dense = form
    draws = np.asarray(posterior.sample(jax.random.key(3), 4000))
    assert draws.shape == (SAMPLES, 4000, N)
    for sample in range(SAMPLES):
        spread = np.sqrt(np.diag(dense[sample]))
        assert (np.abs(draws[sample].mean(axis=0) - posterior.mean[sample]) < 5 * spread / np.sqrt(4000)).all()
        error = np.cov(draws[sample].T) - dense[sample]
        assert (np.abs(error) < 6 * np.outer(spread, spread) / np.sqrt(4000)).all()


def test_the_information_gain_is_that_of_the_dense_covariance(form):
    posterior, dense = form
    prior = np.linalg.slogdet(posterior.cov.problem.covariance.as_matrix())[1]
    estimated = isinstance(posterior.cov.inverse, IterativeInverse)
    expected = 0.5 * (prior - np.linalg.slogdet(dense)[1])
    np.testing.assert_allclose(posterior.information_gain(), expected, rtol=0.1 if estimated else 1e-3)
    if not estimated:
        np.testing.assert_allclose(posterior.logdet(), np.linalg.slogdet(dense)[1], rtol=1e-3, atol=1e-3)


def test_the_matrix_is_block_diagonal_over_the_samples(form):
    posterior, dense = form
    expected = np.zeros((SAMPLES * N, SAMPLES * N))
    for sample in range(SAMPLES):
        expected[sample * N : (sample + 1) * N, sample * N : (sample + 1) * N] = dense[sample]
    np.testing.assert_allclose(posterior.cov.as_matrix(), expected, rtol=1e-5, atol=1e-5 if X64 else 5e-3)


def test_it_is_a_symmetric_lineax_operator(form):
    cov = form[0].cov
    assert lx.is_symmetric(cov)
    assert lx.is_positive_semidefinite(cov)
    assert cov.in_structure() == cov.out_structure()
    assert cov.T is cov or eqx.tree_equal(cov.T, cov)
    matrix = np.asarray(cov.as_matrix())
    np.testing.assert_allclose(matrix, matrix.T, atol=1e-6 if X64 else 5e-3)
    assert np.linalg.eigvalsh(matrix).min() > 0


# -- where the map from control to observations is more than H -------------------------------------------------------


def gauss_newton(posed, control, index):
    """S (I + GᵀG)⁻¹ Sᵀ of one sample by dense Jacobians."""
    matrices = []

    def jacobians(sample, chi):
        residual = jax.jacobian(lambda c: sample.residual(c).ravel())(chi)
        return jax.jacobian(sample.control_to_state)(chi), residual

    for matrix in posed.map_samples(jacobians, control):
        matrices.append(np.asarray(matrix[index]))
    S, G = matrices
    return S @ np.linalg.inv(np.eye(G.shape[1]) + G.T @ G) @ S.T


@pytest.mark.parametrize(
    ("transform", "m"),
    [(Identity(), 2), (Exp(), 2), (Exp(), 7), (Softplus(), 7)],
    ids=lambda a: {2: "observation space", 7: "control space"}[a] if isinstance(a, int) else type(a).__name__,
)
def test_a_nonlinear_operator_is_linearised_at_the_analysis(transform, m):
    H = jnp.asarray(RANDOM.normal(size=(m, N)))
    model = ThreeDVar(
        CallableObs(lambda x: H @ x + 0.2 * jnp.sin(H @ x)),
        np.full(N, 1.2),
        DenseCovariance(0.3 * covariance(N)),
        DenseCovariance(covariance(m)),
        control_transform=transform,
    )
    y = RANDOM.normal(size=(SAMPLES, m))
    y[0, 0] = np.nan
    batch = Batch1D.from_observations(y)
    analysis, posed, posterior = model.analyse(batch), model.problem(batch), model.posterior(batch)
    for sample in range(SAMPLES):
        dense = gauss_newton(posed, analysis.control, sample)
        np.testing.assert_allclose(posterior.std()[sample], np.sqrt(np.diag(dense)), rtol=1e-4, atol=1e-4)
    if m != 7:
        np.testing.assert_allclose(posterior.logdet()[-1], np.linalg.slogdet(dense)[1], rtol=1e-3, atol=1e-3)
        return
    z, spread = transform.inverse(posterior.mean), posterior.cov.of(Untransformed()).diagonal() ** 0.5
    slope = jax.grad(lambda z: jnp.sum(transform(z)))(z)
    np.testing.assert_allclose(posterior.std(), slope * spread, rtol=1e-4)
    log_B = np.linalg.slogdet(model.prior_cov_op.as_matrix())[1]
    gain = 0.5 * (log_B + 2 * np.sum(np.log(slope), axis=1) - posterior.logdet())
    np.testing.assert_allclose(posterior.information_gain(), gain, rtol=1e-3)
    quantiles = posterior.quantile(np.array([0.025, 0.5, 0.975]))
    assert quantiles.shape == (3, SAMPLES, N)
    np.testing.assert_allclose(quantiles[1], posterior.mean, rtol=1e-5)
    np.testing.assert_allclose(quantiles[2], transform(z + 1.959964 * spread), rtol=1e-4)
    assert np.all(quantiles > 0)


def test_the_model_is_in_the_posterior_of_a_window():
    A, H, B = np.linalg.qr(RANDOM.normal(size=(N, N)))[0], RANDOM.normal(size=(2, N)), covariance(N)
    R, step = covariance(2), jnp.asarray(A)
    model = StrongFourDVar(
        DiscreteForward(lambda x: step @ x, 1.0), LinearObs(H), np.zeros(N), DenseCovariance(B), DenseCovariance(R)
    )
    y = RANDOM.normal(size=(1, 4, 2))
    y[0, 1, 0] = y[0, 2] = np.nan
    information = np.linalg.inv(B)
    for t in range(4):
        seen = np.isfinite(y[0, t])
        G = (H @ np.linalg.matrix_power(A, t))[seen]
        information += G.T @ np.linalg.inv(R[np.ix_(seen, seen)]) @ G if seen.any() else 0
    posterior = model.posterior(Batch1D.from_observations(y))
    np.testing.assert_allclose(posterior.std()[0], np.sqrt(np.diag(np.linalg.inv(information))), **TIGHT)


def test_without_observations_the_posterior_is_the_prior():
    prior = MaternLinearOperator((12,), 3.0, sigma=2.0)
    H = np.eye(12)[:4]
    model = OptimalInterpolation(LinearObs(H), np.zeros(12), prior, DenseCovariance(np.eye(4)))
    posterior = model.posterior(Batch1D.from_observations(np.full((1, 4), np.nan)))
    np.testing.assert_allclose(posterior.std(), np.full((1, 12), 2.0), rtol=1e-5)
    np.testing.assert_array_equal(posterior.mean, np.zeros((1, 12)))
    np.testing.assert_allclose(posterior.information_gain(), [0.0], atol=1e-6)


@pytest.mark.x64
def test_a_singular_background_covariance_leaves_no_error_outside_its_range():
    """B = X Xᵀ with two modes: the posterior has their span, a gain, and no determinant."""
    X = RANDOM.normal(size=(N, 2))
    model = OptimalInterpolation(LinearObs(np.eye(N)), np.zeros(N), LowRankCovariance(X), DenseCovariance(np.eye(N)))
    posterior = model.posterior(Batch1D.from_observations(np.ones((1, N))))
    P = X @ np.linalg.inv(np.eye(2) + X.T @ X) @ X.T
    np.testing.assert_allclose(posterior.std()[0], np.sqrt(np.diag(P)), rtol=1e-9)
    gain = 0.5 * np.linalg.slogdet(np.eye(2) + X.T @ X)[1]
    np.testing.assert_allclose(posterior.information_gain(), [gain], rtol=1e-9)
    outside = np.linalg.svd(X)[0][:, -1]
    np.testing.assert_allclose(posterior.cov.mv(jnp.asarray(outside[None])), np.zeros((1, N)), atol=1e-12)
    with pytest.raises(ValueError, match="LowRankCovariance"):
        posterior.logdet()


# -- the adapter -----------------------------------------------------------------------------------------------------


def test_the_adapter_takes_a_method_or_its_analysis_step_and_an_analysis_or_its_state():
    model, batch, dense = case(3)
    adapter, analysis = LaplaceCovariance(), model.analyse(batch)
    assert isinstance(adapter, PosteriorAdapter)
    for given in (analysis, analysis.state):
        for source in (model, model.as_analysis_step()):
            posterior = adapter(given, source, batch)
            assert isinstance(posterior, Posterior)
            assert posterior.provenance["method"] == "OptimalInterpolation"
            np.testing.assert_allclose(posterior.std()[0], np.sqrt(np.diag(dense[0])), **TIGHT)


def test_the_provenance_records_where_it_comes_from():
    model, batch, _ = case(3)
    record = model.posterior(batch).provenance
    assert record["method"] == "OptimalInterpolation"
    assert record["adapter"] == "LaplaceCovariance"
    assert record["versions"]["vardax"] == importlib.metadata.version("vardax")
    assert record["versions"]["jax"] == jax.__version__
    assert record["converged"].all()
    np.testing.assert_allclose(record["cost"], model.analyse(batch).cost.last.total)
    assert (record["iterations"] == 1).all()
    np.testing.assert_array_equal(record["instruments"], [[2], [2]])


def test_a_second_posterior_does_not_compile(count_compilations):
    model, batch, _ = case(3)
    posterior = model.posterior(batch)
    posterior.std(), posterior.sample(jax.random.key(0), 4), posterior.cov.mv(jnp.ones((SAMPLES, N)))
    other = Batch1D.from_observations(RANDOM.normal(size=(SAMPLES, 3)))
    key, v = jax.random.key(1), jnp.zeros((SAMPLES, N))
    with count_compilations() as compiled:
        posterior = model.posterior(other)
        posterior.std(), posterior.sample(key, 4), posterior.cov.mv(v)
    assert compiled.n == 0, compiled.names


def test_a_posterior_works_under_jit():
    model, batch, dense = case(3)
    std = eqx.filter_jit(lambda m, b: m.posterior(b).std())(model, batch)
    np.testing.assert_allclose(std[0], np.sqrt(np.diag(dense[0])), **TIGHT)
