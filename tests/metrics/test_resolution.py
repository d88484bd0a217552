"""Effective resolution by hand, interpolated, with documented ends, and on the line of two dimensions."""

import jax.numpy as jnp
import numpy as np
import pytest

from vardax.metrics.resolution import effective_resolution, effective_resolutions, spectral_score
from vardax.metrics.spectra import Spectrum, WavenumberFrequencySpectrum
from vardax.plotting.style import panels


def array(values):
    return jnp.asarray(values, jnp.result_type(float))


def line(density):
    density = array(density)
    return Spectrum(jnp.arange(density.shape[-1]).astype(density.dtype) / 8, density)


def plane(density):
    """Frequencies 0, 1, 2, 3 per 6 of time, wavenumbers 0, 1, 2, 3 per 12 of length, both signs of frequency alike."""
    density = np.asarray(density, float)
    both = np.concatenate([density[:0:-1] / 2, density[:1], density[1:] / 2])
    return WavenumberFrequencySpectrum(array(np.arange(-3, 4) / 6), array(np.arange(4) / 12), array(both))


def test_it_is_interpolated_between_wavelengths():
    """Scores 1, 0.8, 0.2, 0 at wavelengths ∞, 8, 4, 8/3: half way between 8 and 4."""
    truth = line(np.ones(4))
    assert effective_resolution(line([0.0, 0.2, 0.8, 1.0]), truth) == pytest.approx(6.0)
    assert effective_resolution(line([0.0, 0.2, 0.6, 1.0]), truth) == pytest.approx(8 - 4 * 0.3 / 0.4, rel=1e-5)


def test_only_the_ratio_counts():
    truth = np.array([7.0, 100.0, 1.0, 0.01])
    found = effective_resolution(line(truth * np.array([0.0, 0.2, 0.8, 1.0])), line(truth))
    assert found == pytest.approx(6.0, rel=1e-5)


def test_all_resolved_and_nothing_resolved():
    truth = line(np.ones(5))
    assert effective_resolution(line(np.full(5, 0.1)), truth) == pytest.approx(2.0)
    assert effective_resolution(line(np.full(5, 0.9)), truth) == np.inf


def test_several_spectra_at_once():
    errors = line([[0.0, 0.2, 0.8, 1.0], [0.0, 0.2, 0.6, 1.0]])
    np.testing.assert_allclose(effective_resolution(errors, line(np.ones((2, 4)))), [6.0, 5.0], rtol=1e-5)


def test_no_power_in_the_truth_is_not_resolved():
    truth = line([1.0, 1.0, 0.0, 0.0])
    np.testing.assert_array_equal(spectral_score(line([0.0, 0.0, 1.0, 0.0]), truth), [1.0, 1.0, -np.inf, 1.0])
    found = effective_resolution(line([0.0, 0.0, 1.0, 1.0]), truth)
    assert found == pytest.approx(8.0)


def test_in_two_dimensions_each_axis_has_its_smallest_scale():
    """Wavelengths 12, 6, 4; periods 6, 3, 2. Resolved are (f, k) = (1, 1), (1, 2), (2, 1)."""
    error = np.ones((4, 4))
    error[1] = [0.0, 0.0, 0.25, 0.75]
    error[2] = [0.0, 0.2, 0.8, 1.0]
    wavelength, period = effective_resolutions(plane(error), plane(np.ones((4, 4))))
    assert wavelength == pytest.approx(5.0)  # on the first row, half way between 6 and 4
    assert period == pytest.approx(3 - 1 * 0.3 / 0.8, rel=1e-5)  # on the first column, 0.2 to 1 between 3 and 2


def test_a_line_between_two_rows_counts_where_it_passes():
    """All wavelengths are resolved at the first frequency, none beyond: no crossing along any row."""
    error = np.ones((4, 4))
    error[1] = 0.0
    wavelength, period = effective_resolutions(plane(error), plane(np.ones((4, 4))))
    assert wavelength == pytest.approx(4.0)
    assert period == pytest.approx(4.5)


def test_the_line_is_the_contour_that_the_challenges_draw():
    """They take the smallest coordinates of matplotlib's contour of the score at 0.5, over 1 / k and 1 / f."""
    random = np.random.default_rng(3)
    k, f = np.arange(13) / 24, np.arange(-10, 11) / 20
    score = 1.2 * np.exp(-((k[None] / 0.2) ** 2) - (f[:, None] / 0.15) ** 2) + 0.03 * random.uniform(size=(21, 13))
    score[:10] = score[:10:-1]  # both signs of the frequency alike
    truth = WavenumberFrequencySpectrum(array(f), array(k), array(np.full((21, 13), 2.0)))
    error = WavenumberFrequencySpectrum(truth.frequency, truth.wavenumber, array(2 * (1 - score)))
    wavelength, period = 1 / k[1:], 1 / f[11:]
    drawn = panels()[1][0, 0].contour(wavelength, period, score[11:, 1:], [0.5]).allsegs[0]
    x, y = np.concatenate(drawn).T
    np.testing.assert_allclose(effective_resolutions(error, truth), [x.min(), y.min()], rtol=1e-5)


def test_the_ends_in_two_dimensions():
    truth = plane(np.ones((4, 4)))
    np.testing.assert_allclose(effective_resolutions(plane(np.zeros((4, 4))), truth), [4.0, 2.0], rtol=1e-6)
    np.testing.assert_allclose(effective_resolutions(truth, truth), [np.inf, np.inf])


def test_spectra_have_to_match():
    with pytest.raises(ValueError, match=r"have shapes \(3,\) and \(4,\), expected the same"):
        effective_resolution(line(np.ones(3)), line(np.ones(4)))
