"""Square roots as operators."""

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest

from vardax.covariances import (
    ConcatenatedFactor,
    DenseCovariance,
    DenseFactor,
    DiagonalCovariance,
    MaternLinearOperator,
    TransposedFactor,
)
from vardax.covariances.factors import ravel, sample_factor, unravel, white_noise

ATOL = 1e-12 if jnp.zeros(0).dtype == jnp.float64 else 1e-5
SHAPE = (3, 2)
STRUCTURE = jax.ShapeDtypeStruct(SHAPE, jnp.zeros(0).dtype)


def factors() -> dict[str, lx.AbstractLinearOperator]:
    dense = DenseFactor(jnp.arange(36.0).reshape(6, 6) / 36, STRUCTURE)
    spectral = MaternLinearOperator(SHAPE, 0.5, boundary="free").half()
    return {
        "dense": dense,
        "spectral": spectral,
        "concatenated": ConcatenatedFactor((dense, spectral, DiagonalCovariance(jnp.full(SHAPE, 4.0)).half())),
    }


every_factor = pytest.mark.parametrize("factor", list(factors().values()), ids=list(factors()))


def control(factor):
    return jax.tree.map(lambda leaf: leaf[0], white_noise(jax.random.key(0), factor.in_structure(), 1))


@every_factor
def test_products_are_those_of_the_matrix(factor):
    matrix, chi, v = factor.as_matrix(), control(factor), jnp.arange(6.0).reshape(SHAPE)
    assert matrix.shape == (factor.out_size(), factor.in_size())
    np.testing.assert_allclose(ravel(factor.mv(chi)), matrix @ ravel(chi), atol=ATOL)
    np.testing.assert_allclose(ravel(factor.T.mv(v)), matrix.T @ ravel(v), atol=ATOL)
    np.testing.assert_allclose(factor.T.as_matrix(), matrix.T, atol=ATOL)


@every_factor
def test_transposing_twice_gives_it_back(factor):
    assert isinstance(factor.T, TransposedFactor)
    assert factor.T.T is factor
    assert factor.T.in_structure() == factor.out_structure()
    assert factor.T.out_structure() == factor.in_structure()


@every_factor
def test_it_composes_and_adds_in_lineax(factor):
    product = factor @ factor.T
    matrix, v = np.asarray(factor.as_matrix()), jnp.arange(6.0).reshape(SHAPE)
    np.testing.assert_allclose(
        ravel((2.0 * product + product).mv(v)), 3 * matrix @ matrix.T @ ravel(v), atol=100 * ATOL
    )
    np.testing.assert_allclose(lx.materialise(product).as_matrix(), matrix @ matrix.T, atol=10 * ATOL)


@every_factor
def test_every_lineax_hook_answers(factor):
    for op in (factor, factor.T):
        assert lx.linearise(op) is op
        assert lx.conj(op) is op
        hooks = (lx.is_symmetric, lx.is_diagonal, lx.is_tridiagonal, lx.is_lower_triangular, lx.is_upper_triangular)
        hooks += (lx.is_positive_semidefinite, lx.is_negative_semidefinite, lx.has_unit_diagonal)
        assert not any(hook(op) for hook in hooks)
        matrix = op.as_matrix()
        np.testing.assert_allclose(lx.diagonal(op), jnp.diagonal(matrix), atol=ATOL)
        for found, offset in zip(lx.tridiagonal(op), (0, -1, 1), strict=True):
            np.testing.assert_allclose(found, jnp.diagonal(matrix, offset=offset), atol=ATOL)
        np.testing.assert_allclose(lx.materialise(op).as_matrix(), matrix, atol=ATOL)


def test_the_control_of_a_sum_is_a_tuple():
    root = factors()["concatenated"]
    shapes = [structure.shape for structure in root.in_structure()]
    assert shapes[0] == shapes[2] == SHAPE
    assert shapes[1] == MaternLinearOperator(SHAPE, 0.5, boundary="free").domain_shape


def test_fields_may_be_pytrees():
    structure = {"u": jax.ShapeDtypeStruct((2,), jnp.zeros(0).dtype), "v": STRUCTURE}
    factor = DenseFactor(jnp.diag(jnp.arange(8.0)), structure)
    ones = jax.tree.map(lambda leaf: jnp.ones(leaf.shape), structure)
    image = factor.mv(ones)
    np.testing.assert_allclose(image["u"], [0.0, 1.0])
    np.testing.assert_allclose(image["v"], [[2.0, 3.0], [4.0, 5.0], [6.0, 7.0]])
    assert jax.tree.map(jnp.shape, sample_factor(factor, jax.random.key(0), 4)) == {"u": (4, 2), "v": (4, *SHAPE)}


def test_ravel_and_unravel_are_inverse():
    tree = {"a": jnp.arange(3.0), "b": jnp.arange(4.0).reshape(2, 2)}
    structure = jax.eval_shape(lambda: tree)
    assert jax.tree.all(jax.tree.map(jnp.array_equal, unravel(ravel(tree), structure), tree))


def test_white_noise_is_independent_between_leaves():
    noise = white_noise(jax.random.key(0), (STRUCTURE, STRUCTURE), 500)
    assert abs(float(jnp.mean(noise[0] * noise[1]))) < 0.1
    np.testing.assert_allclose(jnp.std(noise[0]), 1.0, atol=0.05)


def test_a_control_of_the_wrong_shape_is_refused():
    root = MaternLinearOperator(SHAPE, 0.5, boundary="free").half()
    with pytest.raises(ValueError, match=r"SpectralFactor: `control` is .*\[3, 2\], expected"):
        root.mv(jnp.ones(SHAPE))
    with pytest.raises(ValueError, match=r"SpectralFactor: `field` is"):
        root.T.mv(jnp.ones(root.in_structure().shape))


def test_a_matrix_that_is_too_large_is_refused():
    with pytest.raises(ValueError, match="SpectralFactor.as_matrix needs a dense matrix of 9216 rows"):
        MaternLinearOperator((96, 96), 2.0).half().as_matrix()


def test_a_dense_factor_is_not_copied_by_its_covariance():
    covariance = DenseCovariance(np.eye(3))
    assert covariance.half().matrix is covariance.factor
