"""Correlation by diffusion: its shape, what land does to it, its variances, and its derivatives."""

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest
import scipy.linalg

from vardax.covariances.diagonal import DiagonalCovariance
from vardax.covariances.diffusion import DiffusionCovariance
from vardax.covariances.matern import MaternLinearOperator
from vardax.covariances.normalisation import Exact, Randomised
from vardax.models.optimal_interpolation import OptimalInterpolation
from vardax.obs_operators.identity import MaskedIdentity
from vardax.types import Batch2D, Grid

X64 = jnp.zeros(0).dtype == jnp.float64
EXACT = 1e-12 if X64 else 2e-5


def grid_of(shape, mask=None, periodic=(), step=1.0, **fields):
    return Grid([step * np.arange(n) for n in shape], mask=mask, periodic=periodic, **fields)


def land(shape, seed=0, share=0.2):
    return np.random.default_rng(seed).random(shape) > share


def impulse(shape, cell):
    return jnp.zeros(shape).at[cell].set(1.0)


def correlation(covariance, cell):
    return np.asarray(covariance.mv(impulse(covariance.shape, cell)))


FIELD = 1 + np.random.default_rng(1).random((7, 8))
TENSOR = FIELD[..., None, None] * np.array([[1.5, 0.6], [0.6, 1.0]])
SLANT = jnp.array([[1.2, 0.4], [0.4, 0.9]])
CASES = {
    "1-D": lambda: (grid_of((20,)), 2.5, 1.0),
    "1-D, periodic, land": lambda: (grid_of((20,), land((20,)), (0,)), 2.5, 2.0),
    "2-D, land": lambda: (grid_of((7, 8), land((7, 8))), 1.5, FIELD),
    "2-D, a shape": lambda: ((7, 8), 1.5, 1.0),
    "2-D, a length per axis": lambda: (grid_of((7, 8), None, (1,)), (1.0, 2.5), 1.0),
    "2-D, a field": lambda: (grid_of((7, 8), land((7, 8))), FIELD, 0.5),
    "2-D, a field per axis": lambda: (grid_of((7, 8)), (FIELD, 2.0), 1.0),
    "2-D, a tensor per cell": lambda: (grid_of((7, 8), land((7, 8)), (0, 1)), TENSOR, FIELD),
    "2-D, volumes vary": lambda: (grid_of((7, 8), land((7, 8)), cell_size=[FIELD, 1.0], area=FIELD**2), 1.5, 1.0),
    "3-D, land": lambda: (grid_of((3, 4, 5), land((3, 4, 5)), (2,)), (1.0, 1.5, 2.0), 1.0),
}


def dense(covariance, sigma, mask):
    """D exp(−A) D from the diffusion operator, normalised by its own diagonal."""
    stencil, shape = covariance.smoothing.stencil, covariance.shape
    units = jnp.eye(covariance.in_size()).reshape(-1, *shape)
    S = np.asarray(jax.jit(jax.vmap(stencil.mv))(units)).reshape(len(units), -1)
    root = np.sqrt(np.broadcast_to(stencil.volume, shape)).ravel()
    spread = scipy.linalg.expm(-S / root[:, None] / root[None, :]) / root[:, None] / root[None, :]
    scale = np.where(mask, np.broadcast_to(sigma, shape), 0).ravel() / np.sqrt(np.diag(spread))
    return scale[:, None] * spread * scale[None, :]


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_it_is_the_matrix_exponential_of_diffusion_normalised(name, equals_matrix):
    grid, length, sigma = CASES[name]()
    covariance = DiffusionCovariance(grid, length, sigma=sigma)
    mask = np.ones(covariance.shape, bool) if not isinstance(grid, Grid) or grid.mask is None else np.asarray(grid.mask)
    matrix = np.asarray(covariance.as_matrix())
    scale = np.max(np.broadcast_to(sigma, mask.shape)) ** 2
    np.testing.assert_allclose(matrix, dense(covariance, sigma, mask), atol=1e-4 * scale)
    np.testing.assert_allclose(matrix, matrix.T, atol=EXACT * scale)
    np.testing.assert_allclose(
        np.diag(matrix), (mask * np.broadcast_to(sigma, mask.shape) ** 2).ravel(), atol=EXACT * scale
    )
    equals_matrix(covariance, matrix)
    assert covariance.normalisation_error == 0


@pytest.mark.parametrize(
    ("shape", "lengths", "n"),
    [
        ((81,), 8.0, None),
        ((49, 55), (6.0, 7.0), None),
        pytest.param((21, 21, 23), (4.0, 4.0, 4.5), 1728, marks=pytest.mark.slow),
    ],
)
def test_it_is_a_gaussian_far_from_land(shape, lengths, n):
    """exp(−r²/2), r = d / length: what the length means to `matern_correlation` with ν = ∞, to order 1/length²."""
    covariance = DiffusionCovariance(shape, lengths, Exact() if n is None else Randomised(n))
    middle = tuple(n // 2 for n in shape)
    lags = np.meshgrid(*[np.arange(n) - n // 2 for n in shape], indexing="ij")
    r2 = sum((lag / length) ** 2 for lag, length in zip(lags, np.broadcast_to(lengths, len(shape)), strict=True))
    inside = r2 < 1.5**2
    np.testing.assert_allclose(
        correlation(covariance, middle)[inside], np.exp(-r2 / 2)[inside], atol=0.35 / np.min(lengths) ** 2
    )


def test_it_is_the_gaussian_matern_covariance_on_a_periodic_grid():
    shape = (36, 40)
    grid = grid_of(shape, None, (0, 1), step=2.0)
    diffusion = DiffusionCovariance(grid, (12.0, 16.0), sigma=1.5)
    matern = MaternLinearOperator(grid, (12.0, 16.0), 1.5, nu=np.inf)
    np.testing.assert_allclose(correlation(diffusion, (5, 7)), correlation(matern, (5, 7)), atol=1.5**2 * 5e-3)


def test_a_tensor_has_its_lengths_along_its_eigenvectors():
    shape, angle = (41, 41), 0.6
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    lengths = turn @ np.diag([6.0, 3.0]) @ turn.T
    found = correlation(DiffusionCovariance(shape, lengths), (20, 20))
    y, x = np.meshgrid(np.arange(41) - 20, np.arange(41) - 20, indexing="ij")
    lag = np.stack([y, x], axis=-1)
    expected = np.exp(-np.einsum("...a,ab,...b", lag, np.linalg.inv(lengths @ lengths), lag) / 2)
    np.testing.assert_allclose(found, expected, atol=1.5e-2)


def great_circle(latitude, longitude, cell):
    """Distances on the unit sphere from one cell."""
    phi, lam = np.deg2rad(latitude), np.deg2rad(longitude)
    cosine = np.sin(phi) * np.sin(phi[cell]) + np.cos(phi) * np.cos(phi[cell]) * np.cos(lam - lam[cell])
    return np.arccos(np.clip(cosine, -1, 1))


@pytest.mark.slow
def test_on_the_sphere_the_distance_is_the_great_circle():
    """Rows of cells are shorter towards the poles: at 62° a length has twice as many cells as on the equator."""
    latitude, longitude = np.arange(-76.0, 77.0, 3.0), np.arange(0.0, 360.0, 3.0)
    fields = np.meshgrid(latitude, longitude, indexing="ij")
    length = 0.22  # radians, 1400 km on the Earth
    covariance = DiffusionCovariance(Grid.latlon(latitude, longitude, radius=1.0), length)
    for row in (8, 25, 46):
        distance = great_circle(*fields, (row, 40))
        near = distance < 1.5 * length
        near[[0, 1, 2, 3, -4, -3, -2, -1]] = False  # the rim of the domain reflects
        found = correlation(covariance, (row, 40))
        np.testing.assert_allclose(found[near], np.exp(-(distance**2) / 2 / length**2)[near], atol=2.5e-2)


def test_on_a_curvilinear_grid_the_distance_is_the_straight_line():
    """Polar coordinates: a ring, whose cells grow with the radius."""
    radius, angle = np.linspace(10.0, 30.0, 41), np.linspace(0, 2 * np.pi, 120, endpoint=False)
    r, theta = np.meshgrid(radius, angle, indexing="ij")
    x, y = r * np.cos(theta), r * np.sin(theta)
    sizes = [np.full(41, 0.5), r * (angle[1] - angle[0])]
    grid = Grid([x, y], cell_size=sizes, periodic=(1,))
    found = correlation(DiffusionCovariance(grid, 3.5), (22, 30))
    distance = np.hypot(x - x[22, 30], y - y[22, 30])
    near = distance < 1.5 * 3.5
    np.testing.assert_allclose(found[near], np.exp(-(distance**2) / 2 / 3.5**2)[near], atol=2e-2)


def sphere(mask=None):
    latitude, longitude = np.arange(-75.0, 76.0, 10.0), np.arange(0.0, 360.0, 12.0)
    return Grid.latlon(latitude, longitude, mask=mask, radius=1.0), 0.3


def ring(mask=None):
    radius, angle = np.linspace(10.0, 24.0, 15), np.linspace(0, 2 * np.pi, 30, endpoint=False)
    r, theta = np.meshgrid(radius, angle, indexing="ij")
    sizes = [np.full(15, 1.0), r * (angle[1] - angle[0])]
    return Grid([r * np.cos(theta), r * np.sin(theta)], cell_size=sizes, periodic=(1,), mask=mask), 5.0


@pytest.mark.slow
@pytest.mark.parametrize("normalisation", [Exact(), Randomised(1000)], ids=["exact", "randomised"])
@pytest.mark.parametrize("make", [sphere, ring])
def test_the_diagonal_is_one_to_a_percent_on_grids_of_unequal_cells(make, normalisation):
    """With land, and in every cell of the sea at its coast too."""
    sea = land(make()[0].shape, seed=4)
    grid, length = make(sea)
    covariance = DiffusionCovariance(grid, length, normalisation)
    variances = np.diag(np.asarray(covariance.as_matrix())).reshape(grid.shape)
    assert np.all(variances[~sea] == 0)
    difference = variances[sea] - 1
    assert np.sqrt(np.mean(difference**2)) < 0.01
    if isinstance(normalisation, Exact):
        assert np.max(np.abs(difference)) < 10 * EXACT


def test_lengths_that_vary_slowly_are_those_of_the_place():
    n = 160
    lengths = 4 + 4 * np.linspace(0, 1, n)
    covariance = DiffusionCovariance((n,), lengths)
    for cell in (40, 80, 120):
        found = correlation(covariance, cell)
        curvature = 2 * np.log(found[cell]) - np.log(found[cell - 3]) - np.log(found[cell + 3])
        assert 3 / np.sqrt(curvature) == pytest.approx(lengths[cell], rel=0.02)


def strait(shape=(30, 31)):
    """A wall with a gap at one end."""
    mask = np.ones(shape, bool)
    mask[:-4, 15] = False
    return mask


def test_nothing_passes_through_land_and_some_around_it():
    mask = strait()
    covariance = DiffusionCovariance(grid_of(mask.shape, mask), 4.0)
    far, near = correlation(covariance, (3, 13)), correlation(covariance, (27, 13))
    assert np.all(far[:, 15][:-4] == 0)
    assert np.max(np.abs(far[:, 16:])) < 1e-4  # 26 cells of way around: exp(−26²/32) is 7e-10
    assert near[27, 17] > 0.5
    assert near[10, 17] < near[27, 17]
    mask[-4:, 15] = False
    closed = correlation(DiffusionCovariance(grid_of(mask.shape, mask), 4.0), (27, 13))
    assert np.all(closed[:, 15:] == 0)
    assert closed[27, 11] > 0.5


def test_waters_that_touch_at_a_corner_only_are_separate():
    mask = np.zeros((6, 6), bool)
    mask[:3, :3] = mask[3:, 3:] = True
    for length in (2.0, np.array([[2.0, 0.8], [0.8, 1.5]])):
        covariance = DiffusionCovariance(grid_of((6, 6), mask), length)
        assert np.all(correlation(covariance, (2, 2))[3:, 3:] == 0)


def test_an_isolated_cell_has_its_variance_and_no_correlation():
    mask = np.zeros((5, 5), bool)
    mask[2, 2] = mask[4] = True
    covariance = DiffusionCovariance(grid_of((5, 5), mask), 2.0, sigma=3.0)
    column = correlation(covariance, (2, 2))
    assert column[2, 2] == pytest.approx(9.0)
    assert np.count_nonzero(column) == 1


def test_land_has_no_variance_and_what_is_there_does_not_matter():
    mask = land((9, 10), share=0.4)
    covariance = DiffusionCovariance(grid_of(mask.shape, mask), 2.0)
    np.testing.assert_array_equal(np.asarray(covariance.diagonal()), mask)
    samples = np.asarray(covariance.sample(jax.random.key(0), 3))
    assert np.all(samples[:, ~mask] == 0)
    assert np.all(samples[:, mask] != 0)
    v = jnp.asarray(np.random.default_rng(0).standard_normal(mask.shape))
    np.testing.assert_array_equal(covariance.mv(v), covariance.mv(jnp.where(mask, v, 1e3)))


@pytest.mark.x64
def test_samples_have_the_covariance():
    mask = land((6, 7))
    covariance = DiffusionCovariance(grid_of(mask.shape, mask), 1.5, sigma=2.0)
    n = 40_000
    samples = np.asarray(covariance.sample(jax.random.key(0), n)).reshape(n, -1)
    expected = np.asarray(covariance.as_matrix())
    error = np.sqrt((expected**2 + np.outer(np.diag(expected), np.diag(expected))) / n)
    assert np.all(np.abs(samples.T @ samples / n - expected) <= 5 * error)


def test_randomised_variances_are_as_far_off_as_stated():
    mask = strait((40, 41))
    covariance = DiffusionCovariance(grid_of(mask.shape, mask), 4.0, Randomised(100), sigma=2.0)
    found = np.asarray(
        jax.jit(jax.vmap(lambda cell: covariance.mv(cell).ravel()))(
            jnp.eye(mask.size).reshape(-1, *mask.shape)[np.flatnonzero(mask)[::7]]
        )
    )
    variances = found[np.arange(len(found)), np.flatnonzero(mask)[::7]] / 4
    measured = np.sqrt(np.mean((variances - 1) ** 2))
    assert 0 < measured < 0.02
    assert 0.3 * measured < covariance.normalisation_error < 3 * measured
    np.testing.assert_allclose(covariance.diagonal(), 4.0 * mask)


@pytest.mark.x64
@pytest.mark.parametrize(
    ("form", "normalisation"),
    [
        ("field", Exact()),
        pytest.param("tensor", Exact(), marks=pytest.mark.slow),
        pytest.param("field", Randomised(16), marks=pytest.mark.slow),
    ],
    ids=["field", "tensor", "randomised"],
)
def test_gradients_are_those_of_finite_differences(form, normalisation, equals_differences):
    shape = (5, 6)
    mask, rng = land(shape), np.random.default_rng(2)
    v, field = jnp.asarray(rng.standard_normal(shape)), jnp.asarray(1 + rng.random(shape))

    def loss(parameters):
        length = parameters["length"] if form == "field" else jnp.tensordot(parameters["length"], SLANT, axes=0)
        grid = grid_of(shape, mask)
        covariance = DiffusionCovariance(grid, length, normalisation, sigma=parameters["sigma"], steps=30)
        return jnp.sum(covariance.mv(v) ** 2) + jnp.sum(covariance.half().T.mv(v) ** 3)

    equals_differences(loss, {"length": field, "sigma": 1 + field**2})


@pytest.mark.x64
def test_an_eager_gradient_needs_no_steps():
    v = jnp.arange(9.0)
    loss = lambda length: jnp.sum(DiffusionCovariance((9,), length).mv(v) ** 2)  # noqa: E731
    h = 1e-5
    expected = (loss(2.2 + h) - loss(2.2 - h)) / (2 * h)
    np.testing.assert_allclose(jax.grad(loss)(2.2), expected, rtol=1e-6)


@pytest.mark.slow
def test_lengths_without_values_need_steps():
    v = jnp.arange(12.0)
    product = lambda length: DiffusionCovariance((12,), length, steps=20).mv(v)  # noqa: E731
    lengths = jnp.array([1.0, 2.0])
    for length, found in zip(lengths, jax.vmap(product)(lengths), strict=True):
        np.testing.assert_allclose(found, product(float(length)), rtol=1e-4)
    with pytest.raises(ValueError, match="`length_scale` has no value while tracing.* pass `steps`"):
        jax.jit(lambda length: DiffusionCovariance((12,), length).mv(v))(2.0)
    with pytest.raises(ValueError, match="`steps` is 20, expected at least 2[0-9] for this `length_scale`"):
        product(8.0)
    assert np.all(np.isnan(jax.jit(product)(12.0)[1:]))


def test_grid_and_lengths_may_be_arguments_of_a_jitted_function():
    mask = land((6, 7))

    @jax.jit
    def product(grid, length, v):
        return DiffusionCovariance(grid, length, steps=12).mv(v)

    v = jnp.ones((6, 7))
    expected = DiffusionCovariance(grid_of((6, 7), mask), 1.5).mv(v)
    np.testing.assert_allclose(product(grid_of((6, 7), mask), 1.5, v), expected, atol=2e-4)


def test_new_values_of_the_same_shapes_do_not_compile_again(count_compilations):
    multiply = jax.jit(lambda covariance, v: covariance.mv(v))
    v = jnp.ones((6, 7))
    multiply(DiffusionCovariance(grid_of((6, 7), land((6, 7), 1)), 1.5, steps=20), v)
    second = DiffusionCovariance(grid_of((6, 7), land((6, 7), 2)), 1.75, steps=20)
    with count_compilations() as compiled:
        multiply(second, v)
    assert compiled.n == 0, compiled.names


def test_it_works_inside_a_linear_solve():
    mask = land((6, 7))
    B = DiffusionCovariance(grid_of((6, 7), mask), 1.5)
    R = DiagonalCovariance(jnp.full((6, 7), 0.1))
    b = jnp.asarray(np.random.default_rng(0).standard_normal((6, 7)))
    matrix = np.asarray(B.as_matrix()) + 0.1 * np.eye(42)
    expected = np.linalg.solve(matrix, np.asarray(b).ravel()).reshape(6, 7)
    operator = lx.TaggedLinearOperator(B + R, lx.positive_semidefinite_tag)
    for solver in (lx.CG(rtol=1e-6, atol=1e-6), lx.AutoLinearSolver(well_posed=True)):
        found = eqx.filter_jit(lambda op, b, solver=solver: lx.linear_solve(op, b, solver).value)(operator, b)
        np.testing.assert_allclose(found, expected, atol=1e-4)
    assert lx.is_positive_semidefinite(B)
    assert lx.is_symmetric(B)
    assert not lx.is_diagonal(B)


def test_an_analysis_does_not_cross_land():
    mask = strait((12, 31))
    mask[:, 15] = False
    B = DiffusionCovariance(grid_of(mask.shape, mask), 3.0)
    R = DiagonalCovariance(jnp.full(mask.shape, 0.1))
    y = np.full((1, *mask.shape), np.nan)
    y[0, 5, 13] = 1.0
    analysis = OptimalInterpolation(MaskedIdentity(), jnp.zeros(mask.shape), B, R)(Batch2D.from_observations(y))[0]
    assert analysis[5, 13] > 0.8
    assert np.all(np.asarray(analysis)[:, 15:] == 0)


@pytest.mark.x64
def test_the_inverse_exists_without_land_for_short_lengths(inverts_matrix):
    covariance = DiffusionCovariance((6, 7), 1.0, sigma=2.0)
    inverts_matrix(covariance, np.asarray(covariance.as_matrix()))


def test_an_inverse_that_does_not_exist_is_refused():
    mask = land((6, 7))
    coast = DiffusionCovariance(grid_of((6, 7), mask), 1.0)
    for what, arguments in (("inv_mv", (jnp.ones((6, 7)),)), ("logdet", ())):
        with pytest.raises(ValueError, match=rf"{what}: the variance of {np.sum(~mask)} cells is zero \(on land\)"):
            getattr(coast, what)(*arguments)
    with pytest.raises(
        ValueError, match="logdet: with lengths of several cells B has eigenvalues down to .*; work with"
    ):
        DiffusionCovariance((40,), 8.0).logdet()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (dict(length_scale=0.0), "`length_scale` is 0 in some cells, expected positive numbers"),
        (dict(length_scale=20.0), "`length_scale` is at least 20 cells on an axis of 6, beyond the domain"),
        (dict(length_scale=jnp.ones(3)), r"`length_scale` has shape \(3,\)"),
        (dict(grid=grid_of((6, 7), np.zeros((6, 7)))), "the mask of `grid` has no cell of the sea"),
        (dict(grid=(2, 2, 2, 2)), "`grid` has shape .*, expected one to three axes"),
        (
            dict(sigma=-1.0),
            r"`sigma` must be finite and not negative; found 1 of 1 entries that are not \(smallest -1\)",
        ),
        (dict(sigma=jnp.ones(3)), r"`sigma` has shape \(3,\), expected a number or \(6, 7\)"),
        (dict(steps=0), "`steps` is 0, expected a number of products, at least 1"),
        (dict(steps=3), "`steps` is 3, expected at least 8 for this `length_scale`"),
        (
            dict(grid=grid_of((3, 4), cell_size=[1.0, np.array([1.0, 1.0, 1.0, 1e-9])])),
            "`length_scale` needs [0-9]+ steps, more than MOST_STEPS = 10000: somewhere cells are much smaller",
        ),
    ],
)
def test_bad_arguments_are_refused(arguments, words):
    with pytest.raises(ValueError, match=words):
        DiffusionCovariance(**(dict(grid=(6, 7), length_scale=1.5) | arguments))


def test_a_normalisation_is_a_type_of_ours():
    with pytest.raises(TypeError, match="`normalisation` is 'exact', expected `Exact\\(\\)` or `Randomised\\(n\\)`"):
        DiffusionCovariance((6, 7), 1.5, "exact")


def test_a_field_of_another_shape_is_refused():
    with pytest.raises(ValueError, match="DiffusionFactor: `control` is"):
        DiffusionCovariance((6, 7), 1.5).half().mv(jnp.ones((7, 6)))
