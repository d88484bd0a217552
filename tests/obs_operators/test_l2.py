"""averaging_kernel_from_l2: the variables of products, normalised; gaps; names; what is refused."""

import jax.numpy as jnp
import numpy as np
import pytest
import xarray

from vardax.obs_operators import ColumnRetrieval, RetrievalKernel, averaging_kernel_from_l2

RNG = np.random.default_rng(0)
L, LINES, PIXELS = 3, 2, 4
KERNEL = RNG.uniform(0.5, 1.1, (LINES, PIXELS, L))
RATIO = RNG.uniform(1.7, 1.9, (LINES, PIXELS, L))  # a priori, ppm
AIR = RNG.uniform(1e4, 2e4, (LINES, PIXELS, L))  # mol m-2
SURFACE = RNG.uniform(900.0, 1000.0, (LINES, PIXELS))
COLUMN = jnp.asarray(RNG.uniform(1.7, 1.9, (L, LINES * PIXELS)))


def methane():
    """Like TROPOMI's methane product: partial columns of the a priori, layers from the top down."""
    return {
        "column_averaging_kernel": KERNEL,
        "methane_profile_apriori": RATIO * AIR,
        "dry_air_subcolumns": AIR,
        "surface_pressure": SURFACE,
        "pressure_interval": SURFACE / L,
        "qa_value": np.ones((LINES, PIXELS)),
    }


def expected_column(weights, prior=RATIO, kernel=KERNEL, column=COLUMN):
    x = np.asarray(column).T.reshape(LINES, PIXELS, L)
    return np.sum(weights * (prior + kernel * (x - prior)), axis=-1).ravel()


def test_partial_columns_become_mixing_ratios_and_shares_of_air():
    operator = averaging_kernel_from_l2(methane())
    assert isinstance(operator, ColumnRetrieval)
    shares = AIR / AIR.sum(axis=-1, keepdims=True)
    np.testing.assert_allclose(operator.prior, RATIO.reshape(-1, L), rtol=1e-6)
    np.testing.assert_allclose(operator.weights, shares.reshape(-1, L), rtol=1e-6)
    np.testing.assert_allclose(operator(COLUMN), expected_column(shares), rtol=1e-5)


@pytest.mark.parametrize("surface_first", [False, True])
def test_equal_layers_begin_at_the_top_unless_said_otherwise(surface_first):
    operator = averaging_kernel_from_l2(methane(), surface_first=surface_first)
    from_the_top = SURFACE.reshape(-1, 1) * np.arange(L + 1) / L
    expected = from_the_top[:, ::-1] if surface_first else from_the_top
    np.testing.assert_allclose(operator.levels, expected, atol=1e-3)


def hybrid(corners):
    a, b = np.array([0.0, 10.0, 20.0, 1.0]), np.array([1.0, 0.6, 0.2, 0.0])
    pairs = lambda c: np.stack([c[:-1], c[1:]], axis=1)  # noqa: E731
    return (pairs(a), pairs(b)) if corners else (a, b)


@pytest.mark.parametrize("corners", [False, True])
def test_hybrid_coefficients_with_the_surface_pressure(corners):
    a, b = hybrid(corners)
    product = {"averaging_kernel": KERNEL, "surface_pressure": SURFACE, "tm5_constant_a": a, "tm5_constant_b": b}
    operator = averaging_kernel_from_l2(product, names={"prior": None})
    a, b = hybrid(corners=False)
    levels = a + b * SURFACE.reshape(-1, 1)
    np.testing.assert_allclose(operator.levels, levels, rtol=1e-6)
    thickness = -np.diff(levels)
    np.testing.assert_allclose(operator.weights, thickness / thickness.sum(axis=1, keepdims=True), rtol=1e-5)
    np.testing.assert_array_equal(operator.prior, 0.0)


def test_a_column_amount_has_the_air_as_its_weights():
    """A slant-column product: y = sum of air a x, without an a priori."""
    product = {"averaging_kernel": KERNEL, "air_mass": AIR}
    operator = averaging_kernel_from_l2(product, names={"weights": "air_mass", "prior": None})
    np.testing.assert_allclose(operator(COLUMN), expected_column(AIR, prior=0.0), rtol=1e-5)


def test_weights_that_are_given_are_used_as_they_are():
    weights = RNG.dirichlet(np.ones(L), (LINES, PIXELS))
    product = {"kernel": KERNEL, "prior": RATIO, "pressure_weight": weights, "surface_pressure": SURFACE}
    np.testing.assert_allclose(averaging_kernel_from_l2(product)(COLUMN), expected_column(weights), rtol=1e-5)


def test_levels_and_options_reach_the_operator():
    levels = np.tile([1000.0, 600.0, 300.0, 0.0], (LINES, PIXELS, 1))
    product = {"kernel": KERNEL, "prior": RATIO, "pressure_levels": levels}
    numbers, model_levels = np.zeros(LINES * PIXELS, int), np.array([1000.0, 0.0])
    operator = averaging_kernel_from_l2(product, interp=numbers, model_levels=model_levels, outside="prior")
    assert operator.outside == "prior"
    found = operator(jnp.full((1, 5), 1.8))
    np.testing.assert_allclose(found, expected_column([0.4, 0.3, 0.3], column=np.full_like(COLUMN, 1.8)), rtol=1e-5)


def test_one_sounding_and_what_holds_for_all():
    product = {"kernel": KERNEL[0, 0], "prior": RATIO[0, 0], "levels": [1000.0, 600.0, 300.0, 0.0]}
    assert averaging_kernel_from_l2(product).kernel.shape == (1, L)
    shared = averaging_kernel_from_l2(product | {"kernel": KERNEL})
    np.testing.assert_allclose(shared.prior, np.tile(RATIO[0, 0], (LINES * PIXELS, 1)), rtol=1e-6)


@pytest.mark.parametrize("gap", ["nan", "masked", "fill value", "no air"])
def test_soundings_with_gaps_are_missing_observations(gap):
    product = methane()
    if gap == "no air":
        product["dry_air_subcolumns"] = product["dry_air_subcolumns"].copy()
        product["dry_air_subcolumns"][1, 2] = 0.0
    else:
        kernel = np.ma.array(KERNEL.copy())
        kernel[1, 2, 0] = {"nan": np.nan, "masked": np.ma.masked, "fill value": 9.96921e36}[gap]
        product["column_averaging_kernel"] = kernel
    operator = averaging_kernel_from_l2(product)
    mask = np.ones((LINES, PIXELS))
    mask[1, 2] = 0.0
    np.testing.assert_array_equal(operator.mask, mask.ravel())
    assert np.isfinite(operator(COLUMN)).all()


def test_an_xarray_dataset_is_a_product():
    dims = ("scanline", "ground_pixel", "layer")
    dataset = xarray.Dataset({name: (dims[: array.ndim], array) for name, array in methane().items()})
    found, expected = (averaging_kernel_from_l2(product) for product in (dataset, methane()))
    np.testing.assert_array_equal(found(COLUMN), expected(COLUMN))


def test_the_rows_of_a_profile_retrieval():
    kernels = RNG.standard_normal((LINES, PIXELS, L, L))
    kernels[0, 1, 2, 2] = np.nan
    operator = averaging_kernel_from_l2({"averaging_kernel": kernels, "profile_apriori": RATIO})
    assert isinstance(operator, RetrievalKernel)
    x = np.asarray(COLUMN).T
    expected = RATIO + np.einsum("abij,abj->abi", kernels, x.reshape(LINES, PIXELS, L) - RATIO)
    expected[0, 1] = 0.0
    np.testing.assert_allclose(operator(jnp.asarray(x)), expected.reshape(-1, L), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("product", "names", "words"),
    [
        (methane(), {"kernels": "x"}, "`names` has 'kernels', expected one of kernel, prior.*Did you mean 'kernel'"),
        (
            methane(),
            {"kernel": "column_averaging_kernels"},
            "the product has no 'column_averaging_kernels'.*Did you mean 'column_averaging_kernel'",
        ),
        ({"a": KERNEL}, {}, "found no `kernel` in the product, which has 'a'; say what it is called"),
        ({"kernel": KERNEL}, {}, r"found no `prior` in the product.*names=\{'prior': ...\}"),
        ({"prior": RATIO}, {"kernel": None}, "`names` says that there is no kernel"),
        (
            {"kernel": KERNEL, "prior": RATIO},
            {},
            "found no `weights`, `air` or `levels`; the product has 'kernel', 'prior'",
        ),
        (
            {"kernel": KERNEL, "prior": RATIO[:1], "weights": AIR},
            {},
            r"`prior` has shape \(1, 4, 3\), expected \(2, 4, 3\) beside the kernel",
        ),
        (
            {"kernel": KERNEL, "prior": RATIO, "levels": AIR},
            {},
            r"`levels` has shape \(2, 4, 3\), expected \(2, 4, 4\) beside the kernel",
        ),
    ],
)
def test_what_does_not_fit_is_refused(product, names, words):
    with pytest.raises(ValueError, match=words):
        averaging_kernel_from_l2(product, names=names)
