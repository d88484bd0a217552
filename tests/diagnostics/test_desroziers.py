"""The size of B and R from innovations: exact relations by dense expectation, and a twin whose factors come back."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vardax.minimisers.closed_form as closed_form
from vardax.covariances.dense import DenseCovariance
from vardax.diagnostics.desroziers import error_cross_products, error_scales, error_variances, tuned_scales
from vardax.diagnostics.innovations import innovations
from vardax.models.optimal_interpolation import OptimalInterpolation
from vardax.obs_operators.linear import LinearObs
from vardax.types import Batch1D

N, P, SAMPLES = 12, 8, 3000
INSTRUMENT = np.array([0, 0, 0, 0, 0, 1, 1, 1])
TRUE_B, TRUE_R = 2.0, np.array([1 / 3, 2.0])


def twin():
    """Innovations drawn from s_B B and s_R R, given to a method that believes in B and R; R correlated, gaps."""
    random = np.random.default_rng(2)
    distance = np.abs(np.arange(N)[:, None] - np.arange(N)[None])
    B = 1.5 * np.exp(-((distance / 2.5) ** 2) / 2) + 1e-6 * np.eye(N)
    between = np.abs(np.arange(P)[:, None] - np.arange(P)[None])
    R = 0.8 * 0.3**between
    H = np.zeros((P, N))
    H[np.arange(P), np.arange(0, P) + 2] = 1.0
    factor = np.sqrt(TRUE_R[INSTRUMENT])
    R_true = factor[:, None] * R * factor[None, :]
    noise = random.multivariate_normal(np.zeros(P), TRUE_B * H @ B @ H.T + R_true, SAMPLES)
    noise[random.uniform(size=noise.shape) < 0.1] = np.nan
    array = lambda a: jnp.asarray(a, jnp.result_type(float))  # noqa: E731
    method = OptimalInterpolation(
        LinearObs(array(H)), jnp.zeros(N), DenseCovariance(array(B)), DenseCovariance(array(R))
    )
    instrument = np.broadcast_to(INSTRUMENT, noise.shape)
    return method, Batch1D.from_observations(array(noise), instrument=instrument), H @ B @ H.T, R, R_true


@pytest.fixture(scope="module")
def setting():
    return twin()


def test_a_twin_gives_its_factors_back(setting):
    method, batch, *_ = setting
    scales = tuned_scales(method, batch, n_iterations=20)
    np.testing.assert_allclose(scales.background, TRUE_B, rtol=0.1)
    np.testing.assert_allclose(scales.observation, TRUE_R, rtol=0.1)


def test_one_pass_gives_what_the_wrong_gain_lets_through(setting):
    """E[d_a d_bᵀ] = R̃ (HB̃Hᵀ + R̃)⁻¹ (HBHᵀ + R) with the covariances R̃, B̃ that the method believes in."""
    method, batch, HBHT, R, R_true = setting
    y = batch.input[np.asarray(batch.mask).all(axis=1)]
    complete = Batch1D.from_observations(y, instrument=np.broadcast_to(INSTRUMENT, y.shape))
    scales = error_scales(method.problem(complete), method.analyse(complete))
    through = np.linalg.solve(HBHT + R, TRUE_B * HBHT + R_true)
    expected = [np.diag(through)[i == INSTRUMENT].mean() for i in (0, 1)]
    R_inv = np.linalg.inv(R)
    np.testing.assert_allclose(scales.observation, expected, rtol=0.1)
    np.testing.assert_allclose(scales.background, np.trace(R_inv @ HBHT @ through) / np.trace(R_inv @ HBHT), rtol=0.1)


def test_right_covariances_ask_for_no_change_and_give_themselves_back(setting):
    method, batch, HBHT, _, R_true = setting
    right = method.with_(
        prior_cov_op=DenseCovariance(TRUE_B * method.prior_cov_op.as_matrix()),
        obs_cov_op=DenseCovariance(jnp.asarray(R_true, batch.input.dtype)),
    )
    problem, analysis = right.problem(batch), right.analyse(batch)
    scales = error_scales(problem, analysis)
    np.testing.assert_allclose(scales.background, 1, rtol=0.05)
    np.testing.assert_allclose(scales.observation, 1, rtol=0.05)
    given = innovations(problem, analysis)
    variances = error_variances(given)
    for i in (0, 1):
        mine = i == INSTRUMENT
        np.testing.assert_allclose(variances.observation[i], np.diag(R_true)[mine].mean(), rtol=0.06)
        np.testing.assert_allclose(variances.background[i], TRUE_B * np.diag(HBHT)[mine].mean(), rtol=0.06)
    np.testing.assert_allclose(variances.innovation, variances.observation + variances.background, rtol=1e-5)
    matrices = error_cross_products(given)
    scale = np.sqrt(np.outer(np.diag(R_true + TRUE_B * HBHT), np.diag(R_true + TRUE_B * HBHT)))
    assert (np.abs(matrices.observation - R_true) < 0.09 * scale).all()
    assert (np.abs(matrices.background - TRUE_B * HBHT) < 0.09 * scale).all()
    both = np.isfinite(np.asarray(batch.input)) & (np.asarray(batch.mask) != 0)
    np.testing.assert_array_equal(matrices.count, both.T.astype(int) @ both.astype(int))
    np.testing.assert_allclose(np.diag(matrices.analysis).mean(), np.mean(variances.analysis), rtol=0.4)


def test_the_relations_hold_for_each_pair_of_departures(small_case, close):
    """Of the case's own numbers: products of OMB, OMA and increments, entry by entry."""
    given = innovations(small_case.problem, small_case.analysis)
    variances = error_variances(given)
    before, after = np.asarray(given.background), np.asarray(given.analysis)
    mine = (np.asarray(given.instrument) == 1) & (np.asarray(given.mask) != 0)
    close(variances.observation[1], (before * after)[mine].mean())
    close(variances.background[1], ((before - after) * before)[mine].mean())
    close(variances.analysis[1], ((before - after) * after)[mine].mean())
    both = np.asarray(given.mask)[..., 0] * np.asarray(given.mask)[..., 2] != 0
    products = 0.5 * (after[..., 0] * before[..., 2] + after[..., 2] * before[..., 0])[both]
    close(error_cross_products(given).observation[0, 2], products.mean())


def test_the_trace_of_the_background_is_that_of_the_dense_matrices(case):
    """s_B = Σ (d_b - d_a)ᵀR⁻¹d_b / Σ tr(HBHᵀR⁻¹): exact in both spaces, and estimated from draws of B."""
    found = error_scales(case.problem, case.analysis, n_probes=2000)
    above = below = 0.0
    for s in case.samples:
        d = s.y - s.H @ s.x_b
        above += (s.H @ s.K @ d) @ np.linalg.solve(s.R, d)
        below += np.trace(s.H @ s.B @ s.H.T @ np.linalg.inv(s.R))
    x64 = jax.config.jax_enable_x64
    np.testing.assert_allclose(found.background, above / below, rtol=(1e-6 if x64 else 5e-3) if case.exact else 0.1)
    assert (closed_form.DENSE_LIMIT > 0) == case.exact


def test_an_instrument_without_observations_has_no_estimate(setting):
    method, batch, *_ = setting
    y = jnp.where(jnp.asarray(INSTRUMENT == 1)[None], jnp.nan, batch.input)[:50]
    blind = Batch1D.from_observations(y, instrument=batch.instrument[:50], n_instruments=2)
    scales = error_scales(method.problem(blind), method.analyse(blind))
    assert np.isnan(scales.observation[1])
    assert np.isfinite(scales.background)
    assert np.isfinite(scales.observation[0])


def test_no_iteration_is_refused(setting):
    method, batch, *_ = setting
    with pytest.raises(ValueError, match="`n_iterations` is 0"):
        tuned_scales(method, batch, n_iterations=0)
    with pytest.raises(ValueError, match="`n_probes` is 0"):
        error_scales(method.problem(batch), method.analyse(batch), n_probes=0)
