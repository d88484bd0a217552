"""Whatever the user gives becomes one map with a tangent and an adjoint."""

import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest

from vardax.dynamics.discrete import DiscreteForward
from vardax.validation.linearised import compiled, linearised, linearised_step, step_of, structure_check, title_of
from vardax.validation.spaces import Space

A = jnp.asarray(np.random.default_rng(0).standard_normal((4, 3)), jnp.float32)
X = jnp.asarray([0.3, 0.5, 0.7], jnp.float32)
D = np.array([1.0, 2.0, 3.0])


class Operator:
    """A foreign operator, y = A sin(x), whose `linearize` returns what it is told to."""

    def __init__(self, kind):
        self.kind = kind

    def __call__(self, state):
        return A @ jnp.sin(state)

    def linearize(self, state):
        jacobian = A * jnp.cos(state)[None]
        return {
            "matrix": jacobian,
            "callable": lambda dx: jacobian @ dx,
            "lineax": lx.MatrixLinearOperator(jacobian),
        }[self.kind]


@pytest.mark.parametrize(
    "op",
    [
        Operator("matrix"),
        Operator("callable"),
        Operator("lineax"),
        lambda x: A @ jnp.sin(x),
        (
            lambda x: A @ jnp.sin(x),
            lambda x, dx: A @ (jnp.cos(x) * dx),
            lambda x, dy: jnp.cos(x) * (A.T @ dy),
        ),
    ],
    ids=["matrix", "callable", "lineax", "absent", "triple"],
)
def test_every_kind_gives_the_same_tangent_and_adjoint(op):
    lin = linearised(op, X)
    jacobian = np.asarray(A * jnp.cos(X)[None], np.float64)
    np.testing.assert_allclose(lin.apply(D), jacobian @ D, rtol=1e-5)
    np.testing.assert_allclose(lin.apply_adjoint(np.ones(4)), jacobian.T @ np.ones(4), rtol=1e-4)
    np.testing.assert_allclose(lin.value, A @ jnp.sin(X), rtol=1e-6)
    assert all(row.passed for row in lin.structure_rows())


@pytest.mark.parametrize(
    "step_fn",
    [lambda x, dt: x + dt * x**2, lambda x, dt, *, t0: x + dt * x**2 * (t0 - 2), lambda x: x + 0.5 * x**2],
    ids=["dt", "time", "state only"],
)
def test_a_model_is_called_as_its_step_asks(step_fn):
    model = DiscreteForward(step_fn, 0.5)
    np.testing.assert_allclose(step_of(model, None, 3.0)(X), X + 0.5 * X**2, rtol=1e-6)
    np.testing.assert_allclose(linearised_step(model, X, t0=3.0).apply(D), (1 + np.asarray(X)) * D, rtol=1e-5)


def test_dt_can_be_given_or_replaced():
    class Model:
        def step(self, state, dt):
            return state * dt

    np.testing.assert_allclose(step_of(Model(), 2.0)(X), 2 * X)
    with pytest.raises(ValueError, match="`dt` is missing"):
        step_of(Model())
    with pytest.raises(TypeError, match="`model` is float, expected a forward model"):
        step_of(1.0)


def test_a_model_with_a_tangent_of_its_own_is_not_differentiated():
    class Model:
        dt = 1.0

        def step(self, state, dt):
            return np.sin(np.asarray(state))

        def tangent(self, state, dstate):
            return np.cos(np.asarray(state)) * np.asarray(dstate)

        def adjoint(self, state, costate):
            return np.cos(np.asarray(state)) * np.asarray(costate)

    lin = linearised_step(Model(), X)
    np.testing.assert_allclose(lin.apply(D), np.cos(X) * D, rtol=1e-6)
    np.testing.assert_allclose(lin.apply_adjoint(D), np.cos(X) * D, rtol=1e-6)


def test_what_jax_can_trace_is_compiled_once(count_compilations):
    function = compiled(lambda x: jnp.sin(x) + 1, X)
    function(X)
    with count_compilations() as again:
        function(X + 1)
    assert again.n <= 1  # the addition in this test


def test_what_jax_cannot_trace_is_called_as_it_is():
    numpy_only = lambda x: np.sin(np.asarray(x))  # noqa: E731
    assert compiled(numpy_only, X) is numpy_only


def test_a_pytree_operator_is_linearised():
    state = {"u": X, "v": 2 * X}
    lin = linearised(lambda s: s["u"] * s["v"], state)
    d = lin.inputs.vector({"u": X, "v": jnp.zeros(3)})
    np.testing.assert_allclose(lin.apply(d), 2 * X * X, rtol=1e-6)


def test_a_structure_check_says_what_differs():
    space = Space.of(X, "state")
    assert structure_check("structure", X, space).passed
    assert structure_check("structure", "text", space).meaning == "found str, expected float32[3]"
    assert structure_check("structure", X[:2], space).meaning == "found float32[2], expected float32[3]"


def test_titles_name_the_object():
    assert title_of("adjoint_test", Operator("matrix")) == "adjoint_test of Operator"
    assert title_of("adjoint_test", jnp.sin) == "adjoint_test of sin"
