"""LinearObs: arrays, lineax operators and callables as H."""

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest

from vardax.obs_operators import LinearObs, is_linear
from vardax.protocols import ObservationOperator

RNG = np.random.default_rng(0)
MATRIX = RNG.standard_normal((4, 6))
FIELD = RNG.standard_normal((2, 3))


def forms():
    """The same H in every form that is accepted."""
    matrix = jnp.asarray(MATRIX)
    return {
        "matrix": LinearObs(MATRIX),
        "nested list": LinearObs(MATRIX.tolist()),
        "field array": LinearObs(MATRIX.reshape(4, 2, 3)),
        "lineax": LinearObs(lx.MatrixLinearOperator(matrix)),
        "callable": LinearObs(lambda field: matrix.astype(field.dtype) @ field.reshape(-1)),
    }


@pytest.mark.parametrize("form", forms())
def test_every_form_is_the_dense_product(form):
    H = forms()[form]
    assert isinstance(H, ObservationOperator)
    state = jnp.asarray(FIELD)
    tolerance = 100 * float(jnp.finfo(state.dtype).eps)
    np.testing.assert_allclose(H(state), MATRIX @ FIELD.ravel(), atol=tolerance)
    operator = H.linearize(state)
    np.testing.assert_allclose(operator.as_matrix(), MATRIX, rtol=tolerance)
    np.testing.assert_allclose(operator.T.as_matrix(), MATRIX.T, rtol=tolerance)
    y = jnp.asarray(RNG.standard_normal(4), state.dtype)
    np.testing.assert_allclose(operator.T.mv(y), (MATRIX.T @ np.asarray(y)).reshape(2, 3), atol=10 * tolerance)


@pytest.mark.parametrize("form", forms())
def test_follows_the_dtype_of_the_state(form):
    H, state = forms()[form], jnp.asarray(FIELD, jnp.float32)
    assert H(state).dtype == jnp.float32
    assert H.linearize(state).T.mv(H(state)).dtype == jnp.float32


def test_an_array_over_several_observation_axes_keeps_them():
    H = LinearObs(MATRIX.reshape(2, 2, 2, 3))
    predicted = H(jnp.asarray(FIELD))
    assert predicted.shape == (2, 2)
    np.testing.assert_allclose(predicted.ravel(), MATRIX @ FIELD.ravel(), rtol=1e-5)


def test_a_lineax_operator_on_a_pytree_is_used_as_it_is():
    state = {"u": jnp.ones(2)}
    inner = lx.FunctionLinearOperator(lambda s: 2 * s["u"], jax.eval_shape(lambda: state))
    assert LinearObs(inner).linearize(state) is inner


def test_the_matrix_is_traced_so_new_values_do_not_compile(count_compilations):
    predict = jax.jit(lambda H, x: H(x))
    x = jnp.ones(6)
    first, second = LinearObs(MATRIX), LinearObs(2 * MATRIX)
    before = predict(first, x)
    with count_compilations() as compiled:
        after = predict(second, x).block_until_ready()
    assert compiled.n == 0, compiled.names
    np.testing.assert_allclose(after, 2 * np.asarray(before), rtol=1e-5)


def test_a_callable_that_is_not_linear_is_found_out_by_the_probe():
    assert not is_linear(LinearObs(jnp.sin), jnp.zeros(4))
    assert is_linear(LinearObs(MATRIX))


@pytest.mark.parametrize("shape", [(), (6,)])
def test_refuses_an_array_that_is_no_matrix(shape):
    with pytest.raises(ValueError, match=r"`H` has shape .* expected a matrix \(m, n\)"):
        LinearObs(np.ones(shape))


@pytest.mark.parametrize("H", [np.ones((4, 5)), np.ones((4, 3, 2))])
def test_refuses_a_state_that_does_not_fit_the_array(H):
    with pytest.raises(
        ValueError, match=r"LinearObs: the matrix has shape .* state of shape \(2, 3\); expected \(m, 6\)"
    ):
        LinearObs(H)(jnp.ones((2, 3)))


def test_refuses_a_state_that_does_not_fit_the_operator():
    H = LinearObs(lx.MatrixLinearOperator(jnp.ones((4, 5))))
    with pytest.raises(ValueError, match=r"operator `H` takes shape \(5,\), found a state of \(2, 3\)"):
        H(jnp.ones((2, 3)))
    with pytest.raises(ValueError, match="does not fit a state"):
        H({"u": jnp.ones(5)})


def test_refuses_a_pytree_state_for_a_matrix():
    with pytest.raises(TypeError, match="LinearObs observes a state that is one array"):
        LinearObs(MATRIX)({"u": jnp.ones(6)})
