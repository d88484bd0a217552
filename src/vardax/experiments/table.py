"""The table of an experiment: one `Score` per row, as text, CSV and back from a run folder. Needs no JAX."""

import csv
import dataclasses
import json
import math
import pathlib
from collections.abc import Sequence

__all__ = ["Score", "format_table", "table_of_folder", "write_csv"]

COLUMNS = (
    "method",
    "RMSE ± 95 %",
    "expected",
    "forecast",
    "spread",
    "in 90 %",
    "2J/p",
    "iterations",
    "converged",
    "compile s",
    "run s",
)


@dataclasses.dataclass(frozen=True)
class Score:
    """One row of the table. Numbers that a row does not have are None.

    `coverage` is the share of the truth within the 90 % intervals of the posterior: 0.9 where it is right.
    """

    name: str
    note: str
    rmse: float
    rmse_half_width: float
    forecast_rmse: float
    forecast_half_width: float
    autocorrelation_time: float
    spread: float | None
    chi_square: float | None
    iterations: float | None
    converged: float | None
    compile_seconds: float
    run_seconds: float
    expected: float | None = None
    expected_error: float | None = None
    coverage: float | None = None


def format_table(scores: Sequence[Score]) -> str:
    """The scores in columns, with a line on each row's meaning below."""
    lines = [COLUMNS, *(_cells(score) for score in scores)]
    widths = [max(len(line[k]) for line in lines) for k in range(len(COLUMNS))]
    text = ["  ".join(_aligned(line, widths)).rstrip() for line in lines]
    rule = "─" * len(text[0])
    notes = [f"{score.name.ljust(widths[0])}  {score.note}" for score in scores]
    return "\n".join([text[0], rule, *text[1:], rule, *notes])


def _cells(score: Score) -> tuple[str, ...]:
    def number(value: float | None, digits: str = ".3f") -> str:
        return "–" if value is None else format(value, digits)

    expected = number(score.expected)
    if score.expected_error is not None:
        expected += f" ± {score.expected_error:.3f}"
    return (
        score.name,
        f"{score.rmse:.3f} ± {score.rmse_half_width:.3f}",
        expected,
        number(score.forecast_rmse),
        number(score.spread),
        "–" if score.coverage is None else f"{100 * score.coverage:.0f} %",
        number(score.chi_square),
        number(score.iterations, ".1f"),
        "–" if score.converged is None else _percent(score.converged),
        number(score.compile_seconds, ".1f"),
        number(score.run_seconds, ".1f"),
    )


def _percent(share: float) -> str:
    """Never rounded up to 100 %."""
    return f"{math.floor(share * 1000) / 10:g} %"


def _aligned(line: Sequence[str], widths: Sequence[int]) -> list[str]:
    first, *rest = line
    return [first.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True))]


def table_of_folder(folder: pathlib.Path) -> str:
    """The table of a past run, from its `metrics.json`."""
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    fields = {field.name for field in dataclasses.fields(Score)}
    rows = [{key: value for key, value in row.items() if key in fields} for row in metrics["rows"]]
    nan = {"rmse", "rmse_half_width", "forecast_rmse", "forecast_half_width"}
    rows = [{k: float("nan") if v is None and k in nan else v for k, v in row.items()} for row in rows]
    return format_table([Score(**row) for row in rows])


def write_csv(path: pathlib.Path, scores: Sequence[Score]) -> None:
    """Every field of every score; what a row does not have is empty."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [field.name for field in dataclasses.fields(Score)])
        writer.writeheader()
        writer.writerows(dataclasses.asdict(score) for score in scores)
