"""Coarser grids and back: means, interpolation by the rule of each convention, and adjoint pairs."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vardax.priors.resampling import CellCentred, CornerAligned, Resampling

FIELD = np.random.default_rng(0).normal(size=(2, 6, 9))
TIGHT = 1e-12 if jax.config.jax_enable_x64 else 1e-5


def interpolated(values, places):
    """Linear interpolation that repeats the edge."""
    return np.interp(places, np.arange(len(values)), values)


def test_going_down_takes_means_of_blocks():
    coarse = Resampling(3, CellCentred(), (False, False)).down(jnp.asarray(FIELD))
    np.testing.assert_allclose(coarse[1, 1, 2], FIELD[1, 3:6, 6:9].mean(), rtol=1e-5)
    assert coarse.shape == (2, 2, 3)


@pytest.mark.parametrize("factor", [2, 3, 4])
def test_going_up_interpolates_between_the_places_of_the_cells(factor):
    line, n = FIELD[0, 0], 9
    fine = np.arange(factor * n)
    centred = CellCentred().along(jnp.asarray(line), 0, factor, periodic=False)
    np.testing.assert_allclose(centred, interpolated(line, (fine + 0.5) / factor - 0.5), atol=TIGHT)
    corners = CornerAligned().along(jnp.asarray(line), 0, factor, periodic=False)
    np.testing.assert_allclose(corners, interpolated(line, fine * (n - 1) / (factor * n - 1)), atol=TIGHT)
    around = CellCentred().along(jnp.asarray(line), 0, factor, periodic=True)
    thrice = interpolated(np.tile(line, 3), (fine + 0.5) / factor - 0.5 + n)
    np.testing.assert_allclose(around, thrice, atol=TIGHT)


@pytest.mark.parametrize("upsampling", [CellCentred(), CornerAligned()], ids=lambda u: type(u).__name__)
def test_every_axis_of_space_is_interpolated_and_channels_are_not(upsampling):
    up = eqx.filter_jit(lambda x: Resampling(2, upsampling, (False, False)).up(x))
    along = eqx.filter_jit(lambda x, axis: upsampling.along(x, axis, 2, periodic=False))
    fine = up(jnp.asarray(FIELD))
    assert fine.shape == (2, 12, 18)
    np.testing.assert_allclose(fine[1], along(along(jnp.asarray(FIELD[1]), 1), 0), atol=TIGHT)
    np.testing.assert_allclose(up(jnp.ones((1, 1, 4, 2))), 1, atol=1e-6)


def test_a_factor_of_one_changes_nothing():
    same, x = Resampling(1, CornerAligned(), (True, True)), jnp.asarray(FIELD)
    assert same.down(x) is x
    assert same.up(x) is x


def test_corners_need_an_edge():
    with pytest.raises(ValueError, match="`upsampling` is CornerAligned, which a periodic axis has no corners for"):
        Resampling(2, CornerAligned(), (False, True))
