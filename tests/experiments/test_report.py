"""A run leaves readable files: settings that repeat it, scores, trajectories and figures."""

import dataclasses
import json
import tomllib

import numpy as np
import pytest

from vardax.data.dataset import load_dataset
from vardax.experiments import lorenz96, report
from vardax.experiments.config import build
from vardax.experiments.lorenz96 import Lorenz96Config
from vardax.experiments.report import missing_extras, write_report
from vardax.experiments.table import format_table, table_of_folder

CONFIG = Lorenz96Config(cycles=40, burn_in=0.5, methods=("OptimalInterpolation",), precision="float32")


@pytest.fixture(scope="module")
def results():
    return lorenz96.run(CONFIG)


@pytest.fixture(scope="module")
def folder(results, tmp_path_factory):
    path = tmp_path_factory.mktemp("run") / "deep" / "er"
    write_report(path, "lorenz96", CONFIG, results)
    return path


def test_all_files_are_there(folder):
    names = {path.name for path in folder.iterdir()}
    assert names == {
        *("resolved.toml", "metrics.json", "table.txt", "table.csv", "analysis.nc"),
        *("rmse.png", "scores.png", "states.png"),
    }


def test_the_settings_repeat_the_run(folder):
    assert build(Lorenz96Config, tomllib.loads((folder / "resolved.toml").read_text())) == CONFIG


def test_the_scores_are_at_full_precision(folder, results):
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["experiment"] == "lorenz96"
    assert metrics["settings"]["cycles"] == 40
    assert {row["name"]: row["rmse"] for row in metrics["rows"]} == {s.name: s.rmse for s in results.scores}
    assert {"python", "vardax", "jax", "numpy"} <= set(metrics["versions"])
    assert metrics["machine"]["cores"]


def test_the_table_is_the_same_in_all_places(folder, results):
    table = format_table(results.scores)
    assert (folder / "table.txt").read_text() == table + "\n"
    assert table_of_folder(folder) == table


def test_the_trajectories_are_labelled(folder, results):
    dataset = load_dataset(folder / "analysis.nc")
    assert dict(dataset.sizes) == {"da_method": 3, "time": 40, "x": 40}
    assert [str(name) for name in dataset.da_method.values] == ["climatology", "background", "OptimalInterpolation"]
    analysis = dataset.analysis.sel(da_method="OptimalInterpolation")
    np.testing.assert_allclose(analysis, results.estimates[-1].history.analysis, rtol=1e-6)
    np.testing.assert_allclose(dataset.truth, results.truth, rtol=1e-6)
    errors = np.sqrt(((dataset.analysis - dataset.truth) ** 2).mean("x"))
    np.testing.assert_allclose(dataset.rmse, errors.transpose("da_method", "time"), rtol=1e-4)
    assert dataset.time.attrs["long_name"] == "model time of the analysis"
    assert tomllib.loads(dataset.attrs["settings"])["seed"] == 0


@pytest.mark.parametrize("name", ["rmse.png", "scores.png", "states.png"])
def test_figures_are_pictures(folder, name):
    data = (folder / name).read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    assert len(data) > 10_000


def test_without_an_extra_its_files_are_left_out(results, tmp_path, monkeypatch):
    monkeypatch.setattr(report, "NEEDED", {"io": ("no_such_package",), "plot": ("no_such_package_either",)})
    assert missing_extras() == {"io": "analysis.nc", "plot": "figures"}
    files = write_report(tmp_path / "run", "lorenz96", CONFIG, results)
    assert [path.name for path in files] == ["metrics.json", "resolved.toml", "table.csv", "table.txt"]


def test_a_diverged_row_can_be_reported(results, tmp_path):
    bad = dataclasses.replace(results.scores[-1], rmse=float("nan"), forecast_rmse=float("nan"))
    broken = dataclasses.replace(results, scores=[*results.scores[:-1], bad])
    write_report(tmp_path / "run", "lorenz96", CONFIG, broken)
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["rows"][-1]["rmse"] is None
    assert "nan" in table_of_folder(tmp_path / "run")
