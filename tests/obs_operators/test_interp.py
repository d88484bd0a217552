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
    words = r"2 of 3 observations are outside the grid \[0, 2\], the first is number 1 at \(-3\); pass outside=\"mask\""
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
