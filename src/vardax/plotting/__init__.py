"""Figures: functions that take an `Axes`, draw on it and return it (extra `plot`).

Nothing here uses pyplot or global state. `panels` makes a figure with axes in the library's style, `colour_of` keeps
the colour of a name the same in every figure.
"""

try:
    import matplotlib  # noqa: F401
except ImportError as error:
    raise ImportError("figures need matplotlib: pip install 'vardax[plot]'") from error

from vardax.plotting.diagnostics import power_spectra, rank_histogram_bars, signal_by_instrument
from vardax.plotting.fields import hovmoller, truth_analysis_error
from vardax.plotting.scores import score_ranking, score_through_time
from vardax.plotting.style import colour_of, panels

__all__ = [
    "colour_of",
    "hovmoller",
    "panels",
    "power_spectra",
    "rank_histogram_bars",
    "score_ranking",
    "score_through_time",
    "signal_by_instrument",
    "truth_analysis_error",
]
