"""The bilinear map onto quadrilaterals and its inverse."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vardax.obs_operators.quads import Quads, cross, inverse, jacobian, newton_step, quads_at, shortest

X64 = jax.config.jax_enable_x64
ATOL = 1e-11 if X64 else 2e-4


def convex(seed, n):
    """n convex quadrilaterals of either orientation: four points on an ellipse, some nearly straight or collapsed."""
    rng = np.random.default_rng(seed)
    angles = np.sort(rng.uniform(0, 2 * np.pi, (n, 4)), axis=1)
    angles[: n // 4, 1] = angles[: n // 4, 0] + 1e-3 * rng.random(n // 4)
    points = np.stack([3 * np.cos(angles), np.sin(angles)], axis=-1) + rng.normal(size=(n, 1, 2))
    corner = points[:, ::-1] if seed % 2 else points  # around the cell: q_00, q_10, q_11, q_01
    area = np.abs(sum(cross(corner[:, k], corner[:, (k + 1) % 4]) for k in range(4)))
    corner = corner[area > 0.05]
    q00, q10, q11, q01 = (jnp.asarray(corner[:, k]) for k in range(4))
    return Quads(q00, q10 - q00, q01 - q00, q11 - q10 - q01 + q00)


@given(st.integers(0, 2**31 - 1))
def test_the_inverse_undoes_the_map(seed):
    quads = convex(seed, 64)
    rng = np.random.default_rng(seed)
    u, v = (jnp.asarray(rng.random(quads.a.shape[0])) for _ in range(2))
    offset = quads.at(u, v)
    found = inverse(quads, offset)
    np.testing.assert_allclose(quads.at(*found), offset, atol=ATOL)
    regular = np.abs(np.asarray(jacobian(quads, u, v))) > 0.02
    np.testing.assert_allclose(np.asarray(found)[:, regular], np.stack([u, v])[:, regular], atol=100 * ATOL)


def one(q00, q10, q01, q11):
    q00, q10, q01, q11 = (jnp.array([q], float) for q in (q00, q10, q01, q11))
    return Quads(q00, q10 - q00, q01 - q00, q11 - q10 - q01 + q00)


def at(quads, position):
    u, v = inverse(quads, jnp.array([position], float) - quads.origin)
    return float(u[0]), float(v[0])


SQUARE, KITE = one((0, 0), (1, 0), (0, 1), (1, 1)), one((0, 0), (4, 0), (0, 1), (4, 3))
TRIANGLE = one((0, 0), (1, 0), (0, 1), (0, 1))  # q_01 and q_11 are one point


def test_a_parallelogram_is_an_affine_map():
    quads = one((1, 1), (3, 2), (1, 4), (3, 5))
    np.testing.assert_allclose(at(quads, (1.5, 2.75)), (0.25, 0.5), rtol=1e-6)


@pytest.mark.parametrize("quads", [SQUARE, KITE], ids=["square", "kite"])
@pytest.mark.parametrize("corner", [(0, 0), (1, 0), (0, 1), (1, 1)])
def test_corners_are_corners(quads, corner):
    u, v = (jnp.array([float(w)]) for w in corner)
    position = np.asarray(quads.origin + quads.at(u, v))[0]
    np.testing.assert_allclose(at(quads, position), corner, atol=1e-6)


@pytest.mark.parametrize("quads", [SQUARE, KITE, TRIANGLE], ids=["square", "kite", "triangle"])
@pytest.mark.parametrize("position", [(-0.1, 0.5), (4.5, 1.0), (1.0, -0.1), (0.3, 9.0)])
def test_what_is_outside_is_outside(quads, position):
    u, v = at(quads, position)
    assert min(u, v, 1 - u, 1 - v) < 0


def test_a_triangle_is_a_cell_with_a_collapsed_side():
    u, v = at(TRIANGLE, (0.25, 0.5))
    np.testing.assert_allclose((u, v), (0.5, 0.5), rtol=1e-6)
    assert at(TRIANGLE, (0.0, 1.0)) == (0.5, 1.0)


def test_a_newton_step_has_the_derivative_of_the_inverse():
    position = jnp.array([1.3, 0.9])

    def fractions(position):
        offset = position[None] - KITE.origin
        u, v = jax.lax.stop_gradient(inverse(KITE, offset))
        steps = newton_step(KITE, offset, u, v, jnp.array([True]))
        return jnp.stack([u + steps[0], v + steps[1]])[:, 0]

    u, v = inverse(KITE, position[None] - KITE.origin)
    columns = jnp.stack([KITE.a + v[:, None] * KITE.c, KITE.b + u[:, None] * KITE.c], axis=-1)[0]
    np.testing.assert_allclose(jax.jacobian(fractions)(position), jnp.linalg.inv(columns), rtol=1e-5)


@pytest.mark.parametrize("xp", [np, jnp])
def test_differences_go_the_short_way_round(xp):
    difference = xp.asarray([[1.0, 350.0], [400.0, -359.0]])
    np.testing.assert_allclose(shortest(difference, (None, 360.0)), [[1.0, -10.0], [400.0, 1.0]])


@pytest.mark.parametrize("xp", [np, jnp])
def test_cells_close_behind_the_last_column(xp):
    rows, columns = (xp.asarray(x) for x in np.meshgrid([0.0, 1.0], [10.0, 130.0, 250.0], indexing="ij"))
    quads, next_row, next_column = quads_at((rows, columns), (None, 360.0), xp.asarray([0]), xp.asarray([2]))
    assert (next_row.tolist(), next_column.tolist()) == ([1], [0])
    np.testing.assert_allclose(quads.b, [[0.0, 120.0]])
    np.testing.assert_allclose(quads.c, [[0.0, 0.0]])
