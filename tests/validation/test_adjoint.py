"""The dot-product test sees a single wrong component among many, and nothing where there is nothing."""

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest

from vardax.dynamics.discrete import DiscreteForward
from vardax.obs_operators.point import PointObs
from vardax.validation import adjoint_test

DTYPES = ["float32", pytest.param("float64", marks=pytest.mark.x64)]


def random_matrix(m, n, dtype, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal((m, n)), dtype)


def pair(matrix):
    return (lambda x: matrix @ x, lambda y: matrix.T @ y)


def flip(y, index):
    """`y` with the sign of one component flipped."""
    return y.at[index].multiply(-1)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("m", "n"), [(1, 1), (1, 7), (7, 1), (13, 40), (200, 64), (3, 200)])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_right_adjoint_passes(m, n, dtype, seed):
    matrix = random_matrix(m, n, dtype, seed)
    report = adjoint_test(pair(matrix), jnp.zeros(n, dtype), key=jax.random.key(seed))
    assert report, str(report)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [2, 17, 200, 20_000])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_one_flipped_sign_among_many_fails(n, dtype, seed):
    weights = jnp.asarray(np.random.default_rng(seed).uniform(0.5, 2.0, n), dtype)
    forward = lambda x: weights * x + 0.3 * jnp.roll(x, 1)  # noqa: E731
    backward = lambda y: flip(weights * y + 0.3 * jnp.roll(y, -1), n // 3)  # noqa: E731
    report = adjoint_test((forward, backward), jnp.zeros(n, dtype), key=jax.random.key(seed))
    assert not report["adjoint"].passed
    assert "check the sign" in report.verdict
    assert report["tangent is linear"].passed


def test_one_flipped_sign_in_a_state_of_a_million_fails_in_float32():
    n = 1_000_000
    forward = lambda x: x + 0.5 * jnp.roll(x, 1)  # noqa: E731
    backward = lambda y: flip(y + 0.5 * jnp.roll(y, -1), 77)  # noqa: E731
    right = lambda y: y + 0.5 * jnp.roll(y, -1)  # noqa: E731
    assert adjoint_test((forward, right), jnp.zeros(n, jnp.float32))
    assert not adjoint_test((forward, backward), jnp.zeros(n, jnp.float32))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "wrong",
    [
        lambda A, y: 1.01 * (A.T @ y),
        lambda A, y: -(A.T @ y),
        lambda A, y: jnp.roll(A.T @ y, 1),
        lambda A, y: A.T @ y + 1,
        lambda A, y: jnp.zeros(A.shape[1], y.dtype),
        lambda A, y: jnp.full(A.shape[1], jnp.nan, y.dtype),
    ],
    ids=["factor", "sign", "shifted", "constant", "zero", "nan"],
)
def test_other_defects_fail(wrong, dtype):
    A = random_matrix(9, 30, dtype)
    assert not adjoint_test((lambda x: A @ x, lambda y: wrong(A, y)), jnp.zeros(30, dtype))


@pytest.mark.parametrize("dtype", DTYPES)
def test_operators_of_all_kinds_pass(dtype):
    A, x = random_matrix(4, 6, dtype), jnp.linspace(0.5, 2.0, 6, dtype=dtype)
    for op in [
        A,
        np.asarray(A),
        lx.MatrixLinearOperator(A),
        lx.TaggedLinearOperator(lx.MatrixLinearOperator(A @ A.T), lx.symmetric_tag),
    ]:
        assert adjoint_test(op)
    for op in [
        lx.MatrixLinearOperator(A),
        PointObs([0, 3, 3]),
        jnp.sin,
        DiscreteForward(lambda s: s**2, 1.0),
        (jnp.sin, lambda x, dx: jnp.cos(x) * dx, lambda x, dy: jnp.cos(x) * dy),
    ]:
        report = adjoint_test(op, x)
        assert report, str(report)


def test_numpy_functions_are_called_as_they_are():
    A = np.random.default_rng(0).standard_normal((5, 3)).astype(np.float32)
    state = np.zeros(3, np.float32)
    assert adjoint_test((lambda x: A @ np.asarray(x), lambda y: A.T @ np.asarray(y)), state)
    assert not adjoint_test((lambda x: A @ np.asarray(x), lambda y: -(A.T @ np.asarray(y))), state)


def test_an_operator_that_is_zero_passes():
    assert adjoint_test(jnp.zeros((3, 5)))


def test_an_adjoint_linearised_at_another_state_fails():
    state = jnp.linspace(0.1, 1.0, 12)
    triple = (jnp.sin, lambda x, dx: jnp.cos(x) * dx, lambda x, dy: jnp.cos(0 * x) * dy)
    assert not adjoint_test(triple, state)["adjoint"].passed


def test_a_small_variable_does_not_hide_behind_a_large_one():
    """Pressure in Pa and humidity in kg/kg: the sign of the small array is seen array by array."""
    state = {"p": jnp.full(50, 1e5), "q": jnp.full(50, 1e-3)}
    forward = lambda s: {"p": s["p"] + 1e3 * s["q"], "q": s["q"]}  # noqa: E731
    right = lambda y: {"p": y["p"], "q": 1e3 * y["p"] + y["q"]}  # noqa: E731
    wrong = lambda y: {"p": y["p"], "q": 1e3 * y["p"] + flip(y["q"], 3)}  # noqa: E731
    report = adjoint_test((forward, right), state)
    assert report, str(report)
    report = adjoint_test((forward, wrong), state)
    assert not report["adjoint, array by array"].passed
    assert "from state['q'] to result['q']" in report["adjoint, array by array"].meaning


def test_a_tangent_that_is_not_linear_is_named():
    triple = (jnp.square, lambda x, dx: 2 * x * dx + dx**2, lambda x, dy: 2 * x * dy)
    report = adjoint_test(triple, jnp.ones(5))
    assert not report["tangent is linear"].passed
    assert "not linear in dx" in report.verdict


def test_a_wrong_structure_is_a_failing_row_that_says_what_was_found():
    report = adjoint_test((lambda x: x[:2], lambda y: y), jnp.ones(3))
    assert [row.name for row in report.failures] == ["structure of adjoint"]
    assert "[2], expected" in report.verdict


def test_a_tangent_without_adjoint_is_noted():
    class Model:
        dt, adjoint = 1.0, None

        def step(self, state, dt):
            return 2 * state

        def tangent(self, state, dstate):
            return 2 * dstate

    report = adjoint_test(Model(), jnp.ones(3))
    assert report
    assert "no adjoint" in report.notes[0]


def test_same_key_same_numbers():
    A = random_matrix(5, 5, "float32")
    first, second = (adjoint_test(A, key=jax.random.key(7)) for _ in range(2))
    assert first == second


def test_a_limit_can_be_set():
    A = random_matrix(5, 5, "float32")
    wrong = (lambda x: A @ x, lambda y: 1.01 * (A.T @ y))
    assert not adjoint_test(wrong, jnp.zeros(5, "float32"))
    assert adjoint_test(wrong, jnp.zeros(5, "float32"), tolerances={"adjoint": 1.0})


@pytest.mark.parametrize(
    ("op", "state", "error", "words"),
    [
        (jnp.sin, None, ValueError, "`state` is missing"),
        ("H", jnp.ones(2), TypeError, "`op` is str, expected a matrix, a lineax operator"),
        (jnp.ones(3), None, ValueError, r"`op` is an array of shape \(3,\), expected a matrix"),
        (
            (jnp.sin,),
            jnp.ones(2),
            TypeError,
            r"`op` is a tuple of 1, expected callables: \(function, tangent, adjoint\)",
        ),
        (lambda x: np.sin(np.asarray(x)), jnp.ones(2), TypeError, "cannot be differentiated by JAX.*give the tuple"),
        (jnp.sin, jnp.ones(2, jnp.int32), TypeError, "`state` has dtype int32"),
        (lx.MatrixLinearOperator(jnp.ones((2, 3))), jnp.ones(2), ValueError, "`state` does not fit `op`"),
    ],
)
def test_unusable_input_is_refused_by_name(op, state, error, words):
    with pytest.raises(error, match=words):
        adjoint_test(op, state)


def test_no_probes_are_refused():
    with pytest.raises(ValueError, match="`n_probes` is 0"):
        adjoint_test(jnp.ones((2, 2)), n_probes=0)
