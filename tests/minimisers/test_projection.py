"""The control of an increment is the shortest one, also for a rectangular or singular square root, at any size."""

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest

from vardax.covariances.diagonal import DiagonalCovariance
from vardax.covariances.functions import half
from vardax.covariances.matern import MaternLinearOperator
from vardax.minimisers import projection
from vardax.minimisers.projection import shortest_control

RANDOM = np.random.default_rng(17)
TOLERANCE = {"rtol": 1e-6, "atol": 1e-7} if jax.config.jax_enable_x64 else {"rtol": 2e-2, "atol": 2e-2}
FACTORS = {
    "square": RANDOM.normal(size=(4, 4)) + 3 * np.eye(4),
    "wide": RANDOM.normal(size=(3, 6)),
    "tall": RANDOM.normal(size=(5, 2)),
    "singular": np.diag([1.0, 0.0, 2.0]),
}


@pytest.mark.parametrize("limit", [projection.EXACT_LIMIT, 0], ids=["exact", "iterative"])
@pytest.mark.parametrize("name", FACTORS)
def test_it_is_the_pseudoinverse(name, limit, monkeypatch):
    monkeypatch.setattr(projection, "EXACT_LIMIT", limit)
    L, dx = FACTORS[name], np.random.default_rng(5).normal(size=len(FACTORS[name]))
    control = shortest_control(lx.MatrixLinearOperator(jnp.asarray(L)), jnp.asarray(dx))
    np.testing.assert_allclose(control, np.linalg.pinv(L) @ dx, **TOLERANCE)


@pytest.mark.parametrize("limit", [projection.EXACT_LIMIT, 0], ids=["exact", "iterative"])
def test_fields_and_pytrees_keep_their_structure(limit, monkeypatch):
    monkeypatch.setattr(projection, "EXACT_LIMIT", limit)
    field = jnp.asarray(RANDOM.normal(size=(3, 2)))
    control = shortest_control(half(DiagonalCovariance(4.0 * jnp.ones((3, 2)))), field)
    np.testing.assert_allclose(control, field / 2, **TOLERANCE)
    tree = {"u": jnp.ones(2), "c": jnp.full(1, 3.0)}
    root = lx.DiagonalLinearOperator({"u": jnp.array([1.0, 2.0]), "c": jnp.array([3.0])})
    found = shortest_control(root, tree)
    np.testing.assert_allclose(found["u"], [1.0, 0.5], **TOLERANCE)
    np.testing.assert_allclose(found["c"], [1.0], **TOLERANCE)


def test_an_increment_of_zero_has_control_zero():
    np.testing.assert_array_equal(shortest_control(lx.MatrixLinearOperator(jnp.eye(3)), jnp.zeros(3)), jnp.zeros(3))


@pytest.mark.parametrize("boundary", ["periodic", "free"])
def test_a_smooth_increment_is_reproduced(boundary):
    root = half(MaternLinearOperator((24,), 3.0, boundary=boundary))
    dx = root.mv(jnp.asarray(RANDOM.normal(size=root.in_structure().shape)))
    control = shortest_control(root, dx)
    np.testing.assert_allclose(root.mv(control), dx, **TOLERANCE)


@pytest.mark.parametrize("limit", [projection.EXACT_LIMIT, 0], ids=["exact", "iterative"])
@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_its_derivative_is_finite_also_where_singular_values_coincide(limit, scale, monkeypatch):
    monkeypatch.setattr(projection, "EXACT_LIMIT", limit)

    def length(variance, dx):
        return jnp.sum(shortest_control(half(DiagonalCovariance(variance)), dx) ** 2)

    variance, dx = jnp.full(3, scale), jnp.array([1.0, -2.0, 0.5])
    by_variance, by_increment = jax.grad(length, argnums=(0, 1))(variance, dx)
    np.testing.assert_allclose(by_increment, 2 * dx / scale, **TOLERANCE)
    np.testing.assert_allclose(by_variance, -((dx / scale) ** 2), **TOLERANCE)
