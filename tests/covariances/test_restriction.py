"""The observed part of R, against marginalisation of the dense matrix."""

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest

from vardax.covariances import RESTRICT_LIMIT, DenseCovariance, DiagonalCovariance, MaternLinearOperator, restrict

EXACT = 1e-10 if jnp.zeros(0).dtype == jnp.float64 else 1e-4
SHAPE = (2, 4)


def spd(n: int) -> np.ndarray:
    a = np.random.default_rng(0).normal(size=(n, n))
    return a @ a.T / n + np.eye(n)


OPERATORS = {
    "diagonal": DiagonalCovariance(np.linspace(0.5, 2.0, 8).reshape(SHAPE)),
    "dense": DenseCovariance(spd(8), shape=SHAPE),
    "matern": MaternLinearOperator(SHAPE, 1.5, 2.0, 0.5),
    "sum": DenseCovariance(spd(8), shape=SHAPE) + DiagonalCovariance(np.ones(SHAPE)),
    "scaled": 2.0 * DenseCovariance(spd(8), shape=SHAPE),
    "scaled-diagonal": DiagonalCovariance(np.ones(SHAPE)) / 4.0,
    "identity": lx.IdentityLinearOperator(jax.ShapeDtypeStruct(SHAPE, jnp.zeros(0).dtype)),
    "tagged": lx.TaggedLinearOperator(DenseCovariance(spd(8), shape=SHAPE), lx.positive_semidefinite_tag),
}
every_operator = pytest.mark.parametrize("op", list(OPERATORS.values()), ids=list(OPERATORS))


def residual(seed: int = 0):
    return jax.random.normal(jax.random.key(seed), SHAPE)


def marginal_inverse(matrix: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """(M R M)⁺: the inverse of the rows and columns that were observed, zeros elsewhere."""
    rows = np.flatnonzero(np.ravel(mask))
    inverse = np.zeros_like(matrix)
    inverse[np.ix_(rows, rows)] = np.linalg.inv(matrix[np.ix_(rows, rows)])
    return inverse


@every_operator
@pytest.mark.parametrize("observed", ["none", "some", "all"])
def test_it_marginalises_the_missing_entries(op, observed):
    mask = {"none": np.zeros(SHAPE), "all": np.ones(SHAPE), "some": np.array([[1, 0, 1, 1], [0, 0, 1, 0]])}[observed]
    matrix = np.asarray(op.as_matrix(), float)
    inverse, r = marginal_inverse(matrix, mask), np.ravel(residual())
    restricted = restrict(op, jnp.asarray(mask))
    np.testing.assert_allclose(np.ravel(restricted.solve(residual())), inverse @ r, atol=EXACT)
    np.testing.assert_allclose(jnp.sum(restricted.whiten(residual()) ** 2), r @ inverse @ r, rtol=EXACT, atol=EXACT)
    selected = np.diag(np.ravel(mask).astype(float))
    np.testing.assert_allclose(np.ravel(restricted.mv(residual())), selected @ matrix @ selected @ r, atol=10 * EXACT)
    rows = np.flatnonzero(np.ravel(mask))
    expected = np.linalg.slogdet(matrix[np.ix_(rows, rows)])[1] if len(rows) else 0.0
    np.testing.assert_allclose(restricted.logdet(), expected, atol=10 * EXACT)


@every_operator
def test_whitened_residuals_are_linear_and_zero_where_missing(op):
    mask = jnp.array([[1.0, 0.0, 1.0, 1.0], [0.0, 1.0, 1.0, 0.0]])
    restricted = restrict(op, mask)
    whitened = jax.vmap(lambda e: jnp.ravel(restricted.whiten(e.reshape(SHAPE))))(jnp.eye(8)).T
    inverse = marginal_inverse(np.asarray(op.as_matrix(), float), np.asarray(mask))
    np.testing.assert_allclose(whitened.T @ whitened, inverse, atol=EXACT)
    assert np.all(np.asarray(restricted.whiten(residual()))[np.asarray(mask) == 0] == 0)


@every_operator
def test_missing_entries_may_hold_nan(op):
    mask = jnp.array([[1.0, 0.0, 1.0, 1.0], [0.0, 1.0, 1.0, 0.0]])
    restricted = restrict(op, mask)
    with_gaps = jnp.where(mask != 0, residual(), jnp.nan)
    for product in (restricted.whiten, restricted.solve, restricted.mv):
        np.testing.assert_allclose(product(with_gaps), product(residual()), atol=0)
        gradient = jax.grad(lambda r, product=product: jnp.sum(product(r) ** 2))(with_gaps)
        assert np.all(np.isfinite(gradient))


@every_operator
def test_masks_stack_under_vmap_and_jit(op):
    masks = jax.random.bernoulli(jax.random.key(0), 0.5, (3, *SHAPE)).astype(float)
    stacked = jax.jit(jax.vmap(lambda mask: restrict(op, mask)))(masks)
    together = jax.vmap(lambda restricted: restricted.whiten(residual()))(stacked)
    for each, mask in zip(together, masks, strict=True):
        np.testing.assert_allclose(each, restrict(op, mask).whiten(residual()), atol=EXACT)


@every_operator
def test_given_standard_deviations_replace_those_of_r_and_keep_its_correlations(op):
    std = jnp.linspace(0.5, 3.0, 8).reshape(SHAPE)
    mask = jnp.array([[1.0, 0.0, 1.0, 1.0], [0.0, 1.0, 1.0, 0.0]])
    matrix = np.asarray(op.as_matrix(), float)
    ratio = np.ravel(std) / np.sqrt(np.diag(matrix))
    inverse = marginal_inverse(matrix * np.outer(ratio, ratio), np.asarray(mask))
    found = restrict(op, mask, std=jnp.where(mask != 0, std, jnp.nan)).solve(residual())
    np.testing.assert_allclose(np.ravel(found), inverse @ np.ravel(residual()), atol=10 * EXACT)


@hypothesis.given(st.lists(st.booleans(), min_size=8, max_size=8))
def test_any_pattern_of_gaps(gaps):
    matrix, mask = spd(8), np.array(gaps, float)
    found = DenseCovariance(matrix).restrict(mask).solve(jnp.arange(8.0))
    np.testing.assert_allclose(found, marginal_inverse(matrix, mask) @ np.arange(8.0), atol=EXACT)


def test_the_example_of_the_conventions():
    """Two variables, R with correlation 0.5, the second missing, B = 1, y = 2: the analysis is 1, not 1.143."""
    restricted = DenseCovariance([[1.0, 0.5], [0.5, 1.0]]).restrict([1.0, 0.0])
    innovation = jnp.array([2.0, 0.0])
    precision = restricted.solve(jnp.array([1.0, 0.0]))[0]
    analysis = restricted.solve(innovation)[0] / (1.0 + precision)
    np.testing.assert_allclose(analysis, 1.0, rtol=1e-6)


def test_gradient_with_respect_to_r():
    mask = jnp.array([1.0, 0.0, 1.0])
    r = jnp.array([1.0, 2.0, 3.0])

    def quadratic_form(variance):
        return jnp.sum(DiagonalCovariance(variance).restrict(mask).whiten(r) ** 2)

    gradient = jax.grad(quadratic_form)(jnp.array([1.0, 0.0, 4.0]))
    np.testing.assert_allclose(gradient, [-1.0, 0.0, -9.0 / 16.0], rtol=1e-6)


def test_boolean_and_integer_masks_count_as_numbers():
    r = DiagonalCovariance(jnp.array([4.0, 9.0]))
    for mask in (np.array([True, False]), np.array([1, 0]), [1, 0]):
        np.testing.assert_allclose(r.restrict(mask).whiten(jnp.array([2.0, 3.0])), [1.0, 0.0])


def test_a_large_correlated_r_is_refused_by_name_and_a_large_diagonal_one_is_not():
    n = RESTRICT_LIMIT + 1
    message = rf"MaternLinearOperator.restrict: a correlated R of {n} entries .* RESTRICT_LIMIT = {RESTRICT_LIMIT}"
    with pytest.raises(ValueError, match=message):
        MaternLinearOperator(n, 2.0).restrict(jnp.ones(n))
    with pytest.raises(ValueError, match="DenseCovariance.restrict: .*`DiagonalCovariance`.*dual solver"):
        DenseCovariance(np.eye(n)).restrict(jnp.ones(n))
    with pytest.raises(ValueError, match="AddLinearOperator.restrict: a correlated R"):
        restrict(MaternLinearOperator(n, 2.0) + DiagonalCovariance(jnp.ones(n)), jnp.ones(n))
    assert restrict(DiagonalCovariance(jnp.ones(n)), jnp.ones(n)).whiten(jnp.ones(n)).shape == (n,)


def test_bad_standard_deviations_and_variances_are_refused():
    r = DenseCovariance(np.eye(3))
    with pytest.raises(ValueError, match=r"`std` has shape \(2,\), expected \(3,\)"):
        r.restrict(jnp.ones(3), std=jnp.ones(2))
    with pytest.raises(ValueError, match="of 1 observed entries is zero, negative or NaN"):
        r.restrict(jnp.ones(3), std=jnp.array([1.0, -1.0, 1.0]))
    with pytest.raises(ValueError, match="of 2 observed entries is zero"):
        DiagonalCovariance([0.0, 0.0, 0.0]).restrict([1.0, 1.0, 0.0])
    with pytest.raises(ValueError, match="R between the observed entries is not positive definite"):
        DenseCovariance(np.ones((3, 3))).restrict(jnp.ones(3))


def test_blocks_are_restricted_one_by_one():
    op = lx.FunctionLinearOperator(lambda v: v, (jax.ShapeDtypeStruct((2,), jnp.zeros(0).dtype),))
    with pytest.raises(TypeError, match="expected one array; restrict each block by itself"):
        restrict(op, jnp.ones(2))
