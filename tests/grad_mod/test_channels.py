"""Channels are the last of the axes before space; the others share the weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vardax.grad_mod.channels import groups_of, in_groups, same_shape


@pytest.mark.parametrize(
    ("shape", "channels", "n_spatial", "groups"),
    [
        ((15, 40), 15, 1, ()),
        ((15, 40), 1, 1, (15,)),
        ((40,), 1, 1, ()),
        ((15, 2, 8, 9), 30, 2, ()),
        ((15, 2, 8, 9), 2, 2, (15,)),
        ((15, 2, 8, 9), 1, 2, (15, 2)),
        ((1, 8, 9), 1, 2, ()),
    ],
)
def test_groups_are_the_axes_before_the_channels(shape, channels, n_spatial, groups):
    assert groups_of(shape, channels, n_spatial, "M") == groups


@pytest.mark.parametrize(
    ("shape", "channels", "words"),
    [
        ((15, 40), 4, r"M: `state_channels` is 4, but .* shape \(15, 40\).* expected 15 or 1 channels"),
        ((15, 2, 40), 15, r"with the axes \(15, 2\) before those of space; expected 30 or 2 or 1 channels"),
        ((), 1, r"M: the state has shape \(\), expected 1 axes of space"),
    ],
)
def test_channels_that_are_not_those_axes_are_named(shape, channels, words):
    with pytest.raises(ValueError, match=words):
        groups_of(shape, channels, 1, "M")


def test_a_function_runs_on_each_group():
    x = jnp.arange(24.0).reshape(2, 3, 4)
    np.testing.assert_array_equal(in_groups(jnp.sum, (2, 3))(x), np.sum(np.asarray(x), axis=-1))
    assert in_groups(jnp.sum, ()) is jnp.sum


def test_a_gradient_of_another_state_is_named():
    with pytest.raises(ValueError, match=r"M: the gradient has shape \(3,\), expected that of the state, \(4,\)"):
        same_shape(jax.numpy.ones(3), jax.numpy.ones(4), "M")
