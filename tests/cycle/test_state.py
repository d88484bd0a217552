"""The clock of a cycle is a plain value with the documented defaults."""

import jax
import jax.numpy as jnp
import numpy as np

from vardax.cycle.state import DAState, count_observed
from vardax.types import Observations


def test_the_clock_starts_at_zero():
    da_state = DAState()
    assert (da_state.t, da_state.cycle_count, da_state.obs_err_cov, da_state.extras) == (0.0, 0, None, None)


def test_the_clock_is_a_pytree():
    doubled = jax.tree.map(lambda leaf: 2 * leaf, DAState(jnp.ones(()), 3, extras={"bias": jnp.ones(2)}))
    assert (float(doubled.t), doubled.cycle_count) == (2.0, 6)
    np.testing.assert_array_equal(doubled.extras["bias"], 2.0)


def test_observed_entries_are_the_finite_ones_of_all_arrays():
    entries = [jnp.array([1.0, jnp.nan]), jnp.array([[jnp.inf, 0.0]])]
    assert int(count_observed(entries)) == 2
    assert int(count_observed(None)) == 0


def test_observed_points_are_those_that_are_valid():
    points = Observations([1.0, float("nan"), 3.0], 1.0, 0.0, np.zeros((3, 1)), valid=[1, 1, 0])
    assert int(count_observed(points)) == 1
