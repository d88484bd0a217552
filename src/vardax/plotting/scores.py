"""Figures of scores: how they run through time, and how methods compare."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from vardax.plotting.style import INK, colour_of

__all__ = ["running_mean", "score_bars", "score_through_time"]


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
    smooth: int = 1,
    label: str = "analysis RMSE",
    time_label: str = "time",
) -> Axes:
    """One line per name on a logarithmic scale, labelled at its end: its running mean over `smooth` values.

    The time before `burn_in`, which is not scored, is shaded.
    """
    time = np.asarray(time)
    ends = {}
    for name, values in scores.items():
        colour, mean = colour_of(name, list(scores)), running_mean(values, smooth)
        ax.plot(time, mean, color=colour, lw=1.6, label=name, solid_capstyle="round")
        ends[name] = float(np.nanmean(mean[-max(len(mean) // 4, 1) :]))
    ax.set_yscale("log")
    plain_log_labels(ax)
    if burn_in is not None and burn_in > time[0]:
        ax.axvspan(time[0], min(burn_in, time[-1]), color="#f1f1f1", zorder=0, lw=0)
        ax.text(
            burn_in, 1.01, "scored from here  ▸", transform=ax.get_xaxis_transform(), fontsize=8, color=INK, va="bottom"
        )
    ax.set_xlim(time[0], time[-1])
    _label_ends(ax, ends, list(scores))
    ax.set_xlabel(time_label)
    ax.set_ylabel(label)
    ax.grid(axis="y", color="#e6e6e6", lw=0.8)
    ax.set_axisbelow(True)
    return ax


def plain_log_labels(ax: Axes) -> None:
    """0.2, 0.5, 1, 2, 5 instead of powers of ten."""
    ax.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.yaxis.set_minor_formatter(NullFormatter())


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


def score_bars(
    ax: Axes,
    scores: Mapping[str, float],
    half_widths: Mapping[str, float] | None = None,
    *,
    expected: Mapping[str, float] | None = None,
    label: str = "analysis RMSE",
) -> Axes:
    """A bar per name, longest first, with its value, its interval, and a tick where the score is expected."""
    names = sorted(scores, key=lambda name: -scores[name] if np.isfinite(scores[name]) else -np.inf)
    order = list(scores)
    values = np.array([scores[name] for name in names], dtype=float)
    reach = np.nanmax(values)
    for row, name in enumerate(names):
        half = (half_widths or {}).get(name, 0.0)
        ax.barh(
            row, scores[name], color=colour_of(name, order), height=0.62, xerr=half, error_kw={"lw": 1, "ecolor": INK}
        )
        text = f"{scores[name]:.3f} ± {half:.3f}" if half else f"{scores[name]:.3f}"
        ax.text(scores[name] + half + 0.015 * reach, row, text, va="center", fontsize=9, color=INK)
        if expected and name in expected:
            ax.plot([expected[name]] * 2, [row - 0.42, row + 0.42], color="black", lw=2, solid_capstyle="butt")
    if expected and set(expected) & set(names):
        ax.plot([], [], color="black", lw=2, label="expected")
        ax.legend(frameon=False, fontsize=9, loc="lower right")
    ax.set_yticks(range(len(names)), names)
    ax.set_ylim(len(names) - 0.4, -0.6)
    ax.set_xlim(0, 1.22 * reach)
    ax.tick_params(axis="y", length=0)
    ax.set_xlabel(label)
    return ax
