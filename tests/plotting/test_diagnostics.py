"""Figures of diagnostics show the numbers that they were given."""

import numpy as np
import pytest

from vardax.plotting.diagnostics import power_spectra, rank_histogram_bars, signal_by_instrument
from vardax.plotting.style import colour_of, panels


def test_bars_are_shares_and_the_level_is_flat():
    _, axes = panels()
    ax = rank_histogram_bars(axes[0, 0], np.array([10.0, 20.0, 30.0, 20.0]), title="ranks")
    np.testing.assert_allclose([bar.get_height() for bar in ax.containers[0]], [0.125, 0.25, 0.375, 0.25])
    assert ax.lines[0].get_ydata()[0] == 0.25
    with pytest.raises(ValueError, match=r"`counts` has shape \(2,\) and sum 0"):
        rank_histogram_bars(ax, np.zeros(2))


def test_bars_are_degrees_of_freedom_before_counts(tmp_path):
    figure, axes = panels()
    ax = signal_by_instrument(axes[0, 0], {"buoys": 4.0, "radar": 2.5}, {"buoys": 5, "radar": 40}, {"radar": 0.1})
    assert [bar.get_width() for container in ax.containers[:2] for bar in container] == [5, 4]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["buoys", "radar"]
    assert [text.get_text() for text in ax.texts] == ["4.0 of 5, 0.80 each", "2.5 of 40, 0.06 each"]
    figure.savefig(tmp_path / "figure.png")
    blind = signal_by_instrument(panels()[1][0, 0], {"buoys": 0.0}, {"buoys": 0})
    assert blind.texts[0].get_text() == "no observations"
    with pytest.raises(ValueError, match="expected the same names"):
        signal_by_instrument(ax, {"buoys": 1.0}, {"radar": 1.0})


def test_spectra_are_drawn_against_wavelength_with_their_resolution():
    _, axes = panels()
    spectra = {"truth": np.array([9.0, 4.0, 2.0]), "error": np.array([1.0, 1.0, 3.0])}
    given = {"error": 3.0, "nothing resolved": np.inf}
    ax = power_spectra(axes[0, 0], np.array([0.0, 0.25, 0.5]), spectra, grey=["truth"], resolution=given, unit="km")
    lines = {line.get_label(): line for line in ax.lines}
    np.testing.assert_allclose(lines["truth"].get_xdata(), [4.0, 2.0])
    np.testing.assert_allclose(lines["error"].get_ydata(), [1.0, 3.0])
    assert ax.get_xlim() == (4.0, 2.0)
    assert lines["error"].get_color() == colour_of("error", ["error"])
    assert [text.get_text() for text in ax.texts] == ["3 km"]
    assert ax.get_xlabel() == "wavelength (km)"
