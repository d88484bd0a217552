"""`half`, `diagonal`, `inv_mv`, `logdet` and `sample` of operators that are not ours."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest

from vardax.covariances import (
    DENSE_LIMIT,
    ConcatenatedFactor,
    DenseCovariance,
    DiagonalCovariance,
    MaternLinearOperator,
    diagonal,
    half,
    inv_mv,
    logdet,
    sample,
)
from vardax.covariances.factors import ravel, unravel

X64 = jnp.zeros(0).dtype == jnp.float64
ATOL = 1e-10 if X64 else 2e-4
SHAPE = (2, 3)


def spd(n: int = 6, seed: int = 0) -> np.ndarray:
    a = np.random.default_rng(seed).normal(size=(n, n))
    return a @ a.T / n + np.eye(n)


class Foreign(lx.AbstractLinearOperator):
    """Somebody's operator, which answers none of lineax's hooks but the one that its base class asks at once."""

    matrix: jax.Array

    def mv(self, vector):
        return (self.matrix @ vector.ravel()).reshape(SHAPE)

    def as_matrix(self):
        return self.matrix

    def transpose(self):
        return self

    def in_structure(self):
        return jax.ShapeDtypeStruct(SHAPE, self.matrix.dtype)

    def out_structure(self):
        return self.in_structure()


for hook in (lx.is_symmetric, lx.is_positive_semidefinite, lx.is_negative_semidefinite):
    hook.register(Foreign)(lambda operator: False)


class LooksLikeOne:
    """Not a lineax operator, but with the members of one."""

    def mv(self, vector):
        return 4.0 * vector

    def in_structure(self):
        return jax.ShapeDtypeStruct(SHAPE, jnp.zeros(0).dtype)


def operators() -> dict[str, lx.AbstractLinearOperator]:
    dense = DenseCovariance(spd(), shape=SHAPE)
    weights = DiagonalCovariance(np.linspace(0.5, 2.0, 6).reshape(SHAPE))
    structure = dense.in_structure()
    psd = lx.positive_semidefinite_tag
    matrix = lx.MatrixLinearOperator(jnp.asarray(spd()), psd)
    wide = lx.MatrixLinearOperator(jnp.asarray(np.random.default_rng(0).normal(size=(6, 9))))
    blocks = lx.PyTreeLinearOperator(jnp.asarray(spd()).reshape(*SHAPE, *SHAPE), structure, psd)
    sparse = lx.TridiagonalLinearOperator(jnp.full(6, 2.0), jnp.full(5, -0.5), jnp.full(5, -0.5))
    return {
        "covariance": dense,
        "identity": lx.IdentityLinearOperator(structure),
        "diagonal": lx.DiagonalLinearOperator(jnp.linspace(1.0, 2.0, 6).reshape(SHAPE)),
        "matrix": matrix,
        "blocks": blocks,
        "tridiagonal": sparse,
        "function": lx.FunctionLinearOperator(dense.mv, structure, psd),
        "diagonal-function": lx.FunctionLinearOperator(lambda v: 3.0 * v, structure, lx.diagonal_tag),
        "jacobian": lx.JacobianLinearOperator(lambda x, _: dense.mv(x), jnp.ones(SHAPE), tags=psd),
        "tagged": lx.TaggedLinearOperator(dense, psd),
        "tagged-diagonal": lx.TaggedLinearOperator(
            lx.MatrixLinearOperator(jnp.diag(jnp.linspace(1.0, 2.0, 6))), lx.diagonal_tag
        ),
        "scaled": 2.0 * dense,
        "divided": weights / 3.0,
        "negated twice": lx.NegLinearOperator(lx.NegLinearOperator(dense)),
        "sum": dense + weights,
        "sum of scaled": 0.5 * dense + weights / 2.0 + lx.IdentityLinearOperator(structure),
        "sum of diagonals": weights + lx.IdentityLinearOperator(structure),
        "A Aᵀ": wide @ wide.T,
        "A C Aᵀ": matrix.T @ matrix @ matrix,
        "D C D": weights @ dense @ weights,
        "(D C) D scaled": 3.0 * ((weights @ dense) @ weights),
        "tagged D E C E D": lx.TaggedLinearOperator(weights @ (weights @ dense @ weights) @ weights, psd),
        "L Lᵀ": dense.half() @ dense.half().T,
        "foreign": Foreign(jnp.asarray(spd())),
        "looks like one": LooksLikeOne(),
    }


OPERATORS = operators()
every_operator = pytest.mark.parametrize("op", list(OPERATORS.values()), ids=list(OPERATORS))


def matrix_of(op) -> np.ndarray:
    structure = op.in_structure()
    rows = [ravel(op.mv(unravel(row, structure))) for row in jnp.eye(6)]
    return np.stack(rows, axis=1)


def some_field(op):
    return unravel(jnp.arange(1.0, 7.0), op.in_structure())


@every_operator
def test_square_root_reproduces_the_operator(op):
    root = half(op)
    assert root.out_structure() == op.in_structure()
    matrix = matrix_of(op)
    columns = np.asarray(root.as_matrix())
    np.testing.assert_allclose(columns @ columns.T, matrix, atol=ATOL)
    v = some_field(op)
    np.testing.assert_allclose(ravel(root.mv(root.T.mv(v))), matrix @ ravel(v), atol=20 * ATOL)


@every_operator
def test_diagonal_inverse_and_log_determinant(op):
    matrix, v = matrix_of(op), some_field(op)
    np.testing.assert_allclose(ravel(diagonal(op)), np.diag(matrix), atol=ATOL)
    assert jax.eval_shape(lambda: diagonal(op)) == op.in_structure()
    np.testing.assert_allclose(ravel(inv_mv(op, v)), np.linalg.solve(matrix, ravel(v)), atol=20 * ATOL)
    np.testing.assert_allclose(logdet(op), np.linalg.slogdet(matrix)[1], atol=20 * ATOL)


@every_operator
def test_samples_are_fields(op):
    samples = sample(op, jax.random.key(0), 3000)
    flat = np.asarray(jax.vmap(ravel)(samples))
    matrix = matrix_of(op)
    sampling_error = np.sqrt((np.outer(np.diag(matrix), np.diag(matrix)) + matrix**2) / 3000)
    assert np.max(np.abs(flat.T @ flat / 3000 - matrix) / sampling_error) < 5.0


@every_operator
def test_they_work_under_jit(op):
    v = some_field(op)
    found, through = eqx.filter_jit(lambda op, v: (logdet(op), half(op).mv(half(op).T.mv(v))))(op, v)
    np.testing.assert_allclose(found, logdet(op), atol=20 * ATOL)
    np.testing.assert_allclose(ravel(through), matrix_of(op) @ ravel(v), atol=20 * ATOL)


@pytest.mark.x64
def test_gradients_through_a_scaled_sum():
    dense, weights = OPERATORS["covariance"], DiagonalCovariance(np.ones(SHAPE))
    v = jnp.arange(6.0).reshape(SHAPE)

    def norm(scale):
        return jnp.sum(ravel(half(dense * scale + weights).T.mv(v)) ** 2)

    np.testing.assert_allclose(jax.grad(norm)(2.0), jnp.vdot(v, dense.mv(v)), rtol=1e-10)
    inverse = np.linalg.inv(matrix_of(dense * 2.0 + weights))
    gradient = jax.grad(lambda scale: logdet(dense * scale + weights))(2.0)
    np.testing.assert_allclose(gradient, np.trace(inverse @ matrix_of(dense)), rtol=1e-10)


def test_the_structure_of_an_operator_is_used():
    dense, weights = OPERATORS["covariance"], OPERATORS["diagonal"]
    assert isinstance(half(OPERATORS["sum"]), ConcatenatedFactor)
    assert isinstance(half(OPERATORS["sum of diagonals"]), lx.DiagonalLinearOperator)
    assert half(weights @ dense @ weights).in_structure() == dense.half().in_structure()
    wide = lx.MatrixLinearOperator(jnp.ones((6, 9)))
    assert half(wide @ wide.T) is not None
    assert half(wide @ wide.T).in_structure().shape == (9,)


def test_structured_operators_of_any_size_work():
    shape = (128, 128)
    assert math.prod(shape) > DENSE_LIMIT
    b = MaternLinearOperator(shape, 1.5, 2.0, 0.5)
    d = DiagonalCovariance(jnp.full(shape, 2.0))
    v = jax.random.normal(jax.random.key(0), shape)
    for op in (b + d, 3.0 * b, d @ b @ d, lx.TaggedLinearOperator(b / 2.0, lx.positive_semidefinite_tag), d + d):
        root = half(op)
        np.testing.assert_allclose(root.mv(root.T.mv(v)), op.mv(v), atol=1e-3)
        assert diagonal(op).shape == shape
    np.testing.assert_allclose(inv_mv(3.0 * (d @ b @ d), (3.0 * (d @ b @ d)).mv(v)), v, atol=1e-2)
    np.testing.assert_allclose(logdet(d @ b @ d), logdet(b) + 2 * logdet(d), rtol=1e-4)


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda op: half(op), "half of FunctionLinearOperator, of which no structure is known, needs a dense matrix"),
        (lambda op: diagonal(op), "diagonal of FunctionLinearOperator"),
        (lambda op: logdet(op), "logdet of FunctionLinearOperator"),
        (lambda op: inv_mv(op, jnp.ones(DENSE_LIMIT + 1)), "inv_mv of FunctionLinearOperator"),
        (lambda op: sample(op, jax.random.key(0), 1), f"DENSE_LIMIT = {DENSE_LIMIT}; build it from covariances"),
    ],
)
def test_a_large_operator_of_unknown_structure_is_refused(function, words):
    op = lx.FunctionLinearOperator(lambda v: 2.0 * v, jax.ShapeDtypeStruct((DENSE_LIMIT + 1,), jnp.zeros(0).dtype))
    with pytest.raises(ValueError, match=words):
        function(op)


def test_an_operators_own_methods_are_used():
    class WithRoot(LooksLikeOne):
        def half(self):
            return "its own root"

    wrapped = lx.TaggedLinearOperator(MaternLinearOperator((128, 128), 2.0), lx.positive_semidefinite_tag)
    assert half(wrapped).in_structure().shape == (128, 128)
    assert WithRoot().half() == "its own root"


def test_fields_may_be_pytrees():
    structure = {
        "u": jax.ShapeDtypeStruct((2,), jnp.zeros(0).dtype),
        "v": jax.ShapeDtypeStruct((2, 2), jnp.zeros(0).dtype),
    }
    matrix = jnp.asarray(spd())
    plain = lx.FunctionLinearOperator(lambda v: unravel(matrix @ ravel(v), structure), structure)
    weights = lx.DiagonalLinearOperator({"u": jnp.ones(2), "v": jnp.full((2, 2), 4.0)})
    for op in (plain, weights, 2.0 * weights, plain + weights):
        dense = matrix_of(op)
        v = unravel(jnp.arange(1.0, 7.0), structure)
        root = half(op)
        np.testing.assert_allclose(ravel(root.mv(root.T.mv(v))), dense @ ravel(v), atol=20 * ATOL)
        np.testing.assert_allclose(ravel(diagonal(op)), np.diag(dense), atol=ATOL)
        np.testing.assert_allclose(ravel(inv_mv(op, v)), np.linalg.solve(dense, ravel(v)), atol=ATOL)
        np.testing.assert_allclose(logdet(op), np.linalg.slogdet(dense)[1], atol=ATOL)
        assert jax.tree.structure(diagonal(op)) == jax.tree.structure(structure)


def test_what_is_not_a_covariance_is_refused():
    dense = OPERATORS["covariance"]
    with pytest.raises(TypeError, match="half: `op` is ndarray, expected a lineax linear operator; wrap a matrix in"):
        half(np.eye(3))
    with pytest.raises(ValueError, match="half: `op` takes .* expected a covariance"):
        half(lx.MatrixLinearOperator(jnp.ones((2, 3))))
    with pytest.raises(ValueError, match="its scalar is negative"):
        half(dense * -2.0)
    with pytest.raises(ValueError, match="its variance is negative"):
        half(lx.DiagonalLinearOperator(jnp.array([1.0, -1.0])))
    with pytest.raises(ValueError, match="half: `matrix` is not positive semidefinite"):
        half(lx.MatrixLinearOperator(jnp.array([[1.0, 2.0], [2.0, 1.0]])))
    with pytest.raises(ValueError, match="half: `matrix` is not symmetric"):
        half(lx.MatrixLinearOperator(jnp.array([[1.0, 0.5], [0.0, 1.0]])))
    with pytest.raises(ValueError, match=r"inv_mv: `v` is .*\[3\], expected .*\[2, 3\]"):
        inv_mv(dense, jnp.ones(3))


def test_what_has_no_inverse_says_so():
    with pytest.raises(ValueError, match="inv_mv: `op` has variances that are not positive"):
        inv_mv(lx.DiagonalLinearOperator(jnp.array([1.0, 0.0])), jnp.ones(2))
    with pytest.raises(ValueError, match="logdet: `op` is only positive semidefinite"):
        logdet(lx.MatrixLinearOperator(jnp.ones((2, 2))))
    with pytest.raises(ValueError, match="logdet: `op` has variances that are not positive"):
        logdet(OPERATORS["covariance"] * 0.0)
