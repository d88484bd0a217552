"""Figures of fields through time (Hovmöller diagrams): position along, time upwards."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh

__all__ = ["hovmoller", "truth_analysis_error"]

STATE_COLOURS, ERROR_COLOURS = "viridis", "RdBu_r"


def hovmoller(
    ax: Axes,
    time: Any,
    field: Any,
    *,
    position: Any = None,
    limits: tuple[float, float] | None = None,
    error: bool = False,
    title: str = "",
    label: str = "",
    colorbar: bool = True,
) -> Axes:
    """`field` (time, position) in colours: sequential for states, or diverging about zero for an `error`."""
    field = np.asarray(field)
    if field.ndim != 2:
        raise ValueError(f"`field` has shape {field.shape}, expected (time, position).")
    position = np.arange(field.shape[1]) if position is None else np.asarray(position)
    low, high = limits or _limits(field, error)
    colours = ERROR_COLOURS if error else STATE_COLOURS
    mesh = ax.pcolormesh(position, np.asarray(time), field, cmap=colours, vmin=low, vmax=high, rasterized=True)
    ax.set_title(title, fontsize=10, loc="left")
    ax.spines[:].set_visible(False)
    if colorbar:
        _colorbar(ax, mesh, label)
    return ax


def _limits(field: np.ndarray, error: bool) -> tuple[float, float]:
    """The central 99 % of the values, about zero for an error."""
    finite = field[np.isfinite(field)]
    if finite.size == 0:
        return -1.0, 1.0
    if error:
        reach = float(np.quantile(np.abs(finite), 0.99)) or 1.0
        return -reach, reach
    low, high = np.quantile(finite, [0.005, 0.995])
    return float(low), float(high)


def _colorbar(ax: Axes, mesh: QuadMesh, label: str) -> None:
    bar = ax.figure.colorbar(mesh, ax=ax, orientation="horizontal", pad=0.02, aspect=28, extend="both")
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=8)
    bar.set_label(label, fontsize=9)


def truth_analysis_error(
    axes: Sequence[Axes] | np.ndarray,
    time: Any,
    truth: Any,
    analysis: Any,
    *,
    name: str = "analysis",
    position: Any = None,
    time_label: str = "time",
    position_label: str = "position",
) -> Sequence[Axes] | np.ndarray:
    """Three panels: the truth, the analysis in the same colours, and analysis minus truth."""
    if len(axes) != 3:
        raise ValueError(f"`axes` has {len(axes)} panels, expected 3: truth, analysis, error.")
    truth, analysis = np.asarray(truth), np.asarray(analysis)
    shared = _limits(truth, error=False)
    error = analysis - truth
    rmse = float(np.sqrt(np.mean(error**2)))
    hovmoller(axes[0], time, truth, position=position, limits=shared, title="truth", label="state")
    hovmoller(axes[1], time, analysis, position=position, limits=shared, title=name, label="state")
    title = f"{name} − truth (RMS {rmse:.2f})"
    hovmoller(axes[2], time, error, position=position, error=True, title=title, label="error")
    axes[0].set_ylabel(time_label)
    for ax in axes:
        ax.set_xlabel(position_label)
    return axes
