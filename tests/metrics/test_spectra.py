"""Spectra satisfy Parseval's theorem, agree with scipy, and put waves where they belong."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.signal

from vardax.metrics.spectra import (
    hann,
    isotropic_spectrum,
    no_taper,
    power_spectrum,
    remove_mean,
    remove_trend,
    wavenumber_frequency_spectrum,
)

X64 = jax.config.jax_enable_x64
RTOL = 1e-9 if X64 else 1e-4
RANDOM = np.random.default_rng(0)
PERIODIC = {"detrend": remove_mean, "taper": no_taper}


def array(values):
    return jnp.asarray(values, jnp.result_type(float))


@pytest.mark.parametrize("n", [16, 15])
@pytest.mark.parametrize("options", [{}, PERIODIC], ids=["default", "periodic"])
def test_lines_are_those_of_the_periodogram_of_scipy(n, options):
    values = RANDOM.normal(size=(2, n)) + np.arange(n)
    settings = {"detrend": "constant", "window": "boxcar"} if options else {"detrend": "linear", "window": "hann"}
    wavenumber, expected = scipy.signal.periodogram(values, fs=1 / 0.5, **settings)
    found = power_spectrum(array(values), 0.5, **options)
    np.testing.assert_allclose(found.wavenumber, wavenumber, rtol=1e-6)
    np.testing.assert_allclose(found.density, expected, rtol=100 * RTOL, atol=1e-9 if X64 else 1e-3)


@pytest.mark.parametrize("shape", [(8, 12), (7, 9)])
def test_the_sum_over_all_scales_is_the_variance(shape):
    field = array(RANDOM.normal(size=(3, *shape)))
    variance = np.var(field, axis=(1, 2))
    rings = isotropic_spectrum(field, (2.0, 0.5), **PERIODIC)
    np.testing.assert_allclose(rings.variance(), variance, rtol=RTOL)
    plane = wavenumber_frequency_spectrum(field, 2.0, 0.5, time_axis=1, **PERIODIC)
    np.testing.assert_allclose(plane.variance(), variance, rtol=RTOL)
    np.testing.assert_allclose(plane.folded().variance(), variance, rtol=RTOL)
    lines = power_spectrum(field, 2.0, axis=1, **PERIODIC)
    np.testing.assert_allclose(lines.variance(), np.var(field, axis=1), rtol=RTOL)


def test_a_tapered_white_spectrum_keeps_its_level():
    values = array(RANDOM.normal(size=(2000, 32)))
    level = np.mean(power_spectrum(values, 0.25).density, axis=0)[3:-1]
    np.testing.assert_allclose(level, 2 * 0.25, rtol=0.1)


def test_a_wave_is_at_its_wavelength_with_half_its_squared_amplitude():
    wave = 3 * np.cos(2 * np.pi * np.arange(40) * 0.5 / 4)
    spectrum = power_spectrum(array(wave), 0.5, **PERIODIC)
    peak = int(np.argmax(spectrum.density))
    assert spectrum.wavelength[peak] == pytest.approx(4.0)
    step = float(spectrum.wavenumber[1])
    assert spectrum.density[peak] * step == pytest.approx(4.5, rel=1e-4)
    assert spectrum.wavelength[0] == np.inf


@pytest.mark.parametrize("direction", [1, -1])
@pytest.mark.parametrize("n_times", [20, 21])
def test_the_sign_of_the_frequency_is_the_direction_of_the_wave(direction, n_times):
    t, x = np.arange(n_times)[:, None], np.arange(24)[None, :] * 0.5
    k, f = 3 / 12, 4 / n_times
    found = wavenumber_frequency_spectrum(array(np.cos(2 * np.pi * (k * x - direction * f * t))), 1, 0.5, **PERIODIC)
    row, column = np.unravel_index(np.argmax(found.density), found.density.shape)
    assert found.wavenumber[column] == pytest.approx(k)
    assert found.frequency[row] == pytest.approx(direction * f)
    folded = found.folded()
    row, column = np.unravel_index(np.argmax(folded.density), folded.density.shape)
    assert folded.frequency[0] == 0
    assert folded.frequency[row] == pytest.approx(f)
    assert np.all(np.diff(folded.frequency) > 0)


def test_rings_collect_all_directions():
    y, x = np.meshgrid(np.arange(20), np.arange(20), indexing="ij")
    for angle in ((5, 0), (0, 5), (3, 4), (-4, 3)):
        wave = np.cos(2 * np.pi * (angle[0] * y + angle[1] * x) / 20)
        spectrum = isotropic_spectrum(array(wave), **PERIODIC)
        assert spectrum.wavelength[int(np.argmax(spectrum.density))] == pytest.approx(4.0)


def test_trends_are_gone_and_what_is_orthogonal_stays():
    y, x = np.meshgrid(np.arange(6.0), np.arange(9.0), indexing="ij")
    np.testing.assert_allclose(remove_trend(array(2 + 3 * y - x), 2), 0, atol=1e-4)
    field = RANDOM.normal(size=(6, 9))
    basis = np.stack([np.ones(54), y.ravel(), x.ravel()], axis=1)
    fitted = basis @ np.linalg.lstsq(basis, field.ravel(), rcond=None)[0]
    np.testing.assert_allclose(remove_trend(array(field), 2), field - fitted.reshape(6, 9), rtol=1e-4, atol=1e-5)


def test_the_taper_is_that_of_scipy():
    np.testing.assert_allclose(hann(9), scipy.signal.get_window("hann", 9), atol=1e-6)


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match=r"shape \(1,\), expected at least 2 along the axes"):
        power_spectrum(jnp.ones(1))
    with pytest.raises(ValueError, match="`spacing` is 0"):
        power_spectrum(jnp.ones(4), 0)
    with pytest.raises(ValueError, match="`spacing` has 3 entries"):
        isotropic_spectrum(jnp.ones((4, 4)), (1, 1, 1))
