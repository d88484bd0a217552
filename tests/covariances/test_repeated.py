"""A covariance repeated at several times against its dense block-diagonal matrix."""

import jax.numpy as jnp
import numpy as np
import pytest

from vardax.covariances.block_diagonal import BlockDiagonalCovariance
from vardax.covariances.dense import DenseCovariance
from vardax.covariances.diagonal import DiagonalCovariance
from vardax.covariances.repeated import RepeatedCovariance


def matrix(n=4):
    distance = np.abs(np.subtract.outer(np.arange(n), np.arange(n)))
    return 2.0 * np.exp(-distance / 2.0)


def test_it_is_the_block_diagonal_matrix():
    dense = np.kron(np.eye(3), matrix())
    B = RepeatedCovariance(DenseCovariance(jnp.asarray(matrix())), 3)
    v = jnp.asarray(np.random.default_rng(0).normal(size=(3, 4)))
    close = {"rtol": 1e-4, "atol": 1e-5} if v.dtype == jnp.float32 else {"rtol": 1e-10, "atol": 1e-12}
    half = B.half()
    np.testing.assert_allclose(B.as_matrix(), dense, **close)
    np.testing.assert_allclose(half.mv(half.transpose().mv(v)), (dense @ v.ravel()).reshape(3, 4), **close)
    np.testing.assert_allclose(B.inv_mv(v).ravel(), np.linalg.solve(dense, np.asarray(v).ravel()), **close)
    np.testing.assert_allclose(B.logdet(), np.linalg.slogdet(dense)[1], **close)
    np.testing.assert_allclose(B.diagonal(), np.full((3, 4), 2.0), **close)


def test_as_an_r_each_time_is_restricted_by_itself():
    mask = jnp.asarray([[1, 0, 1, 1], [1, 1, 1, 1], [0, 0, 0, 0]])
    one = DenseCovariance(jnp.asarray(matrix()))
    v = jnp.asarray(np.random.default_rng(1).normal(size=(3, 4)))
    found = RepeatedCovariance(one, 3).restrict(mask)
    expected = BlockDiagonalCovariance(one, one, one).restrict(mask)
    np.testing.assert_allclose(found.solve(v), expected.solve(v), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found.logdet(), expected.logdet(), rtol=1e-5)


def test_fields_may_be_pytrees_and_there_may_be_no_time():
    tree = BlockDiagonalCovariance({"a": DiagonalCovariance([4.0]), "b": DiagonalCovariance([1.0, 9.0])})
    B = RepeatedCovariance(tree, 2)
    ones = {"a": jnp.ones((2, 1)), "b": jnp.ones((2, 2))}
    np.testing.assert_allclose(B.mv(ones)["b"], [[1.0, 9.0], [1.0, 9.0]])
    empty = RepeatedCovariance(DiagonalCovariance([1.0, 2.0]), 0)
    assert empty.half().mv(jnp.zeros((0, 2))).shape == (0, 2)


def test_a_negative_number_of_times_is_refused():
    with pytest.raises(ValueError, match="`n` is -1, expected the number of times, 0 or more"):
        RepeatedCovariance(DiagonalCovariance([1.0]), -1)
