"""Correlation functions: Matérn against Bessel functions, Gaspari-Cohn against its piecewise polynomial."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from vardax.covariances import DenseCovariance, gaspari_cohn, matern_correlation
from vardax.covariances.correlations import matern_reach

EXACT = 1e-12 if jnp.zeros(0).dtype == jnp.float64 else 1e-6


@pytest.mark.parametrize("nu", [0.5, 1.5, 2.5, 3.5, 6.5])
def test_closed_form_is_the_matern_function(nu):
    r = np.linspace(0.05, 6.0, 40)
    x = math.sqrt(2 * nu) * r
    expected = 2 ** (1 - nu) / scipy.special.gamma(nu) * x**nu * scipy.special.kv(nu, x)
    np.testing.assert_allclose(matern_correlation(r, nu), expected, rtol=10 * EXACT, atol=EXACT)
    np.testing.assert_allclose(matern_correlation(0.0, nu), 1.0, rtol=EXACT)


def test_familiar_cases():
    r = jnp.linspace(0.0, 5.0, 21)
    np.testing.assert_allclose(matern_correlation(r, 0.5), jnp.exp(-r), atol=EXACT)
    x = jnp.sqrt(3.0) * r
    np.testing.assert_allclose(matern_correlation(r, 1.5), (1 + x) * jnp.exp(-x), atol=EXACT)
    x = jnp.sqrt(5.0) * r
    np.testing.assert_allclose(matern_correlation(r, 2.5), (1 + x + x**2 / 3) * jnp.exp(-x), atol=EXACT)
    np.testing.assert_allclose(matern_correlation(r, math.inf), jnp.exp(-(r**2) / 2), atol=EXACT)


@pytest.mark.x64
def test_large_smoothness_tends_to_the_gaussian():
    r = jnp.linspace(0.0, 3.0, 7)
    np.testing.assert_allclose(matern_correlation(r, 50.5), matern_correlation(r, math.inf), atol=1e-2)


@pytest.mark.parametrize("nu", [0.5, 1.5, 2.5, math.inf])
def test_gradients_are_finite_at_distance_zero(nu):
    gradients = jax.vmap(jax.grad(lambda r: matern_correlation(r, nu)))(jnp.array([0.0, 1.0]))
    assert gradients[0] == 0
    assert gradients[1] < 0


@pytest.mark.parametrize("nu", [0.5, 1.5, 2.5, math.inf])
def test_beyond_its_reach_the_correlation_is_negligible(nu):
    reach = matern_reach(nu, 1e-6)
    assert matern_correlation(reach, nu) <= 1e-6
    assert matern_correlation(reach - 1.0, nu) > 1e-6


@pytest.mark.parametrize("nu", [0.0, -0.5, 1.0, 1.2, math.nan])
def test_a_smoothness_without_closed_form_is_refused(nu):
    with pytest.raises(ValueError, match="`nu` is .*, expected 0.5, 1.5, 2.5, ... or infinity"):
        matern_correlation(1.0, nu)


def piecewise(z):
    """Equation 4.10 of Gaspari and Cohn (1999), term by term."""
    inner = -(z**5) / 4 + z**4 / 2 + 5 * z**3 / 8 - 5 * z**2 / 3 + 1
    with np.errstate(divide="ignore"):
        outer = z**5 / 12 - z**4 / 2 + 5 * z**3 / 8 + 5 * z**2 / 3 - 5 * z + 4 - 2 / (3 * z)
    return np.where(z <= 1, inner, np.where(z < 2, outer, 0.0))


@pytest.mark.parametrize("c", [1.0, 7.5])
def test_gaspari_cohn_is_the_published_polynomial(c):
    r = c * np.linspace(0, 2.5, 101)
    np.testing.assert_allclose(gaspari_cohn(r, c), piecewise(r / c), atol=EXACT)
    np.testing.assert_array_equal(gaspari_cohn(-r, c), gaspari_cohn(r, c))
    assert gaspari_cohn(0.0, c) == 1
    assert not np.any(np.asarray(gaspari_cohn(c * np.linspace(2, 9, 30), c)))
    assert gaspari_cohn(jnp.ones((2, 3), jnp.float32), jnp.ones((), jnp.float32)).dtype == jnp.float32
    np.testing.assert_allclose(gaspari_cohn([0, 1, 2], 1), piecewise(np.arange(3.0)), atol=EXACT)


@pytest.mark.x64
def test_gaspari_cohn_is_close_to_a_gaussian_and_has_exact_gradients():
    r = np.linspace(0, 3, 200)
    np.testing.assert_allclose(gaspari_cohn(r, 1.0), np.exp(-(r**2) / 0.6), atol=0.035)
    for z in (0.0, 0.4, 1.0, 1.3, 2.0, 2.4):
        for argument in (0, 1):
            found = jax.grad(gaspari_cohn, argnums=argument)(2.0 * z, 2.0)
            step = 1e-5 * np.eye(2)[argument]
            forth, back = (gaspari_cohn(2.0 * z + s * step[0], 2.0 + s * step[1]) for s in (1, -1))
            np.testing.assert_allclose(found, (forth - back) / 2e-5, atol=1e-7)


@pytest.mark.x64
def test_gaspari_cohn_is_positive_semidefinite_in_space_and_on_a_long_circle():
    """On a circle shorter than 4 c it is not, and `DenseCovariance` says so."""
    points = np.random.default_rng(0).normal(size=(150, 3))
    distance = np.linalg.norm(points[:, None] - points[None], axis=-1)
    assert np.linalg.eigvalsh(gaspari_cohn(distance, 1.0))[0] > -1e-12
    index = np.arange(60)
    around = np.minimum((index[:, None] - index[None]) % 60, (index[None] - index[:, None]) % 60)
    assert np.linalg.eigvalsh(gaspari_cohn(around, 15.0))[0] > -1e-12
    with pytest.raises(ValueError, match="not positive semidefinite"):
        DenseCovariance(gaspari_cohn(around, 25.0))


@pytest.mark.parametrize("c", [0.0, -1.0, np.nan, np.inf])
def test_a_half_width_that_is_none_is_refused(c):
    with pytest.raises(ValueError, match="gaspari_cohn: `c` is .* expected the half-width of the support"):
        gaspari_cohn(1.0, c)
