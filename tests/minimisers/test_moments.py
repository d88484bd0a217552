"""Scattered points are predicted at their own moments of a trajectory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vardax.minimisers.moments import (
    BetweenEntries,
    EveryEntry,
    LinearInTime,
    NearestInTime,
    as_time_interpolation,
    intervals_since,
    required_steps,
    within_window,
)
from vardax.obs_operators.interp import interp_obs_from_coords
from vardax.obs_operators.point import PointObs

N_STEPS, P = 3, 6
RANDOM = np.random.default_rng(0)
TRAJECTORY = RANDOM.normal(size=(N_STEPS + 1, 5))
PLACES = RANDOM.uniform(0, 4, P)
MOMENTS = np.array([0.0, 0.25, 1.0, 1.9, 2.5, 3.0])
ATOL = 1e-12 if jax.config.jax_enable_x64 else 1e-5

OPERATORS = {
    "samples space": lambda: interp_obs_from_coords([np.arange(5.0)], PLACES[:, None]),
    "samples entries": lambda: PointObs([0, 4, 4, 2, 1, 3]),
    "any other": lambda: lambda x: jnp.sin(x[jnp.arange(P) % 5]) + jnp.sum(x**2),
}
each_operator = pytest.mark.parametrize("operator", [make() for make in OPERATORS.values()], ids=list(OPERATORS))


def everywhere(operator):
    """(T + 1, p): what each point would see at each entry."""
    return np.stack([np.asarray(operator(jnp.asarray(x))) for x in TRAJECTORY])


@each_operator
def test_observations_on_the_entries_are_predicted_entry_by_entry(operator):
    np.testing.assert_allclose(EveryEntry()(operator, jnp.asarray(TRAJECTORY)), everywhere(operator), atol=ATOL)


@each_operator
def test_points_are_read_linearly_between_two_entries(operator):
    moments = LinearInTime().place(jnp.asarray(MOMENTS), N_STEPS)
    predicted = moments(operator, jnp.asarray(TRAJECTORY))
    expected = [np.interp(t, np.arange(N_STEPS + 1), everywhere(operator)[:, j]) for j, t in enumerate(MOMENTS)]
    np.testing.assert_allclose(predicted, [expected], atol=ATOL)


@each_operator
def test_points_are_read_at_the_nearest_entry(operator):
    moments = NearestInTime().place(jnp.asarray(MOMENTS), N_STEPS)
    predicted = moments(operator, jnp.asarray(TRAJECTORY))
    nearest = [0, 0, 1, 2, 2, 3]  # half-way goes to the even one
    np.testing.assert_allclose(predicted, everywhere(operator)[nearest, np.arange(P)][None], atol=ATOL)


@each_operator
def test_the_adjoint_is_the_transpose(operator):
    moments = LinearInTime().place(jnp.asarray(MOMENTS), N_STEPS)
    predict = lambda path: moments(operator, path)  # noqa: E731
    tangent, cotangent = jnp.asarray(RANDOM.normal(size=TRAJECTORY.shape)), jnp.asarray(RANDOM.normal(size=(1, P)))
    _, forward = jax.jvp(predict, (jnp.asarray(TRAJECTORY),), (tangent,))
    _, transposed = jax.vjp(predict, jnp.asarray(TRAJECTORY))
    products = [jnp.vdot(forward, cotangent), jnp.vdot(tangent, transposed(cotangent)[0])]
    np.testing.assert_allclose(*products, rtol=1e-12 if jax.config.jax_enable_x64 else 1e-4)


def test_a_state_may_be_a_pytree():
    path = {"x": jnp.asarray(TRAJECTORY), "v": 2 * jnp.asarray(TRAJECTORY)}
    moments = LinearInTime().place(jnp.asarray(MOMENTS), N_STEPS)
    predicted = moments(lambda state: state["v"][jnp.zeros(P, int)] - state["x"][jnp.zeros(P, int)], path)
    np.testing.assert_allclose(predicted[0], np.interp(MOMENTS, np.arange(4), TRAJECTORY[:, 0]), atol=ATOL)


@pytest.mark.parametrize("between", [LinearInTime(), NearestInTime()])
def test_a_window_of_one_entry_has_one_state(between):
    moments = between.place(jnp.zeros(5), 0)
    np.testing.assert_allclose(moments(lambda x: x, jnp.asarray(TRAJECTORY[:1])), TRAJECTORY[:1], atol=ATOL)


@pytest.mark.parametrize("between", [LinearInTime(), NearestInTime()])
def test_moments_outside_are_moved_to_an_end(between):
    moments = between.place(jnp.array([-2.0, 9.0, jnp.nan, jnp.inf]), N_STEPS)
    ends = [TRAJECTORY[e, j] for j, e in enumerate((0, 3, 0, 0))]
    np.testing.assert_allclose(moments(lambda x: x[:4], jnp.asarray(TRAJECTORY))[0], ends, atol=ATOL)


@pytest.mark.parametrize("xp", [np, jnp])
def test_both_ends_belong_to_the_window(xp):
    """Also where the last time is the sum of intervals that are not exact: 0.1 + 0.1 + 0.1 is not 0.3."""
    time = xp.asarray([0.0, 0.3, 0.1 + 0.1 + 0.1, 0.31, -0.01, np.nan])
    position = intervals_since(time, xp.zeros_like(time[0]), 0.1)
    assert within_window(position, N_STEPS).tolist() == [True, True, True, False, False, False]


def test_time_may_run_backwards():
    position = intervals_since(jnp.array([5.0, 4.5, 3.5]), jnp.asarray(5.0), -0.5)
    assert position.tolist() == [0.0, 1.0, 3.0]


def test_times_keep_their_dtype():
    time = jnp.ones(2, jnp.float32)
    assert intervals_since(time, time[0], jnp.asarray(0.1)).dtype == jnp.float32
    moments = LinearInTime().place(time, 2)
    assert moments(lambda x: x[:2], jnp.asarray(TRAJECTORY)).dtype == jnp.asarray(TRAJECTORY).dtype


def test_new_moments_do_not_compile(count_compilations):
    predict = jax.jit(lambda moments, path: moments(OPERATORS["samples space"](), path))
    first, second = (BetweenEntries(jnp.full(P, k), jnp.full(P, 0.5)) for k in (0, 2))
    predict(first, jnp.asarray(TRAJECTORY))
    with count_compilations() as compiled:
        predict(second, jnp.asarray(TRAJECTORY)).block_until_ready()
    assert compiled.n == 0, compiled.names


def test_how_a_trajectory_is_read_is_a_type():
    assert as_time_interpolation(NearestInTime()) == NearestInTime()
    for wrong in ("linear", LinearInTime, None):
        with pytest.raises(TypeError, match=r"`time_interpolation` is .*, expected LinearInTime\(\) or NearestInTime"):
            as_time_interpolation(wrong)


def test_the_length_of_a_window_has_to_be_given():
    assert required_steps(4, "Owner") == 4
    with pytest.raises(
        ValueError, match=r"Owner: scattered Observations do not say .* give `n_steps`.*Owner\(..., n_steps"
    ):
        required_steps(None, "Owner")
