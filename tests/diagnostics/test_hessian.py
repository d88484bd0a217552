"""The spectrum of I + GᵀG against dense algebra, exactly and by Lanczos, with bounds that hold."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vardax.minimisers.closed_form as closed_form
from vardax.covariances.diagonal import DiagonalCovariance
from vardax.diagnostics.hessian import hessian_spectrum
from vardax.models.optimal_interpolation import OptimalInterpolation
from vardax.obs_operators.linear import LinearObs
from vardax.types import Batch1D

X64 = jax.config.jax_enable_x64


def dense_values(s):
    """Eigenvalues of I + LᵀHᵀR⁻¹HL, largest first."""
    L = np.linalg.cholesky(s.B)
    G = np.linalg.solve(np.linalg.cholesky(s.R), s.H @ L)
    return np.linalg.eigvalsh(np.eye(G.shape[1]) + G.T @ G)[::-1]


def test_it_is_that_of_the_dense_hessian(case, close):
    found = hessian_spectrum(case.problem, case.analysis)
    assert found.exact == case.exact
    for number, s in enumerate(case.samples):
        expected = dense_values(s)
        n = min(found.values.shape[-1], expected.size)
        close(found.values[number, :n], expected[:n], rtol=1e-6 if X64 else 2e-3)
        close(found.condition_number[number], expected[0] / expected[-1], rtol=1e-6 if X64 else 2e-3)


@pytest.mark.slow
def test_few_lanczos_steps_bound_the_ends(monkeypatch):
    monkeypatch.setattr(closed_form, "DENSE_LIMIT", 0)
    random = np.random.default_rng(4)
    H = jnp.asarray(random.normal(size=(80, 60)) * np.linspace(0.2, 3, 60), jnp.result_type(float))
    method = OptimalInterpolation(
        LinearObs(H), jnp.zeros(60), DiagonalCovariance(jnp.ones(60)), DiagonalCovariance(jnp.ones(80))
    )
    problem = method.problem(Batch1D.from_observations(jnp.zeros((1, 80))))
    true = np.linalg.eigvalsh(np.eye(60) + np.asarray(H, float).T @ np.asarray(H, float))
    rounding = 1e-3 if not X64 else 1e-9
    for n_pairs in (3, 8, 20):
        found = hessian_spectrum(problem, n_pairs=n_pairs)
        values, bounds = np.asarray(found.values[0], float), np.asarray(found.residual_bounds[0], float)
        nearest = np.abs(true[None] - values[:, None]).min(axis=1)
        assert (nearest <= bounds * (1 + 1e-3) + rounding * true[-1]).all()
        assert found.condition_number[0] <= true[-1] / true[0] * (1 + rounding)
        assert found.condition_number[0] <= found.condition_number_bound[0]
    assert values[0] == pytest.approx(true[-1], rel=1e-3)


def test_beyond_the_observations_there_are_ones(case):
    if case.exact:
        found = hessian_spectrum(case.problem)
        fewer = case.B.shape[0] > case.samples[0].seen.size
        assert found.values.shape[-1] == min(case.B.shape[0], case.samples[0].seen.size)
        least = np.asarray(found.values).min(axis=-1)
        np.testing.assert_allclose(found.condition_number, found.values[:, 0] / (1 if fewer else least), rtol=1e-5)


def test_without_information_it_is_the_identity(small_case):
    blind = eqx.tree_at(lambda b: b.mask, small_case.batch, jnp.zeros_like(small_case.batch.mask))
    found = hessian_spectrum(small_case.method.problem(blind))
    np.testing.assert_allclose(found.values, 1.0, rtol=1e-6)
    np.testing.assert_allclose(found.condition_number, 1.0, rtol=1e-6)


def test_one_pair_has_no_two_ends(small_case):
    with pytest.raises(ValueError, match="`n_pairs` is 1, expected at least 2"):
        hessian_spectrum(small_case.problem, n_pairs=1)
