"""Positions are found in the cell where they are, from wherever they come."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vardax.obs_operators.cells import weigh_corners
from vardax.obs_operators.quad_search import locate_on_quads
from vardax.obs_operators.quad_table import tabulate

X64 = jax.config.jax_enable_x64
ATOL = 1e-11 if X64 else 2e-4
OPEN = (None, None)


def bent(shape=(7, 9)):
    i, j = np.meshgrid(*(np.arange(n, dtype=float) for n in shape), indexing="ij")
    return i + 0.3 * np.sin(j) + 0.4 * j, j - 0.3 * np.cos(i)


def globe(rows=7, columns=12):
    """Latitudes and longitudes whose meridians are bent, with a seam somewhere inside."""
    latitude, longitude = np.meshgrid(
        np.linspace(-60.0, 60.0, rows), np.arange(columns) * 360.0 / columns, indexing="ij"
    )
    return latitude, (longitude + 0.4 * latitude + 180.0) % 360.0 - 180.0


@eqx.filter_jit
def locate(table, fields, periods, position, clamp):
    cells = locate_on_quads(table, fields, periods, position, clamp)
    return *cells, weigh_corners(list(cells), fields[0].shape, 1, None)


def located(fields, position, periods=OPEN, closed=(False, False), sea=None, clamp=False):
    """(row, column) as fractional indices, and whether inside."""
    fields, periods = tuple(map(jnp.asarray, fields)), tuple(None if p is None else jnp.asarray(p) for p in periods)
    table = tabulate(fields, periods, closed, sea)
    rows, columns, corners = locate(table, fields, periods, jnp.asarray(position), clamp)
    place = [np.asarray(cell.lower) + np.asarray(cell.fraction) for cell in (rows, columns)]
    return np.stack(place, axis=-1), np.asarray(rows.inside), corners


def between(fields, place):
    """The positions at fractional indices, by the bilinear map."""
    row, column = np.floor(place).astype(int).T
    u, v = (place - np.floor(place)).T
    last = np.array(fields[0].shape) - 1
    up, right = np.minimum(row + 1, last[0]), np.minimum(column + 1, last[1])
    return np.stack(
        [
            (1 - u) * (1 - v) * f[row, column] + u * (1 - v) * f[up, column]
            + (1 - u) * v * f[row, right] + u * v * f[up, right]
            for f in fields
        ],
        axis=-1,
    )  # fmt: skip


@pytest.mark.parametrize("shape", [(2, 2), (7, 9)])
def test_positions_are_found_where_they_were_put(shape):
    fields, rng = bent(shape), np.random.default_rng(0)
    place = rng.uniform(0, np.array(shape) - 1, (200, 2))
    found, inside, corners = located(fields, between(fields, place))
    assert inside.all()
    np.testing.assert_allclose(found, place, atol=100 * ATOL)
    for field in (*fields, 2 * fields[0] - 3 * fields[1] + 1):
        values = np.sum(np.asarray(corners.weight) * field.ravel()[np.asarray(corners.index)], axis=0)
        np.testing.assert_allclose(values, between((field,), place)[:, 0], atol=100 * ATOL)


def test_points_and_sides_of_the_grid_belong_to_it():
    fields = bent()
    points = np.stack(fields, axis=-1)
    halfway = 0.5 * (points[:, 1:] + points[:, :-1])
    for position in (points, halfway):
        found, inside, _ = located(fields, position.reshape(-1, 2))
        assert inside.all()
        np.testing.assert_allclose(between(fields, found), position.reshape(-1, 2), atol=100 * ATOL)


def test_positions_outside_are_outside():
    _, inside, _ = located(bent(), [[-3.0, 0.0], [0.0, 50.0], [99.0, 99.0], [np.nan, 1.0], [np.inf, 1.0], [3.0, 3.0]])
    assert inside.tolist() == [False] * 5 + [True]


@pytest.mark.parametrize("turns", [-1, 0, 2])
def test_longitudes_count_modulo_their_period(turns):
    rng = np.random.default_rng(1)
    position = np.stack([rng.uniform(-60, 60, 300), rng.uniform(-180, 180, 300)], axis=-1)
    _, inside, corners = located(globe(), position + [0.0, 360.0 * turns], (None, 360.0), (False, True))
    assert inside.all()
    angle = np.deg2rad(globe()[1].ravel()[np.asarray(corners.index)] - position[:, 1])
    longitude = np.rad2deg((angle + np.pi) % (2 * np.pi) - np.pi)  # from the position to the corners
    np.testing.assert_allclose(np.sum(np.asarray(corners.weight) * longitude, axis=0), 0.0, atol=1e5 * ATOL)
    latitude = np.sum(np.asarray(corners.weight) * globe()[0].ravel()[np.asarray(corners.index)], axis=0)
    np.testing.assert_allclose(latitude, position[:, 0], atol=100 * ATOL)


def test_a_seam_without_a_closing_axis_leaves_a_gap():
    longitude = np.arange(12) * 30.0 + 15.0
    position = np.stack([np.zeros(12), longitude], axis=-1)
    fields = np.meshgrid(np.linspace(-60.0, 60.0, 7), (np.arange(12) * 30.0 + 180) % 360 - 180, indexing="ij")
    _, inside, _ = located(fields, position, (None, 360.0))
    assert inside.tolist() == [True] * 11 + [False]
    _, inside, _ = located(fields, position)  # without a period the seam itself is no cell either
    assert inside.sum() == 5


def test_cells_on_land_hold_nothing():
    sea = np.zeros((7, 9), bool)
    sea[3, 4] = True
    place = np.array([[2.5, 3.5], [3.5, 4.5], [0.5, 0.5], [3.5, 5.5]])
    _, inside, _ = located(bent(), between(bent(), place), sea=sea)
    assert inside.tolist() == [True, True, False, False]


def test_positions_outside_go_to_the_nearest_point_of_the_rim():
    """Compared with the nearest of many points on the rim."""
    rng = np.random.default_rng(2)
    position = np.concatenate([rng.uniform(-6, 14, (300, 2)), [[3.0, 3.0]]])
    found, inside, _ = located(bent(), position, clamp=True)
    share = np.linspace(0, 1, 4001)
    height, width = np.array(bent()[0].shape) - 1
    edges = [(share * height, 0 * share), (share * height, 0 * share + width)]
    edges += [(0 * share, share * width), (0 * share + height, share * width)]
    rim = between(bent(), np.concatenate([np.stack(edge, axis=-1) for edge in edges]))
    reached = between(bent(), found)
    for start, end, was_inside in zip(position, reached, inside, strict=True):
        nearest = 0.0 if was_inside else np.min(np.hypot(*(rim - start).T))
        np.testing.assert_allclose(np.hypot(*(end - start)), nearest, atol=1e-2 if not was_inside else 100 * ATOL)
    assert inside[-1]


def test_a_ring_clamps_to_both_its_rims():
    radius, angle = np.meshgrid([1.0, 2.0, 3.0], np.arange(64) * np.pi / 32, indexing="ij")
    fields = (radius * np.cos(angle), radius * np.sin(angle))
    found, inside, _ = located(fields, [[0.95, 0.0], [0.0, 9.0], [0.0, -2.5]], closed=(False, True), clamp=True)
    assert inside.tolist() == [False, False, True]
    np.testing.assert_allclose(found, [[0.0, 0.0], [2.0, 16.0], [1.5, 48.0]], atol=3e-2)


def test_a_grid_without_a_rim_clamps_nothing():
    rows, columns = np.meshgrid(np.arange(0.0, 360.0, 90.0), np.arange(0.0, 360.0, 90.0), indexing="ij")
    found, inside, _ = located((rows, columns), [[350.0, 725.0]], (360.0, 360.0), (True, True), clamp=True)
    assert inside.all()
    np.testing.assert_allclose(found, [[350 / 90, 5 / 90]], rtol=1e-5)


@pytest.mark.slow
@pytest.mark.x64
@pytest.mark.parametrize("transform", [jax.jacfwd, jax.jacrev])
def test_derivatives_with_respect_to_the_position(transform):
    fields = tuple(map(jnp.asarray, bent()))
    table = tabulate(fields, OPEN, (False, False), None)

    def fractions(position):
        rows, columns = locate_on_quads(table, fields, OPEN, position[None], clamp=True)
        return jnp.stack([rows.fraction, columns.fraction])[:, 0]

    position, step = jnp.array([4.3, 2.6]), 1e-6
    found = jax.jit(transform(fractions))(position)
    values = jax.jit(jax.vmap(fractions))(position[None] + step * jnp.concatenate([jnp.eye(2), -jnp.eye(2)]))
    np.testing.assert_allclose(found, (values[:2] - values[2:]).T / (2 * step), rtol=1e-7)


def test_single_precision_finds_every_position():
    latitude, longitude = np.meshgrid(np.arange(-20.0, 20.0, 0.25), np.arange(0.0, 360.0, 0.25), indexing="ij")
    rng = np.random.default_rng(3)
    position = np.stack([rng.uniform(-20, 19.75, 2000), rng.uniform(-180, 180, 2000)], axis=-1).astype("float32")
    fields = (latitude.astype("float32"), longitude.astype("float32"))
    found, inside, _ = located(fields, position, (None, 360.0), (False, True))
    assert inside.all()
    np.testing.assert_allclose(found[:, 0] * 0.25 - 20, position[:, 0], atol=1e-5)
    np.testing.assert_allclose(found[:, 1] * 0.25, position[:, 1] % 360, atol=1e-4)
