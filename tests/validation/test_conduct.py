"""Finite, repeatable, and without side effects."""

import numpy as np

from vardax.validation.conduct import conduct_rows


def verdicts(function, state):
    return {row.name: row.passed for row in conduct_rows(function, state, "F")}


def test_a_well_behaved_function_passes():
    assert all(verdicts(np.sin, np.ones(3)).values())
    assert all(verdicts(lambda s: {"a": s["u"], "b": np.zeros(0)}, {"u": np.ones(3)}).values())


def test_values_that_are_not_finite_are_counted():
    (finite, *_) = conduct_rows(lambda x: x * np.array([1.0, np.inf, np.nan]), np.ones(3), "F")
    assert finite.measured == 2


def test_the_same_not_a_number_twice_is_deterministic():
    assert verdicts(lambda x: np.array([np.nan]), np.ones(3)) == {
        "finite": False,
        "deterministic": True,
        "input unchanged": True,
    }


def test_a_random_number_is_seen():
    rng = np.random.default_rng(0)
    assert verdicts(lambda x: x + rng.standard_normal(3), np.ones(3)) == {
        "finite": True,
        "deterministic": False,
        "input unchanged": True,
    }


def test_writing_into_the_state_is_seen():
    def function(x):
        x[0] = 7.0
        return x.sum()

    assert not verdicts(function, np.ones(3))["input unchanged"]
