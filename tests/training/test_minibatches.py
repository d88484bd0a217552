"""Minibatches hold every window once, in an order that a key gives; patches are pieces of maps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vardax.training.minibatches import empty_windows, minibatches, patches, take_windows
from vardax.types import Batch1D, Batch2D

N = 7


def numbered(**fields):
    """Window i holds the number i everywhere."""
    values = jnp.broadcast_to(jnp.arange(1.0, N + 1)[:, None, None], (N, 2, 3))
    return Batch1D(values, jnp.ones_like(values), -values, times=[0.0, 0.5], **fields)


def numbers(parts):
    return [np.asarray(part.input[:, 0, 0]).astype(int).tolist() for part in parts]


def test_without_a_key_the_order_is_kept_and_the_rest_too():
    assert numbers(minibatches(numbered(), 3)) == [[1, 2, 3], [4, 5, 6], [7]]


def test_with_a_key_each_window_comes_once_in_an_order_of_the_key():
    orders = [numbers(minibatches(numbered(), 3, jax.random.key(seed))) for seed in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]
    for order in orders:
        assert [len(part) for part in order] == [3, 3]
        assert len(set(sum(order, []))) == 6


def test_everything_of_a_window_stays_together():
    batch = numbered(obs_err=jnp.broadcast_to(jnp.arange(1.0, N + 1)[:, None, None], (N, 2, 3)))
    for part in minibatches(batch, 2, jax.random.key(3)):
        assert np.array_equal(part.target, -part.input)
        assert np.array_equal(part.obs_err, part.input)
        assert part.times.tolist() == [0.0, 0.5]
        assert isinstance(part, Batch1D)


def test_one_window_may_be_taken_several_times():
    assert numbers([take_windows(numbered(), [6, 0, 6])]) == [[7, 1, 7]]


@pytest.mark.parametrize("size", [0, N + 1])
def test_a_size_that_does_not_fit_is_refused(size):
    with pytest.raises(ValueError, match=f"`size` is {size}, expected 1 to 7, the number of windows"):
        minibatches(numbered(), size)


def test_windows_without_observations_or_truth_are_found():
    values = np.ones((4, 2, 3))
    mask, target = np.ones_like(values), np.ones_like(values)
    mask[1], target[3] = 0, np.nan
    assert empty_windows(Batch1D(values, mask, target)) == [1, 3]
    assert empty_windows(Batch1D(values, mask)) == [1]


def maps(b=5, t=2, h=6, w=8):
    """A map whose entries tell where they are, with land in one corner."""
    place = 1.0 + jnp.arange(h * w).reshape(h, w).astype(float)
    values = jnp.broadcast_to(place, (b, t, h, w))
    mask = np.ones((b, t, h, w))
    mask[..., :2, :2] = 0
    target = values.at[..., :2, :2].set(jnp.nan)
    return Batch2D(values, mask, target, times=[0.0, 1.0])


def test_a_patch_is_a_piece_of_the_map_at_a_random_place():
    found = jax.jit(lambda key: patches(maps(), (3, 4), key))(jax.random.key(0))
    assert found.input.shape == found.mask.shape == found.target.shape == (5, 2, 3, 4)
    assert found.times.tolist() == [0.0, 1.0]
    known = np.asarray(found.mask) == 1
    assert np.array_equal(np.isfinite(found.target), known)
    assert np.array_equal(np.asarray(found.input)[known], np.asarray(found.target)[known])
    for window in np.asarray(jnp.where(found.mask == 1, found.input, jnp.nan)):
        assert np.array_equal(window[0], window[1], equal_nan=True)
        rows = np.nanmax(np.diff(window[0], axis=0))
        columns = np.nanmax(np.diff(window[0], axis=1))
        assert (rows, columns) == (8.0, 1.0)


def test_patches_reach_every_place_and_no_further():
    corners = set()
    cut = jax.jit(lambda key: patches(maps(), (5, 7), key))
    for seed in range(12):
        corners |= {int(window[0, -1, -1]) for window in cut(jax.random.key(seed)).input}
    assert corners == {39, 40, 47, 48}


@pytest.mark.parametrize("shape", [(7, 2), (2, 9), (0, 2), (2,)])
def test_a_patch_that_does_not_fit_is_refused(shape):
    with pytest.raises(ValueError, match=r"`shape` is .*, expected \(h, w\) of at most \(6, 8\)"):
        patches(maps(), shape, jax.random.key(0))


def test_patches_are_of_maps_with_the_grid_of_their_target():
    with pytest.raises(TypeError, match="`batch` is Batch1D, expected Batch2D"):
        patches(numbered(), (1, 1), jax.random.key(0))
    batch = Batch2D(jnp.ones((1, 1, 4, 4)), jnp.ones((1, 1, 4, 4)), jnp.ones((1, 1, 8, 8)))
    with pytest.raises(ValueError, match=r"is on a grid \(8, 8\), expected \(4, 4\)"):
        patches(batch, (2, 2), jax.random.key(0))
