"""Checkpoints of a training: all that the next step depends on, in a registry of `vardax.persist`.

    folder/checkpoints/     the state after the latest checkpoint, tagged "latest"; nothing pickled
    folder/metrics.jsonl    one line for each step

A checkpoint is written beside its predecessor, which goes when the new one is complete and has the tag: a killed
training leaves the old one or the new one. It comes back bit for bit, into the model and the optimiser that the program
has made again; where these differ, the first difference is named.
"""

import dataclasses
import os
import pathlib
from typing import Any

import jax
import numpy as np

from vardax.persist.registry import LocalModelRegistry

__all__ = ["TrainingState", "checkpoint", "latest"]

TAG = "latest"


@dataclasses.dataclass(frozen=True)
class TrainingState:
    """After `step` steps: what is trained, and where in the data the next step is.

    `settings` are what must be the same when a training goes on. `best` is the model with the lowest validation loss,
    `waited` the number of validations since.
    """

    settings: dict[str, Any]
    key: jax.Array
    model: Any
    opt_state: Any
    average: Any
    best: Any
    best_loss: np.float64 = np.float64(np.inf)
    best_step: np.int64 = np.int64(0)
    step: np.int64 = np.int64(0)
    epoch: np.int64 = np.int64(0)
    position: np.int64 = np.int64(0)
    waited: np.int64 = np.int64(0)
    n_skipped: np.int64 = np.int64(0)


def checkpoint(folder: str | os.PathLike, state: TrainingState) -> None:
    """Write the state; earlier ones are removed."""
    registry = _registry(folder)
    ref = registry.store(state, tags=[TAG])
    for stored in registry.list():
        if stored.ref != ref:
            registry.remove(stored.ref)


def latest(folder: str | os.PathLike, start: TrainingState) -> TrainingState:
    """The latest state in a folder, or `start` where there is none; `start` is also what the state must be like."""
    registry = _registry(folder)
    try:
        if not any(TAG in stored.tags for stored in registry.list()):
            return start
        state = registry.load(TAG, skeleton=start)
    except ValueError as error:
        raise ValueError(
            f"fit: the checkpoint in {str(folder)!r} is not of this training, or damaged; give another `folder` to "
            f"begin anew. {error}"
        ) from error
    if not np.array_equal(jax.random.key_data(state.key), jax.random.key_data(start.key)):
        raise ValueError(f"fit: `key` is not the one with which the training in {str(folder)!r} began.")
    return state


def _registry(folder: str | os.PathLike) -> LocalModelRegistry:
    return LocalModelRegistry(pathlib.Path(folder) / "checkpoints")
