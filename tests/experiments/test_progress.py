"""Progress shows on a terminal and nowhere else."""

import io
import sys

import pytest

from vardax.experiments import progress as module
from vardax.experiments.progress import progress


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self):
        return True


def run(stream):
    with progress(100, "ThreeDVar", stream=stream) as advance:
        for _ in range(4):
            advance(25)
    return stream.getvalue()


def test_nothing_is_written_to_a_file():
    assert run(io.StringIO()) == ""


def test_without_tqdm_there_are_lines(monkeypatch):
    monkeypatch.setitem(sys.modules, "tqdm", None)
    monkeypatch.setattr(module, "SECONDS_BETWEEN_LINES", 0.0)
    assert run(Terminal()).splitlines() == [f"ThreeDVar: {done} of 100 cycles" for done in (25, 50, 75, 100)]


def test_lines_keep_a_distance(monkeypatch):
    monkeypatch.setitem(sys.modules, "tqdm", None)
    assert run(Terminal()) == ""


def test_with_tqdm_there_is_a_bar(monkeypatch):
    calls = []

    class Bar:
        def __init__(self, **options):
            calls.append(options)

        def __enter__(self):
            return self

        def __exit__(self, *error):
            calls.append("closed")

        def update(self, done):
            calls.append(done)

    monkeypatch.setitem(sys.modules, "tqdm", type(sys)("tqdm"))
    monkeypatch.setattr(sys.modules["tqdm"], "tqdm", Bar, raising=False)
    stream = Terminal()
    run(stream)
    assert calls[0]["total"] == 100
    assert calls[0]["desc"] == "ThreeDVar"
    assert calls[1:] == [25, 25, 25, 25, "closed"]


def test_an_error_inside_is_not_hidden():
    with pytest.raises(RuntimeError, match="boom"), progress(1, "x", stream=io.StringIO()):
        raise RuntimeError("boom")
