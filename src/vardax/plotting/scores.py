"""Figures of scores: how they run through time, and how methods compare."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from vardax.plotting.style import INK, colour_of

__all__ = ["running_mean", "score_ranking", "score_through_time"]


def running_mean(values: Any, width: int) -> np.ndarray:
    """Mean over `width` neighbouring values; shorter at the ends, so the length stays.

    >>> running_mean([0.0, 3.0, 6.0], 3).tolist()
    [1.5, 3.0, 4.5]
    """
    values = np.asarray(values, dtype=float)
    if width <= 1:
        return values
    window = np.ones(min(width, len(values)))
    return np.convolve(values, window, "same") / np.convolve(np.ones(len(values)), window, "same")


def score_through_time(
    ax: Axes,
    time: Any,
    scores: Mapping[str, Any],
    *,
    burn_in: float | None = None,
    reference: tuple[float, str] | None = None,
    smooth: int = 1,
    label: str = "analysis RMSE",
    time_label: str = "time",
) -> Axes:
    """One line per name on a logarithmic scale, labelled at its end: its running mean over `smooth` values.

    The time before `burn_in`, which is not scored, is shaded. `reference` is a level to compare with and its name.
    """
    time = np.asarray(time)
    ends = {}
    for name, values in scores.items():
        colour, mean = colour_of(name, list(scores)), running_mean(values, smooth)
        ax.plot(time, mean, color=colour, lw=1.6, label=name, solid_capstyle="round")
        finite = mean[-max(len(mean) // 4, 1) :]
        finite = finite[np.isfinite(finite)]
        ends[name] = float(np.mean(finite)) if finite.size else np.nan
    ax.set_yscale("log")
    plain_log_labels(ax.yaxis)
    if burn_in is not None and burn_in > time[0]:
        ax.axvspan(time[0], min(burn_in, time[-1]), color="#f1f1f1", zorder=0, lw=0)
        ax.text(
            burn_in, 1.01, "scored from here  ▸", transform=ax.get_xaxis_transform(), fontsize=8, color=INK, va="bottom"
        )
    if reference is not None:
        ax.axhline(reference[0], color=INK, lw=1, ls=(0, (2, 3)), zorder=1)
        where = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points", "ha": "right", "va": "bottom"}
        ax.annotate(reference[1], (0.995, reference[0]), (0, 2), fontsize=8, color=INK, **where)
    ax.set_xlim(time[0], time[-1])
    _label_ends(ax, ends, list(scores))
    ax.set_xlabel(time_label)
    ax.set_ylabel(label)
    ax.grid(axis="y", color="#e6e6e6", lw=0.8)
    ax.set_axisbelow(True)
    return ax


def plain_log_labels(axis: Axis) -> Axis:
    """0.2, 0.5, 1, 2, 5 instead of powers of ten."""
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())
    return axis


def _label_ends(ax: Axes, ends: Mapping[str, float], names: list[str]) -> None:
    """The names right of their lines, moved apart where they would overlap."""
    low, high = np.log(ax.get_ylim())
    height = 0.055 * (high - low)
    finite = {name: np.log(value) for name, value in ends.items() if np.isfinite(value) and value > 0}
    last = -np.inf
    for name, y in sorted(finite.items(), key=lambda item: item[1]):
        last = max(y, last + height)
        position = (1.012, float(np.exp(last)))
        ax.annotate(
            name,
            position,
            xycoords=("axes fraction", "data"),
            color=colour_of(name, names),
            fontsize=9,
            va="center",
            annotation_clip=False,
        )


def score_ranking(
    ax: Axes,
    scores: Mapping[str, float],
    half_widths: Mapping[str, float] | None = None,
    *,
    expected: Mapping[str, float] | None = None,
    label: str = "analysis RMSE",
) -> Axes:
    """A dot per name on a logarithmic axis, worst first, with interval, value, and a tick where it is expected."""
    names = sorted(scores, key=lambda name: -scores[name] if np.isfinite(scores[name]) else -np.inf)
    half_widths, expected = half_widths or {}, expected or {}
    for row, name in enumerate(names):
        value, half, colour = scores[name], half_widths.get(name, 0.0), colour_of(name, list(scores))
        ax.errorbar(value, row, xerr=half or None, fmt="o", color=colour, ms=9, lw=2, capsize=0, zorder=3)
        if name in expected:
            ax.plot([expected[name]] * 2, [row - 0.3, row + 0.3], color=INK, lw=1.6, solid_capstyle="butt", zorder=4)
        text = f"{value:.3f} ± {half:.3f}" if half else f"{value:.3f}"
        ax.annotate(text, (1.02, row), xycoords=("axes fraction", "data"), va="center", fontsize=9, color=INK)
    if set(expected) & set(names):
        ax.plot([], [], color=INK, lw=1.6, marker="", label="expected")
        ax.legend(frameon=False, fontsize=9, loc="upper left", handlelength=1.2)
    ax.set_xscale("log")
    plain_log_labels(ax.xaxis)
    ax.set_yticks(range(len(names)), names)
    ax.set_ylim(len(names) - 0.5, -0.5)
    ax.margins(x=0.08)
    ax.tick_params(axis="y", length=0)
    ax.spines["left"].set_visible(False)
    ax.grid(color="#e6e6e6", lw=0.8)
    ax.set_axisbelow(True)
    ax.set_xlabel(label)
    return ax
