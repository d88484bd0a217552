"""AveragingKernel: y = A (h x + (1 - h) x_a), in every form of A, and what happens at h = 1."""

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest

from vardax.covariances import DiagonalCovariance
from vardax.models import OptimalInterpolation, ThreeDVar
from vardax.obs_operators import AveragingKernel, RetrievalKernel
from vardax.protocols import ObservationOperator

RNG = np.random.default_rng(0)
A = RNG.standard_normal((3, 6))
X_A, H = RNG.standard_normal(6), np.array([1.0, 1.0, 0.3, 0.0, 0.5, 1.0])
X = RNG.standard_normal(6)


def forms():
    matrix = jnp.asarray(A)
    return {
        "matrix": (AveragingKernel(A, X_A, H), X),
        "on a field": (AveragingKernel(A.reshape(3, 2, 3), X_A.reshape(2, 3), H.reshape(2, 3)), X.reshape(2, 3)),
        "lineax": (AveragingKernel(lx.MatrixLinearOperator(matrix), X_A, H), X),
        "callable": (AveragingKernel(lambda x: matrix.astype(x.dtype) @ x, X_A, H), X),
    }


@pytest.mark.parametrize("form", forms())
def test_every_form_is_the_formula_and_its_derivative(form):
    operator, state = forms()[form]
    state = jnp.asarray(state)
    assert isinstance(operator, ObservationOperator)
    tolerance = 100 * float(jnp.finfo(state.dtype).eps)
    np.testing.assert_allclose(operator(state), A @ (H * X + (1 - H) * X_A), atol=tolerance)
    linear = operator.linearize(state)
    np.testing.assert_allclose(linear.as_matrix(), A * H[None], atol=tolerance)
    np.testing.assert_allclose(linear.T.as_matrix(), (A * H[None]).T, atol=tolerance)


def test_the_a_priori_drops_out_where_h_is_one():
    """What the docstring warns of: the prediction of the seeds' kernel at h = 1 does not know x_a."""
    state = jnp.asarray(X)
    with_, without = AveragingKernel(A, X_A, 1.0), AveragingKernel(A, 0.0 * X_A, 1.0)
    np.testing.assert_array_equal(with_(state), without(state))
    square = jnp.asarray(RNG.standard_normal((6, 6)))
    retrieval = RetrievalKernel(square, X_A)
    offset = X_A - np.asarray(square) @ X_A
    np.testing.assert_allclose(retrieval(state) - AveragingKernel(square, X_A)(state), offset, atol=1e-5)
    assert "RetrievalKernel" in AveragingKernel.__doc__


def test_numbers_and_profiles_are_broadcast_to_the_state():
    state = jnp.asarray(RNG.standard_normal((2, 3)))
    operator = AveragingKernel(jnp.eye(6), jnp.array([1.0, 2.0, 3.0]), 0.25)
    expected = 0.25 * state + 0.75 * jnp.array([[1.0, 2.0, 3.0]])
    np.testing.assert_allclose(operator(state), expected.ravel(), rtol=1e-6)


def test_oi_takes_it_and_sees_that_a_callable_may_not_be_linear():
    B, R = DiagonalCovariance(np.ones(6)), DiagonalCovariance(np.ones(3))
    assert OptimalInterpolation(AveragingKernel(A, X_A, H), np.zeros(6), B, R)
    curved = AveragingKernel(lambda x: jnp.sin(x[:3]), X_A, H)
    with pytest.raises(ValueError, match="not linear.*Use ThreeDVar"):
        OptimalInterpolation(curved, np.zeros(6), B, R)
    assert ThreeDVar(curved, np.zeros(6), B, R)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((A[0], X_A), r"AveragingKernel: `A` has shape \(6,\), expected a matrix"),
        ((np.where(A > 1, np.nan, A), X_A), r"`A` has \d+ of 18 entries that are not finite; leave out the"),
        ((A, np.where(X_A > 0, np.nan, X_A)), r"`x_a` has \d+ of 6 entries that are not finite"),
        ((A, X_A, np.nan), "`h` has 1 of 1 entries that are not finite"),
    ],
)
def test_kernels_with_gaps_are_refused(arguments, words):
    with pytest.raises(ValueError, match=words):
        AveragingKernel(*arguments)


@pytest.mark.parametrize(
    ("operator", "words"),
    [
        (AveragingKernel(A, np.zeros(5)), r"`x_a` has shape \(5,\), expected that of the state, \(6,\)"),
        (AveragingKernel(A, 0.0, np.zeros(4)), r"`h` has shape \(4,\), expected that of the state, \(6,\)"),
        (AveragingKernel(A[:, :5], 0.0), r"the matrix has shape \(3, 5\), which does not fit a state of shape \(6,\)"),
    ],
)
def test_shapes_that_do_not_fit_the_state_are_refused(operator, words):
    for use in (operator, operator.linearize):
        with pytest.raises(ValueError, match=words):
            use(jnp.asarray(X))


def test_a_pytree_state_is_refused_with_the_remedy():
    with pytest.raises(TypeError, match="AveragingKernel observes a state that is one array"):
        AveragingKernel(A, 0.0)({"x": jnp.asarray(X)})


def test_kernel_and_a_priori_are_traced():
    value = jax.jit(lambda A, x_a, h: AveragingKernel(A, x_a, h)(jnp.asarray(X)))(*map(jnp.asarray, (A, X_A, H)))
    np.testing.assert_allclose(value, A @ (H * X + (1 - H) * X_A), atol=1e-5)
