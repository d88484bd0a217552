"""The look-up misses no cell, and lists only those that can hold a position."""

import jax.numpy as jnp
import numpy as np
import pytest

from vardax.obs_operators.quad_table import MOST_PER_BUCKET, tabulate

OPEN = (None, None)


def grid(shape=(7, 9), bend=0.3):
    """Points (rows, columns) of a grid that is bent and turned."""
    i, j = np.meshgrid(*(np.arange(n, dtype=float) for n in shape), indexing="ij")
    return i + bend * np.sin(j) + 0.4 * j, j - bend * np.cos(i)


def stretched(n=40):
    """Cells whose sizes differ by a factor of thousands."""
    x = np.cumsum(1.3 ** np.arange(n))
    return tuple(np.meshgrid(x, x, indexing="ij"))


def listed(table, position, periods=OPEN):
    place = []
    for axis in (0, 1):
        offset = position[axis] - float(table.low[axis])
        offset = offset if periods[axis] is None else offset % periods[axis]
        place.append(int(np.clip(offset // float(table.width[axis]), 0, int(table.counts[axis]) - 1)))
    bucket = place[0] * int(table.counts[1]) + place[1]
    return set(np.asarray(table.cell[int(table.first[bucket]) : int(table.first[bucket + 1])]).tolist())


def random_points(fields, n, seed=0):
    """(cell number, position): n points inside random cells."""
    rng = np.random.default_rng(seed)
    (h, w), u, v = fields[0].shape, rng.random(n), rng.random(n)
    i, j = rng.integers(0, h - 1, n), rng.integers(0, w - 1, n)
    corners = [((1 - u) * (1 - v), 0, 0), (u * (1 - v), 1, 0), ((1 - u) * v, 0, 1), (u * v, 1, 1)]
    position = [sum(weight * field[i + di, j + dj] for weight, di, dj in corners) for field in fields]
    return i * w + j, np.stack(position, axis=-1)


@pytest.mark.parametrize("fields", [grid(), grid((2, 2)), stretched()], ids=["bent", "one cell", "stretched"])
def test_the_cell_around_a_position_is_in_its_bucket(fields):
    table = tabulate(tuple(map(jnp.asarray, fields)), OPEN, (False, False), None)
    for number, position in zip(*random_points(fields, 300), strict=True):
        assert number in listed(table, position)


@pytest.mark.parametrize("turns", [-1, 0, 1])
def test_a_lattice_may_close_on_itself(turns):
    latitude, longitude = np.meshgrid(np.linspace(-60, 60, 7), np.arange(0.0, 360.0, 30.0), indexing="ij")
    longitude = (longitude + 0.4 * latitude + 180) % 360 - 180
    table = tabulate((latitude, longitude), (None, 360.0), (False, True), None)
    assert np.unique(table.cell).size == 6 * 12
    for row in range(6):
        for column in range(12):
            middle = 20.0 * row - 50.0
            position = (middle, 30.0 * column + 0.4 * middle + 15.0 + 360 * turns)
            assert row * 12 + column in listed(table, position, (None, 360.0))


def test_buckets_stay_short():
    for fields in (grid((60, 80)), stretched()):
        table = tabulate(fields, OPEN, (False, False), None)
        n_cells, n_buckets = (fields[0].shape[0] - 1) * (fields[0].shape[1] - 1), table.first.size - 1
        assert int(table.most) <= MOST_PER_BUCKET or n_buckets >= 8 * n_cells
        assert n_buckets <= 33 * n_cells


def test_cells_without_a_corner_at_sea_are_not_listed():
    sea = np.zeros((7, 9), bool)
    sea[3, 4] = True
    table = tabulate(grid(), OPEN, (False, False), sea)
    assert set(table.cell.tolist()) == {2 * 9 + 3, 2 * 9 + 4, 3 * 9 + 3, 3 * 9 + 4}


def test_cells_that_are_folded_turned_or_nowhere_are_not_listed():
    rows, columns = (x.copy() for x in grid(bend=0.0))
    rows[3, 4] = np.nan
    columns[0, 0] += 3.0  # beyond its neighbour: the cell at the corner is no longer convex
    everywhere = {i * 9 + j for i in range(6) for j in range(8)}
    missing = {2 * 9 + 3, 2 * 9 + 4, 3 * 9 + 3, 3 * 9 + 4, 0}
    assert set(tabulate((rows, columns), OPEN, (False, False), None).cell.tolist()) == everywhere - missing


def test_where_no_cell_is_left_there_is_no_table():
    assert tabulate(grid(), OPEN, (False, False), np.zeros((7, 9), bool)) is None
    assert tabulate((np.zeros((3, 3)), np.zeros((3, 3))), OPEN, (False, False), None) is None
    assert tabulate((np.zeros((1, 3)), np.arange(3.0)[None]), OPEN, (False, False), None) is None


def test_the_rim_is_what_one_cell_has_alone():
    table = tabulate(grid((3, 4)), OPEN, (False, False), None)
    sides = sorted(map(tuple, table.rim.tolist()))
    assert len(sides) == 2 * (2 + 3)
    assert {(0, 0), (0, 2)} <= set(sides)  # the corner cell has two
    ring = tabulate(grid((3, 4)), OPEN, (False, True), None)
    # The closing cells of a grid that is not a ring are folded, so all that is left is the rim of before.
    assert sorted(map(tuple, ring.rim.tolist())) == sides


def test_a_ring_has_an_inner_and_an_outer_rim():
    radius, angle = np.meshgrid([1.0, 2.0, 3.0], np.arange(8) * np.pi / 4, indexing="ij")
    table = tabulate((radius * np.cos(angle), radius * np.sin(angle)), OPEN, (False, True), None)
    assert np.unique(table.cell).size == 2 * 8
    sides = table.rim.tolist()
    assert sorted(side for _, side in sides) == [0] * 8 + [1] * 8
