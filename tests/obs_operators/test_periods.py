"""Which axes close, and modulo what positions count."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vardax.obs_operators.periods import axis_periods, coordinate_periods

EVEN, UNEVEN = jnp.arange(0.0, 360.0, 90.0), jnp.array([0.0, 1.0, 4.0])
ROWS, COLUMNS = jnp.zeros((3, 4)), jnp.ones((3, 4))


def numbers(periods):
    return [None if period is None else float(period) for period in periods]


@pytest.mark.parametrize("periodic", [0, (0,), [-2], {0: 360.0}])
def test_an_even_axis_closes_after_n_times_its_spacing(periodic):
    periods, closed = axis_periods((EVEN, UNEVEN), periodic, {})
    assert numbers(periods) == [360.0, None]
    assert closed == (True, False)


def test_an_axis_may_wrap_without_closing():
    periods, closed = axis_periods((EVEN, UNEVEN), (), {-1: 10.0})
    assert numbers(periods) == [None, 10.0]
    assert closed == (False, False)


def test_a_curvilinear_axis_closes_with_and_without_a_period():
    periods, closed = coordinate_periods((ROWS, COLUMNS), (1,), {})
    assert (numbers(periods), closed) == ([None, None], (False, True))
    periods, closed = coordinate_periods((ROWS, COLUMNS), {-1: 360.0}, {})
    assert (numbers(periods), closed) == ([None, 360.0], (False, True))
    periods, closed = coordinate_periods((ROWS, COLUMNS), (1,), {0: 360.0})
    assert (numbers(periods), closed) == ([360.0, None], (False, True))


def test_levels_above_a_curvilinear_grid_are_axes():
    periods, closed = coordinate_periods((UNEVEN, ROWS, COLUMNS), {2: 360.0}, {0: 24.0})
    assert (numbers(periods), closed) == ([24.0, None, 360.0], (False, False, True))
    periods, closed = coordinate_periods((EVEN, ROWS, COLUMNS), (0,), {})
    assert (numbers(periods), closed) == ([360.0, None, None], (True, False, False))


def test_a_traced_axis_keeps_its_period():
    period = jax.jit(lambda axis: axis_periods((axis,), {0: 360.0}, {})[0][0])(EVEN)
    assert float(period) == 360.0


@pytest.mark.parametrize(
    ("of", "axes", "periodic", "wrap", "words"),
    [
        (axis_periods, (EVEN, UNEVEN), (2,), {}, "`periodic` names axis 2, expected axis numbers below 2"),
        (axis_periods, (EVEN, UNEVEN), (), {-3: 1.0}, "`wrap` names axis -3, expected axis numbers below 2"),
        (axis_periods, (EVEN, UNEVEN), (1,), {}, r"axis 1 is not evenly spaced.*periodic=\{1: period\}"),
        (axis_periods, (EVEN, UNEVEN), {0: 270.0}, {}, "period of axis 0 is 270, expected more than its extent 270"),
        (axis_periods, (EVEN, UNEVEN), (), {1: 2.0}, "period of axis 1 is 2, expected more than its extent 4"),
        (axis_periods, (EVEN, UNEVEN), (0,), {0: 360.0}, "axis 0 is in both `periodic` and `wrap`"),
        (coordinate_periods, (ROWS, COLUMNS), {1: 360.0}, {1: 360.0}, "coordinate 1 has a period in both"),
        (coordinate_periods, (ROWS, COLUMNS), {1: 0.0}, {}, "period of coordinate 1 is 0, expected more than 0"),
        (coordinate_periods, (ROWS, COLUMNS), (2,), {}, "`periodic` names axis 2, expected axis numbers below 2"),
    ],
)
def test_what_does_not_fit_is_named(of, axes, periodic, wrap, words):
    with pytest.raises(ValueError, match=words):
        of(axes, periodic, wrap)


def test_periods_take_the_dtype_of_their_axis():
    periods, _ = axis_periods((EVEN.astype(jnp.float32),), {0: np.float64(360)}, {})
    assert periods[0].dtype == jnp.float32
