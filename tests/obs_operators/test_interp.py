"""InterpObs: nearest and multilinear interpolation to scattered positions."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.interpolate import RegularGridInterpolator

from vardax.obs_operators import InterpObs, interp_obs_from_coords
from vardax.protocols import ObservationOperator
from vardax.types import Grid, Observations

AXES = [np.array([0.0, 0.5, 2.0, 3.0]), np.array([9.0, 4.0, 2.0, 1.0, 0.0]), np.array([-1.0, 0.0, 1.0])]


def problem(ndim, p=20, seed=0):
    """Axes (uneven, one decreasing), a field on them and positions inside."""
    rng = np.random.default_rng(seed)
    axes = AXES[:ndim]
    field = rng.standard_normal(tuple(axis.size for axis in axes))
    positions = np.stack([rng.uniform(axis.min(), axis.max(), p) for axis in axes], axis=1)
    return axes, field, positions


def scipy_interpolation(axes, field, positions, method):
    flips = tuple(slice(None, None, -1 if axis[0] > axis[-1] else 1) for axis in axes)
    ascending = [np.sort(axis) for axis in axes]
    return RegularGridInterpolator(ascending, field[flips], method=method)(positions)


@pytest.mark.x64
@pytest.mark.parametrize("ndim", [1, 2, 3])
@pytest.mark.parametrize(("order", "method"), [(0, "nearest"), (1, "linear")])
def test_agrees_with_scipy(ndim, order, method):
    axes, field, positions = problem(ndim)
    H = interp_obs_from_coords(axes, positions, order=order)
    assert isinstance(H, ObservationOperator)
    np.testing.assert_allclose(H(jnp.asarray(field)), scipy_interpolation(axes, field, positions, method), atol=1e-13)


@pytest.mark.x64
@pytest.mark.parametrize("ndim", [1, 2, 3])
@pytest.mark.parametrize("order", [0, 1])
def test_adjoint_identity_and_dense_matrix(ndim, order):
    axes, field, positions = problem(ndim)
    H, state = interp_obs_from_coords(axes, positions, order=order), jnp.asarray(field)
    operator = H.linearize(state)
    dense = np.stack([np.asarray(H(unit)) for unit in jnp.eye(field.size).reshape(-1, *field.shape)], axis=1)
    np.testing.assert_allclose(operator.as_matrix(), dense, atol=1e-15)
    np.testing.assert_allclose(operator.T.as_matrix(), dense.T, atol=1e-15)
    dx, dy = jnp.cos(state), jnp.arange(20.0)
    np.testing.assert_allclose(jnp.vdot(operator.mv(dx), dy), jnp.vdot(dx, operator.T.mv(dy)), rtol=1e-12)


@given(st.integers(1, 3), st.integers(0, 2**31 - 1))
def test_weights_are_convex(ndim, seed):
    axes, field, positions = problem(ndim, seed=seed)
    H = interp_obs_from_coords(axes, positions)
    assert np.all(H.weight >= -1e-6)
    np.testing.assert_allclose(H(jnp.ones(field.shape)), 1.0, rtol=1e-5)


@pytest.mark.parametrize("order", [0, 1])
def test_grid_points_give_the_field_back(order):
    axes, field, _ = problem(2)
    positions = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 2)
    H = interp_obs_from_coords(axes, positions, order=order)
    state = jnp.asarray(field)
    np.testing.assert_array_equal(H(state), state.ravel())


@pytest.mark.parametrize("periodic", [(0,), 0, {0: 360.0}, (-2,)])
def test_longitude_wraps(periodic):
    longitude, latitude = np.arange(0.0, 360.0, 30.0), np.array([-45.0, 0.0, 45.0])
    state = jnp.broadcast_to(jnp.cos(jnp.deg2rad(jnp.asarray(longitude)))[:, None], (12, 3))
    H = interp_obs_from_coords([longitude, latitude], [[345.0, 0.0], [-15.0, 0.0], [720.0, 0.0]], periodic=periodic)
    halfway = 0.5 * (1 + np.cos(np.deg2rad(30.0)))
    np.testing.assert_allclose(H(state), [halfway, halfway, 1.0], rtol=1e-5)


def test_a_grid_brings_its_periodic_axes():
    grid = Grid([np.arange(0.0, 360.0, 90.0)], periodic=(0,))
    assert float(interp_obs_from_coords(grid, [[315.0]])(jnp.array([1.0, 0.0, 0.0, 3.0]))[0]) == 2.0


def test_an_uneven_axis_may_be_periodic_with_a_given_period():
    H = interp_obs_from_coords([np.array([0.0, 1.0, 4.0])], [[7.0], [-1.0]], periodic={0: 10.0})
    np.testing.assert_allclose(H(jnp.array([6.0, 0.0, 0.0])), [3.0, 5.0], rtol=1e-6)


def test_leading_axes_are_carried_along():
    axes, field, positions = problem(2)
    H, state = interp_obs_from_coords(axes, positions), jnp.stack([jnp.asarray(field), 2 * jnp.asarray(field)])
    assert H(state).shape == (2, 20)
    np.testing.assert_allclose(H(state)[1], 2 * H(state[0]), rtol=1e-6)
    assert H.linearize(state).T.mv(H(state)).shape == state.shape


def test_positions_outside_are_counted():
    words = (
        r"2 of 3 observations are outside the grid \[0, 2\], the first is number 1 at \(-3\); pass outside=\"mask\" or "
        r"\"clamp\", or name the periodic axes"
    )
    with pytest.raises(ValueError, match=words):
        interp_obs_from_coords([np.arange(3.0)], [[1.0], [-3.0], [9.0]])


def test_positions_outside_are_masked_by_choice():
    H = interp_obs_from_coords([np.arange(3.0)], [[1.5], [-3.0], [np.nan]], outside="mask")
    state = jnp.array([1.0, 2.0, 4.0])
    np.testing.assert_array_equal(H.mask, [1.0, 0.0, 0.0])
    np.testing.assert_array_equal(H(state), [3.0, 0.0, 0.0])
    np.testing.assert_array_equal(H.linearize(state).T.mv(jnp.array([2.0, 9.0, 9.0])), [0.0, 1.0, 1.0])


def test_positions_outside_are_clamped_by_choice():
    H = interp_obs_from_coords([np.arange(3.0)], [[-3.0], [9.0], [np.inf]], outside="clamp")
    np.testing.assert_array_equal(H(jnp.array([1.0, 2.0, 4.0])), [1.0, 4.0, 4.0])
    np.testing.assert_array_equal(H.mask, 1.0)
    with pytest.raises(ValueError, match="1 of 1 observations are outside.*pass finite positions"):
        interp_obs_from_coords([np.arange(3.0)], [[np.nan]], outside="clamp")


def test_traced_positions_outside_predict_nan():
    predict = jax.jit(lambda coords: InterpObs([jnp.arange(3.0)]).at(coords)(jnp.array([1.0, 2.0, 4.0])))
    np.testing.assert_array_equal(predict(jnp.array([[1.0], [5.0]])), [2.0, np.nan])


def observations(coords, valid=None):
    p = len(coords)
    return Observations(np.zeros(p), np.ones(p), np.zeros(p), np.asarray(coords, float), valid=valid)


def test_positions_come_from_the_observations():
    unbound, state = InterpObs([np.arange(3.0)]), jnp.array([1.0, 2.0, 4.0])
    np.testing.assert_array_equal(unbound.at(observations([[0.5], [2.0]]))(state), [1.5, 4.0])
    rebound = unbound.at(observations([[0.5]])).at(observations([[1.5], [1.0]]))
    np.testing.assert_array_equal(rebound(state), [3.0, 2.0])


def test_invalid_observations_have_no_weight_and_are_not_counted():
    H = InterpObs([np.arange(3.0)]).at(observations([[0.5], [99.0], [np.nan]], valid=np.array([1, 0, 0])))
    state = jnp.array([1.0, 2.0, 4.0])
    np.testing.assert_array_equal(H(state), [1.5, 0.0, 0.0])
    np.testing.assert_array_equal(H.mask, [1.0, 0.0, 0.0])
    assert np.all(np.isfinite(H.linearize(state).T.mv(jnp.ones(3))))


def test_new_positions_of_the_same_count_do_not_compile(count_compilations):
    predict = eqx.filter_jit(lambda H, x: H.linearize(x).T.mv(H(x)))
    unbound, state = InterpObs([np.arange(5.0), np.arange(4.0)]), jnp.ones((5, 4))
    first, second = (observations(np.random.default_rng(seed).uniform(0, 3, (7, 2))) for seed in (0, 1))
    predict(unbound.at(first), state)
    with count_compilations() as compiled:
        predict(unbound.at(second), state).block_until_ready()
    assert compiled.n == 0, compiled.names


def test_works_under_vmap_over_positions():
    coords = jnp.array([[[0.5], [1.5]], [[0.0], [2.0]]])
    predicted = jax.vmap(lambda c: InterpObs([jnp.arange(3.0)]).at(c)(jnp.array([1.0, 2.0, 4.0])))(coords)
    np.testing.assert_array_equal(predicted, [[1.5, 3.0], [1.0, 4.0]])


def test_differentiates_with_respect_to_positions():
    slope = jax.grad(lambda x: InterpObs([jnp.arange(3.0)]).at(x[None, None])(jnp.array([1.0, 2.0, 4.0]))[0])
    assert float(slope(jnp.asarray(1.25))) == 2.0


def test_float32_stays_float32():
    axes, field, positions = problem(2)
    H, state = interp_obs_from_coords(axes, positions), jnp.asarray(field, jnp.float32)
    assert H(state).dtype == H.linearize(state).T.mv(H(state)).dtype == jnp.float32
    narrow = interp_obs_from_coords(axes, jnp.asarray(positions, jnp.float32))
    assert narrow.weight.dtype == jnp.float32


def test_float32_positions_lose_no_more_than_rounding():
    axis = np.linspace(0.0, 360.0, 3601)
    positions = np.random.default_rng(5).uniform(0.0, 360.0, (1000, 1)).astype(np.float32)
    H = interp_obs_from_coords([jnp.asarray(axis, jnp.float32)], jnp.asarray(positions))
    predicted = H(jnp.asarray(axis, jnp.float32))
    np.testing.assert_allclose(predicted, positions[:, 0], rtol=1e-6, atol=1e-6)


def test_one_axis_and_its_positions_may_be_bare():
    H = interp_obs_from_coords(np.arange(3.0), np.array([0.5, 1.0]))
    np.testing.assert_array_equal(H(jnp.array([1.0, 2.0, 4.0])), [1.5, 2.0])
    np.testing.assert_array_equal(interp_obs_from_coords([0.0, 1.0, 2.0], [[0.5]])(jnp.array([1.0, 2.0, 4.0])), [1.5])


def test_an_axis_with_one_point():
    H = interp_obs_from_coords([np.array([2.0])], [[2.0]])
    np.testing.assert_array_equal(H(jnp.array([7.0])), [7.0])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"grid_coords": [np.arange(2.0)] * 4}, "has 4 axes, expected one to three"),
        ({"order": 2}, "`order` is 2, expected 0"),
        ({"outside": "ignore"}, "`outside` is 'ignore', expected 'error', 'mask' or 'clamp'"),
        ({"periodic": (3,)}, "names axis 3, expected axis numbers below 2"),
        ({"periodic": {0: 2.0}}, "period of axis 0 is 2, expected more than its extent 3; leave out the last point"),
        ({"periodic": (1,)}, r"axis 1 is not evenly spaced.*periodic=\{1: period\}"),
    ],
)
def test_bad_arguments_are_named(arguments, words):
    given_ = {"grid_coords": [np.arange(4.0), np.array([0.0, 1.0, 4.0])]} | arguments
    with pytest.raises(ValueError, match=words):
        InterpObs(given_.pop("grid_coords"), **given_)


# -- other conventions, land and curvilinear grids -------------------------------------------------------------------


@pytest.mark.parametrize(("first", "turn"), [(0.0, -360.0), (-180.0, 360.0)])
def test_longitudes_may_come_in_another_convention(first, turn):
    """-180 .. 180 against a grid from 0 to 360, and the other way round."""
    longitude = first + np.arange(0.0, 360.0, 5.0)
    field, position = jnp.cos(jnp.deg2rad(jnp.asarray(longitude))), first + np.array([3.0, 177.0, 182.0, 359.0])
    grid = Grid([longitude], periodic=(0,))
    own, other = (interp_obs_from_coords(grid, p[:, None])(field) for p in (position, position + turn))
    np.testing.assert_allclose(own, other, atol=1e-5)
    np.testing.assert_allclose(own, np.cos(np.deg2rad(position)), atol=2e-3)


def test_a_regional_grid_wraps_without_closing():
    longitude, state = np.arange(-10.0, 41.0, 10.0), jnp.arange(6.0)
    H = interp_obs_from_coords([longitude], [[355.0], [-5.0], [35.0]], wrap={0: 360.0})
    np.testing.assert_allclose(H(state), [0.5, 0.5, 4.5], rtol=1e-6)
    with pytest.raises(ValueError, match=r"2 of 2 observations are outside the grid \[-10, 40\]"):
        H.at(np.array([[180.0], [341.0]]))


def coast():
    """A 4 x 5 grid with an island of two cells; the field is NaN there, as a model file has it."""
    mask = np.ones((4, 5), bool)
    mask[1, 1:3] = False
    field = np.where(mask, np.add.outer(10.0 * np.arange(4), np.arange(5.0)), np.nan)
    return Grid([np.arange(4.0), np.arange(5.0)], mask=mask), jnp.asarray(field)


def test_land_is_never_read():
    grid, field = coast()
    H = interp_obs_from_coords(grid, [[0.5, 0.5], [0.25, 1.5], [2.0, 1.0], [3.0, 3.5]])
    corners = [[0.0, 1.0, 10.0], [1.0, 2.0], [21.0], [33.0, 34.0]]
    weights = [[1, 1, 1], [1, 1], [1], [1, 1]]
    expected = [np.average(values, weights=w) for values, w in zip(corners, weights, strict=True)]
    np.testing.assert_allclose(H(field), expected, rtol=1e-6)
    transposed = H.linearize(field).T.mv(jnp.ones(4))
    assert not np.any(np.asarray(transposed)[~np.asarray(grid.mask)])
    np.testing.assert_allclose(np.sum(transposed), 4.0, rtol=1e-6)


def test_the_nearest_point_is_at_sea():
    grid, field = coast()
    H = interp_obs_from_coords(grid, [[0.9, 0.6], [1.1, 2.2], [3.0, 3.6]], order=0)
    np.testing.assert_array_equal(H(field), [10.0, 13.0, 34.0])


def test_a_position_without_a_corner_at_sea_is_outside():
    grid, field = coast()
    inland = [[1.0, 1.5], [2.5, 2.5], [9.0, 1.0]]
    words = (
        r"2 of 3 observations are outside the grid \[0, 3\] x \[0, 4\], the first is number 0 at \(1, 1.5\); 1 of them "
        r"are on land, without a corner at sea; pass outside=\"mask\""
    )
    with pytest.raises(ValueError, match=words):
        interp_obs_from_coords(grid, inland)
    with pytest.raises(ValueError, match="1 of 3 observations are outside .* pass positions at sea, or mask these"):
        interp_obs_from_coords(grid, inland, outside="clamp")
    H = interp_obs_from_coords(grid, inland, outside="mask")
    np.testing.assert_array_equal(H.mask, [0.0, 1.0, 0.0])
    np.testing.assert_array_equal(H(field), [0.0, 27.5, 0.0])


def curved(shape=(5, 6), turn=0.5):
    """Rows and columns of a grid that is turned and bent."""
    i, j = np.meshgrid(*(np.arange(n, dtype=float) for n in shape), indexing="ij")
    return [i + turn * j + 0.2 * np.sin(j), j - turn * i + 0.2 * np.cos(i)]


@pytest.mark.parametrize("leading", [(), (2,)], ids=["field", "two variables"])
def test_a_curvilinear_grid_gives_back_fields_that_are_linear_in_the_coordinates(leading):
    rows, columns = curved()
    coefficients = np.arange(1.0, 1.0 + 3 * int(np.prod(leading))).reshape(*leading, 3)
    linear = lambda y, x: np.moveaxis(coefficients @ np.stack([np.ones_like(y), y, x]).reshape(3, -1), -1, -1)  # noqa: E731
    positions = np.stack([0.5 * (x[:-1, :-1] + x[1:, 1:]).ravel() for x in (rows, columns)], axis=-1)
    H = interp_obs_from_coords([rows, columns], positions)
    state = jnp.asarray(linear(rows, columns).reshape(*leading, 5, 6))
    np.testing.assert_allclose(H(state), linear(*positions.T), rtol=1e-5)


def test_an_affine_curvilinear_grid_is_a_grid_with_axes():
    axes, field, positions = problem(2, p=40)
    turned = np.array([[0.8, -0.6], [0.6, 0.8]])
    points = np.einsum("kl,lij->kij", turned, np.stack(np.meshgrid(*axes, indexing="ij")))
    for order in (0, 1):
        straight, curvilinear = (
            interp_obs_from_coords(grid, where, order=order)
            for grid, where in ((axes, positions), (list(points), positions @ turned.T))
        )
        np.testing.assert_allclose(curvilinear(jnp.asarray(field)), straight(jnp.asarray(field)), atol=1e-4)


def test_levels_stand_on_a_curvilinear_grid():
    rows, columns = curved()
    depth = np.array([0.0, 10.0, 50.0])
    mask = np.ones((3, 5, 6), bool)
    mask[2, 2:] = False  # a shelf
    state = jnp.where(mask, depth[:, None, None] + 2 * rows - columns, jnp.nan)
    middle = [0.25 * (x[1, 1] + x[1, 2] + x[2, 1] + x[2, 2]) for x in (rows, columns)]
    H = interp_obs_from_coords(
        Grid([depth, rows, columns], mask=mask), [[5.0, *middle], [10.0, rows[4, 5], columns[4, 5]]]
    )
    np.testing.assert_allclose(
        H(state), [5 + 2 * middle[0] - middle[1], 10 + 2 * rows[4, 5] - columns[4, 5]], rtol=1e-5
    )
    with pytest.raises(ValueError, match="1 of 1 observations are outside .* 1 of them are on land"):
        H.at(np.array([[50.0, rows[3, 3] + 0.1, columns[3, 3]]]))


def test_a_curvilinear_grid_around_the_globe():
    latitude, longitude = np.meshgrid(np.arange(-60.0, 61.0, 20.0), np.arange(0.0, 360.0, 20.0), indexing="ij")
    longitude = (longitude + 0.3 * latitude + 180) % 360 - 180
    grid = Grid([latitude, longitude], periodic=(1,))
    rng = np.random.default_rng(3)
    positions = np.stack([rng.uniform(-60, 60, 30), rng.uniform(0, 360, 30)], axis=-1)
    for period in ({"periodic": {1: 360.0}}, {"wrap": {1: 360.0}}):  # the grid says that its axis closes
        H = interp_obs_from_coords(grid, positions, **period)
        np.testing.assert_allclose(H(jnp.asarray(latitude)), positions[:, 0], rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(H(jnp.cos(np.deg2rad(longitude))), np.cos(np.deg2rad(positions[:, 1])), atol=0.05)
    words = r"observations are outside the grid \[-60, 60\] x .*or name a period \(`periodic` or `wrap`\)"
    with pytest.raises(ValueError, match=words):
        interp_obs_from_coords(grid, positions)


@pytest.mark.parametrize("outside", ["mask", "clamp"])
def test_positions_outside_a_curvilinear_grid(outside):
    rows, columns = curved(turn=0.0)
    beyond = [[-9.0, columns[0, 2] + 0.01], [rows[2, 2], columns[2, 2]]]
    H = interp_obs_from_coords([rows, columns], beyond, outside=outside)
    assert np.asarray(H.mask).tolist() == [outside == "clamp", 1.0]
    predicted = H(jnp.asarray(rows))
    np.testing.assert_allclose(predicted[1], rows[2, 2], rtol=1e-5)
    assert predicted[0] == 0 if outside == "mask" else rows[0].min() - 1e-5 <= predicted[0] <= rows[0].max()
    with pytest.raises(ValueError, match="1 of 2 observations are outside the grid"):
        interp_obs_from_coords([rows, columns], beyond)


def test_the_table_of_a_curvilinear_grid_is_made_once_and_is_traced(count_compilations):
    predict = eqx.filter_jit(lambda H, where, x: H.at(where)(x))
    rows, columns = curved()
    H, state = InterpObs([rows, columns], outside="mask"), jnp.asarray(rows)
    rng = np.random.default_rng(0)
    first, second = (jnp.asarray(rng.uniform(1, 3, (7, 2))) for _ in range(2))
    predict(H, first, state)
    with count_compilations() as compiled:
        predicted = predict(H, second, state).block_until_ready()
    assert compiled.n == 0, compiled.names
    seen = np.asarray(H.at(second).mask) != 0
    np.testing.assert_allclose(predicted, np.where(seen, second[:, 0], 0.0), rtol=1e-5)


def test_what_a_curvilinear_grid_cannot_do_is_said():
    rows, columns = map(jnp.asarray, curved())
    with pytest.raises(TypeError, match="points of the curvilinear grid are traced.*make it outside jit"):
        jax.jit(lambda y: InterpObs([y, columns]).at(jnp.zeros((1, 2)))(y))(rows)
    with pytest.raises(ValueError, match=r"no cell of the curvilinear grid of shape \(5, 6\) can hold a position"):
        InterpObs([jnp.zeros((5, 6)), columns])
    words = (
        r"got its positions while tracing, and left the table .* behind; call `at` of the operator that it was made of"
    )
    with pytest.raises(ValueError, match=words):
        jax.jit(lambda where: InterpObs([rows, columns]).at(where).at(where)(rows))(jnp.ones((1, 2)))


@pytest.mark.parametrize("leading", [(), (2,)], ids=["field", "two variables"])
def test_each_point_may_be_read_off_another_state_of_a_trajectory(leading):
    axes, _, positions = problem(2, p=6)
    H = interp_obs_from_coords(axes, positions)
    trajectory = jnp.asarray(np.random.default_rng(0).standard_normal((3, *leading, 4, 5)))
    entry = jnp.array([2, 0, 1, 1, 2, 0])
    everywhere = jax.vmap(H)(trajectory)
    expected = jnp.stack([everywhere[e, ..., j] for j, e in enumerate(entry.tolist())], axis=-1)
    np.testing.assert_allclose(H.sample_along(trajectory, entry), expected, rtol=1e-6)


@pytest.mark.x64
@pytest.mark.parametrize("grid", ["axes", "land", "curvilinear"])
def test_derivatives_with_respect_to_positions_are_the_limits_of_differences(grid):
    made, field = {
        "axes": lambda: (Grid([np.arange(4.0), np.arange(5.0)]), jnp.asarray(coast()[1])),
        "land": coast,
        "curvilinear": lambda: (Grid(curved((4, 5))), jnp.asarray(curved((4, 5))[0] ** 2)),
    }[grid]()
    field = jnp.nan_to_num(field**2)
    unbound = InterpObs(made)
    predict = jax.jit(lambda where: jnp.sum(jnp.sin(unbound.at(where)(field))))
    where, step = jnp.array([[0.4, 0.7], [2.3, 2.6]]), 1e-6
    units = jnp.eye(4).reshape(4, 2, 2)
    difference = jnp.stack([predict(where + step * e) - predict(where - step * e) for e in units]) / (2 * step)
    np.testing.assert_allclose(jax.jit(jax.grad(predict))(where).ravel(), difference, rtol=1e-6, atol=1e-8)


def test_needs_positions_before_it_is_called():
    with pytest.raises(ValueError, match=r"no positions yet; give it those of the observations by `obs_op.at"):
        InterpObs([np.arange(3.0)])(jnp.ones(3))


def test_refuses_states_and_positions_that_do_not_fit():
    H = interp_obs_from_coords([np.arange(3.0), np.arange(2.0)], [[0.0, 0.0]])
    with pytest.raises(ValueError, match=r"the state has shape \(2, 3\), expected \(..., 3, 2\)"):
        H(jnp.ones((2, 3)))
    with pytest.raises(ValueError, match=r"the state has shape \(2,\), expected \(..., 3, 2\)"):
        H(jnp.ones(2))
    with pytest.raises(ValueError, match=r"positions have shape \(4, 3\), expected \(p, 2\)"):
        H.at(np.zeros((4, 3)))
    with pytest.raises(TypeError, match="InterpObs observes a state that is one array"):
        H({"u": jnp.ones((3, 2))})
