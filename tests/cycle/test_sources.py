"""Entries of observations come in order, whatever they come from."""

import numpy as np
import pytest

from vardax.cycle.sources import as_observations, as_source
from vardax.types import Observations


def points(p):
    return Observations(np.arange(float(p)), 1.0, 0.0, np.zeros((p, 1)))


def test_an_iterator_starts_at_the_first_number_asked_for():
    source = as_source(iter("abcd"), window=2)
    assert [source(5), source(6)] == ["a", "b"]


def test_an_iterator_remembers_a_window():
    source = as_source(iter("abcd"), window=2)
    assert [source(k) for k in (0, 1, 1, 2, 1, 2, 3)] == ["a", "b", "b", "c", "b", "c", "d"]
    with pytest.raises(ValueError, match="already given entry 1 away; use a callable"):
        source(1)
    with pytest.raises(ValueError, match="ended before entry 4"):
        source(4)


def test_entries_may_be_skipped():
    source = as_source(iter("abcd"), window=1)
    assert [source(0), source(3)] == ["a", "d"]


def test_lists_and_arrays_are_stacked():
    source = as_source([[1, 2], [3, 4]], window=1)
    assert source.shape == (2, 2)
    assert np.issubdtype(source.dtype, np.floating)


def test_points_are_asked_by_number():
    source = as_source([points(2), points(5)], window=1)
    assert [source(k).value.shape[0] for k in (1, 0, 1)] == [5, 2, 5]
    with pytest.raises(ValueError, match="`obs_source` has 2 entries of Observations, expected an entry 2"):
        source(2)


def test_counts_of_points_are_filled_up_to_a_few():
    assert {as_observations(points(p)).value.shape[0] for p in range(1, 30)} == {32}
    assert as_observations(points(3).pad_to(7)).value.shape == (7,)
    assert as_observations(points(3)).instrument.dtype == np.int32
