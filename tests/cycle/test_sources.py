"""Entries of observations come in order, whatever they come from."""

import numpy as np
import pytest

from vardax.cycle.sources import as_source


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
