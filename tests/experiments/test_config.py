"""Settings come from TOML and assignments, and what does not exist is refused by name."""

import dataclasses
import tomllib
from typing import Literal

import pytest

from vardax.experiments.config import ConfigError, assignments, build, merge, read_toml, setting, to_toml, unknown


@dataclasses.dataclass(frozen=True)
class Plot:
    """A nested table."""

    dpi: int = setting(150, "dots per inch")
    title: str = setting('a "quoted" title', "")


@dataclasses.dataclass(frozen=True)
class Settings:
    """One of each kind."""

    cycles: int = setting(100, "observation times")
    xB: float = setting(0.02, "scale")
    quiet: bool = setting(False, "say nothing")
    precision: Literal["float32", "float64"] = setting("float64", "")
    methods: tuple[str, ...] = setting((), "")
    limit: float | None = setting(None, "")
    plot: Plot = setting(Plot(), "")

    def __post_init__(self):
        if self.cycles < 1:
            raise ValueError(f"cycles is {self.cycles}, expected at least 1.")


def test_what_is_not_given_keeps_its_default():
    config = build(Settings, {"cycles": 5, "plot": {"dpi": 90}})
    assert config == Settings(cycles=5, plot=Plot(dpi=90))


def test_a_whole_number_may_stand_for_a_number():
    config = build(Settings, {"xB": 1, "limit": 2})
    assert (config.xB, config.limit) == (1.0, 2.0)
    assert isinstance(config.xB, float)


@pytest.mark.parametrize(
    "config",
    [Settings(), Settings(3, 1e-8, True, "float32", ("a", "b"), 0.5, Plot(90, "line\nand \\ backslash"))],
    ids=["defaults", "changed"],
)
def test_a_written_configuration_gives_itself_back(config):
    text = to_toml(config, "two\nlines")
    assert text.startswith("# two\n# lines\n")
    assert build(Settings, tomllib.loads(text)) == config
    assert "cycles = " in text
    assert "# observation times" in text


def test_assignments_are_toml_values_or_bare_words():
    values = assignments(["cycles=7", "precision=float32", "plot.dpi = 80", 'methods=["a"]', "plot.title=x=y"])
    assert values == {
        "cycles": 7,
        "precision": "float32",
        "plot": {"dpi": 80, "title": "x=y"},
        "methods": ["a"],
    }
    assert build(Settings, values).methods == ("a",)


def test_later_values_win_and_tables_are_merged():
    tables = merge({"cycles": 1, "plot": {"dpi": 1}}, {"cycles": 2, "plot": {"title": "t"}})
    assert tables == {"cycles": 2, "plot": {"dpi": 1, "title": "t"}}


BAD = {
    "a typo": ({"cyles": 1}, r"unknown key 'cyles'; did you mean 'cycles'\? Known: cycles, .*xB\."),
    "a typo in a table": ({"plot": {"dip": 1}}, r"unknown key 'plot.dip'; did you mean 'plot.dpi'\?"),
    "nothing near": ({"zzz": 1}, r"unknown key 'zzz'\. Known: cycles"),
    "a text for a number": ({"cycles": "many"}, "cycles is 'many', expected a whole number"),
    "a fraction for a whole number": ({"cycles": 1.5}, "cycles is 1.5, expected a whole number"),
    "true for a number": ({"cycles": True}, "cycles is True, expected a whole number"),
    "a number for true": ({"quiet": 1}, "quiet is 1, expected true or false"),
    "none of the choices": ({"precision": "float16"}, "unknown value of precision 'float16'.*Known: float32, float64"),
    "a text for a list": ({"methods": "a"}, r"methods is 'a', expected a list, such as \[\"a\", \"b\"\]"),
    "an item of a list": ({"methods": [1]}, r"methods\[0\] is 1, expected a text"),
    "a number for a table": ({"plot": 3}, "plot is 3, expected a table"),
    "a value that the settings refuse": ({"cycles": 0}, "cycles is 0, expected at least 1"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_wrong_is_said(case):
    values, words = BAD[case]
    with pytest.raises(ConfigError, match=words):
        build(Settings, values)


def test_an_assignment_needs_an_equals_sign():
    with pytest.raises(ConfigError, match="the setting 'cycles' is not of the form key=value"):
        assignments(["cycles"])


def test_files_that_cannot_be_read_are_said(tmp_path):
    with pytest.raises(ConfigError, match="cannot read the settings file .*: No such file"):
        read_toml(tmp_path / "none.toml")
    path = tmp_path / "bad.toml"
    path.write_text("cycles = = 3")
    with pytest.raises(ConfigError, match="is not TOML"):
        read_toml(path)
    path.write_text("cycles = 3")
    assert read_toml(path) == {"cycles": 3}


def test_the_nearest_name_ignores_case():
    assert "did you mean 'ThreeDVar'?" in unknown("method", "threedvar", ["ThreeDVar", "StrongFourDVar"])
