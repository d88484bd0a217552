"""Where a learned solver starts: interpolation in time against a loop in numpy, with gaps wherever they can be."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vardax.models.first_states import Interpolated, Observed, Zeros
from vardax.types import Batch1D, Batch2DMultivar

ENTRIES, N = 6, 5
Y = np.random.default_rng(0).normal(size=(2, ENTRIES, N))
Y[0, [0, 1, 3], 0] = np.nan  # at the start, and one between
Y[0, 3:, 1] = np.nan  # at the end
Y[0, :, 2] = np.nan  # never observed
Y[0, 1:5, 3] = np.nan  # a long gap
Y[0, [0, 1, 2, 4, 5], 4] = np.nan  # seen once
Y[1] = np.nan  # nothing at all
STRUCTURE = jax.ShapeDtypeStruct((ENTRIES, N), jnp.result_type(float))


def first(kind, y, structure=STRUCTURE, batch=Batch1D):
    observed = batch.from_observations(jnp.asarray(y))
    return kind(observed.input, observed.mask, structure, "FourDVarNet")


def in_a_loop(y):
    seen = np.isfinite(y)
    result = np.full(y.shape, np.mean(y[seen]) if seen.any() else 0.0)
    for place in np.ndindex(y.shape[1:]):
        series = y[(slice(None), *place)]
        at = np.flatnonzero(np.isfinite(series))
        if at.size:
            result[(slice(None), *place)] = np.interp(np.arange(len(series)), at, series[at])
    return result


def test_interpolation_is_linear_between_and_level_beyond_the_observations():
    found = first(Interpolated(), Y)
    np.testing.assert_allclose(found[0], in_a_loop(Y[0]), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(found[1], 0.0)


def test_fields_of_several_variables_are_interpolated_point_by_point():
    y = np.random.default_rng(1).normal(size=(1, 5, 2, 3, 2))
    y[np.random.default_rng(2).random(y.shape) < 0.5] = np.nan
    structure = jax.ShapeDtypeStruct(y.shape[1:], jnp.result_type(float))
    found = first(Interpolated(), y, structure, Batch2DMultivar)
    np.testing.assert_allclose(found[0], in_a_loop(y[0]), rtol=1e-5, atol=1e-6)


def test_the_derivative_of_an_interpolation_is_its_weights_and_zero_where_nothing_was_seen():
    def total(y):
        return jnp.sum(first(Interpolated(), y)[0, :, 3])

    slope = np.asarray(jax.grad(total)(jnp.asarray(Y)))
    np.testing.assert_allclose(slope[0, [0, 5], 3], 3.0, rtol=1e-5)
    np.testing.assert_array_equal(slope[~np.isfinite(Y)], 0.0)


def test_the_others_are_the_observations_and_nothing():
    np.testing.assert_allclose(first(Observed(), Y), np.nan_to_num(Y), rtol=1e-6)
    np.testing.assert_array_equal(first(Zeros(), Y), np.zeros(Y.shape))
    pair = {"u": jax.ShapeDtypeStruct((3,), STRUCTURE.dtype), "v": STRUCTURE}
    assert jax.tree.map(jnp.shape, first(Zeros(), Y, pair)) == {"u": (2, 3), "v": (2, ENTRIES, N)}


def test_a_state_of_one_time_may_have_an_entry_axis_in_its_observations():
    found = first(Observed(), Y[:, :1], jax.ShapeDtypeStruct((N,), STRUCTURE.dtype))
    np.testing.assert_allclose(found, np.nan_to_num(Y[:, 0]), rtol=1e-6)


@pytest.mark.parametrize("kind", [Interpolated(), Observed()])
def test_observations_of_something_else_are_refused(kind):
    words = (
        rf"FourDVarNet: `start` is {type(kind).__name__}\(\), .*state has shape \(6, 7\) and .*\(6, 5\); give `start=Z"
    )
    with pytest.raises(ValueError, match=words):
        first(kind, Y, jax.ShapeDtypeStruct((ENTRIES, 7), STRUCTURE.dtype))
