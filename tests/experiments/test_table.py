"""The table says what the scores say, on the screen, in a file, and when it is read back."""

import csv
import dataclasses
import json

from vardax.experiments.table import Score, format_table, table_of_folder, write_csv

CLIMATOLOGY = Score(
    "climatology", "the mean", 3.63, 0.012, 3.63, 0.012, 20.0, 3.635, None, None, None, 0.4, 0.05, 3.629, None
)
METHOD = Score(
    "ThreeDVar", "cycled", 0.41051, 0.0042, 0.446, 0.005, 9.0, 0.445, 0.968, 8.04, 0.9999, 5.0, 4.83, 0.41, 0.002, 0.896
)
DIVERGED = dataclasses.replace(METHOD, name="Diverged", rmse=float("nan"), expected=None, expected_error=None)


def row(table, name):
    return next(line for line in table.splitlines() if line.startswith(name))


def test_numbers_stand_in_their_columns():
    table = format_table([CLIMATOLOGY, METHOD])
    assert row(table, "ThreeDVar").split("  ")[0] == "ThreeDVar"
    for text in ("0.411 ± 0.004", "0.410 ± 0.002", "0.446", "0.445", "90 %", "0.968", "8.0", "99.9 %", "5.0", "4.8"):
        assert text in row(table, "ThreeDVar")
    assert row(table, "climatology").count("–") == 4
    header, _, *rows = table.splitlines()[:4]
    assert all(len(line) == len(header) for line in rows)


def test_each_row_has_its_note():
    assert format_table([CLIMATOLOGY, METHOD]).splitlines()[-1].split() == ["ThreeDVar", "cycled"]


def test_not_quite_all_is_not_called_all():
    assert "99.9 %" in row(format_table([METHOD]), "ThreeDVar")
    assert "100 %" in row(format_table([dataclasses.replace(METHOD, converged=1.0)]), "ThreeDVar")


def test_a_table_is_read_back_from_its_folder(tmp_path):
    scores = [CLIMATOLOGY, METHOD, DIVERGED]
    rows = [dataclasses.asdict(score) for score in scores]
    rows[2]["rmse"] = None  # JSON has no NaN
    (tmp_path / "metrics.json").write_text(json.dumps({"rows": rows}))
    assert table_of_folder(tmp_path) == format_table(scores)
    assert "nan" in row(table_of_folder(tmp_path), "Diverged")


def test_the_csv_has_every_number(tmp_path):
    write_csv(tmp_path / "table.csv", [CLIMATOLOGY, METHOD])
    with (tmp_path / "table.csv").open(newline="") as file:
        first, second = csv.DictReader(file)
    assert first["chi_square"] == ""
    assert float(second["rmse"]) == METHOD.rmse
