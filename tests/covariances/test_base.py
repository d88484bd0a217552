"""What holds for every covariance: its square root, its matrix, its place in lineax, and jit, vmap and grad."""

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest

from vardax.covariances import DenseCovariance, DiagonalCovariance, MaternLinearOperator

EXACT, CONVERGED = (1e-12, 1e-8) if jnp.zeros(0).dtype == jnp.float64 else (2e-5, 1e-5)


def spd(n: int, seed: int = 0) -> np.ndarray:
    a = np.random.default_rng(seed).normal(size=(n, n))
    return a @ a.T / n + np.eye(n)


COVARIANCES = {
    "diagonal": lambda: DiagonalCovariance(np.random.default_rng(1).uniform(0.5, 2.0, (3, 4))),
    "diagonal-scalar": lambda: DiagonalCovariance(3.0),
    "dense": lambda: DenseCovariance(spd(7)),
    "dense-field": lambda: DenseCovariance(spd(12).reshape(3, 4, 3, 4)),
    "matern-odd": lambda: MaternLinearOperator(15, 2.0, 1.5, 1.5),
    "matern-even": lambda: MaternLinearOperator((8, 6), (1.5, 2.0), 0.7, 0.5),
    "matern-3d": lambda: MaternLinearOperator((5, 4, 3), 1.2, 1.5, 1.5),
    "matern-free-odd": lambda: MaternLinearOperator((7, 5), 1.1, 2.0, 1.5, boundary="free"),
    "matern-free-3d": lambda: MaternLinearOperator((4, 3, 2), 1.0, 2.0, 2.5, boundary="free"),
    "matern-mixed": lambda: MaternLinearOperator((6, 5), 1.1, 2.0, 0.5, boundary=("periodic", "free")),
}

every_covariance = pytest.mark.parametrize(
    "covariance", [make() for make in COVARIANCES.values()], ids=list(COVARIANCES)
)

IN_SOLVERS = ["diagonal", "dense-field", "matern-even", "matern-free-odd"]


def field(covariance, seed: int = 0):
    return jax.random.normal(jax.random.key(seed), covariance.shape, covariance.dtype)


def matrix_of(covariance) -> np.ndarray:
    """The matrix, column by column, from products alone."""
    n = covariance.in_size()
    columns = jnp.eye(n, dtype=covariance.dtype).reshape(n, *covariance.shape)
    return np.asarray(jax.jit(jax.vmap(covariance.mv))(columns)).reshape(n, n).T


@every_covariance
def test_square_root_reproduces_the_covariance(covariance):
    root = covariance.half()
    matrix = np.asarray(root.as_matrix())
    np.testing.assert_allclose(matrix @ matrix.T, matrix_of(covariance), atol=10 * EXACT)


@every_covariance
def test_square_root_and_its_transpose_agree(covariance):
    root = covariance.half()
    control = jax.random.normal(jax.random.key(1), root.in_structure().shape, covariance.dtype)
    v = field(covariance)
    left, right = jnp.vdot(root.mv(control), v), jnp.vdot(control, root.T.mv(v))
    np.testing.assert_allclose(left, right, rtol=10 * EXACT, atol=10 * EXACT)
    (by_jax,) = jax.linear_transpose(root.mv, root.in_structure())(v)
    np.testing.assert_allclose(root.T.mv(v), by_jax, atol=10 * EXACT)


@every_covariance
def test_matrix_and_diagonal_are_those_of_the_products(covariance):
    matrix = matrix_of(covariance)
    np.testing.assert_allclose(covariance.as_matrix(), matrix, atol=10 * EXACT)
    np.testing.assert_allclose(np.ravel(covariance.diagonal()), np.diag(matrix), atol=10 * EXACT)
    assert covariance.diagonal().shape == covariance.shape
    np.testing.assert_allclose(matrix, matrix.T, atol=10 * EXACT)


@every_covariance
@pytest.mark.x64
def test_inverse_and_log_determinant(covariance):
    matrix, v = matrix_of(covariance), field(covariance)
    tolerance = 1e-9 if covariance.half().in_size() == covariance.in_size() else 1e-6  # iterative on a padded box
    np.testing.assert_allclose(
        np.ravel(covariance.inv_mv(v)), np.linalg.solve(matrix, np.ravel(v)), rtol=tolerance, atol=tolerance
    )
    np.testing.assert_allclose(covariance.logdet(), np.linalg.slogdet(matrix)[1], rtol=1e-10, atol=1e-10)


@every_covariance
def test_sample_covariance_within_its_sampling_error(covariance):
    n, size = 4000, covariance.in_size()
    samples = np.asarray(covariance.sample(jax.random.key(3), n), float).reshape(n, size)
    matrix = matrix_of(covariance)
    error = samples.T @ samples / n - matrix
    sampling_error = np.sqrt((np.outer(np.diag(matrix), np.diag(matrix)) + matrix**2) / n)
    assert np.max(np.abs(error) / sampling_error) < 5.0
    assert np.sqrt(np.mean((error / sampling_error) ** 2)) < 1 + 3 / np.sqrt(size)
    assert np.max(np.abs(samples.mean(axis=0)) / np.sqrt(np.diag(matrix) / n)) < 5.0


@pytest.mark.slow
@pytest.mark.parametrize("covariance", [COVARIANCES[name]() for name in IN_SOLVERS], ids=IN_SOLVERS)
@pytest.mark.parametrize(
    "solver",
    [
        lx.CG(1e-6, 1e-6),
        lx.GMRES(1e-6, 1e-6),
        lx.AutoLinearSolver(well_posed=True),
        lx.AutoLinearSolver(well_posed=None),
    ],
    ids=["CG", "GMRES", "Auto", "Auto-unknown"],
)
def test_lineax_solves_with_it(covariance, solver):
    """R + B, as in observation space, and B alone, under jit."""
    v = field(covariance)
    noise = DiagonalCovariance(jnp.full(covariance.shape, 0.5, covariance.dtype))
    total = np.asarray(matrix_of(covariance), float) + 0.5 * np.eye(covariance.in_size())
    solution = jax.jit(lambda op, v: lx.linear_solve(op, v, solver).value)(covariance + noise, v)
    assert solution.shape == covariance.shape
    np.testing.assert_allclose(np.ravel(solution), np.linalg.solve(total, np.ravel(v)), atol=1e-4)
    alone = lx.linear_solve(covariance, covariance.mv(v), solver).value
    np.testing.assert_allclose(covariance.mv(alone), covariance.mv(v), atol=2e-3)


@pytest.mark.slow
@every_covariance
def test_gradient_through_a_lineax_solve(covariance):
    v = field(covariance)
    noise = DiagonalCovariance(jnp.full(covariance.shape, 0.5, covariance.dtype))

    def quadratic_form(scale):
        total = lx.TaggedLinearOperator(covariance * scale + noise, lx.positive_semidefinite_tag)
        return jnp.vdot(v, lx.linear_solve(total, v, lx.CG(CONVERGED, CONVERGED)).value)

    inverse = np.linalg.inv(np.asarray(matrix_of(covariance), float) + 0.5 * np.eye(covariance.in_size()))
    flat = np.ravel(v)
    expected = -flat @ inverse @ np.asarray(matrix_of(covariance), float) @ inverse @ flat
    np.testing.assert_allclose(jax.grad(quadratic_form)(jnp.ones((), covariance.dtype)), expected, rtol=1e-3)


@every_covariance
def test_structure_survives_jit(covariance):
    seen = []

    @jax.jit
    def inside(operator, v):
        seen.append((lx.is_positive_semidefinite(operator), lx.is_symmetric(operator), lx.is_diagonal(operator)))
        return operator.mv(v)

    np.testing.assert_allclose(inside(covariance, field(covariance)), covariance.mv(field(covariance)), atol=10 * EXACT)
    diagonal = isinstance(covariance, DiagonalCovariance)
    assert seen == [(True, True, diagonal)]


@every_covariance
def test_products_under_vmap_and_grad(covariance):
    fields = jnp.stack([field(covariance, seed) for seed in range(3)])
    each = jnp.stack([covariance.mv(v) for v in fields])
    np.testing.assert_allclose(jax.vmap(covariance.mv)(fields), each, atol=10 * EXACT)
    gradient = jax.grad(lambda v: 0.5 * jnp.vdot(v, covariance.mv(v)))(fields[0])
    np.testing.assert_allclose(gradient, each[0], atol=10 * EXACT)


@every_covariance
def test_every_lineax_hook_answers(covariance):
    n, diagonal = covariance.in_size(), isinstance(covariance, DiagonalCovariance)
    assert covariance.T is covariance
    assert covariance.out_structure() == covariance.in_structure()
    assert lx.linearise(covariance) is covariance
    assert lx.conj(covariance) is covariance
    assert not lx.is_negative_semidefinite(covariance)
    assert not lx.has_unit_diagonal(covariance)
    assert lx.is_tridiagonal(covariance) == lx.is_lower_triangular(covariance) == diagonal
    assert lx.is_upper_triangular(covariance) == diagonal
    matrix = covariance.as_matrix()
    np.testing.assert_allclose(lx.diagonal(covariance), jnp.diagonal(matrix), atol=10 * EXACT)
    for found, offset in zip(lx.tridiagonal(covariance), (0, -1, 1), strict=True):
        assert found.shape == (n - abs(offset),)
        np.testing.assert_allclose(found, jnp.diagonal(matrix, offset=offset), atol=10 * EXACT)
    full = lx.materialise(covariance)
    assert lx.is_positive_semidefinite(full)
    np.testing.assert_allclose(full.mv(field(covariance)), covariance.mv(field(covariance)), atol=20 * EXACT)


@pytest.mark.slow
@every_covariance
def test_float32_stays_float32(covariance):
    single = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), covariance)
    v = jax.random.normal(jax.random.key(0), covariance.shape, jnp.float32)
    mask = jnp.ones(covariance.shape)
    root = single.half()
    restricted = single.restrict(mask)
    results = [
        single.mv(v),
        single.diagonal(),
        single.as_matrix(),
        single.sample(jax.random.key(0), 2),
        root.T.mv(v),
        root.mv(root.T.mv(v)),
        restricted.whiten(v),
        restricted.solve(v),
        restricted.mv(v),
        restricted.logdet(),
    ]
    assert {str(result.dtype) for result in results} == {"float32"}
    np.testing.assert_allclose(single.mv(v), covariance.mv(v.astype(covariance.dtype)), atol=1e-4)


@every_covariance
def test_wrong_fields_are_refused(covariance):
    wrong = jnp.zeros((*covariance.shape, 2), covariance.dtype)
    for product in (covariance.mv, covariance.inv_mv):
        with pytest.raises(ValueError, match=r"`vector` is .* expected .* build the covariance with `dtype=`"):
            product(wrong)
    with pytest.raises(ValueError, match="`mask` has shape"):
        covariance.restrict(jnp.zeros((2, 99)))
    with pytest.raises(ValueError, match="`n` is 0, expected the number of samples"):
        covariance.sample(jax.random.key(0), 0)


def test_wrong_dtypes_are_refused():
    single = DiagonalCovariance(jnp.ones(3, jnp.float32))
    with pytest.raises(ValueError, match=r"`vector` is float16\[3\], expected float32\[3\]"):
        single.mv(jnp.ones(3, jnp.float16))


def test_numbers_without_a_dtype_take_the_default_and_dtype_wins():
    assert DiagonalCovariance([1, 2]).dtype == jnp.zeros(0).dtype
    assert DiagonalCovariance([1, 2], dtype=jnp.float32).dtype == jnp.float32
    assert DenseCovariance([[1, 0], [0, 1]], dtype=jnp.float32).dtype == jnp.float32
    assert MaternLinearOperator(8, 2).dtype == jnp.zeros(0).dtype
    assert MaternLinearOperator(8, 2.0, dtype=jnp.float32).dtype == jnp.float32
    assert MaternLinearOperator(8, jnp.float32(2.0)).dtype == jnp.float32
    assert MaternLinearOperator(8, 2.0, jnp.float32(2.0)).dtype == jnp.float32


def test_complex_numbers_are_refused():
    with pytest.raises(TypeError, match="`variance` has dtype complex64, expected real numbers"):
        DiagonalCovariance(jnp.ones(3, jnp.complex64))
