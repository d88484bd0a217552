"""Matérn correlation functions, against their definition by Bessel functions."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from vardax.covariances import matern_correlation
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
