"""Degrees of freedom for signal: diag(HK) against dense algebra in every form, its limits, and the preview."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from vardax.covariances.dense import DenseCovariance
from vardax.covariances.diagonal import DiagonalCovariance
from vardax.diagnostics.influence import ObservationInfluence
from vardax.diagnostics.signal import degrees_of_freedom, information_preview
from vardax.models.optimal_interpolation import OptimalInterpolation
from vardax.models.strong_fourdvar import StrongFourDVar
from vardax.models.threedvar import ThreeDVar
from vardax.models.weak_fourdvar import WeakFourDVar
from vardax.obs_operators.callable import CallableObs
from vardax.obs_operators.interp import InterpObs
from vardax.obs_operators.linear import LinearObs
from vardax.types import Batch1D, Observations

X64 = jax.config.jax_enable_x64


def test_the_diagonal_is_that_of_the_dense_influence_matrix(case, close):
    found = degrees_of_freedom(case.problem, case.analysis, n_probes=400)
    assert found.exact == case.exact
    for number, s in enumerate(case.samples):
        expected = np.diag(s.H @ s.K)
        each = np.asarray(found.per_observation[number]).ravel()
        sums = [expected[s.instrument == i].sum() for i in (0, 1)]
        assert not each[~s.seen].any()
        np.testing.assert_array_equal(found.count[number], [np.sum(s.instrument == i) for i in (0, 1)])
        if case.exact:
            close(each[s.seen], expected)
            close(found.by_instrument[number], sums)
            close(found.total[number], expected.sum())
            assert not np.asarray(found.total_error).any()
        else:
            errors = np.asarray(found.per_observation_error[number]).ravel()[s.seen]
            assert (np.abs(each[s.seen] - expected) < 5 * errors).all()
            assert (np.abs(found.by_instrument[number] - np.array(sums)) < 5 * found.by_instrument_error[number]).all()
            assert abs(found.total[number] - expected.sum()) < 5 * found.total_error[number]
            assert found.total_error[number] < 0.1 * found.total[number]


def test_products_with_the_influence_matrix(case, close):
    v = np.random.default_rng(3).normal(size=case.y.shape)
    product = jax.jit(lambda v: case.problem.map_samples(lambda sample, u: ObservationInfluence.at(sample).mv(u), v))(
        jnp.asarray(v, case.batch.input.dtype)
    )
    for number, s in enumerate(case.samples):
        expected = s.H @ s.K @ v[number].ravel()[s.seen]
        close(np.asarray(product[number]).ravel()[s.seen], expected, rtol=1e-5 if X64 else 2e-3, atol=1e-6)


def test_it_is_the_trace_of_the_whitened_form(small_case, close):
    found = degrees_of_freedom(small_case.problem)
    for number, s in enumerate(small_case.samples):
        W = np.linalg.inv(np.linalg.cholesky(s.R))
        A = W @ s.H @ s.B @ s.H.T @ W.T
        close(found.total[number], np.trace(A @ np.linalg.inv(np.eye(len(A)) + A)))


class Smooth:
    """A further term of the cost: how far the mean moves in each interval."""

    def residual(self, trajectory):
        return jnp.sum(jnp.diff(trajectory, axis=0), axis=1)


def wide(case, **options):
    """More variables than observations, so that the observations' side is the small one."""
    slots = (case.method.obs_op, case.method.prior_mean, case.method.prior_cov_op, case.method.obs_cov_op)
    return StrongFourDVar(case.method.forward, *slots, **options)


def side_by_side(case, **options):
    """Sub-windows of which only the first has a prior."""
    slots = (case.method.obs_op, case.method.prior_mean, case.method.prior_cov_op, case.method.obs_cov_op)
    return WeakFourDVar(case.method.forward, *slots, case.method.prior_cov_op, parallel=True, **options)


@pytest.mark.slow
@pytest.mark.x64
@pytest.mark.parametrize(("n", "build"), [(12, wide), (4, side_by_side)])
def test_further_terms_and_parts_without_a_prior_are_in_it(n, build, dense_case):
    """HK = W⁺ S W with S = G_o (D + GᵀG)⁻¹ G_oᵀ, from the matrices of products with G, W and D."""
    case = dense_case(n)
    problem = build(case, terms=Smooth()).problem(case.batch)

    @jax.jit
    def matrices():
        def one(sample):
            flat, unravel = ravel_pytree(sample.zero_control())
            _, G, _ = sample.linearise(sample.zero_control())
            columns = jax.vmap(lambda u: ravel_pytree(G(unravel(u)))[0])(jnp.eye(flat.size)).T
            prior = ravel_pytree(sample.observe.prior_part(unravel(jnp.ones_like(flat))))[0]
            value = sample.observed.value
            units = jnp.eye(value.size).reshape(-1, *value.shape)
            return columns, prior, jax.vmap(sample.observed.whiten)(units).reshape(value.size, -1).T

        return problem.map_samples(one)

    found = degrees_of_freedom(problem)
    for number, (G, prior, W) in enumerate(zip(*map(np.asarray, matrices()), strict=True)):
        observations = G[: W.shape[0]]
        S = observations @ np.linalg.solve(np.diag(prior) + G.T @ G, observations.T)
        np.testing.assert_allclose(
            np.ravel(found.per_observation[number]), np.diag(np.linalg.pinv(W) @ S @ W), rtol=1e-7, atol=1e-9
        )


@pytest.mark.parametrize("n", [2, 5], ids=["more observations than variables", "fewer"])
def test_limits_of_the_observation_error(n):
    """No information from worthless observations; all that is observed, the rank of H, from perfect ones."""
    H = np.random.default_rng(1).normal(size=(3, n))
    mask = jnp.array([[1.0, 1.0, 0.0]])
    R = DenseCovariance(jnp.array([[1.0, 0.5, 0.1], [0.5, 1.0, 0.2], [0.1, 0.2, 1.0]]))
    for scale, expected, error in ((1e8, 0.0, 1e-5), (1e-8 if X64 else 1e-4, 2.0, 1e-5 if X64 else 2e-2)):
        method = OptimalInterpolation(LinearObs(H), jnp.zeros(n), DenseCovariance(jnp.eye(n)), scale * R)
        total = float(information_preview(method, Batch1D(jnp.zeros_like(mask), mask)).total[0])
        assert total == pytest.approx(expected, abs=error)


def test_two_equal_observations_share_their_information():
    method = OptimalInterpolation(
        LinearObs(np.ones((2, 1))), jnp.zeros(1), DiagonalCovariance(jnp.ones(1)), DiagonalCovariance(jnp.ones(2))
    )
    found = information_preview(method, Batch1D(jnp.zeros((1, 2)), jnp.ones((1, 2))))
    np.testing.assert_allclose(found.per_observation[0, 0], [1 / 3, 1 / 3], rtol=1e-6)
    np.testing.assert_allclose(found.share[0], [1 / 3], rtol=1e-6)


def test_the_preview_does_not_look_at_values(small_case):
    known = degrees_of_freedom(small_case.problem)
    batch = small_case.batch
    planned = Batch1D(
        jnp.zeros_like(batch.input), batch.mask, instrument=batch.instrument, obs_err=batch.obs_err, n_instruments=2
    )
    other = eqx.tree_at(lambda b: b.input, batch, 100 + 0 * batch.input)
    for preview in (information_preview(small_case.method, planned), information_preview(small_case.method, other)):
        np.testing.assert_allclose(preview.per_observation, known.per_observation, rtol=1e-6)


def test_the_preview_of_scattered_positions():
    method = OptimalInterpolation(InterpObs([np.arange(6.0)]), jnp.zeros(6), DiagonalCovariance(jnp.full(6, 3.0)), None)
    points = Observations([0.0, 7.0], [1.0, 1.0], 0.0, [[1.0], [3.5]], instrument=[0, 1])
    found = information_preview(method, [points])
    np.testing.assert_allclose(found.by_instrument[0], [3 / 4, 1.5 / 2.5], rtol=1e-5)
    np.testing.assert_array_equal(found.count[0], [1, 1])


def test_a_nonlinear_operator_is_linearised_where_asked():
    method = ThreeDVar(
        CallableObs(jnp.square), jnp.ones(1), DiagonalCovariance(jnp.ones(1)), DiagonalCovariance(jnp.ones(1))
    )
    batch = Batch1D.from_observations(jnp.array([[9.0]]))
    analysis = method.analyse(batch)
    x = float(analysis.state[0, 0])
    at_background, at_analysis = information_preview(method, batch), degrees_of_freedom(method.problem(batch), analysis)
    assert float(at_background.total[0]) == pytest.approx(4 / 5, rel=1e-5)
    assert float(at_analysis.total[0]) == pytest.approx(4 * x**2 / (1 + 4 * x**2), rel=1e-5)


def test_nothing_observed_gives_zero_and_no_share():
    method = OptimalInterpolation(
        LinearObs(np.eye(2)), jnp.zeros(2), DiagonalCovariance(jnp.ones(2)), DiagonalCovariance(jnp.ones(2))
    )
    found = information_preview(method, Batch1D(jnp.zeros((1, 2)), jnp.zeros((1, 2))))
    assert found.total[0] == 0
    assert np.isnan(found.share[0, 0])


def test_new_values_do_not_compile_again(small_case, count_compilations):
    degrees_of_freedom(small_case.problem, small_case.analysis)
    with count_compilations() as compiled:
        degrees_of_freedom(small_case.problem, 2 * small_case.analysis.control)
    assert not any("_degrees_of_freedom" in name for name in compiled.names), compiled.names


def test_one_probe_has_no_standard_error(small_case):
    with pytest.raises(ValueError, match="`n_probes` is 1, expected at least 2"):
        degrees_of_freedom(small_case.problem, n_probes=1)
