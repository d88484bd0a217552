"""The log of a training as JSON lines: one object for each step, on disk as soon as the step is done.

    {"step": 7, "epoch": 0, "loss": 0.31, "skipped": false, "seconds": 0.02, "validation": 0.35}

A number that is not finite is null. When a training goes on from a checkpoint, what it had logged after that is
dropped, so that the log is that of a training which was never interrupted.
"""

import json
import math
import os
import pathlib
from typing import Any

from vardax.persist.files import write_flushed

__all__ = ["TrainingLog"]


class TrainingLog:
    """The records of the steps up to `step`, in memory and, with a `folder`, in its `metrics.jsonl`."""

    def __init__(self, folder: str | os.PathLike | None, step: int):
        self.path = None if folder is None else pathlib.Path(folder) / "metrics.jsonl"
        self.records: list[dict[str, Any]] = []
        if self.path is None:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.records = [record for record in _read(self.path) if record["step"] <= step]
        if len(self.records) != step:
            raise ValueError(
                f"fit: {str(self.path)!r} has {len(self.records)} of the {step} steps before the checkpoint; give "
                "another `folder` to begin anew."
            )
        written = self.path.with_suffix(".incoming")
        write_flushed(written, "".join(map(_line, self.records)).encode())
        os.replace(written, self.path)

    def add(self, **record: Any) -> None:
        """Log one step."""
        record = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in record.items()}
        self.records.append(record)
        if self.path is not None:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(_line(record))

    def flush(self) -> None:
        """Return when the disk has all that was logged."""
        if self.path is not None:
            with self.path.open("r+b") as file:
                os.fsync(file.fileno())


def _line(record: dict[str, Any]) -> str:
    return json.dumps(record, allow_nan=False) + "\n"


def _read(path: pathlib.Path) -> list[dict[str, Any]]:
    """Every whole line; a writer that was killed may have left the last one unfinished."""
    if not path.exists():
        return []
    whole = path.read_text(encoding="utf-8").split("\n")[:-1]
    return [json.loads(line) for line in whole]
