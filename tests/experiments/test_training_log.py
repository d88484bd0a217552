"""A log has one JSON object a line, and after an interruption those of the steps that count."""

import json

import pytest

from vardax.experiments.training_log import TrainingLog


def logged(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_each_step_is_a_line_as_soon_as_it_is_added(tmp_path):
    log = TrainingLog(tmp_path / "run", 0)
    for step in (1, 2):
        log.add(step=step, loss=0.5)
        assert logged(tmp_path / "run") == log.records == [{"step": n, "loss": 0.5} for n in range(1, step + 1)]
    log.flush()


def test_what_is_not_finite_is_null(tmp_path):
    log = TrainingLog(tmp_path, 0)
    log.add(step=1, loss=float("nan"), validation=float("inf"))
    assert logged(tmp_path) == [{"step": 1, "loss": None, "validation": None}]


def test_lines_after_the_checkpoint_and_broken_ones_are_dropped(tmp_path):
    log = TrainingLog(tmp_path, 0)
    for step in range(1, 5):
        log.add(step=step)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "lo')
    assert TrainingLog(tmp_path, 2).records == logged(tmp_path) == [{"step": 1}, {"step": 2}]
    with pytest.raises(ValueError, match="has 2 of the 3 steps before the checkpoint"):
        TrainingLog(tmp_path, 3)


def test_without_a_folder_it_is_in_memory():
    log = TrainingLog(None, 7)
    log.add(step=8)
    log.flush()
    assert log.records == [{"step": 8}]
