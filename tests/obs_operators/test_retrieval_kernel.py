"""RetrievalKernel: y = x_a + A (x - x_a), one kernel or one for each profile, with gaps."""

import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest

from vardax.covariances import DiagonalCovariance
from vardax.models import OptimalInterpolation
from vardax.obs_operators import AveragingKernel, RetrievalKernel
from vardax.protocols import ObservationOperator
from vardax.types import Batch2D

RNG = np.random.default_rng(1)
P, L = 4, 3
A, X_A, X = (RNG.standard_normal(shape) for shape in ((L, L), L, L))
PROFILES = tuple(RNG.standard_normal(shape) for shape in ((P, L, L), (P, L), (P, L)))


def forms():
    matrix = jnp.asarray(A)
    return {
        "matrix": RetrievalKernel(A, X_A),
        "lineax": RetrievalKernel(lx.MatrixLinearOperator(matrix), X_A),
        "callable": RetrievalKernel(lambda x: matrix.astype(x.dtype) @ x, X_A),
    }


@pytest.mark.parametrize("form", forms())
def test_every_form_is_the_formula_and_its_derivative(form):
    operator, state = forms()[form], jnp.asarray(X)
    assert isinstance(operator, ObservationOperator)
    np.testing.assert_allclose(operator(state), X_A + A @ (X - X_A), rtol=1e-5)
    np.testing.assert_allclose(operator.linearize(state).as_matrix(), A, rtol=1e-5)


def test_perfect_and_blind_retrievals():
    state = jnp.asarray(X)
    np.testing.assert_allclose(RetrievalKernel(np.eye(L), X_A)(state), X, rtol=1e-5)
    np.testing.assert_allclose(RetrievalKernel(np.zeros((L, L)), X_A)(state), X_A, rtol=1e-6)


def test_each_profile_has_its_kernel():
    kernels, x_a, x = PROFILES
    operator, state = RetrievalKernel(kernels, x_a), jnp.asarray(x)
    expected = np.stack([x_a[i] + kernels[i] @ (x[i] - x_a[i]) for i in range(P)])
    np.testing.assert_allclose(operator(state), expected, rtol=1e-4, atol=1e-5)
    blocks = np.zeros((P, L, P, L))
    for i in range(P):
        blocks[i, :, i, :] = kernels[i]
    np.testing.assert_allclose(operator.linearize(state).as_matrix(), blocks.reshape(P * L, P * L), rtol=1e-5)
    np.testing.assert_array_equal(operator.mask, 1.0)


def test_one_a_priori_serves_all_profiles():
    kernels, x_a, x = PROFILES
    shared = RetrievalKernel(kernels, x_a[0])(jnp.asarray(x))
    np.testing.assert_allclose(shared, RetrievalKernel(kernels, np.tile(x_a[0], (P, 1)))(jnp.asarray(x)), rtol=1e-6)


def test_profiles_with_gaps_are_missing_observations():
    """Their observations do not count: the analysis is that of the other profiles."""
    kernels, x_a, x = (array.copy() for array in PROFILES)
    kernels[1, 0, 2], x_a[3, 1] = np.nan, np.nan
    operator = RetrievalKernel(kernels, x_a)
    np.testing.assert_array_equal(operator.mask, np.array([[1], [0], [1], [0]]) * np.ones((1, L)))
    np.testing.assert_array_equal(operator(jnp.asarray(x))[jnp.array([1, 3])], 0.0)
    B, R = DiagonalCovariance(np.ones((P, L))), DiagonalCovariance(np.full((P, L), 0.1))
    y = RNG.standard_normal((1, P, L))
    analysis = OptimalInterpolation(operator, np.zeros((P, L)), B, R)(Batch2D.from_observations(y))
    np.testing.assert_array_equal(analysis[0, jnp.array([1, 3])], 0.0)
    H = PROFILES[0][0]
    expected = H.T @ np.linalg.solve(H @ H.T + 0.1 * np.eye(L), y[0, 0] - (np.eye(L) - H) @ PROFILES[1][0])
    np.testing.assert_allclose(analysis[0, 0], expected, rtol=1e-4, atol=1e-4)


def test_a_matrix_on_the_ravelled_field_keeps_its_shape():
    matrix, field = RNG.standard_normal((6, 6)), RNG.standard_normal((2, 3))
    found = RetrievalKernel(matrix, 1.0)(jnp.asarray(field))
    np.testing.assert_allclose(found, 1 + (matrix @ (field.ravel() - 1)).reshape(2, 3), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: RetrievalKernel(np.full((L, L), np.nan), X_A), "`A` has 9 of 9 entries that are not finite"),
        (lambda: RetrievalKernel(A, np.full(L, np.inf)), "`x_a` has 3 of 3 entries that are not finite"),
        (lambda: RetrievalKernel(A[:2], X_A)(jnp.asarray(X)), "expected the shape of the state.*`AveragingKernel`"),
        (
            lambda: RetrievalKernel(A, np.zeros(5))(jnp.asarray(X)),
            r"`x_a` has shape \(5,\), expected that of the state",
        ),
        (
            lambda: RetrievalKernel(*PROFILES[:2])(jnp.zeros((P + 1, L))),
            r"`x_a` has shape \(4, 3\), expected that of the state, \(5, 3\)",
        ),
        (
            lambda: RetrievalKernel(PROFILES[0], 0.0).linearize(jnp.zeros((P + 1, L))),
            r"`A` has shape \(4, 3, 3\), expected \(5, 3, 3\), one kernel for each of the 5 profiles",
        ),
    ],
)
def test_what_does_not_fit_is_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def test_the_kernel_of_the_formula_with_h_differs_by_the_a_priori():
    state = jnp.asarray(X)
    difference = RetrievalKernel(A, X_A)(state) - AveragingKernel(A, X_A, 1.0)(state)
    np.testing.assert_allclose(difference, X_A - A @ X_A, rtol=1e-4, atol=1e-5)
