"""Where a cycle gets its observations: entry i of a callable, an iterator or a stacked array.

A stacked array has the entries on its first axis and lives on the device: a cycle over it is one compiled loop. A
callable `source(i)` or an iterator is asked from the host, entry by entry, while the analysis itself stays compiled.
Missing values are NaN. A filter cycle also takes scattered `Observations`, from a callable, an iterator or a list, and
fills up their counts to a few. None observes nothing.
"""

import collections
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, PyTree

from vardax.minimisers.point_counts import as_points, bucket_of
from vardax.types import Observations, float_array, is_traced

__all__ = ["as_observations", "as_source", "check_length", "first_number"]


def as_source(obs_source: Any, window: int) -> Array | Callable[[int], Any] | None:
    """What a cycle keeps: an array of entries, or `source(i)`, or None.

    A list of `Observations` is asked by number. An iterator gives its items in order, the first one to the first entry
    that is asked for. The last `window` entries are remembered, because overlapping windows ask for them again.
    """
    if obs_source is None or callable(obs_source):
        return obs_source
    if isinstance(obs_source, Iterator):
        return _InOrder(obs_source, window)
    if points := as_points(obs_source):
        return partial(_numbered, points)
    stacked = float_array(obs_source)
    if stacked.ndim == 0:
        raise ValueError(
            f"`obs_source` is the single value {stacked}, expected an array with one entry per observation time on its "
            "first axis, a callable or an iterator."
        )
    return stacked


def _numbered(points: list[Observations], number: int) -> Observations:
    if not number < len(points):
        raise ValueError(f"`obs_source` has {len(points)} entries of Observations, expected an entry {number}.")
    return points[number]


class _InOrder:
    """An iterator that can be asked for its last few items again."""

    def __init__(self, items: Iterator, window: int):
        self.items, self.kept = items, collections.deque(maxlen=window)
        self.started, self.next_number = False, 0

    def __call__(self, number: int) -> Any:
        if not self.started:
            self.started, self.next_number = True, number
        while self.next_number <= number:
            self._draw()
        age = self.next_number - number
        if age > len(self.kept):
            raise ValueError(f"`obs_source` is an iterator and has already given entry {number} away; use a callable.")
        return self.kept[-age]

    def _draw(self) -> None:
        try:
            self.kept.append(next(self.items))
        except StopIteration:
            raise ValueError(f"`obs_source` is an iterator that ended before entry {self.next_number}.") from None
        self.next_number += 1


def as_observations(entry: Any) -> PyTree[Array]:
    """The arrays of one entry, whichever array library made them; points of a count that compiles but a few times."""
    if isinstance(entry, Observations):
        return entry if entry.padded else entry.pad_to(bucket_of(entry.value.shape[0]))
    return jax.tree.map(float_array, entry)


def check_length(source: Array, cycle_count: Any, n_steps: int, window: int, stride: int) -> None:
    """Refuse an array that is too short for the cycles asked for: a slice beyond its end would repeat its last entries.

    Under the user's own jit the number of the first cycle is not known; then it is taken to be 0.
    """
    first = 0 if is_traced(cycle_count) else int(cycle_count)
    last = first + n_steps - 1
    needed = last * stride + window
    if source.shape[0] < needed:
        raise ValueError(
            f"`obs_source` has {source.shape[0]} entries, expected at least {needed} for cycles {first} to {last}. "
            "Give more observations, fewer `n_steps`, or a DAState with a smaller cycle_count."
        )


def first_number(cycle_count: Any, carry: PyTree[Array]) -> int:
    """The number of the first cycle, for a source that is asked on the host."""
    if any(is_traced(leaf) for leaf in jax.tree.leaves((cycle_count, carry))):
        raise ValueError(
            "`obs_source` is a callable or an iterator, which cannot be asked under jit, vmap or grad; give the "
            "observations as one stacked array."
        )
    return int(np.asarray(cycle_count))
