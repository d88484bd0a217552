"""The order of observations and their windows: a partition of what was observed, with neighbours that are near."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vardax.minimisers.neighbours import BLOCK, CHUNK, arrange

RANDOM = np.random.default_rng(12)
SHAPES = [(400,), (40, 60), (12, 10, 30)]
EVERY_SHAPE = pytest.mark.parametrize("shape", SHAPES, ids=str)
_arrange = jax.jit(arrange, static_argnums=2)


def arranged(shape, m=300, missing=0.2):
    flat = RANDOM.integers(0, np.prod(shape), m)
    precision = np.where(RANDOM.random(m) < missing, 0.0, RANDOM.uniform(1, 5, m))
    cells = tuple(jnp.asarray(c) for c in np.unravel_index(flat, shape))
    return flat, precision, _arrange(cells, jnp.asarray(precision, jnp.ones(0).dtype), shape)


@EVERY_SHAPE
def test_each_observed_cell_is_one_entry(shape):
    flat, precision, found = arranged(shape)
    entries = np.ravel_multi_index([np.asarray(c) for c in found.cells], shape)
    seen = precision > 0
    np.testing.assert_array_equal(entries[np.asarray(found.entry)[seen]], flat[seen])
    used = np.asarray(found.precision) > 0
    cells, numbers = np.unique(flat[seen], return_inverse=True)
    assert used.sum() == cells.size
    assert used[: cells.size].all()
    expected = np.bincount(numbers, precision[seen])
    np.testing.assert_allclose(np.asarray(found.precision)[used][np.argsort(entries[used])], expected, rtol=1e-5)


@EVERY_SHAPE
def test_missing_observations_count_nowhere(shape):
    _, precision, found = arranged(shape)
    np.testing.assert_array_equal(np.asarray(found.precision)[np.asarray(found.entry)[precision == 0]], 0)


@EVERY_SHAPE
def test_windows_are_whole(shape):
    _, _, found = arranged(shape)
    n_entries, n_blocks = found.precision.size, found.windows.shape[0]
    assert n_entries == n_blocks * BLOCK
    assert n_blocks % min(CHUNK, n_blocks) == 0
    assert found.windows.min() >= 0
    assert found.windows.max() <= n_entries - BLOCK


def test_windows_hold_what_is_near():
    """Of the entries that come before a block and are near it, most are in its windows."""
    shape = (60, 80)
    _, _, found = arranged(shape, m=1500, missing=0.0)
    row, column = (np.asarray(c) for c in found.cells)
    n, shares = int((np.asarray(found.precision) > 0).sum()), []
    for block in range(2, n // BLOCK):
        own = np.arange(block * BLOCK, (block + 1) * BLOCK)
        windows = np.ravel(np.asarray(found.windows)[block][:, None] + np.arange(BLOCK))
        away = np.abs(row[: own[0], None] - row[own]) + np.abs(column[: own[0], None] - column[own])
        near = np.flatnonzero(away.min(axis=1) <= 3)
        shares += [np.isin(near, windows).mean()] if near.size else []
    assert np.mean(shares) > 0.95


def test_the_last_strips_see_the_first():
    """On a grid that closes on itself, a block of the last row has windows in the first rows."""
    shape = (40, 60)
    _, _, found = arranged(shape, m=1200, missing=0.0)
    row = np.asarray(found.cells[0])
    block = int((np.asarray(found.precision) > 0).sum()) // BLOCK - 1
    windows = np.ravel(np.asarray(found.windows)[block][:, None] + np.arange(BLOCK))
    assert row[block * BLOCK] > 36
    assert (row[windows[windows < block * BLOCK]] < 4).any()


def test_observations_may_all_be_missing():
    _, _, found = arranged((40, 60), missing=1.1)
    np.testing.assert_array_equal(found.precision, 0)
