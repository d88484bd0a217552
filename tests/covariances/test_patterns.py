"""Patterns of sources: every cell of the sea is in one, sources are connected, and equal ones far apart."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vardax.covariances.lengths import Reach
from vardax.covariances.patterns import block_layout, divided, lost_in_blocks, sources


def even(*lengths):
    """The same lengths, in cells, everywhere."""
    fields = [jnp.full((1,) * len(lengths), length) for length in lengths]
    return tuple(Reach(field, field) for field in fields)


def random_mask(shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).random(shape) > 0.35)


@given(
    st.integers(16, 300),
    st.lists(st.tuples(st.integers(1, 40), st.floats(0.5, 30.0), st.booleans()), min_size=1, max_size=3),
)
def test_a_layout_has_at_most_n_patterns_and_blocks_in_turn(n, axes):
    shape, lengths, wraps = zip(*axes, strict=True)
    periodic = tuple(axis for axis, closes in enumerate(wraps) if closes)
    layout = divided(n, shape, np.stack([lengths, lengths], axis=1), periodic)
    assert np.prod([blocks.n_colours for blocks in layout]) <= n
    for axis, (blocks, size, length) in enumerate(zip(layout, shape, lengths, strict=True)):
        steps = np.diff(blocks.number)
        assert blocks.number.shape == (size,)
        assert set(steps) <= {0, 1}
        widths = np.bincount(blocks.number)
        assert blocks.widest == widths.max() <= max(1, 1.5 * 0.4 * length + 1)
        assert blocks.mean_square == pytest.approx(np.sum(widths**3) / size)
        if axis in periodic and blocks.number[-1] + 1 > blocks.n_colours < size:
            assert (blocks.number[-1] + 1) % blocks.n_colours == 0 or widths.max() == 1  # whole turns


def test_equal_sources_are_apart_and_blocks_no_larger_than_needed():
    layout = block_layout(256, jnp.ones((300, 400), bool), even(10.0, 5.0), ())
    assert [(blocks.n_colours, blocks.widest) for blocks in layout] == [(16, 2), (16, 1)]
    coarse = block_layout(64, jnp.ones((300, 400), bool), even(10.0, 5.0), ())
    assert [(blocks.n_colours, blocks.widest) for blocks in coarse] == [(8, 4), (8, 2)]


def test_short_axes_leave_patterns_to_the_others():
    layout = block_layout(300, jnp.ones((3, 50, 60), bool), even(1.0, 8.0, 8.0), ())
    assert [blocks.n_colours for blocks in layout] == [3, 10, 10]


@pytest.mark.parametrize(
    ("shape", "n", "lengths"), [((23,), 16, (9.0,)), ((14, 17), 16, (6.0, 9.0)), ((6, 7, 8), 27, (5.0, 5.0, 5.0))]
)
def test_every_cell_of_the_sea_is_in_one_connected_source_of_unit_norm(shape, n, lengths):
    mask = random_mask(shape)
    layout = block_layout(n, mask, even(*lengths), ())
    assert max(blocks.widest for blocks in layout) > 1
    field, pattern = map(np.asarray, sources(jax.random.key(0), mask, layout, jnp.result_type(float)))
    assert np.all((field != 0) == np.asarray(mask))
    assert pattern.min() >= 0
    assert pattern.max() < np.prod([blocks.n_colours for blocks in layout])
    block_of = {
        cell: tuple(blocks.number[i] for blocks, i in zip(layout, cell, strict=True)) for cell in np.ndindex(shape)
    }
    for block in set(block_of.values()):
        cells = {cell for cell in block_of if block_of[cell] == block and mask[cell]}
        assert len({int(pattern[cell]) for cell in cells}) <= 1
        for part in components(cells):
            values = {float(field[cell]) for cell in part}
            assert len(values) == 1
            assert abs(values.pop()) == pytest.approx(1 / np.sqrt(len(part)))


def components(cells):
    """Sets of cells that are connected across faces."""
    left = set(cells)
    while left:
        part, border = set(), {left.pop()}
        while border:
            cell = border.pop()
            part.add(cell)
            for axis, step in itertools.product(range(len(cell)), (-1, 1)):
                other = tuple(i + step * (k == axis) for k, i in enumerate(cell))
                if other in left:
                    left.remove(other)
                    border.add(other)
        yield part


def test_parts_of_a_block_that_land_separates_have_signs_of_their_own():
    """A diagonal of land: its two neighbours in a block of four share no face."""
    mask = jnp.array([[True, False], [False, True]])
    layout = block_layout(16, jnp.ones((40, 40), bool), even(20.0, 20.0), ())
    assert layout[0].widest == 8
    big = jnp.tile(mask, (20, 20))
    field, _ = sources(jax.random.key(1), big, layout, jnp.result_type(float))
    assert {abs(float(v)) for v in np.unique(field)} == {0.0, 1.0}
    assert 0.3 < float(jnp.mean(field[big] > 0)) < 0.7


def test_what_blocks_lose_is_given_back():
    """Σ_blocks (Σ_cells P_ij)² / cells for a Gaussian P of length/√2, against Σ_j P_ij²."""
    length, size = 10.0, 120
    layout = block_layout(16, jnp.ones((size,), bool), even(length), (0,))
    assert layout[0].widest > 1
    errors = []
    for centre in np.arange(50.0, 60.0):
        kernel = np.exp(-(((np.arange(size) - centre) / length) ** 2))
        sums = np.bincount(layout[0].number, kernel) ** 2 / np.bincount(layout[0].number)
        errors.append(float(lost_in_blocks(layout, even(length)).squeeze()) * sums.sum() / np.sum(kernel**2) - 1)
    assert np.max(np.abs(errors)) < 2e-3
    wide = block_layout(16, jnp.ones((400,), bool), even(70.0), ())
    assert wide[0].widest > 10
    factor = float(lost_in_blocks(wide, even(70.0)).squeeze())
    kernel = np.exp(-(((np.arange(400) - 200.3) / 70.0) ** 2))
    sums = np.bincount(wide[0].number, kernel) ** 2 / np.bincount(wide[0].number)
    assert factor > 1.003
    assert factor * sums.sum() == pytest.approx(np.sum(kernel**2), rel=1e-3)


def test_blocks_are_single_cells_where_lengths_have_no_values():
    def widest(length):
        layout = block_layout(64, jnp.ones((50, 50), bool), even(length, length), ())
        return jnp.array([blocks.widest for blocks in layout])

    assert jax.jit(widest)(20.0).tolist() == [1, 1]
    assert widest(20.0).tolist() == [8, 8]
