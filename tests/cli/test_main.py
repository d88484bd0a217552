"""The command does what it says, and says what it does not know."""

import json
import os
import subprocess
import sys

import pytest

from vardax.cli.main import main, version
from vardax.experiments.index import EXPERIMENTS

LIGHT = ["--help"], ["--version"], ["list"], ["show", "lorenz96"], ["show", "ThreeDVar"], ["run", "--help"], ["shwo"]


def in_new_process(*arguments, code=None):
    command = [sys.executable, *(["-c", code] if code else ["-m", "vardax.cli"]), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONUTF8": "1"}, check=False)


@pytest.mark.parametrize("arguments", LIGHT, ids=" ".join)
def test_jax_is_not_imported_before_it_is_needed(arguments):
    code = (
        "import sys\n"
        "from vardax.cli.main import main\n"
        "try:\n    main(sys.argv[1:])\nexcept SystemExit:\n    pass\n"
        "heavy = {'jax', 'equinox', 'lineax', 'xarray', 'matplotlib'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)\n"
    )
    done = in_new_process(*arguments, code=code)
    assert done.returncode == 0, done.stderr


def test_the_module_is_the_command():
    done = in_new_process("--version")
    assert (done.returncode, done.stdout.strip()) == (0, f"vardax {version()}")
    assert in_new_process("rnu").returncode == 2


def test_help_names_the_commands(capsys):
    assert main([]) == 0
    bare = capsys.readouterr().out
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    assert capsys.readouterr().out == bare
    for word in ("run", "list", "show", "--version"):
        assert word in bare


def test_list_has_a_line_for_each(capsys):
    assert main(["list"]) == 0
    lines = [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines() if line.startswith("  ")]
    assert {"lorenz96", "OptimalInterpolation", "ThreeDVar", "StrongFourDVar"} <= {line[0] for line in lines}
    assert all(len(line) == 2 for line in lines)


def test_show_an_experiment(capsys):
    assert main(["show", "lorenz96"]) == 0
    text = capsys.readouterr().out
    for words in (
        "Sakov",
        "burn_in",
        "observation times",
        "With --quick: cycles = 600",
        "0.410 ± 0.002  (stated: 0.41)",
    ):
        assert words in text


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_shows_what_is_expected_of_it(name, capsys):
    assert main(["show", name]) == 0
    shown = capsys.readouterr().out.partition("Expected scores")[2]
    assert "OptimalInterpolation" in shown
    assert "±" in shown


def test_show_a_method(capsys):
    assert main(["show", "ThreeDVar"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("ThreeDVar\n")
    assert "J(x)" in text


TYPOS = {
    "command": (["rnu"], "unknown command 'rnu'; did you mean 'run'? Known: list, run, show."),
    "experiment": (["run", "lorenz69"], "unknown experiment 'lorenz69'; did you mean 'lorenz96'?"),
    "option": (["run", "lorenz96", "--cylces", "3"], "unknown argument '--cylces'; did you mean '--cycles'?"),
    "option of the command": (["--hlep"], "unknown argument '--hlep'; did you mean '--help'?"),
    "key": (["run", "lorenz96", "--set", "cyles=3"], "unknown key 'cyles'; did you mean 'cycles'?"),
    "value": (["run", "lorenz96", "--set", "precision=float16"], "unknown value of precision 'float16'"),
    "method": (["run", "lorenz96", "--methods", "ThreDVar"], "unknown method 'ThreDVar'; did you mean 'ThreeDVar'?"),
    "name to show": (["show", "Lorenz69"], "did you mean 'lorenz96'?"),
    "no experiment": (["run"], "the following arguments are required: EXPERIMENT (see `vardax run --help`)"),
    "no number": (["run", "lorenz96", "--cycles", "many"], "argument --cycles: invalid int value: 'many'"),
    "a setting out of range": (["run", "lorenz96", "--cycles", "3"], "cycles is 3, expected more than 400"),
    "no file": (["run", "lorenz96", "--config", "none.toml"], "cannot read the settings file 'none.toml'"),
}


@pytest.mark.parametrize("case", TYPOS)
def test_what_does_not_exist_is_said_with_exit_code_2(case, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments, words = TYPOS[case]
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("vardax: ")
    assert words in captured.err
    assert captured.out == ""
    assert list(tmp_path.iterdir()) == []


def test_run_writes_what_it_prints_and_show_reads_it_back(tmp_path, capsys):
    settings = tmp_path / "settings.toml"
    settings.write_text('seed = 7\nburn_in = 3.0\nprecision = "float32"\nmethods = ["ThreeDVar"]\n')
    out = tmp_path / "first"
    options = ["--methods", "OptimalInterpolation", "--set", "burn_in=0.5", "--set", "xB=0.03", "--out", str(out)]
    assert main(["run", "lorenz96", "--config", str(settings), "--cycles", "30", *options]) == 0
    printed = capsys.readouterr().out
    table = (out / "table.txt").read_text()
    assert table in printed
    metrics = json.loads((out / "metrics.json").read_text())
    used = metrics["settings"]
    assert (used["seed"], used["cycles"], used["burn_in"], used["xB"]) == (7, 30, 0.5, 0.03)
    assert [row["name"] for row in metrics["rows"]] == ["climatology", "background", "OptimalInterpolation"]
    assert all(row["expected"] is None for row in metrics["rows"])

    assert main(["show", str(out)]) == 0
    assert capsys.readouterr().out == table

    again = tmp_path / "again"
    assert main(["run", "lorenz96", "--config", str(out / "resolved.toml"), "--out", str(again)]) == 0
    rows = json.loads((again / "metrics.json").read_text())["rows"]
    timed = ("compile_seconds", "run_seconds")
    assert [{k: v for k, v in row.items() if k not in timed} for row in rows] == [
        {k: v for k, v in row.items() if k not in timed} for row in metrics["rows"]
    ]

    assert main(["run", "lorenz96", "--out", str(out)]) == 2
    assert "is not empty; choose another one with --out" in capsys.readouterr().err


def test_quick_is_short_and_what_is_said_beside_it_wins(tmp_path, monkeypatch, capsys):
    chosen = {}

    def run(config, watch):
        chosen["config"] = config
        raise KeyboardInterrupt

    monkeypatch.setattr("vardax.experiments.lorenz96.run", run)
    monkeypatch.chdir(tmp_path)
    assert main(["run", "lorenz96", "--quick", "--seed", "4"]) == 130
    assert (chosen["config"].cycles, chosen["config"].burn_in, chosen["config"].seed) == (600, 10.0, 4)
    assert main(["run", "lorenz96", "--quick", "--cycles", "300"]) == 130
    assert chosen["config"].cycles == 300
    assert "interrupted" in capsys.readouterr().err
    folders = [path.name for path in (tmp_path / "runs").iterdir()]
    assert len(folders) == 2
    assert all(name.startswith("lorenz96-2") for name in folders)


def test_show_refuses_a_folder_that_is_no_run(tmp_path, capsys):
    assert main(["show", str(tmp_path)]) == 2
    assert "has no metrics.json; expected the folder of a run" in capsys.readouterr().err


def test_a_place_that_cannot_be_written_to_is_said(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main(["run", "lorenz96", "--out", str(tmp_path / "file" / "below")]) == 2
    assert "cannot write to" in capsys.readouterr().err


def test_missing_extras_are_said_before_the_run(tmp_path, monkeypatch, capsys):
    def run(config, watch):
        raise KeyboardInterrupt

    monkeypatch.setattr("vardax.experiments.lorenz96.run", run)
    monkeypatch.setattr("vardax.experiments.report.NEEDED", {"io": ("no_such_package",), "plot": ()})
    assert main(["run", "lorenz96", "--out", str(tmp_path / "run")]) == 130
    assert "without analysis.nc: for them, pip install 'vardax[io]'" in capsys.readouterr().out
