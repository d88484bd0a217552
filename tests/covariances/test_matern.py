"""The Matérn covariance on a regular grid."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vardax.covariances import DENSE_LIMIT, MaternLinearOperator, matern_correlation
from vardax.types import Grid

X64 = jnp.zeros(0).dtype == jnp.float64
EXACT = 1e-12 if X64 else 2e-5
SMOOTHNESS = [0.5, 1.5, 2.5, math.inf]


def closed_form(shape, lengths, sigma, nu, spacing=1.0) -> np.ndarray:
    """σ² ρ(d / length) between all pairs of cells."""
    cells = np.stack(np.meshgrid(*[np.arange(n) for n in shape], indexing="ij"), axis=-1).reshape(-1, len(shape))
    scaled = cells * np.broadcast_to(spacing, len(shape)) / np.broadcast_to(lengths, len(shape))
    distance = np.linalg.norm(scaled[:, None] - scaled[None, :], axis=-1)
    return sigma**2 * np.asarray(matern_correlation(distance, nu), float)


@pytest.mark.parametrize("nu", SMOOTHNESS)
@pytest.mark.parametrize(
    ("shape", "lengths"), [((61,), 5.0), ((24,), 6.0), ((17, 14), 5.0), ((15, 12), (5.0, 6.0)), ((7, 6, 5), 5.0)]
)
def test_free_boundary_is_the_closed_form(shape, lengths, nu):
    covariance = MaternLinearOperator(shape, lengths, 1.5, nu, boundary="free")
    np.testing.assert_allclose(covariance.as_matrix(), closed_form(shape, lengths, 1.5, nu), atol=1e-3 * 1.5**2)


@pytest.mark.parametrize("nu", SMOOTHNESS)
def test_periodic_boundary_is_the_closed_form_where_images_are_far(nu):
    covariance = MaternLinearOperator((128,), 5.0, 1.5, nu)
    lag = np.minimum(np.arange(128), 128 - np.arange(128))
    expected = 1.5**2 * np.asarray(matern_correlation(lag / 5.0, nu))
    np.testing.assert_allclose(covariance.as_matrix()[0], expected, atol=1e-3 * 1.5**2)


@pytest.mark.parametrize("boundary", ["periodic", "free"])
@pytest.mark.parametrize("nu", SMOOTHNESS)
def test_variance_is_exact_in_every_cell_also_on_the_boundary(boundary, nu):
    for shape in ((33,), (8, 9)):
        covariance = MaternLinearOperator(shape, 2.5, 2.0, nu, boundary=boundary)
        np.testing.assert_allclose(covariance.diagonal(), np.full(shape, 4.0), rtol=EXACT)
        one = jnp.zeros(shape).at[(0,) * len(shape)].set(1.0)
        np.testing.assert_allclose(covariance.mv(one)[(0,) * len(shape)], 4.0, rtol=EXACT)


def test_lengths_follow_the_spacing_and_the_grid():
    by_cells = MaternLinearOperator((12, 10), (3.0, 2.0), boundary="free").as_matrix()
    by_spacing = MaternLinearOperator((12, 10), 30.0, spacing=(10.0, 15.0), boundary="free").as_matrix()
    grid = Grid([10.0 * jnp.arange(12.0), 15.0 * jnp.arange(10.0)])
    by_grid = MaternLinearOperator(grid, 30.0).as_matrix()
    np.testing.assert_allclose(by_spacing, by_cells, atol=EXACT)
    np.testing.assert_allclose(by_grid, by_cells, atol=EXACT)


def test_a_grid_says_where_the_domain_closes():
    grid = Grid([jnp.arange(12.0), jnp.arange(10.0)], periodic=(1,))
    covariance = MaternLinearOperator(grid, 1.5)
    assert covariance.domain_shape == (24, 10)
    row = np.asarray(covariance.as_matrix())[0].reshape(12, 10)
    np.testing.assert_allclose(row[0, 9], row[0, 1], atol=EXACT)
    assert row[11, 0] < 1e-3


def test_spectrum_is_that_of_the_periodic_box():
    for boundary in ("periodic", "free"):
        covariance = MaternLinearOperator((9, 8), 1.5, 2.0, boundary=boundary)
        box = covariance.domain_shape
        assert covariance.spectrum().shape == (box[0], box[1] // 2 + 1)
        v = jax.random.normal(jax.random.key(0), (9, 8))
        padded = jnp.zeros(box, v.dtype).at[:9, :8].set(v)
        modes = jnp.fft.rfftn(padded)
        product = jnp.fft.irfftn(
            jax.lax.complex(covariance.spectrum() * modes.real, covariance.spectrum() * modes.imag), s=box
        )
        np.testing.assert_allclose(covariance.mv(v), product[:9, :8], atol=100 * EXACT)
    assert MaternLinearOperator((9, 8), 1.5).domain_shape == (9, 8)


def test_the_control_of_a_free_boundary_is_the_padded_field():
    covariance = MaternLinearOperator((20, 30), 2.0, boundary="free")
    assert covariance.half().in_structure().shape == covariance.domain_shape == (36, 48)
    assert covariance.half().out_structure().shape == (20, 30)


@pytest.mark.parametrize("boundary", ["periodic", "free"])
@pytest.mark.parametrize("product", ["mv", "half", "transpose", "vjp"])
def test_a_product_costs_one_transform_pair(boundary, product):
    covariance = MaternLinearOperator((16, 20), 1.5, boundary=boundary)
    root = covariance.half()
    function, argument = {
        "mv": (covariance.mv, covariance.in_structure()),
        "half": (root.mv, root.in_structure()),
        "transpose": (root.T.mv, root.out_structure()),
        "vjp": (lambda v: jax.linear_transpose(root.mv, root.in_structure())(v)[0], root.out_structure()),
    }[product]
    program = jax.jit(lambda x: function(x)).lower(argument).compile().as_text()
    assert program.count(" fft(") == 2


@pytest.mark.x64
@pytest.mark.parametrize("boundary", ["periodic", "free"])
@pytest.mark.parametrize("nu", SMOOTHNESS)
def test_gradients_with_respect_to_length_and_sigma(boundary, nu):
    v = jax.random.normal(jax.random.key(0), (9, 8))

    @jax.jit
    def loss(lengths, sigma):
        covariance = MaternLinearOperator((9, 8), lengths, sigma, nu, boundary=boundary, padding=30)
        return jnp.sum(covariance.mv(v) ** 2) + jnp.sum(covariance.half().T.mv(v) ** 3)

    lengths, sigma, h = jnp.array([1.7, 1.2]), 1.3, 1e-5
    by_lengths, by_sigma = jax.grad(loss, argnums=(0, 1))(lengths, sigma)
    for axis in range(2):
        step = jnp.zeros(2).at[axis].set(h)
        expected = (loss(lengths + step, sigma) - loss(lengths - step, sigma)) / (2 * h)
        np.testing.assert_allclose(by_lengths[axis], expected, rtol=1e-6)
    np.testing.assert_allclose(by_sigma, (loss(lengths, sigma + h) - loss(lengths, sigma - h)) / (2 * h), rtol=1e-6)


@pytest.mark.x64
def test_gradients_under_an_eager_grad():
    """The padding follows the value of the length, which an eager `grad` shows."""
    v = jax.random.normal(jax.random.key(0), (12,))

    def loss(length):
        covariance = MaternLinearOperator((12,), length, boundary="free")
        assert covariance.domain_shape == (30,)
        return jnp.sum(covariance.mv(v) ** 2)

    h = 1e-5
    expected = (loss(2.2 + h) - loss(2.2 - h)) / (2 * h)
    np.testing.assert_allclose(jax.grad(loss)(2.2), expected, rtol=1e-6)


@pytest.mark.x64
def test_gradients_of_gradients():
    @jax.jit
    def loss(length):
        return jnp.sum(MaternLinearOperator((9,), length).mv(jnp.arange(9.0)) ** 2)

    h = 1e-5
    expected = (jax.grad(loss)(2.0 + h) - jax.grad(loss)(2.0 - h)) / (2 * h)
    np.testing.assert_allclose(jax.hessian(loss)(2.0), expected, rtol=1e-6)


@pytest.mark.parametrize("boundary", ["periodic", "free"])
def test_lengths_may_be_traced_and_batched(boundary):
    v = jax.random.normal(jax.random.key(0), (9, 8))

    def product(length):
        return MaternLinearOperator((9, 8), length, 1.5, boundary=boundary).mv(v)

    lengths = jnp.array([0.7, 1.2])
    each = jnp.stack([product(length) for length in lengths])
    np.testing.assert_allclose(jax.vmap(product)(lengths), each, atol=1e-4)
    np.testing.assert_allclose(jax.jit(product)(lengths[0]), each[0], atol=1e-4)


def test_the_padded_box_does_not_depend_on_jit_when_the_lengths_are_numbers():
    boxes = []

    def product(v):
        covariance = MaternLinearOperator((9, 8), (2.0, 1.5), 1.5, boundary="free")
        boxes.append(covariance.domain_shape)
        return covariance.mv(v)

    product(jnp.ones((9, 8)))
    jax.jit(product)(jnp.ones((9, 8)))
    assert boxes[0] == boxes[1]


def test_new_lengths_of_the_same_shapes_do_not_compile_again(count_compilations):
    multiply = jax.jit(lambda covariance, v: covariance.mv(v))
    v = jnp.ones((9, 8))
    multiply(MaternLinearOperator((9, 8), 1.5), v)
    with count_compilations() as compiled:
        multiply(MaternLinearOperator((9, 8), 1.75), v)
    assert compiled.n == 0, compiled.names


def test_float32_is_as_good_as_float32_can_be():
    single = MaternLinearOperator((48, 40), 6.0, 2.0, 1.5, boundary="free", dtype=jnp.float32)
    expected = closed_form((48, 40), 6.0, 2.0, 1.5)[0].reshape(48, 40)
    one = jnp.zeros((48, 40), jnp.float32).at[0, 0].set(1.0)
    column = single.mv(one)
    assert column.dtype == jnp.float32
    np.testing.assert_allclose(column, expected, atol=4e-4)


@pytest.mark.slow
@pytest.mark.x64
def test_free_log_determinant_of_a_large_grid_is_within_its_standard_error():
    covariance = MaternLinearOperator((40, 30), 2.0, 1.3, 0.5, boundary="free")
    found, error = covariance.logdet_estimate(jax.random.key(0))
    assert abs(found - covariance.logdet()) < 3 * error
    assert error < 10
    large = MaternLinearOperator((DENSE_LIMIT + 1,), 2.0, 1.3, 0.5, boundary="free")
    rho = math.exp(-0.5)  # an autoregressive process: |B| = sigma^2n (1 - rho^2)^(n - 1)
    expected = 2 * large.in_size() * math.log(1.3) + (large.in_size() - 1) * math.log(1 - rho**2)
    assert large.logdet() == large.logdet_estimate(jax.random.key(0))[0]
    estimate, error = large.logdet_estimate(jax.random.key(1), n_probes=64)
    assert abs(estimate - expected) < 3 * error < 3


@pytest.mark.x64
def test_free_inverse_on_a_larger_grid():
    covariance = MaternLinearOperator((64, 48), 3.0, 2.0, 1.5, boundary="free")
    v = jax.random.normal(jax.random.key(0), (64, 48))
    np.testing.assert_allclose(covariance.mv(covariance.inv_mv(v)), v, atol=1e-5)
    np.testing.assert_allclose(
        jax.jit(lambda b, v: b.inv_mv(v))(covariance, v), covariance.inv_mv(v), rtol=1e-4, atol=1e-4
    )


def test_a_covariance_without_inverse_says_so():
    smooth = MaternLinearOperator((64,), 8.0, nu=math.inf)
    for what, arguments in (("inv_mv", (jnp.ones(64),)), ("logdet", ())):
        with pytest.raises(ValueError, match=rf"MaternLinearOperator.{what}: .* eigenvalues are zero to the precision"):
            getattr(smooth, what)(*arguments)
    free = MaternLinearOperator((64,), 8.0, nu=math.inf, boundary="free")
    with pytest.raises(ValueError, match="conjugate gradients stopped at a relative residual"):
        free.inv_mv(jax.random.normal(jax.random.key(0), (64,)))


def test_a_large_matrix_is_refused():
    with pytest.raises(ValueError, match="MaternLinearOperator.as_matrix needs a dense matrix of 9216 rows"):
        MaternLinearOperator((96, 96), 2.0).as_matrix()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (dict(length_scale=0.0), "`length_scale` is 0.0, expected positive numbers"),
        (dict(length_scale=-2.0), "`length_scale` is -2.0, expected positive numbers"),
        (dict(length_scale=13.0), "`length_scale` is 13 cells on an axis of 12, beyond the domain"),
        (
            dict(length_scale=(2.0, 3.0, 4.0)),
            r"`length_scale` has shape \(3,\), expected one number, or 2: one per axis",
        ),
        (dict(length_scale=[]), r"`length_scale` has shape \(0,\)"),
        (dict(sigma=-1.0), "`sigma` is -1.0, expected a standard deviation, not negative"),
        (dict(sigma=jnp.ones(2)), r"`sigma` has shape \(2,\), expected one number for the whole field"),
        (dict(nu=1.0), "`nu` is 1.0, expected 0.5, 1.5, 2.5, ... or infinity"),
        (dict(spacing=0.0), "`spacing` is 0.0, expected positive numbers"),
        (dict(spacing=(1.0, 1.0, 1.0)), r"`spacing` has shape \(3,\)"),
        (dict(boundary="reflecting"), "`boundary` is 'reflecting', expected 'periodic' or 'free'"),
        (dict(shape=(3, 3, 3, 3)), "`shape` is .*, expected one to three axes"),
        (dict(shape=(0, 3)), "`shape` is .*, expected positive whole numbers"),
    ],
)
def test_bad_arguments_are_refused(arguments, words):
    with pytest.raises(ValueError, match=words):
        MaternLinearOperator(**(dict(shape=(12, 14), length_scale=2.0) | arguments))


def test_sigma_zero_is_a_covariance_too():
    covariance = MaternLinearOperator((12,), 2.0, 0.0)
    np.testing.assert_array_equal(covariance.mv(jnp.ones(12)), 0.0)
    assert np.isfinite(jax.grad(lambda s: jnp.sum(MaternLinearOperator((12,), 2.0, s).mv(jnp.ones(12))))(0.0))


@pytest.mark.parametrize("boundary", ["periodic", "free"])
def test_covariance_between_cells_is_that_of_the_matrix(boundary):
    B = MaternLinearOperator((5, 7), 1.7, sigma=1.3, boundary=boundary)
    a = tuple(jnp.asarray(index)[:, None] for index in np.unravel_index(np.arange(35), (5, 7)))
    b = tuple(jnp.swapaxes(index, 0, 1) for index in a)
    np.testing.assert_allclose(B.between_cells()(a, b), B.as_matrix(), rtol=1e-5, atol=1e-6)
