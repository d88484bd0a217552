"""Cells of axes, and the weights of their corners with and without land."""

import jax.numpy as jnp
import numpy as np
import pytest

from vardax.obs_operators.cells import Cell, locate_on_axis, weigh_corners

AXIS = jnp.array([0.0, 1.0, 3.0])
NAN, INF = float("nan"), float("inf")


def cell(position, axis=AXIS, period=None, closed=False):
    found = locate_on_axis(axis, jnp.array([position]), None if period is None else jnp.asarray(period), closed)
    return tuple(part[0].item() for part in found)


@pytest.mark.parametrize(
    ("position", "expected"),
    [(0.5, (0, 1, 0.5, True)), (2.5, (1, 2, 0.75, True)), (0.0, (0, 1, 0.0, True)), (3.0, (1, 2, 1.0, True))],
)
def test_a_position_is_between_two_points(position, expected):
    assert cell(position) == expected


def test_an_axis_may_decrease():
    assert cell(2.5, AXIS[::-1]) == (0, 1, 0.25, True)


@pytest.mark.parametrize(("position", "end"), [(-2.0, (0, 0.0)), (9.0, (1, 1.0)), (-INF, (0, 0.0)), (INF, (1, 1.0))])
def test_a_position_outside_is_moved_to_the_end(position, end):
    lower, _, fraction, inside = cell(position)
    assert (lower, fraction) == end
    assert not inside


@pytest.mark.parametrize("position", [4.0, -6.0, 14.0, 44.0])
def test_an_axis_that_closes_has_a_cell_behind_its_last_point(position):
    lower, upper, fraction, inside = cell(position, period=10.0, closed=True)
    assert (lower, upper, inside) == (2, 0, True)
    np.testing.assert_allclose(fraction, 1 / 7, rtol=1e-6)


@pytest.mark.parametrize("position", [2.0, 12.0, -8.0])
def test_an_axis_that_only_wraps_has_none(position):
    assert cell(position, period=10.0)[:3] == (1, 2, 0.5)
    assert cell(4.0, period=10.0) == (1, 2, 1.0, False)
    assert cell(9.0, period=10.0) == (0, 1, 0.0, False)  # one below the first point, not six above the last


def test_what_is_not_a_position_is_outside():
    for period, closed in ((None, False), (10.0, True), (10.0, False)):
        assert cell(NAN, period=period, closed=closed)[3] is False
    assert cell(INF, period=10.0, closed=True)[3] is False


def test_a_position_that_needs_no_period_keeps_its_digits():
    position = jnp.asarray(0.123456789, jnp.float32)
    found = locate_on_axis(jnp.arange(360.0, dtype=jnp.float32), position[None], jnp.asarray(360.0, jnp.float32), True)
    assert found.fraction[0] == position


def corners(fractions, sea=None, order=1):
    cells = [Cell(*(jnp.array([v]) for v in (0, 1)), jnp.array([f]), jnp.array([True])) for f in fractions]
    shape = (2,) * len(fractions)
    found = weigh_corners(cells, shape, order, None if sea is None else jnp.asarray(sea, bool))
    dense = np.zeros(2 ** len(fractions))
    np.add.at(dense, np.asarray(found.index[:, 0]), np.asarray(found.weight[:, 0]))
    return dense.reshape(shape), bool(found.at_sea[0]), np.asarray(found.index[:, 0])


def test_weights_are_products():
    weights, at_sea, _ = corners([0.25, 0.5])
    np.testing.assert_allclose(weights, [[0.375, 0.375], [0.125, 0.125]])
    assert at_sea
    np.testing.assert_allclose(corners([0.25, 0.5, 1.0])[0][..., 1], weights)


def test_land_is_left_out_and_the_rest_adds_up_to_one():
    weights, at_sea, read = corners([0.25, 0.5], sea=[[0, 1], [1, 1]])
    np.testing.assert_allclose(weights, [[0.0, 0.6], [0.2, 0.2]], rtol=1e-6)
    assert at_sea
    assert 0 not in read


def test_without_a_corner_at_sea_there_is_nothing():
    weights, at_sea, read = corners([0.25, 0.5], sea=[[0, 0], [0, 0]])
    assert not at_sea
    assert not weights.any()
    weights, at_sea, read = corners([0.0, 0.0], sea=[[0, 1], [1, 1]])  # exactly on a point on land
    assert not at_sea
    assert 0 not in read


def test_the_nearest_point_is_the_nearest_at_sea():
    np.testing.assert_array_equal(corners([0.25, 0.4], order=0)[0], [[1, 0], [0, 0]])
    np.testing.assert_array_equal(corners([0.25, 0.4], sea=[[0, 1], [1, 1]], order=0)[0], [[0, 1], [0, 0]])
