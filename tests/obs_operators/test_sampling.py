"""What operators share that sample space: masks on predictions, positions to come, states of their own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vardax.obs_operators import ColumnRetrieval, CompositeObs, InterpObs, PointObs
from vardax.obs_operators.sampling import is_unbound, mask_on, sample_along, where_seen
from vardax.types import Observations

GRID = [np.arange(4.0), np.arange(5.0)]
COORDS = np.random.default_rng(0).uniform(0, 3, (6, 2))
TRAJECTORY = jnp.asarray(np.random.default_rng(1).uniform(1, 2, (4, 3, 4, 5)))
ENTRY = jnp.array([3, 0, 1, 1, 2, 0])
BOUND = InterpObs(GRID).at(COORDS)


def columns(interp, **fields):
    parts = {"kernel": np.full((6, 3), 0.8), "prior": np.ones((6, 3)), "weights": np.full((6, 3), 1 / 3)}
    return ColumnRetrieval(**parts, interp=interp, **fields)


OPERATORS = {
    "interpolated": BOUND,
    "columns": columns(BOUND),
    "columns by number": columns(np.arange(6)),
    "variable, position, then what is seen": CompositeObs(lambda x: x[1], BOUND, jnp.log),
    "composed twice": CompositeObs(CompositeObs(lambda x: x[1], BOUND), jnp.log),
    "with gaps": CompositeObs(
        lambda x: x[1],
        InterpObs(GRID, outside="mask").at(Observations(np.ones(6), 1.0, 0.0, COORDS, valid=[1, 1, 0, 1, 0, 1])),
        jnp.log,
    ),
    "without a sampling operator": CompositeObs(lambda x: x[1].ravel()[:6], jnp.log),
    "a function": lambda x: x[0].ravel()[:6] ** 2,
}


@pytest.mark.parametrize("name", OPERATORS)
def test_each_point_is_predicted_from_its_own_state(name):
    operator = OPERATORS[name]
    everywhere = jax.vmap(operator)(TRAJECTORY)
    expected = np.stack([everywhere[entry, ..., j] for j, entry in enumerate(ENTRY)], axis=-1)
    np.testing.assert_allclose(sample_along(operator, TRAJECTORY, ENTRY), expected, rtol=1e-6)


def test_states_that_no_point_reads_have_no_gradient():
    for name in ("columns", "variable, position, then what is seen"):
        gradient = jax.grad(lambda x, name=name: jnp.sum(sample_along(OPERATORS[name], x, ENTRY % 2)))(TRAJECTORY)
        assert np.any(gradient[:2])
        np.testing.assert_array_equal(gradient[2:], 0.0)


def test_operators_wait_for_positions():
    waiting = InterpObs(GRID)
    assert is_unbound(waiting)
    assert is_unbound(ColumnRetrieval(interp=waiting))
    assert is_unbound(CompositeObs(jnp.sin, CompositeObs(waiting, jnp.cos)))
    for op in (BOUND, columns(BOUND), CompositeObs(jnp.sin, BOUND), PointObs([0]), jnp.sin):
        assert not is_unbound(op)


def test_a_mask_belongs_to_the_last_axes():
    seen = InterpObs(GRID, outside="mask").at(np.array([[0.0, 0.0], [9.0, 0.0]]))
    np.testing.assert_array_equal(mask_on(seen, (2,)), [True, False])
    np.testing.assert_array_equal(mask_on(seen, (3, 2)), [[True, False]] * 3)
    assert mask_on(seen, (3,)) is None
    assert mask_on(jnp.sin, (2,)) is None
    np.testing.assert_array_equal(where_seen(mask_on(seen, (2,)), jnp.array([1.0, jnp.nan])), [1.0, 0.0])
    np.testing.assert_array_equal(where_seen(None, jnp.array([1.0, 2.0])), [1.0, 2.0])
