"""The challenge's scores: by hand, and of maps whose resolution is known because scales were taken away."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vardax.metrics.ssh import rmse_score, ssh_scores

X64 = jax.config.jax_enable_x64
T, Y, X = 48, 6, 64


def array(values):
    return jnp.asarray(values, jnp.result_type(float))


def field(seed=0):
    """White in space and time: every scale has the same power."""
    return np.random.default_rng(seed).normal(size=(T, Y, X))


def low_pass(values, axis, longest_wavenumber, step):
    spectrum = np.fft.fft(values, axis=axis)
    k = np.abs(np.fft.fftfreq(values.shape[axis], step))
    shape = [1, 1, 1]
    shape[axis] = -1
    return np.fft.ifft(spectrum * (k <= longest_wavenumber).reshape(shape), axis=axis).real


def test_mu_and_sigma_by_hand():
    truth = np.ones((3, Y, X)) * np.array([1.0, 2.0, 4.0])[:, None, None]
    estimate = truth + np.array([0.5, 0.5, 0.5])[:, None, None]
    series = 1 - np.array([0.5, 0.25, 0.125])
    np.testing.assert_allclose(rmse_score(array(estimate), array(truth)), series, rtol=1e-6)
    found = ssh_scores(array(estimate), array(truth), dt=1, dx=1)
    assert found.mu == pytest.approx(series.mean(), rel=1e-5)
    assert found.sigma == pytest.approx(series.std(), rel=1e-5)


def test_a_map_without_small_scales_resolves_what_is_left():
    """Taking away what is shorter than 2 degrees (or 8 days) leaves that as the effective resolution."""
    truth = field()
    space = ssh_scores(array(low_pass(truth, 2, 0.5, 0.25)), array(truth), dt=1.0, dx=0.25)
    assert space.lambda_x == pytest.approx(2.0, rel=0.1)
    time = ssh_scores(array(low_pass(truth, 0, 1 / 8, 1.0)), array(truth), dt=1.0, dx=0.25)
    assert time.lambda_t == pytest.approx(8.0, rel=0.15)


def test_a_perfect_map_and_an_empty_one():
    truth = field()
    perfect = ssh_scores(array(truth), array(truth), dt=1.0, dx=0.25)
    np.testing.assert_allclose(perfect, [1.0, 0.0, 0.5, 2.0], atol=1e-6)
    empty = ssh_scores(array(0 * truth), array(truth), dt=1.0, dx=0.25)
    np.testing.assert_allclose(empty[:2], [0.0, 0.0], atol=1e-6)
    assert empty.lambda_x == empty.lambda_t == np.inf


def test_land_is_left_out():
    truth, estimate = field(), field() + 0.3 * field(1)
    with_land = truth.copy()
    with_land[:, 4:, 10:20] = np.nan
    found = ssh_scores(array(estimate), array(with_land), dt=1.0, dx=0.25)
    expected = ssh_scores(array(estimate[:, :4]), array(truth[:, :4]), dt=1.0, dx=0.25)
    np.testing.assert_allclose(found[2:], expected[2:], rtol=1e-6 if X64 else 1e-3)
    known = np.isfinite(with_land)
    error = np.where(known, estimate - truth, 0)
    signal = np.where(known, truth, 0)
    series = 1 - np.sqrt((error**2).sum(axis=(1, 2)) / (signal**2).sum(axis=(1, 2)))
    assert found.mu == pytest.approx(series.mean(), rel=1e-5)


def test_without_a_complete_latitude_there_is_no_resolution():
    truth = field()
    truth[3, :, 5] = np.nan
    found = ssh_scores(array(field(1)), array(truth), dt=1.0, dx=0.25)
    assert np.isnan([found.lambda_x, found.lambda_t]).all()
    assert np.isfinite([found.mu, found.sigma]).all()


def test_it_prints_its_numbers():
    assert str(ssh_scores(array(field()), array(field()), dt=1.0, dx=0.25)) == "μ 1.000  σ 0.000  λ_x 0.5  λ_t 2"


def test_shapes_have_to_match():
    with pytest.raises(ValueError, match=r"ssh_scores: `estimate` has shape \(3, 4\).*expected the same, \(T, Y, X\)"):
        ssh_scores(jnp.ones((3, 4)), jnp.ones((3, 4)), dt=1, dx=1)
    with pytest.raises(ValueError, match=r"rmse_score: .*expected the same, \(T, ...\)"):
        rmse_score(jnp.ones((3, 4)), jnp.ones((3, 5)))
