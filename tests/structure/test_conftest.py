"""The test environment is as strict as it says, and its compile counter counts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest


def test_there_are_two_devices():
    assert jax.device_count() == 2


def test_dtypes_are_not_promoted_silently():
    with pytest.raises(ValueError, match="promotion"):
        jnp.ones(2, jnp.float32) + jnp.ones(2, jnp.int32)


def test_ranks_are_not_promoted_silently():
    with pytest.raises(ValueError, match="rank"):
        jnp.ones((2, 3)) + jnp.ones(3)


@pytest.mark.x64
def test_float64_is_the_default_of_this_run():
    assert jnp.ones(1).dtype == np.float64


def test_a_new_shape_compiles_and_an_old_one_does_not(count_compilations):
    square = jax.jit(lambda x: x * x)
    short, other, long = np.ones(3), np.zeros(3), np.ones(4)

    with count_compilations() as first:
        square(short)
    with count_compilations() as second:
        square(other)
    with count_compilations() as third:
        square(long)

    assert (first.n, second.n, third.n) == (1, 0, 1)
    assert (first.n_traces, second.n_traces, third.n_traces) == (1, 0, 1)


def test_a_program_from_the_persistent_cache_is_counted(count_compilations):
    """Two functions with the same program: the second comes from the cache on disk, and is still a compilation."""

    def make():
        return jax.jit(lambda x: x - 5)

    argument = np.ones(6)
    make()(argument)
    with count_compilations() as compiled:
        make()(argument)
    assert compiled.n == 1


def test_counters_nest(count_compilations):
    with count_compilations() as outer:
        jax.jit(lambda x: x + 2)(np.ones(3))
        with count_compilations() as inner:
            jax.jit(lambda x: x + 3)(np.ones(3))
    assert (outer.n, inner.n) == (2, 1)
