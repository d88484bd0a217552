"""What a run leaves behind: the table, and a folder with settings, scores, trajectories and figures.

    resolved.toml   every setting; `vardax run NAME --config resolved.toml` repeats the run
    metrics.json    every number of the table at full precision, settings, versions and machine
    table.txt, table.csv
    analysis.nc     truth, observations, analyses and forecasts of every row (extra `io`)
    rmse.png, scores.png, states.png                                          (extra `plot`)

Without an extra its files are left out, and `missing_extras` says so beforehand.
"""

import dataclasses
import importlib.metadata
import importlib.util
import json
import os
import pathlib
import platform
from typing import Any

import numpy as np

from vardax.experiments.config import to_toml
from vardax.experiments.results import Results
from vardax.experiments.table import format_table, write_csv

__all__ = ["missing_extras", "write_report"]

NEEDED = {"io": ("xarray", "h5netcdf", "h5py"), "plot": ("matplotlib",)}
FILES = {"io": "analysis.nc", "plot": "figures"}
SHOWN = 200
"""Analysis times in the figure of states."""


def missing_extras() -> dict[str, str]:
    """What a run will leave out on this machine, by the extra that would bring it."""
    return {
        extra: FILES[extra]
        for extra, packages in NEEDED.items()
        if any(importlib.util.find_spec(package) is None for package in packages)
    }


def write_report(folder: pathlib.Path, name: str, config: Any, results: Results) -> list[pathlib.Path]:
    """Write all files of a run into `folder` and return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    settings = to_toml(config, f"vardax run {name} --config resolved.toml")
    metrics = _metrics(name, config, results)
    (folder / "resolved.toml").write_text(settings, encoding="utf-8")
    (folder / "metrics.json").write_text(json.dumps(metrics, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    (folder / "table.txt").write_text(format_table(results.scores) + "\n", encoding="utf-8")
    write_csv(folder / "table.csv", results.scores)
    missing = missing_extras()
    if "io" not in missing:
        _write_netcdf(folder / "analysis.nc", name, settings, results)
    if "plot" not in missing:
        _write_figures(folder, name, results)
    return sorted(folder.iterdir())


def _metrics(name: str, config: Any, results: Results) -> dict[str, Any]:
    """Everything but the trajectories, JSON-safe: a number that is not finite is null."""

    def safe(value: Any) -> Any:
        return None if isinstance(value, float) and not np.isfinite(value) else value

    rows = [{key: safe(value) for key, value in dataclasses.asdict(score).items()} for score in results.scores]
    return {
        "experiment": name,
        "settings": dataclasses.asdict(config),
        "first_scored_cycle": results.first_scored,
        "rows": rows,
        "left_out": results.left_out,
        "versions": _versions(),
        "machine": {"system": platform.platform(), "processor": platform.machine(), "cores": os.cpu_count()},
    }


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in ("vardax", "jax", "equinox", "lineax", "optimistix", "numpy"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def _write_netcdf(path: pathlib.Path, name: str, settings: str, results: Results) -> None:
    from vardax.data.dataset import Variable, save_dataset, to_dataset

    rows = results.estimates
    stacked = ("da_method", "time", "x")  # not "method", which is an argument of xarray's `sel`
    unit = "1"
    coords = {
        "da_method": Variable(("da_method",), [e.row.name for e in rows], long_name="row of the table"),
        "time": Variable(("time",), results.time, unit, "model time of the analysis"),
        "x": Variable(("x",), np.arange(results.truth.shape[1]), unit, "number of the variable"),
    }
    variables = {
        "truth": Variable(("time", "x"), results.truth, unit, "simulated truth"),
        "observations": Variable(("time", "x"), results.observations, unit, "observed values"),
        "analysis": Variable(stacked, np.stack([e.history.analysis for e in rows]), unit, "state after the analysis"),
        "forecast": Variable(stacked, np.stack([e.history.forecast for e in rows]), unit, "state before the analysis"),
        "rmse": Variable(("da_method", "time"), np.stack([*results.rmse.values()]), unit, "analysis RMSE over x"),
    }
    attrs = {"title": f"vardax run {name}", "source": f"vardax {_versions()['vardax']}", "settings": settings}
    save_dataset(to_dataset(variables, coords, attrs), path, dtype="float32")


def _write_figures(folder: pathlib.Path, name: str, results: Results) -> None:
    from vardax.plotting.fields import truth_analysis_error
    from vardax.plotting.scores import score_ranking, score_through_time
    from vardax.plotting.style import panels

    scores = {score.name: score for score in results.scores}
    start = float(results.time[results.first_scored])

    figure, axes = panels(size=(9, 4.8))
    smooth = max(len(results.time) // 100, 1)
    label = f"analysis RMSE, mean over {smooth} times" if smooth > 1 else "analysis RMSE"
    noise = float(np.sqrt(np.nanmean((results.observations - results.truth) ** 2)))
    reference = (noise, "error of the observations")
    score_through_time(
        axes[0, 0], results.time, results.rmse, burn_in=start, reference=reference, smooth=smooth, label=label
    )
    axes[0, 0].set_title(f"{name}: error through time", loc="left", fontsize=11, pad=18)
    figure.savefig(folder / "rmse.png")

    figure, axes = panels(size=(8, 1.5 + 0.42 * len(scores)))
    expected = {score.name: score.expected for score in results.scores if score.expected is not None}
    half_widths = {score.name: score.rmse_half_width for score in results.scores}
    score_ranking(axes[0, 0], {n: s.rmse for n, s in scores.items()}, half_widths, expected=expected)
    axes[0, 0].set_title(f"{name}: time mean with 95 % interval", loc="left", fontsize=11)
    figure.savefig(folder / "scores.png")

    best = min(results.estimates, key=lambda e: np.nan_to_num(scores[e.row.name].rmse, nan=np.inf))
    part = slice(-SHOWN, None)
    figure, axes = panels(1, 3, size=(10, 6), sharey=True)
    analysis = best.history.analysis[part]
    truth_analysis_error(
        axes[0], results.time[part], results.truth[part], analysis, name=best.row.name, position_label="x"
    )
    figure.savefig(folder / "states.png")
