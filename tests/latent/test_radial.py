"""Radial functions: their values, periodic distances, land, and centres that depend on each other."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vardax.latent.radial import RadialBasis, gaussian, wendland
from vardax.types import Grid

TIGHT = 1e-12 if jax.config.jax_enable_x64 else 1e-5


def test_the_functions_are_the_kernel_of_the_distance_over_the_radius():
    grid = Grid([np.linspace(0, 1, 5), np.linspace(0, 2, 7)])
    basis = RadialBasis(grid, [[0.3, 0.5], [0.9, 1.6]], [0.8, 1.1], kernel=gaussian)
    y, x = np.meshgrid(np.linspace(0, 1, 5), np.linspace(0, 2, 7), indexing="ij")
    expected = np.exp(-((y - 0.9) ** 2 + (x - 1.6) ** 2) / 1.1**2 / 2)
    np.testing.assert_allclose(basis.expand(jnp.array([0.0, 1.0])), expected, atol=TIGHT)


def test_a_periodic_axis_closes():
    basis = RadialBasis(Grid([np.arange(12.0)], periodic=(0,)), [[0.5]], 4.0)
    field = np.asarray(basis.expand(jnp.ones(1)))
    np.testing.assert_allclose(field, np.roll(field[::-1], 2), atol=TIGHT)
    assert field[11] == pytest.approx(float(wendland(jnp.asarray(1.5 / 4))), abs=1e-6)


def test_wendland_is_zero_beyond_its_radius_and_smooth_there():
    slope, curvature = (jax.vmap(f)(jnp.array([0.0, 1.0])) for f in (jax.grad(wendland), jax.grad(jax.grad(wendland))))
    np.testing.assert_allclose(slope, 0, atol=TIGHT)
    np.testing.assert_allclose(curvature[1], 0, atol=TIGHT)
    assert float(wendland(jnp.asarray(1.2))) == 0


def test_land_is_zero_and_does_not_matter():
    mask = np.ones(10)
    mask[3] = 0
    basis = RadialBasis(Grid([np.arange(10.0)], mask=mask), [[2.0], [7.0]], 4.0)
    field = np.array(basis.decode(jnp.array([1.0, -2.0])))
    assert field[3] == 0
    field[3] = np.nan
    np.testing.assert_allclose(basis.encode(jnp.asarray(field)), [1, -2], atol=10 * TIGHT)


def test_bad_input_is_refused_in_words():
    with pytest.raises(ValueError, match=r"`centres` has shape \(2,\), expected \(nbasis, 1\)"):
        RadialBasis(8, [1.0, 2.0], 3.0)
    with pytest.raises(ValueError, match="the functions of the 9 centres are not independent on the 8 cells"):
        RadialBasis(8, np.linspace(0, 7, 9)[:, None], 3.0)
    with pytest.raises(ValueError, match="`grid` is curvilinear"):
        RadialBasis(Grid([np.ones((2, 2)), np.ones((2, 2))]), [[1.0, 1.0]], 3.0)
