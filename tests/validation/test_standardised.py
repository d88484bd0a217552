"""Fields in units of their standard deviations."""

import numpy as np

from vardax.validation.spaces import Space
from vardax.validation.standardised import Standardised, deviations_of

SPACE = Space.of({"p": np.ones(2, np.float32), "q": np.ones(1, np.float32)}, "field")


def test_unusable_variances_leave_the_unit_one():
    np.testing.assert_allclose(deviations_of(np.array([4.0, 0.0, -1.0, np.nan, np.inf]), 5), [2, 1, 1, 1, 1])
    np.testing.assert_array_equal(deviations_of(None, 2), [1, 1])


def test_errors_are_those_of_the_worst_array_in_its_own_units():
    subject = Standardised.of(SPACE, lambda v: v, np.array([1e8, 1e8, 1e-8]))
    expected = np.array([1e4, 1e4, 1e-4])
    assert subject.error(expected, expected) == 0
    assert np.isclose(subject.error(expected * np.array([1, 1, 1.5]), expected), 0.5)
