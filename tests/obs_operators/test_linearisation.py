"""One linear operator from anyone's H, and whether H is affine."""

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest

from vardax.obs_operators import (
    CallableObs,
    InterpObs,
    LinearObs,
    MaskedIdentity,
    PointObs,
    is_linear,
    linearise_operator,
)

MATRIX = np.random.default_rng(2).standard_normal((3, 6))


class Foreign:
    """An operator of another package: y = tanh(A x), whose `linearize` returns what it is told to."""

    def __init__(self, result):
        self.result = result

    def __call__(self, state):
        return jnp.tanh(jnp.asarray(MATRIX, state.dtype) @ state.reshape(-1))

    def linearize(self, state):
        slope = 1 - self(state) ** 2
        matrix = slope[:, None] * jnp.asarray(MATRIX, state.dtype)
        return {
            "matrix": lambda: matrix,
            "numpy matrix": lambda: np.asarray(matrix),
            "callable": lambda: lambda dx: matrix @ dx.reshape(-1),
            "lineax on vectors": lambda: lx.MatrixLinearOperator(matrix),
            "lineax on fields": lambda: lx.FunctionLinearOperator(lambda dx: matrix @ dx.reshape(-1), state),
            "nothing": lambda: None,
            "too small": lambda: lx.MatrixLinearOperator(matrix[:, 1:]),
            "too few": lambda: lx.MatrixLinearOperator(matrix[1:]),
        }[self.result]()


class WithoutLinearize:
    def __call__(self, state):
        return Foreign(None)(state)


OPERATORS = [Foreign(r) for r in ("matrix", "numpy matrix", "callable", "lineax on vectors", "lineax on fields")]


@pytest.mark.parametrize("op", [*OPERATORS, WithoutLinearize(), Foreign(None).__call__], ids=lambda op: str(op)[:40])
def test_every_kind_of_linearisation_is_the_jacobian_with_its_transpose(op):
    state = jnp.asarray(np.random.default_rng(3).standard_normal((2, 3)))
    operator = linearise_operator(op, state)
    jacobian = jax.jacfwd(op)(state).reshape(3, 6)
    tolerance = 1e3 * float(jnp.finfo(state.dtype).eps)
    assert operator.in_structure().shape == (2, 3)
    assert operator.out_structure().shape == (3,)
    np.testing.assert_allclose(operator.as_matrix(), jacobian, rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(operator.T.as_matrix(), jacobian.T, rtol=tolerance, atol=tolerance)


def test_a_lineax_operator_is_its_own_linearisation():
    operator = lx.MatrixLinearOperator(jnp.asarray(MATRIX))
    assert linearise_operator(operator, jnp.zeros(6)) is operator


def test_refuses_a_linearisation_of_no_known_kind():
    with pytest.raises(
        TypeError, match="`Foreign.linearize` returns a NoneType, expected a matrix, a callable or a lineax"
    ):
        linearise_operator(Foreign("nothing"), jnp.zeros(6))


@pytest.mark.parametrize(("result", "words"), [("too small", "takes .* the state"), ("too few", "gives .* predicted")])
def test_refuses_a_linearisation_that_does_not_fit(result, words):
    with pytest.raises(ValueError, match=words):
        linearise_operator(Foreign(result), jnp.zeros(6))


def test_refuses_what_is_no_operator():
    with pytest.raises(TypeError, match="`obs_op` is 3, expected an observation operator"):
        linearise_operator(3, jnp.zeros(6))


AFFINE = {
    "scale and shift": lambda x: 3 * x + 1,
    "sum": lambda x: jnp.cumsum(x),
    "difference": lambda x: x[1:] - x[:-1],
    "zero": lambda x: x - x,
    "fourier": lambda x: jnp.fft.rfft(x),
    "constant": lambda x: jnp.ones(2, x.dtype),
}
NONLINEAR = {
    "tanh": jnp.tanh,
    "square": lambda x: x**2,
    "odd square": lambda x: x * jnp.abs(x),
    "exp": jnp.exp,
    "far clip": lambda x: jnp.clip(x, -1e3, 1e3),
    "dead zone": lambda x: jnp.where(jnp.abs(x) < 1e-3, jnp.zeros_like(x), x),
    "one of many": lambda x: x.at[0].set(jnp.sin(x[0])),
    "logarithm": jnp.log,
}


@pytest.mark.parametrize("dtype", ["float32", pytest.param("float64", marks=pytest.mark.x64)])
@pytest.mark.parametrize("name", AFFINE)
def test_affine_operators_count_as_linear(name, dtype):
    assert is_linear(CallableObs(AFFINE[name]), jnp.zeros(40, dtype))


@pytest.mark.parametrize("dtype", ["float32", pytest.param("float64", marks=pytest.mark.x64)])
@pytest.mark.parametrize("name", NONLINEAR)
def test_nonlinear_operators_are_found(name, dtype):
    assert not is_linear(CallableObs(NONLINEAR[name]), jnp.zeros(40, dtype))


def test_the_structure_is_guessed_when_it_is_not_given():
    assert not is_linear(CallableObs(jnp.tanh))
    assert is_linear(lambda field: field[3, 5])
    assert not is_linear(lambda field: field[3, 5] ** 2)


def test_asks_for_the_structure_where_it_cannot_be_guessed():
    with pytest.raises(ValueError, match="accepts none of the trial states; give `state_structure`"):
        is_linear(CallableObs(lambda state: state["u"]))
    assert is_linear(CallableObs(lambda state: state["u"]), {"u": jnp.zeros(3)})


@pytest.mark.parametrize(
    "op",
    [MaskedIdentity(), PointObs([900]), LinearObs(MATRIX), InterpObs([np.arange(3.0)])],
    ids=lambda op: type(op).__name__,
)
def test_linear_operators_need_no_structure(op):
    assert is_linear(op)


def test_decides_on_values_that_are_traced():
    def classify(scale):
        assert is_linear(CallableObs(Scaled(scale, jnp.abs)), jnp.zeros(3)) is False
        assert is_linear(CallableObs(Scaled(scale, lambda x: x)), jnp.zeros(3)) is True
        return scale

    jax.jit(classify)(jnp.asarray(2.0))


def test_is_true_where_tracing_hides_everything():
    def classify(scale):
        assert is_linear(CallableObs(lambda x: scale * jnp.abs(x)), jnp.zeros(3)) is True
        return scale

    jax.jit(classify)(jnp.asarray(2.0))


class Scaled(eqx.Module):
    scale: jax.Array
    fn: object

    def __call__(self, x):
        return self.scale * self.fn(x)
