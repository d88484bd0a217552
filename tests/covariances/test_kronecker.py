"""Separable covariances, against the Kronecker product of matrices."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest

from vardax.covariances.block_restriction import BatchedRestriction
from vardax.covariances.dense import DenseCovariance
from vardax.covariances.diagonal import DiagonalCovariance
from vardax.covariances.functions import restrict
from vardax.covariances.kronecker import KroneckerCovariance
from vardax.covariances.matern import MaternLinearOperator
from vardax.covariances.restriction import DenseRestriction, DiagonalRestriction
from vardax.covariances.sizes import RESTRICT_LIMIT

EXACT = 1e-11 if jnp.zeros(0).dtype == jnp.float64 else 1e-4


def spd(n: int, seed: int = 0) -> np.ndarray:
    a = np.random.default_rng(seed).normal(size=(n, n))
    return a @ a.T / n + np.eye(n)


def dense(n, seed=0, **options):
    return DenseCovariance(spd(n, seed), **options)


def diagonal(*shape):
    return DiagonalCovariance(np.random.default_rng(3).uniform(0.5, 2.0, shape))


PRODUCTS = {
    "one factor": lambda: [dense(5)],
    "two axes, odd and even": lambda: [dense(3), dense(4, 1)],
    "three axes": lambda: [dense(2), MaternLinearOperator(5, 1.5, 2.0), diagonal(3)],
    "vertical and horizontal": lambda: [dense(3), MaternLinearOperator((4, 5), (1.0, 2.0))],
    "horizontal and vertical": lambda: [MaternLinearOperator((3, 4), 1.0, boundary="free"), dense(2)],
    "free axes": lambda: [MaternLinearOperator(n, 1.0, boundary="free") for n in (3, 4)],
    "a sum of factors": lambda: [MaternLinearOperator(4, 1.0) + 0.5 * MaternLinearOperator(4, 3.0), dense(3)],
    "dense on two axes": lambda: [dense(6, shape=(2, 3)), lx.MatrixLinearOperator(jnp.asarray(spd(2)))],
}
every_product = pytest.mark.parametrize("name", PRODUCTS)


def matrix_of(factors):
    return functools.reduce(np.kron, [np.asarray(factor.as_matrix(), float) for factor in factors])


@every_product
def test_it_is_the_kronecker_product(name, equals_matrix):
    factors = PRODUCTS[name]()
    covariance = KroneckerCovariance(*factors)
    assert covariance.shape == sum((tuple(factor.in_structure().shape) for factor in factors), ())
    equals_matrix(covariance, matrix_of(factors), 10 * EXACT)


@pytest.mark.x64
@pytest.mark.parametrize(
    "name", [name for name in PRODUCTS if "free" not in name and name != "horizontal and vertical"]
)
def test_inverse_and_determinant_are_exact(name, inverts_matrix):
    factors = PRODUCTS[name]()
    inverts_matrix(KroneckerCovariance(*factors), matrix_of(factors))


def test_the_padding_of_a_factor_makes_the_control_longer():
    free = MaternLinearOperator(5, 1.0, boundary="free")
    root = KroneckerCovariance(dense(3), free, free).half()
    assert root.in_structure().shape == (3, *free.domain_shape, *free.domain_shape)
    sums = MaternLinearOperator(4, 1.0) + MaternLinearOperator(4, 3.0)
    assert KroneckerCovariance(sums, dense(3)).half().in_structure().shape == (8, 3)


def test_nothing_of_the_whole_size_is_dense():
    """A million cells from two factors of a thousand; the variance and a row are those of the factors."""
    factor = MaternLinearOperator(1000, 5.0, 2.0)
    covariance = KroneckerCovariance(factor, factor)
    row = eqx.filter_jit(covariance.mv)(jnp.zeros((1000, 1000)).at[3, 7].set(1.0))
    one = factor.mv(jnp.zeros(1000).at[3].set(1.0))
    np.testing.assert_allclose(row[:, 7], 4.0 * one, atol=10 * EXACT)
    with pytest.raises(ValueError, match="KroneckerCovariance.as_matrix needs a dense matrix of 1000000 rows"):
        covariance.as_matrix()


@pytest.mark.x64
def test_gradients_with_respect_to_the_factors(equals_differences):
    v = jnp.sin(jnp.arange(20.0)).reshape(4, 5)

    def quadratic(parameters):
        length, sigma, variance = parameters
        covariance = KroneckerCovariance(DiagonalCovariance(variance), MaternLinearOperator(5, length, sigma))
        return jnp.vdot(v, covariance.mv(v)) + jnp.sum(covariance.half().T.mv(v) ** 3)

    equals_differences(quadratic, (jnp.asarray(1.3), jnp.asarray(0.7), jnp.linspace(1.0, 2.0, 4)))


# -- as R ------------------------------------------------------------------------------------------------------------

AS_R = {
    "soundings": (lambda: [diagonal(7), dense(3)], BatchedRestriction),
    "channels first": (lambda: [dense(3), diagonal(7)], BatchedRestriction),
    "in the middle": (lambda: [dense(2), diagonal(3), dense(2, 1)], BatchedRestriction),
    "around": (lambda: [diagonal(2), dense(3), diagonal(2, 2)], BatchedRestriction),
    "correlated": (lambda: [dense(4), dense(3, 1)], (BatchedRestriction, DenseRestriction)),
    "diagonal": (lambda: [diagonal(4), diagonal(2)], DiagonalRestriction),
}


@pytest.mark.parametrize("with_std", [False, True])
@pytest.mark.parametrize("name", AS_R)
def test_it_marginalises_the_missing_entries(name, with_std):
    make, kind = AS_R[name]
    covariance = KroneckerCovariance(*make())
    matrix, mask = matrix_of(make()), np.random.default_rng(2).random(covariance.in_size()) < 0.6
    std = None
    if with_std:
        std = np.linspace(0.5, 2.0, len(matrix))
        matrix = matrix * np.outer(std, std) / np.sqrt(np.outer(np.diag(matrix), np.diag(matrix)))
        std = np.where(mask, std, np.nan).reshape(covariance.shape)
    restricted = restrict(covariance, mask.reshape(covariance.shape), std=std)
    assert isinstance(restricted, kind)
    r = jnp.cos(jnp.arange(float(len(mask)))).reshape(covariance.shape)
    seen, flat = np.ix_(mask, mask), np.ravel(r)[mask]
    expected = np.linalg.solve(matrix[seen], flat)
    np.testing.assert_allclose(np.ravel(restricted.solve(r))[mask], expected, atol=EXACT)
    np.testing.assert_allclose(jnp.sum(restricted.whiten(r) ** 2), flat @ expected, rtol=10 * EXACT)
    np.testing.assert_allclose(np.ravel(restricted.mv(r))[mask], matrix[seen] @ flat, atol=10 * EXACT)
    np.testing.assert_allclose(restricted.logdet(), np.linalg.slogdet(matrix[seen])[1], atol=100 * EXACT)
    for member in (restricted.solve, restricted.whiten, restricted.mv):
        assert not np.any(np.ravel(member(jnp.where(mask.reshape(r.shape), r, jnp.nan)))[~mask])


def test_many_soundings_are_no_large_r():
    """20,000 soundings of four correlated channels: the limit is on the channels."""
    covariance = KroneckerCovariance(DiagonalCovariance(np.full(20_000, 2.0)), dense(4))
    r = jnp.ones((20_000, 4))
    restricted = jax.jit(lambda mask: restrict(covariance, mask))(r)
    np.testing.assert_allclose(restricted.solve(r)[123], np.linalg.solve(2 * spd(4), np.ones(4)), atol=EXACT)
    large = KroneckerCovariance(diagonal(3), dense(RESTRICT_LIMIT + 1))
    with pytest.raises(
        ValueError, match=f"KroneckerCovariance.restrict: a correlated R of {RESTRICT_LIMIT + 1} entries"
    ):
        large.restrict(jnp.ones((3, RESTRICT_LIMIT + 1)))


def test_it_is_diagonal_where_all_factors_are():
    assert lx.is_diagonal(KroneckerCovariance(diagonal(3), diagonal(2)))
    assert not lx.is_diagonal(KroneckerCovariance(diagonal(3), dense(2)))


# -- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("factors", "error", "words"),
    [
        ((), ValueError, "there are no factors"),
        ((np.eye(3),), TypeError, r"`factors\[0\]` is ndarray.*DenseCovariance"),
        ((lx.MatrixLinearOperator(jnp.ones((2, 3))),), ValueError, r"`factors\[0\]` takes .* expected a covariance"),
        ((lx.DiagonalLinearOperator({"u": jnp.ones(2)}),), ValueError, r"`factors\[0\]` acts on a pytree"),
        (
            [DiagonalCovariance([1.0], dtype=dtype) for dtype in ("float32", "float16")],
            ValueError,
            "the factors have the dtypes float16, float32",
        ),
    ],
)
def test_bad_factors_are_refused(factors, error, words):
    with pytest.raises(error, match=words):
        KroneckerCovariance(*factors)


def test_bad_fields_and_singular_factors_are_refused():
    covariance = KroneckerCovariance(DenseCovariance(np.ones((2, 2))), dense(3))
    with pytest.raises(ValueError, match=r"KroneckerCovariance: `vector` is .*\[3, 2\], expected .*\[2, 3\]"):
        covariance.mv(jnp.ones((3, 2)))
    with pytest.raises(ValueError, match=r"KroneckerFactor: `control` is .*\[3, 2\], expected .*\[2, 3\]"):
        covariance.half().mv(jnp.ones((3, 2)))
    with pytest.raises(ValueError, match="inv_mv: the matrix is only positive semidefinite"):
        covariance.inv_mv(jnp.ones((2, 3)))
    with pytest.raises(ValueError, match="of 1 observed entries is zero"):
        KroneckerCovariance(DiagonalCovariance([0.0, 1.0]), dense(2)).restrict([[1, 0], [1, 1]])
