"""`fit_matern` recovers the covariance that samples were drawn from, to within the errors that it states."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vardax.covariances.diffusion import DiffusionCovariance
from vardax.covariances.matern import MaternLinearOperator
from vardax.covariances.matern_fit import fit_matern
from vardax.types import Grid

LAND = np.ones((40, 36), bool)
LAND[8:22, 10:18] = LAND[30:, 25] = False

CASES = {
    "1-D, periodic": dict(shape=(200,), length=6.0, boundary="periodic"),
    "1-D, free": dict(shape=(200,), length=6.0, boundary="free", nu=0.5),
    "2-D, periodic": dict(shape=(40, 36), length=(3.0, 4.5), boundary="periodic", nu=2.5),
    "2-D, free": dict(shape=(40, 36), length=3.0, boundary="free"),
    "2-D, free, land": dict(shape=(40, 36), length=3.0, boundary="free", mask=LAND),
    "2-D, mixed, land": dict(shape=(40, 36), length=(3.0, 4.0), boundary=("free", "periodic"), mask=LAND),
    "3-D, free": dict(shape=(12, 14, 16), length=2.0, boundary="free", nu=0.5),
}


def fitted(shape, length, boundary, nu=1.5, mask=None, n=4, key=0, sigma=2.0, **options):
    samples = MaternLinearOperator(shape, length, sigma, nu, boundary=boundary).sample(jax.random.key(key), n)
    kinds = (boundary,) * len(shape) if isinstance(boundary, str) else boundary
    grid = Grid([np.arange(m) for m in shape], mask=mask, periodic=[a for a, k in enumerate(kinds) if k == "periodic"])
    if mask is not None:
        samples = jnp.where(jnp.asarray(mask)[None], samples, jnp.nan)  # what is on land does not count
    return fit_matern(samples, grid, nu=nu, isotropic=np.ndim(length) == 0, **options)


SLOW = {"2-D, mixed, land", "2-D, free", "3-D, free"}


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in CASES])
def test_parameters_are_recovered_within_their_errors(name):
    fit = fitted(**CASES[name])
    length = np.asarray(CASES[name]["length"])
    assert fit.length_scale.shape == fit.length_scale_error.shape == length.shape
    assert np.all(np.abs(fit.length_scale - length) < 3 * fit.length_scale_error)
    assert abs(fit.sigma - 2.0) < 3 * fit.sigma_error
    assert np.all(fit.length_scale_error < 0.2 * length)
    assert fit.sigma_error < 0.4
    assert fit.covariance.shape == CASES[name]["shape"]
    np.testing.assert_allclose(fit.covariance.diagonal(), fit.sigma**2, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    "case",
    [
        dict(shape=(128,), length=5.0, boundary="periodic"),
        dict(shape=(128,), length=5.0, boundary="free"),
        dict(shape=(30, 30), length=2.0, boundary="free", mask=LAND[:30, :30]),
    ],
    ids=["periodic", "free", "land"],
)
def test_errors_are_as_large_as_stated(case):
    """Over many data sets the deviations, in standard errors, have mean 0 and standard deviation 1.

    The samples are many enough for the skewness of the estimates, of the order of their relative errors, not to count.
    """
    n_sets = 100
    fits = [fitted(**case, n=12, key=key) for key in range(n_sets)]
    for name, truth in (("length_scale", case["length"]), ("sigma", 2.0)):
        found = np.array([getattr(fit, name) for fit in fits])
        stated = np.array([getattr(fit, f"{name}_error") for fit in fits])
        scores = (found - truth) / stated
        assert abs(np.mean(scores)) < 3.5 / np.sqrt(n_sets)
        assert 0.8 < np.std(scores) < 1.25


@pytest.mark.x64
def test_single_precision_finds_what_double_precision_finds():
    """Steps near the maximum, whose gain rounding hides, are taken: estimates agree to a small part of their errors."""
    x = MaternLinearOperator((64,), 5.0, 2.0, 2.5).sample(jax.random.key(0), 4)
    single, double = (fit_matern(x.astype(dtype), nu=2.5) for dtype in (jnp.float32, float))
    assert abs(float(single.length_scale) - float(double.length_scale)) < 0.02 * double.length_scale_error
    assert abs(float(single.sigma) - float(double.sigma)) < 0.02 * double.sigma_error


def test_the_smoothness_is_chosen_from_several():
    smooth = fitted((200,), 6.0, "periodic", 2.5)
    assert smooth.nu == 2.5
    samples = MaternLinearOperator((200,), 6.0, 2.0, 2.5).sample(jax.random.key(0), 4)
    chosen = fit_matern(samples, nu=(0.5, 1.5, 2.5))
    assert chosen.nu == 2.5
    np.testing.assert_allclose(chosen.length_scale, smooth.length_scale, rtol=1e-3)


def test_lengths_are_in_the_units_of_the_grid():
    samples = MaternLinearOperator((200,), 6.0).sample(jax.random.key(0), 4)
    cells, metres = fit_matern(samples), fit_matern(samples, spacing=250.0)
    np.testing.assert_allclose(metres.length_scale, 250 * cells.length_scale, rtol=1e-3)
    np.testing.assert_allclose(metres.length_scale_error, 250 * cells.length_scale_error, rtol=1e-2)
    np.testing.assert_allclose(metres.sigma, cells.sigma, rtol=1e-3)
    on_grid = fit_matern(samples, Grid([250.0 * np.arange(200)], periodic=(0,)))
    np.testing.assert_allclose(on_grid.length_scale, metres.length_scale, rtol=1e-3)


def test_noise_is_not_part_of_the_covariance():
    clean = MaternLinearOperator((200,), 6.0, nu=np.inf).sample(jax.random.key(0), 6)
    noisy = clean + 0.1 * jax.random.normal(jax.random.key(1), clean.shape)
    fit = fit_matern(noisy, nu=np.inf, noise=0.1)
    assert abs(fit.length_scale - 6.0) < 3 * fit.length_scale_error < 1.0
    assert abs(fit.sigma - 1.0) < 3 * fit.sigma_error


@pytest.mark.x64
def test_a_length_of_diffusion_is_the_length_of_a_gaussian():
    grid = Grid([np.arange(60), np.arange(64)], periodic=(0, 1))
    samples = DiffusionCovariance(grid, 5.0, sigma=2.0).sample(jax.random.key(0), 3)
    fit = fit_matern(samples, grid, nu=np.inf, noise=0.02)
    assert fit.length_scale == pytest.approx(5.0, rel=0.03)
    assert abs(fit.sigma - 2.0) < 4 * fit.sigma_error


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (dict(samples=np.ones((3, 8)), grid=(9,)), r"`samples` has shape \(3, 8\), expected \(n, \*grid\) with grid"),
        (dict(samples=np.full((3, 8), np.nan)), "24 values of `samples` at sea are not finite; mask them"),
        (dict(samples=np.zeros((3, 8))), "`samples` do not vary, so they have no length scale"),
        (dict(samples=np.ones((3, 8)) + np.arange(3.0)[:, None]), "beyond the domain .* remove the mean and trends"),
        (dict(samples=np.ones((3, 8)), nu=()), "`nu` is empty, expected a number or several to choose from"),
        (dict(samples=np.ones((3, 8)), nu=1.0), "`nu` is 1.0, expected 0.5, 1.5, 2.5"),
        (dict(samples=np.ones((3, 8)), noise=-1.0), "`noise` is -1.0, expected a standard deviation, not negative"),
        (dict(samples=np.ones((0, 8))), r"`samples` has shape \(0, 8\)"),
        (
            dict(samples=np.ones((3, 4)), grid=Grid([np.array([0.0, 1.0, 3.0, 9.0])])),
            "along axis 0 of the Grid cells measure from .* expected a uniform spacing",
        ),
    ],
)
def test_bad_arguments_are_refused(arguments, words):
    with pytest.raises(ValueError, match=words):
        fit_matern(**arguments)


def test_samples_need_values():
    with pytest.raises(ValueError, match="`samples` have no values while tracing"):
        jax.jit(lambda x: fit_matern(x).sigma)(jnp.ones((3, 8)))
