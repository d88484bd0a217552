"""The covariance test sees what makes a matrix no covariance, at any size, and nothing in one that is."""

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest

from vardax.covariances.dense import DenseCovariance
from vardax.covariances.diagonal import DiagonalCovariance
from vardax.covariances.matern import MaternLinearOperator
from vardax.validation import covariance_test

DTYPES = ["float32", pytest.param("float64", marks=pytest.mark.x64)]


class Foreign(eqx.Module):
    """A covariance of a user: products, and whatever else it is given."""

    product: lx.AbstractLinearOperator
    root: lx.AbstractLinearOperator
    inverse_factor: float = 1.0
    variance: jax.Array | None = None

    def in_structure(self):
        return self.product.in_structure()

    def mv(self, v):
        return self.product.mv(v)

    def half(self):
        return self.root

    def inv_mv(self, v):
        return self.inverse_factor * jnp.linalg.solve(self.product.as_matrix(), v)

    def diagonal(self):
        return jnp.diagonal(self.product.as_matrix()) if self.variance is None else self.variance


def matrices(n, dtype, length=3.0, nugget=0.1):
    d = np.abs(np.subtract.outer(np.arange(n), np.arange(n)))
    scale = np.linspace(0.5, 2.0, n)
    B = scale[:, None] * (np.exp(-((d / length) ** 2)) + nugget * np.eye(n)) * scale
    return jnp.asarray(B, dtype), jnp.asarray(np.linalg.cholesky(B), dtype)


def foreign(n=40, dtype="float32", B=None, L=None, **kw):
    right, root = matrices(n, dtype)
    wrap = lx.MatrixLinearOperator
    return Foreign(wrap(right if B is None else B(right)), wrap(root if L is None else L(root)), **kw)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [1, 2, 3, 40, 200])
def test_a_covariance_of_the_user_passes(n, dtype):
    for seed in (0, 1):
        report = covariance_test(foreign(n, dtype), key=jax.random.key(seed))
        assert report, str(report)
    expected = {"symmetric", "positive semidefinite", "Dirac, peak", "diagonal", "square root", "inverse"}
    assert expected <= {row.name for row in report.rows}


@pytest.mark.x64
@pytest.mark.parametrize("n", [2, 40, 200])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_an_asymmetry_of_a_millionth_in_one_entry_fails(n, seed):
    report = covariance_test(foreign(n, "float64", B=lambda B: B.at[0, 1].add(1e-6)), key=jax.random.key(seed))
    assert not report["symmetric"].passed
    assert not report["Dirac, symmetric"].passed
    assert "B is not its own transpose" in report.verdict


@pytest.mark.x64
def test_an_asymmetry_of_a_millionth_fails_in_a_large_covariance():
    n = 20_000
    smooth = lambda v: v + 0.4 * (jnp.roll(v, 1) + jnp.roll(v, -1))  # noqa: E731
    skewed = lambda v: smooth(v).at[17].add(1e-6 * v[18])  # noqa: E731
    structure = jax.ShapeDtypeStruct((n,), jnp.float64)
    right, wrong = (lx.FunctionLinearOperator(f, structure, lx.positive_semidefinite_tag) for f in (smooth, skewed))
    assert not covariance_test(wrong, half=lx.IdentityLinearOperator(structure))["symmetric"].passed
    assert covariance_test(right, half=lx.IdentityLinearOperator(structure))["symmetric"].passed


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [2, 40, 200])
@pytest.mark.parametrize(
    "defect",
    [
        lambda L: 0.99 * L,
        lambda L: L / np.sqrt(2).astype(L.dtype),
        lambda L: L.at[:, L.shape[1] // 2].multiply(1.05),
        lambda L: L.at[0, 0].multiply(-2),
        lambda L: L.T,
    ],
    ids=["0.99 L", "sqrt 2 missing", "one column scaled", "one sign", "transposed"],
)
def test_a_wrong_square_root_fails(defect, n, dtype):
    report = covariance_test(foreign(n, dtype, L=defect))
    assert [row.name for row in report.failures] == ["square root"]
    assert "L Lᵀ is not B" in report.verdict


@pytest.mark.x64
@pytest.mark.parametrize("n", [3, 40, 200])
def test_an_inverse_that_is_wrong_by_a_hundred_thousandth_fails(n):
    report = covariance_test(foreign(n, "float64", inverse_factor=1 + 1e-5))
    assert [row.name for row in report.failures] == ["inverse"]


@pytest.mark.x64
def test_an_inverse_is_judged_where_b_is_ill_conditioned():
    """Condition number 1e12: B⁻¹ is right to 1e-4 only, and still B B⁻¹ w = w to rounding."""
    right, _ = matrices(60, "float64", length=6.0, nugget=1e-12)
    root = np.linalg.cholesky(np.asarray(right))
    B = Foreign(lx.MatrixLinearOperator(right), lx.MatrixLinearOperator(jnp.asarray(root)))
    assert covariance_test(B), str(covariance_test(B))
    assert not covariance_test(eqx.tree_at(lambda b: b.inverse_factor, B, 1 + 1e-5))["inverse"].passed


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [2, 40, 200])
def test_a_negative_eigenvalue_fails(n, dtype):
    weighted = lambda B: B - 0.2 * jnp.diag(jnp.diagonal(B))  # noqa: E731
    report = covariance_test(foreign(n, dtype, B=weighted))
    assert not report["positive semidefinite"].passed


@pytest.mark.parametrize("n", [2_000, 100_000])
def test_a_negative_eigenvalue_fails_in_a_large_covariance(n):
    """A second difference with a wrong sign: 1 + 2 cos(k) is negative for short waves."""
    product = lambda v: v + jnp.roll(v, 1) + jnp.roll(v, -1)  # noqa: E731
    structure = jax.ShapeDtypeStruct((n,), jnp.float32)
    B = lx.FunctionLinearOperator(product, structure, lx.symmetric_tag)
    report = covariance_test(B, half=lx.IdentityLinearOperator(structure))
    assert report["symmetric"].passed
    assert not report["positive semidefinite"].passed


@pytest.mark.parametrize("dtype", DTYPES)
def test_one_wrong_variance_fails(dtype):
    B, _ = matrices(40, dtype)
    wrong = jnp.diagonal(B).at[7].multiply(1.01)
    report = covariance_test(foreign(40, dtype, variance=wrong))
    assert [row.name for row in report.failures] == ["diagonal"]


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_response_that_peaks_elsewhere_fails(dtype):
    """Symmetric, but the impulse at 3 answers loudest at 30, beyond √(B_ii B_jj)."""
    twisted = lambda B: B.at[3, 30].set(9.0).at[30, 3].set(9.0)  # noqa: E731
    report = covariance_test(foreign(40, dtype, B=twisted))
    assert report["symmetric"].passed
    assert not report["Dirac, peak"].passed
    assert "not peaked" in report["Dirac, peak"].meaning


def test_small_variances_count_as_much_as_large_ones():
    """Variances over twelve orders of magnitude, and a defect among the smallest."""
    scale = np.logspace(-6, 6, 30)
    right, root = matrices(30, "float32")
    scaled = lambda B: jnp.asarray(scale[:, None] * np.asarray(B, np.float64) * scale, jnp.float32)  # noqa: E731
    columns = jnp.asarray(scale[:, None] * np.asarray(root, np.float64), jnp.float32)
    B = lx.MatrixLinearOperator(scaled(right))
    variances = jnp.diagonal(B.as_matrix())
    assert covariance_test(B, half=columns, diagonal=variances)
    assert not covariance_test(B, half=columns.at[0].multiply(1.01), diagonal=variances)["square root"].passed
    skewed = lx.MatrixLinearOperator(B.as_matrix().at[0, 1].multiply(1.01))
    assert not covariance_test(skewed, half=columns, diagonal=variances)["symmetric"].passed


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("boundary", ["periodic", "free"])
@pytest.mark.parametrize("nu", [0.5, np.inf])
def test_an_ill_conditioned_covariance_passes(nu, boundary, dtype):
    B = MaternLinearOperator((50,), 8.0, sigma=2.0, nu=nu, boundary=boundary, dtype=dtype)
    report = covariance_test(B)
    assert report, str(report)


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_only_semidefinite_passes_with_a_note(dtype):
    report = covariance_test(DenseCovariance(jnp.ones((6, 6), dtype)))
    assert report, str(report)
    assert any(note.startswith("inverse not checked: DenseCovariance.inv_mv") for note in report.notes)


def test_a_large_covariance_is_checked_without_its_matrix():
    B = MaternLinearOperator((40, 41), (2.0, 3.0), nu=1.5, boundary="free", dtype="float32")
    report = covariance_test(B, n_lanczos=10)
    assert report, str(report)
    assert any("Lanczos" in note for note in report.notes)
    assert any("log-determinant not checked" in note for note in report.notes)


def test_a_plain_matrix_is_a_covariance_too():
    B, L = matrices(12, "float32")
    assert covariance_test(np.asarray(B), half=np.asarray(L), inverse=lambda v: jnp.linalg.solve(B, v))
    sign, logdet = np.linalg.slogdet(np.asarray(B, np.float64))
    assert covariance_test(B, logdet=logdet)["log-determinant"].passed
    assert not covariance_test(B, logdet=logdet + 0.5)["log-determinant"].passed


def test_a_pair_of_callables_is_a_square_root():
    B, L = matrices(12, "float32")
    assert covariance_test(B, half=(lambda c: L @ c, lambda v: L.T @ v))
    report = covariance_test(B, half=(lambda c: L @ c, lambda v: L @ v))
    assert not report["square root, adjoint"].passed


def test_a_rectangular_square_root_passes():
    A = jnp.asarray(np.random.default_rng(0).standard_normal((6, 9)), jnp.float32)
    assert covariance_test(A @ A.T, half=A)


class TwoArrays(eqx.Module):
    """B on a pytree: two variables of different size, with a covariance between them."""

    matrix: jax.Array
    factor: float

    def in_structure(self):
        return {"p": jax.ShapeDtypeStruct((3,), jnp.float32), "q": jax.ShapeDtypeStruct((2, 2), jnp.float32)}

    def mv(self, v):
        flat = self.matrix @ jnp.concatenate([v["p"], v["q"].ravel()])
        return {"p": flat[:3], "q": flat[3:].reshape(2, 2)}

    def half(self):
        scaled = self.factor * jnp.linalg.cholesky(self.matrix)

        def product(v):
            flat = scaled @ jnp.concatenate([v["p"], v["q"].ravel()])
            return {"p": flat[:3], "q": flat[3:].reshape(2, 2)}

        return lx.FunctionLinearOperator(product, self.in_structure())


def test_a_covariance_on_a_pytree_is_checked():
    B, _ = matrices(7, "float32")
    assert covariance_test(TwoArrays(B, 1.0)), str(covariance_test(TwoArrays(B, 1.0)))
    assert not covariance_test(TwoArrays(B, 0.99))["square root"].passed


class Sampled(eqx.Module):
    """A diagonal covariance whose samples are wrong by a factor."""

    inner: DiagonalCovariance
    factor: float
    shift: float

    def in_structure(self):
        return self.inner.in_structure()

    def mv(self, v):
        return self.inner.mv(v)

    def sample(self, key, n):
        return self.factor * self.inner.sample(key, n) + self.shift


@pytest.mark.parametrize(("factor", "shift", "passes"), [(1.0, 0.0, True), (2**0.5, 0.0, False), (1.0, 3.0, False)])
def test_samples_have_the_covariance_they_promise(factor, shift, passes):
    B = Sampled(DiagonalCovariance(jnp.linspace(1.0, 2.0, 30, dtype=jnp.float32)), factor, shift)
    for seed in range(5):
        assert covariance_test(B, key=jax.random.key(seed))["samples"].passed == passes


def test_a_product_of_another_shape_is_a_failing_row():
    class Wrong(eqx.Module):
        def in_structure(self):
            return jax.ShapeDtypeStruct((4,), jnp.float32)

        def mv(self, v):
            return v[:3]

    report = covariance_test(Wrong())
    assert [row.name for row in report.failures] == ["structure"]
    assert "found float32[3], expected float32[4]" in report.verdict


def test_a_zero_variance_is_allowed():
    assert covariance_test(DiagonalCovariance(jnp.asarray([1.0, 0.0, 2.0], jnp.float32)))
    assert covariance_test(jnp.zeros((3, 3)))


def test_not_a_number_fails():
    assert not covariance_test(foreign(6, B=lambda B: B.at[2, 2].set(jnp.nan)), half=jnp.eye(6, dtype=jnp.float32))


@pytest.mark.parametrize(
    ("covariance", "options", "error", "words"),
    [
        ("B", {}, TypeError, "`covariance` is str, expected a lineax operator"),
        (jnp.ones((2, 3)), {}, ValueError, r"`covariance` is an array of shape \(2, 3\), expected a square matrix"),
        (jnp.eye(2), {"half": "L"}, TypeError, "`half` is str, expected a lineax operator, a matrix, or a pair"),
        (jnp.eye(2), {"diagonal": jnp.ones(3)}, ValueError, "`diagonal` is not a field of the covariance"),
        (jnp.eye(2), {"n_probes": 0}, ValueError, "`n_probes` is 0"),
        (jnp.eye(2), {"n_lanczos": 0}, ValueError, "`n_lanczos` 0"),
        (jnp.eye(2, dtype=jnp.float16), {}, TypeError, "dtype float16, expected float32 or float64"),
    ],
)
def test_unusable_input_is_refused_by_name(covariance, options, error, words):
    with pytest.raises(error, match=words):
        covariance_test(covariance, **options)
