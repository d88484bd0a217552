"""From trajectories to scores: what the rows of an experiment came to.

For each row, from the first scored cycle on: the time means of the RMSE of analysis and forecast with their 95 %
intervals, the spread that the method expects, how often its 90 % intervals hold the truth, 2 J(x*) / p, and how the
minimisations went.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np

from vardax.diagnostics.consistency import chi_square
from vardax.experiments.table import Score
from vardax.experiments.twin import Estimate, Row, Twin, assimilate
from vardax.experiments.uncertainty import uncertainty_of_cycles
from vardax.metrics.scores import rmse, time_mean

__all__ = ["Results", "score_estimates", "score_rows"]


@dataclasses.dataclass(frozen=True)
class Results:
    """An experiment's outcome, in numpy arrays: the truth and its observations, the estimates, and their scores.

    `truth` and `observations` are those of the analysis times, `rmse` holds the analysis RMSE of each row at each of
    them. `left_out` names methods that the experiment cannot run, with the constructor slots that they lack.
    """

    time: np.ndarray
    truth: np.ndarray
    observations: np.ndarray
    first_scored: int
    estimates: list[Estimate]
    rmse: dict[str, np.ndarray]
    scores: list[Score]
    left_out: dict[str, list[str]]


def score_rows(
    twin: Twin,
    rows: Sequence[Row],
    first_scored: int,
    *,
    expected: Mapping[str, Any],
    left_out: Mapping[str, list[str]],
    watch: Callable[..., Any] | None = None,
) -> Results:
    """Run every row and score it from cycle `first_scored` on."""
    estimates = []
    for row in rows:
        with watch(twin.n_cycles, row.name) if watch else nullcontext(lambda done: None) as advance:
            estimate = assimilate(twin, row, advance)
        expects = uncertainty_of_cycles(twin, estimate, first_scored)
        estimates.append(dataclasses.replace(estimate, spread=expects.spread, coverage=expects.coverage))
    return score_estimates(
        estimates, twin.truth[1:], twin.observations, first=first_scored, expected=expected, left_out=left_out
    )


def score_estimates(
    estimates: Sequence[Estimate],
    truth: Any,
    observations: Any,
    *,
    first: int,
    expected: Mapping[str, Any],
    left_out: Mapping[str, list[str]],
) -> Results:
    """Score trajectories against the truth at their times, from the entry `first` on."""
    errors = {e.row.name: np.asarray(rmse(e.history.analysis, truth, axis=1)) for e in estimates}
    scores = [_score(e, truth, errors[e.row.name], first, expected.get(e.row.name)) for e in estimates]
    return Results(
        np.asarray(estimates[0].history.time),
        np.asarray(truth),
        np.asarray(observations),
        first,
        list(estimates),
        errors,
        scores,
        dict(left_out),
    )


def _score(estimate: Estimate, truth: Any, analysis_error: np.ndarray, first: int, expected: Any) -> Score:
    history, row = estimate.history, estimate.row
    analysis = time_mean(analysis_error[first:])
    forecast = time_mean(rmse(history.forecast, truth, axis=1)[first:])
    report = history.report
    analysed = report is not None
    return Score(
        name=row.name,
        note=row.note,
        rmse=float(analysis.value),
        rmse_half_width=float(analysis.half_width),
        forecast_rmse=float(forecast.value),
        forecast_half_width=float(forecast.half_width),
        autocorrelation_time=float(analysis.autocorrelation_time),
        spread=estimate.spread,
        chi_square=float(np.mean(chi_square(report.cost, history.n_observed)[first:])) if analysed else None,
        iterations=float(np.mean(report.n_iterations[first:])) if analysed else None,
        converged=float(np.mean(report.converged[first:])) if analysed else None,
        compile_seconds=estimate.compile_seconds,
        run_seconds=estimate.run_seconds,
        expected=expected.measured if expected else None,
        expected_error=expected.standard_error if expected else None,
        coverage=estimate.coverage,
    )
