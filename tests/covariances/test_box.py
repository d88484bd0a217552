"""From a grid, lengths and a boundary to a periodic box."""

import math
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vardax.covariances import MaternLinearOperator, box
from vardax.covariances.box import fast_size, free_axes, known, known_lengths, padded_box, spacing_of
from vardax.types import Grid, as_grid


def test_fast_sizes_are_even_and_smooth():
    assert [fast_size(n) for n in (1, 2, 7, 33, 1184, 2049)] == [2, 2, 8, 36, 1200, 2160]


def test_a_grid_says_which_axes_are_periodic_and_a_bare_shape_is():
    grid = Grid([jnp.arange(4.0), jnp.arange(6.0)], periodic=(1,))
    assert free_axes("B", grid, grid, None) == (True, False)
    assert free_axes("B", (4, 6), as_grid((4, 6)), None) == (False, False)
    assert free_axes("B", grid, grid, "free") == (True, True)
    assert free_axes("B", grid, grid, ["periodic", "free"]) == (False, True)


@pytest.mark.parametrize("boundary", ["open", ("free",), ("free", "open"), ("free",) * 3])
def test_an_unknown_boundary_is_refused(boundary):
    with pytest.raises(ValueError, match="`boundary` is .*, expected 'periodic' or 'free', or one of these for each"):
        free_axes("B", (4, 6), as_grid((4, 6)), boundary)


def test_values_are_known_eagerly_also_under_grad_and_not_under_jit():
    seen = []

    def look(x):
        seen.append(known(x))
        seen.append(known([x, 2.0]))
        return x

    jax.grad(look)(3.0)
    jax.jit(look)(3.0)
    jax.vmap(look)(jnp.ones(2))
    assert seen[0] == 3.0
    np.testing.assert_allclose(seen[1], [3.0, 2.0])
    assert seen[2:] == [None] * 4


def test_free_axes_are_padded_by_at_least_eight_lengths():
    lengths = np.array([5.0, 3.0, 2.0])
    assert padded_box("B", (50, 40, 30), (True, False, True), lengths, None, 1.5) == (90, 40, 48)
    assert padded_box("B", (1, 40), (True, True), np.array([5.0, 3.0]), None, 1.5) == (1, 64)


def test_padding_may_be_given():
    assert padded_box("B", (50, 40), (True, True), None, 10, 1.5) == (60, 50)
    assert padded_box("B", (50, 40), (True, True), None, (0, 20), 1.5) == (50, 60)
    with pytest.raises(ValueError, match="`padding` is -1, expected a number of cells, or 2: one per axis"):
        padded_box("B", (50, 40), (True, True), None, -1, 1.5)
    with pytest.raises(ValueError, match="`padding` is"):
        padded_box("B", (50, 40), (True, True), None, (1, 2, 3), 1.5)


def test_unknown_lengths_give_a_box_of_twice_the_domain_and_more_where_it_is_small():
    assert padded_box("B", (400, 400), (True, True), None, None, 1.5) == (800, 800)
    assert padded_box("B", (40,), (True,), None, None, 1.5) == (160,)


def test_padding_is_capped_with_a_stated_error(monkeypatch):
    monkeypatch.setattr(box, "PADDED_LIMIT", 2000)
    with pytest.warns(UserWarning, match=r"padded to \(64, 64\) cells only .* too large by up to 6.4e-03"):
        assert padded_box("B", (32, 32), (True, True), np.array([8.0, 8.0]), None, 1.5) == (64, 64)
    with pytest.warns(UserWarning, match="cells only"):
        capped = MaternLinearOperator((32, 32), 8.0, boundary="free")
    row = np.asarray(capped.as_matrix())[0].reshape(32, 32)[:, 0]
    x = math.sqrt(3.0) * np.arange(32) / 8.0
    assert 1e-3 < np.max(np.abs(row - (1 + x) * np.exp(-x))) < 7e-3
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert padded_box("B", (32, 32), (True, True), np.array([2.0, 2.0]), None, 1.5) == (48, 48)


@pytest.mark.parametrize("length", [0.0, -1.0, math.nan, [2.0, 0.0]])
def test_a_length_that_is_not_positive_is_refused(length):
    with pytest.raises(ValueError, match="`length_scale` is .*, expected positive numbers"):
        known_lengths("B", length, 1.0, (8, 8))


def test_a_length_beyond_the_domain_is_refused():
    with pytest.raises(ValueError, match="`length_scale` is 9 cells on an axis of 8, beyond the domain"):
        known_lengths("B", [2.0, 4.5], 0.5, (8, 8))
    np.testing.assert_allclose(known_lengths("B", 4.0, 0.5, (8, 1)), [8.0, 8.0])


@pytest.mark.parametrize("spacing", [0.0, -1.0, math.inf, math.nan])
def test_a_bad_spacing_is_refused(spacing):
    with pytest.raises(ValueError, match="`spacing` is .*, expected positive numbers"):
        known_lengths("B", 2.0, spacing, (8, 8))


def test_a_grid_brings_its_spacing():
    grid = Grid([2.0 * jnp.arange(4.0), 3.0 - 0.5 * jnp.arange(6.0)])
    np.testing.assert_allclose(spacing_of("B", grid, grid, 1.0), [2.0, 0.5])
    with pytest.raises(ValueError, match="`spacing` comes with the Grid; leave it out"):
        spacing_of("B", grid, grid, 2.0)


def test_a_curvilinear_grid_is_refused_by_name():
    grid = Grid(jnp.meshgrid(jnp.arange(3.0), jnp.arange(4.0), indexing="ij"))
    with pytest.raises(ValueError, match="B: the Grid is curvilinear, expected one with axes; use DiffusionCovariance"):
        spacing_of("B", grid, grid, 1.0)


def test_a_grid_with_uneven_cells_is_refused():
    uneven = Grid([jnp.arange(4.0), jnp.array([0.0, 1.0, 3.0])])
    with pytest.raises(
        ValueError, match="along axis 1 of the Grid cells measure from 1 to 2, expected a uniform spacing"
    ):
        spacing_of("B", uneven, uneven, 1.0)
    sized = Grid([jnp.arange(4.0)], cell_size=[jnp.array([1.0, 1.0, 2.0, 2.0])])
    with pytest.raises(ValueError, match="along axis 0 of the Grid cells measure from 1 to 2"):
        spacing_of("B", sized, sized, 1.0)
