"""Hovmöller diagrams show the field, states in shared colours and errors about zero."""

import importlib
import sys

import numpy as np
import pytest

import vardax.plotting
from vardax.plotting.fields import hovmoller, truth_analysis_error
from vardax.plotting.style import panels

RANDOM = np.random.default_rng(0)
TRUTH = RANDOM.normal(5.0, 3.0, (20, 8))
ANALYSIS = TRUTH + RANDOM.normal(0.0, 0.5, TRUTH.shape)
TIME = np.arange(20) * 0.1


def test_a_hovmoller_diagram_holds_the_field():
    _, axes = panels()
    ax = hovmoller(axes[0, 0], TIME, TRUTH, title="truth")
    assert ax is axes[0, 0]
    np.testing.assert_allclose(np.asarray(ax.collections[0].get_array()), TRUTH)
    assert ax.get_title(loc="left") == "truth"


def test_truth_and_analysis_share_colours_and_the_error_is_about_zero(tmp_path):
    figure, axes = panels(1, 3, sharey=True)
    truth_analysis_error(axes[0], TIME, TRUTH, ANALYSIS, name="ThreeDVar")
    figure.savefig(tmp_path / "figure.png")
    limits = [ax.collections[0].get_clim() for ax in axes[0]]
    assert limits[0] == limits[1]
    assert limits[2][0] == -limits[2][1]
    np.testing.assert_allclose(np.asarray(axes[0, 2].collections[0].get_array()), ANALYSIS - TRUTH)
    rms = np.sqrt(np.mean((ANALYSIS - TRUTH) ** 2))
    assert axes[0, 2].get_title(loc="left") == f"ThreeDVar − truth (RMS {rms:.2f})"


def test_a_field_has_time_and_position():
    _, axes = panels()
    with pytest.raises(ValueError, match=r"`field` has shape \(20,\), expected \(time, position\)"):
        hovmoller(axes[0, 0], TIME, TIME)


def test_three_panels_are_needed():
    _, axes = panels(1, 2)
    with pytest.raises(ValueError, match="`axes` has 2 panels, expected 3"):
        truth_analysis_error(axes[0], TIME, TRUTH, ANALYSIS)


def test_without_matplotlib_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"figures need matplotlib: pip install 'vardax\[plot\]'"):
        importlib.reload(vardax.plotting)
