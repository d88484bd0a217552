"""Figures of scores show the numbers that they were given."""

import numpy as np
import pytest

from vardax.plotting.scores import running_mean, score_ranking, score_through_time
from vardax.plotting.style import panels

TIME = np.linspace(0.1, 10, 100)
SCORES = {"climatology": np.full(100, 3.6), "ThreeDVar": np.full(100, 0.4), "StrongFourDVar": np.full(100, 0.38)}


def texts(ax):
    return [text.get_text() for text in ax.texts]


def test_a_running_mean_keeps_length_and_constants():
    assert running_mean(np.ones(7), 3).tolist() == [1.0] * 7
    assert running_mean([1.0, 5.0], 1).tolist() == [1.0, 5.0]
    assert len(running_mean(np.ones(3), 10)) == 3


def test_lines_are_the_scores_through_time():
    _, axes = panels()
    ax = score_through_time(axes[0, 0], TIME, SCORES, burn_in=2.0, reference=(1.0, "noise"))
    lines = {line.get_label(): line for line in ax.lines}
    for name, values in SCORES.items():
        np.testing.assert_allclose(lines[name].get_ydata(), values)
        np.testing.assert_allclose(lines[name].get_xdata(), TIME)
    assert ax.get_yscale() == "log"
    assert {*SCORES, "noise", "scored from here  ▸"} == set(texts(ax))


def test_names_at_the_ends_do_not_overlap(tmp_path):
    figure, axes = panels()
    ax = score_through_time(axes[0, 0], TIME, SCORES)
    figure.savefig(tmp_path / "figure.png")
    boxes = [text.get_window_extent() for text in ax.texts]
    assert not any(a.overlaps(b) for k, a in enumerate(boxes) for b in boxes[:k])


def test_a_diverged_method_does_not_spoil_the_figure(tmp_path):
    figure, axes = panels(1, 2)
    score_through_time(axes[0, 0], TIME, {**SCORES, "Diverged": np.full(100, np.nan)})
    score_ranking(axes[0, 1], {"ThreeDVar": 0.4, "Diverged": np.nan}, {"ThreeDVar": 0.01})
    figure.savefig(tmp_path / "figure.png")
    assert "nan" in texts(axes[0, 1])


def test_the_ranking_goes_from_worst_to_best():
    _, axes = panels()
    ax = score_ranking(axes[0, 0], {"a": 0.4, "b": 3.6, "c": 1.0}, {"a": 0.01}, expected={"b": 3.5})
    assert [label.get_text() for label in ax.get_yticklabels()] == ["b", "c", "a"]
    assert texts(ax) == ["3.600", "1.000", "0.400 ± 0.010"]
    assert ax.get_legend() is not None


def test_functions_return_the_axes_that_they_were_given():
    _, axes = panels(1, 2)
    assert score_through_time(axes[0, 0], TIME, SCORES) is axes[0, 0]
    assert score_ranking(axes[0, 1], {"a": 1.0}) is axes[0, 1]


@pytest.mark.parametrize("name", ["climatology", "background"])
def test_rows_without_observations_are_grey(name):
    from vardax.plotting.style import GREYS, colour_of

    assert colour_of(name, ["ThreeDVar", name]) == GREYS[name]
    assert colour_of("ThreeDVar", [name, "ThreeDVar"]) == colour_of("ThreeDVar", ["ThreeDVar"])
