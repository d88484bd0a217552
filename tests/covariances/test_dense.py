"""A covariance given by its matrix."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vardax.covariances import DenseCovariance


def spd(n: int) -> np.ndarray:
    a = np.random.default_rng(0).normal(size=(n, n))
    return a @ a.T / n + np.eye(n)


def test_the_matrix_comes_back_in_each_form():
    matrix = spd(6)
    for covariance in (
        DenseCovariance(matrix),
        DenseCovariance(matrix.reshape(2, 3, 2, 3)),
        DenseCovariance(matrix, shape=(2, 3)),
        DenseCovariance(matrix.reshape(2, 3, 2, 3), shape=(2, 3)),
    ):
        np.testing.assert_allclose(covariance.as_matrix(), matrix, rtol=1e-5)
    assert covariance.shape == (2, 3)
    assert DenseCovariance(matrix, shape=6).shape == (6,)


@pytest.mark.x64
@pytest.mark.parametrize("rank", [0, 1, 3])
def test_semidefinite_matrices_have_a_square_root_and_no_inverse(rank):
    a = np.random.default_rng(0).normal(size=(5, rank))
    covariance = DenseCovariance(a @ a.T)
    root = covariance.half().as_matrix()
    np.testing.assert_allclose(root @ root.T, a @ a.T, atol=1e-12)
    np.testing.assert_allclose(covariance.mv(jnp.ones(5)), a @ a.T @ np.ones(5), atol=1e-12)
    with pytest.raises(ValueError, match="inv_mv: the matrix is only positive semidefinite"):
        covariance.inv_mv(jnp.ones(5))
    with pytest.raises(ValueError, match="logdet: the matrix is only positive semidefinite"):
        covariance.logdet()


@pytest.mark.x64
def test_different_units_do_not_make_a_matrix_singular():
    scale = np.diag([1e-6, 1.0, 1e6])
    covariance = DenseCovariance(scale @ spd(3) @ scale)
    v = jnp.array([1e-6, 1.0, 1e6])
    np.testing.assert_allclose(covariance.mv(covariance.inv_mv(v)), v, rtol=1e-10)


@pytest.mark.x64
def test_gradient_with_respect_to_the_matrix():
    matrix, v = jnp.asarray(spd(4)), jnp.arange(4.0)
    gradient = jax.grad(lambda m: jnp.sum(DenseCovariance(m).half().mv(v) ** 2))(matrix)
    for i, j in ((0, 0), (1, 0), (3, 2)):
        step = 1e-6 * (jnp.zeros((4, 4)).at[i, j].add(0.5).at[j, i].add(0.5))
        forth = jnp.sum(DenseCovariance(matrix + step).half().mv(v) ** 2)
        back = jnp.sum(DenseCovariance(matrix - step).half().mv(v) ** 2)
        expected = (forth - back) / 2e-6
        np.testing.assert_allclose(0.5 * (gradient[i, j] + gradient[j, i]), expected, rtol=1e-6)


def test_matrices_stack_under_vmap():
    matrices = jnp.stack([jnp.asarray(spd(3)), 2 * jnp.asarray(spd(3))])
    together = jax.vmap(lambda m: DenseCovariance(m).mv(jnp.ones(3)))(matrices)
    np.testing.assert_allclose(together[1], 2 * together[0], rtol=1e-5)


@pytest.mark.parametrize(
    ("matrix", "words"),
    [
        (np.ones((2, 3)), r"`matrix` has shape \(2, 3\), expected \(n, n\)"),
        (np.ones((2, 3, 3, 2)), "expected .* square"),
        (np.ones(4), "expected .* square"),
        (np.ones((2, 2, 2)), "expected .* square"),
        ([[1.0, 0.5], [0.4, 1.0]], "`matrix` is not symmetric; entries differ from the transposed ones by up to 0.1"),
        ([[1.0, 2.0], [2.0, 1.0]], "`matrix` is not positive semidefinite; its smallest eigenvalue is -1"),
        ([[-1.0, 0.0], [0.0, 1.0]], "`matrix` is not positive semidefinite"),
        ([[np.nan, 0.0], [0.0, 1.0]], "`matrix` has 1 entries that are not finite"),
    ],
)
def test_bad_matrices_are_refused(matrix, words):
    with pytest.raises(ValueError, match=words):
        DenseCovariance(matrix)


def test_a_shape_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"does not fit fields of shape \(2, 2\)"):
        DenseCovariance(np.eye(6), shape=(2, 2))
    with pytest.raises(ValueError, match=r"does not fit fields of shape \(3, 2\)"):
        DenseCovariance(np.eye(6).reshape(2, 3, 2, 3), shape=(3, 2))


def test_values_are_not_looked_at_while_tracing():
    traced = jax.jit(lambda m: DenseCovariance(m).half().mv(jnp.ones(2)))(jnp.array([[1.0, 2.0], [2.0, 1.0]]))
    assert np.all(np.isnan(traced[1]))
