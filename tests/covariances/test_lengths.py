"""Length scales and cell sizes in all the forms in which they may be given."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vardax.covariances.lengths import (
    cell_sizes,
    cell_volume,
    length_matrix,
    reach_in_cells,
    require_lengths,
    squared_lengths,
    summary,
)
from vardax.types import Grid

OWNER = "DiffusionCovariance"
SHAPE = (3, 4)
SEA = jnp.ones(SHAPE, bool).at[1, 2].set(False)
FIELD = np.linspace(1.0, 2.0, 12).reshape(SHAPE)


def check(lengths, volume=1.0):
    """`require_lengths` on unit cells."""
    one = jnp.ones((1, 1))
    require_lengths(OWNER, summary(lengths, (one, one), volume * one, SEA), len(lengths) > 2, SHAPE)


def full(lengths, mask=SEA):
    """M as (*shape, d, d)."""
    ndim = mask.ndim
    matrix = np.zeros((*mask.shape, ndim, ndim))
    for (a, b), element in lengths.items():
        matrix[..., a, b] = matrix[..., b, a] = np.broadcast_to(element, mask.shape)
    return matrix


def diagonal(*fields):
    return np.stack([np.broadcast_to(f, SHAPE) for f in fields], axis=-1)[..., None] * np.eye(2)


MATRIX = np.array([[2.0, 0.5], [0.5, 1.0]])
FORMS = {
    "a number": (2.0, diagonal(2.0, 2.0)),
    "an array of no axes": (jnp.array(2.0), diagonal(2.0, 2.0)),
    "a number per axis": ((2.0, 3.0), diagonal(2.0, 3.0)),
    "an array of one per axis": (np.array([2.0, 3.0]), diagonal(2.0, 3.0)),
    "a field": (FIELD, diagonal(FIELD, FIELD)),
    "a field that broadcasts": (FIELD[:, :1], diagonal(FIELD[:, :1], FIELD[:, :1])),
    "a field as nested lists": (FIELD.tolist(), diagonal(FIELD, FIELD)),
    "a field per axis": ([FIELD, 2 * FIELD], diagonal(FIELD, 2 * FIELD)),
    "a field and a number": ([FIELD, 3.0], diagonal(FIELD, 3.0)),
    "a matrix": (MATRIX, np.broadcast_to(MATRIX, (*SHAPE, 2, 2))),
    "a matrix as nested lists": (MATRIX.tolist(), np.broadcast_to(MATRIX, (*SHAPE, 2, 2))),
    "a matrix per cell": (FIELD[..., None, None] * MATRIX, FIELD[..., None, None] * MATRIX),
}


@pytest.mark.parametrize("name", FORMS)
def test_every_form_is_a_matrix_in_each_cell(name):
    given, expected = FORMS[name]
    lengths = length_matrix(OWNER, given, SEA, jnp.result_type(float))
    sea = np.asarray(SEA)
    np.testing.assert_allclose(full(lengths)[sea], expected[sea], rtol=1e-6)
    np.testing.assert_allclose(full(squared_lengths(lengths))[sea], (expected @ expected)[sea], rtol=1e-5)


def test_a_list_on_one_axis_is_a_field():
    sea = jnp.ones(3, bool)
    lengths = length_matrix(OWNER, [1.0, 2.0, 3.0], sea, jnp.result_type(float))
    np.testing.assert_allclose(full(lengths, sea)[:, 0, 0], [1.0, 2.0, 3.0])


@pytest.mark.parametrize("form", ["field", "matrices"])
def test_what_lengths_are_on_land_does_not_count(form):
    field = np.where(SEA, FIELD, np.nan)
    given = field if form == "field" else field[..., None, None] * MATRIX
    lengths = length_matrix(OWNER, given, SEA, jnp.result_type(float))
    np.testing.assert_allclose(full(lengths)[1, 2], np.eye(2))
    check(lengths)


def test_reach_is_in_cells_and_a_slanted_kernel_has_finer_features_than_its_correlations():
    sizes = (jnp.full((1, 1), 2.0), jnp.full((1, 1), 0.5))
    along = reach_in_cells(squared_lengths(length_matrix(OWNER, (4.0, 3.0), SEA, jnp.result_type(float))), sizes)
    assert [float(axis.correlation.squeeze()) for axis in along] == [2.0, 6.0]
    assert [float(axis.feature.squeeze()) for axis in along] == [2.0, 6.0]
    slanted = reach_in_cells(squared_lengths(length_matrix(OWNER, MATRIX, SEA, jnp.result_type(float))), sizes)
    square = MATRIX @ MATRIX
    for axis, size in enumerate((2.0, 0.5)):
        np.testing.assert_allclose(slanted[axis].correlation, np.sqrt(square[axis, axis]) / size, rtol=1e-6)
        expected = 1 / np.sqrt(np.linalg.inv(square)[axis, axis]) / size
        np.testing.assert_allclose(slanted[axis].feature, expected, rtol=1e-5)


def test_cell_sizes_are_numbers_profiles_or_fields():
    grid = Grid([np.arange(3.0), np.arange(4.0)], cell_size=[2.0, [1.0, 2.0, 3.0, 4.0]])
    sizes = cell_sizes(OWNER, grid, SEA, jnp.result_type(float))
    volume = cell_volume(grid, sizes, SEA)
    np.testing.assert_allclose(np.broadcast_to(volume, SHAPE)[0], [2.0, 4.0, 6.0, 8.0])
    own = Grid([np.arange(3.0), np.arange(4.0)], cell_size=[FIELD, 1.0], area=3 * FIELD)
    sizes = cell_sizes(OWNER, own, SEA, jnp.result_type(float))
    np.testing.assert_allclose(np.asarray(sizes[0])[SEA], FIELD[SEA], rtol=1e-6)
    np.testing.assert_allclose(np.asarray(cell_volume(own, sizes, SEA))[SEA], 3 * FIELD[SEA], rtol=1e-6)


def test_a_curvilinear_grid_below_a_depth_axis_has_sizes_of_its_last_axes():
    y, x = np.meshgrid(np.arange(3.0), 2 * np.arange(4.0), indexing="ij")
    grid = Grid([np.array([0.0, 5.0]), y, x])
    sizes = cell_sizes(OWNER, grid, jnp.ones((2, 3, 4), bool), jnp.result_type(float))
    assert [size.shape for size in sizes] == [(1, 1, 1), (2, 3, 4), (2, 3, 4)]
    np.testing.assert_allclose(sizes[2], 2.0)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (np.ones((4, 3)), r"`length_scale` has shape \(4, 3\), expected a number, 2 numbers or fields"),
        (np.ones((3, 4, 3, 3)), r"`length_scale` has shape \(3, 4, 3, 3\).* or symmetric matrices \(2, 2\)"),
        ([np.ones((2, 2)), 1.0], r"`length_scale` has an entry of shape \(2, 2\), expected a number or a field"),
        ([[1.0, 0.5], [0.0, 1.0]], "the matrices of `length_scale` are not symmetric, by up to 0.5 of them"),
        (0.0, "`length_scale` is 0 in some cells, expected positive numbers"),
        ((1.0, -2.0), "`length_scale` is -2 in some cells, expected positive numbers"),
        (np.where(FIELD > 1.9, 0.0, FIELD), "`length_scale` is 0 in some cells, expected positive numbers"),
        (np.full(SHAPE, np.nan), "`length_scale` is nan in some cells, expected positive numbers"),
        ([[1.0, 2.0], [2.0, 1.0]], "`length_scale` has an eigenvalue -1 in some cells, expected positive numbers"),
        (3.5, "`length_scale` is at least 3.5 cells on an axis of 3, beyond the domain; expected at most the length"),
        ((1.0, 9.0), "`length_scale` is at least 9 cells on an axis of 4, beyond the domain"),
    ],
)
def test_lengths_that_are_none_are_refused(given, words):
    with pytest.raises(ValueError, match=words):
        check(length_matrix(OWNER, given, SEA, jnp.result_type(float)))


def test_sizes_that_do_not_fit_are_refused():
    grid = Grid([np.arange(3.0), np.arange(4.0)], cell_size=[np.ones(4), 1.0])
    with pytest.raises(
        ValueError, match=r"`cell_size\[0\]` of the Grid has shape \(4,\), expected a number, \(3,\) or"
    ):
        cell_sizes(OWNER, grid, SEA, jnp.result_type(float))
    lengths = length_matrix(OWNER, 1.0, SEA, jnp.result_type(float))
    with pytest.raises(ValueError, match="`grid` has cells whose size or area is 0, expected positive numbers"):
        check(lengths, volume=0.0)


def test_nothing_is_asked_of_lengths_without_values():
    def checked(length):
        check(length_matrix(OWNER, length, SEA, length.dtype))
        return length

    assert jax.jit(checked)(jnp.array(-1.0)) == -1
    with pytest.raises(ValueError, match="`length_scale` is -1 in some cells"):
        jax.grad(checked)(-1.0)  # an eager `grad` knows them
