"""The batches of a training, epoch after epoch, from any place on.

Three kinds of data are taken: a batch of many windows, cut into minibatches anew in each epoch in an order that depends
on a key and the number of the epoch alone; batches that can be iterated over again and again (a list, a data loader);
and a function that gives the batches of the epoch with a number. The next batch after (epoch, position) is the same
whether a training came to it or began there.
"""

import dataclasses
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import jax
from jaxtyping import PRNGKeyArray

from vardax.training.minibatches import empty_windows, minibatches
from vardax.types import AbstractBatch

__all__ = ["TrainingData", "check_iterable", "check_windows", "validation_batches"]


@dataclasses.dataclass(frozen=True)
class TrainingData:
    """`batches`, with the `size` of minibatches and the `key` of their order where they are one batch of windows."""

    batches: Any
    size: int | None
    key: PRNGKeyArray

    def __post_init__(self):
        if isinstance(self.batches, AbstractBatch):
            check_windows(self.batches, "batches")
            if self.size is None:
                raise ValueError(
                    f"fit: `batch_size` is missing; `batches` is one {type(self.batches).__name__} of "
                    f"{self.batches.n_samples} windows, to be cut into minibatches."
                )
            minibatches(self.batches, self.size)  # checks the size
        elif self.size is not None:
            raise ValueError("fit: `batch_size` is given, but `batches` is not one batch of windows to be cut.")
        elif not callable(self.batches):
            check_iterable(self.batches, "batches")

    def since(self, epoch: int, position: int) -> Iterator[tuple[int, int, Any]]:
        """(number of the epoch, of the batch in it, batch), without an end."""
        while True:
            found = enumerate(self._epoch(epoch))
            place = -1
            for place, batch in islice(found, position, None):
                yield epoch, place, batch
            if place < 0 and position == 0:
                raise ValueError(f"fit: `batches` gave no batch in epoch {epoch}.")
            epoch, position = epoch + 1, 0

    def _epoch(self, epoch: int) -> Iterator[Any]:
        if self.size is not None:
            return minibatches(self.batches, self.size, jax.random.fold_in(self.key, epoch))
        batches: Any = self.batches(epoch) if callable(self.batches) else self.batches
        return iter(batches)


def validation_batches(validation: Any, size: int | None) -> Iterator[Any]:
    """The validation data, each window once."""
    if not isinstance(validation, AbstractBatch):
        return iter(validation)
    n = validation.n_samples
    return minibatches(validation, n if size is None else min(size, n))


def check_windows(batch: AbstractBatch, name: str) -> None:
    """Every window has something to learn from."""
    if bad := empty_windows(batch):
        shown = ", ".join(map(str, bad[:5])) + (", ..." if len(bad) > 5 else "")
        raise ValueError(
            f"fit: in {len(bad)} windows of `{name}` ({shown}) nothing is observed, or no entry of the target is "
            "known; leave them out: vardax.training.take_windows(batch, others)."
        )


def check_iterable(batches: Any, name: str) -> None:
    """They can be iterated over more than once."""
    if not isinstance(batches, Iterable) or iter(batches) is batches:
        raise TypeError(
            f"fit: `{name}` is {type(batches).__name__}, expected a batch of windows, or batches that can be iterated "
            "over in every epoch: a list, or a function of the number of the epoch instead of a generator."
        )
