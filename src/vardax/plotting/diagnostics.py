"""Figures of diagnostics: rank histograms, what each instrument told, and spectra with what they resolve."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from vardax.plotting.scores import plain_log_labels
from vardax.plotting.style import COLOURS, INK, colour_of

__all__ = ["power_spectra", "rank_histogram_bars", "signal_by_instrument"]

FAINT = "#d9d9d9"


def rank_histogram_bars(ax: Axes, counts: Any, *, title: str = "", colour: str = COLOURS[0]) -> Axes:
    """`counts` (bins,) as shares of all ranks, with the flat level and the band that 95 % of flat bins lie in."""
    counts = np.asarray(counts, dtype=float)
    if counts.ndim != 1 or counts.sum() <= 0:
        raise ValueError(f"`counts` has shape {counts.shape} and sum {counts.sum():g}, expected (bins,) with ranks.")
    bins, total = len(counts), counts.sum()
    level = 1 / bins
    half = 1.96 * np.sqrt(level * (1 - level) / total)
    ax.axhspan(level - half, level + half, color=FAINT, lw=0, zorder=0)
    ax.axhline(level, color=INK, lw=1, ls=(0, (2, 3)), zorder=1)
    ax.bar(np.arange(bins), counts / total, width=0.86, color=colour, zorder=2)
    ax.set_xlim(-0.7, bins - 0.3)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_xlabel("rank of the truth")
    ax.set_ylabel("share")
    ax.set_title(title, fontsize=10, loc="left")
    return ax


def signal_by_instrument(
    ax: Axes,
    degrees: Mapping[str, Any],
    counts: Mapping[str, Any],
    errors: Mapping[str, Any] | None = None,
) -> Axes:
    """Degrees of freedom for signal of each instrument, in front of how many observations it has.

    `errors` are standard errors, where they were estimated.
    """
    if set(degrees) != set(counts):
        raise ValueError(f"`degrees` has {sorted(degrees)} and `counts` {sorted(counts)}, expected the same names.")
    errors = errors or {}
    for row, (name, value) in enumerate(degrees.items()):
        count = float(counts[name])
        ax.barh(row, count, height=0.62, color=FAINT, zorder=1)
        ax.barh(row, float(value), height=0.62, color=colour_of(name, list(degrees)), zorder=2)
        if name in errors:
            ax.errorbar(float(value), row, xerr=1.96 * float(errors[name]), color=INK, lw=1.4, capsize=3, zorder=3)
        text = f"{float(value):.1f} of {count:.0f}, {float(value) / count:.2f} each" if count else "no observations"
        ax.annotate(text, (count, row), (6, 0), textcoords="offset points", va="center", fontsize=9, color=INK)
    ax.set_yticks(range(len(degrees)), list(degrees))
    ax.set_ylim(len(degrees) - 0.5, -0.5)
    ax.margins(x=0.3)
    ax.set_xlim(left=0)
    ax.tick_params(axis="y", length=0)
    ax.spines["left"].set_visible(False)
    ax.set_xlabel("observations (grey) and degrees of freedom for signal")
    return ax


def power_spectra(
    ax: Axes,
    wavenumber: Any,
    densities: Mapping[str, Any],
    *,
    resolution: Mapping[str, Any] | None = None,
    grey: Sequence[str] = (),
    unit: str = "",
) -> Axes:
    """Densities against wavelength, long waves on the left, both logarithmic; the mean is left out.

    `resolution` are effective resolutions by name: a line at the wavelength, in the colour of its name where that is
    one of the spectra. Those named in `grey` are drawn in ink, as what others are compared with.
    """
    k = np.asarray(wavenumber, dtype=float)
    shown = k > 0
    wavelength = 1 / k[shown]
    coloured = [name for name in densities if name not in grey]
    for name, density in densities.items():
        colour = INK if name in grey else colour_of(name, coloured)
        ax.plot(wavelength, np.asarray(density)[shown], color=colour, lw=1.8, label=name)
    for name, scale in (resolution or {}).items():
        if not np.isfinite(scale):
            continue
        colour = colour_of(name, coloured) if name in coloured else INK
        ax.axvline(scale, color=colour, lw=1.2, ls=(0, (4, 2)))
        where = {"xycoords": ("data", "axes fraction"), "textcoords": "offset points", "rotation": 90}
        text = f"{scale:.3g} {unit}".strip()
        ax.annotate(text, (scale, 0.02), (-3, 0), ha="right", va="bottom", fontsize=9, color=colour, **where)
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.set_xlim(wavelength.max(), wavelength.min())
    plain_log_labels(ax.xaxis)
    ax.set_xlabel(f"wavelength ({unit})" if unit else "wavelength")
    ax.set_ylabel("power density")
    ax.grid(color="#e6e6e6", lw=0.8)
    ax.set_axisbelow(True)
    ax.legend(frameon=False, fontsize=9)
    return ax
