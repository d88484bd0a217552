"""How figures look: panels without clutter, and colours that mean the same everywhere.

Colours are those of Okabe and Ito, which people with colour vision deficiencies tell apart; rows without observations
are grey.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

__all__ = ["COLOURS", "colour_of", "panels", "tidy"]

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#882255", "#999933")
GREYS = {"climatology": "#8c8c8c", "background": "#bdbdbd"}
INK = "#303030"


def colour_of(name: str, names: Sequence[str]) -> str:
    """The colour of `name` among `names`, in their order.

    >>> colour_of("ThreeDVar", ["climatology", "ThreeDVar"])
    '#0072B2'
    """
    if name in GREYS:
        return GREYS[name]
    coloured = [other for other in names if other not in GREYS]
    return COLOURS[coloured.index(name) % len(COLOURS)]


def panels(
    rows: int = 1, columns: int = 1, size: tuple[float | int, float | int] = (8.0, 4.5), **options: Any
) -> tuple[Figure, np.ndarray]:
    """A figure of `size` inches and its axes (rows, columns); `options` go to `Figure.subplots`."""
    figure = Figure(figsize=size, layout="constrained", dpi=150)
    axes = figure.subplots(rows, columns, squeeze=False, **options)
    for ax in axes.ravel():
        tidy(ax)
    return figure, axes


def tidy(ax: Axes) -> Axes:
    """No box, thin ink."""
    ax.spines[["top", "right"]].set_visible(False)
    ax.spines[["left", "bottom"]].set_color(INK)
    ax.tick_params(colors=INK, labelsize=9)
    return ax
