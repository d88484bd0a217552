"""Conservative means over layers: hand-computed, exact for constants, conserving what the layers hold."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vardax.obs_operators.layers import beyond, collect, covered, reaching


@jax.jit
def layer_means(levels, model_levels):
    """The weight of each model layer in the mean of each layer: where the content of that layer alone is."""
    return jax.vmap(lambda content: collect(content, levels, model_levels))(jnp.eye(levels.shape[0] - 1))


def means_by_sampling(levels, model_levels, n=200_000):
    """The same weights from a fine sampling of each layer."""
    rows = []
    for start, end in zip(levels, levels[1:], strict=False):
        points = start + (end - start) * (np.arange(n) + 0.5) / n
        edges = np.sort(model_levels)
        where = np.searchsorted(edges, points) - 1
        counts = np.array([np.mean(where == k) for k in range(len(model_levels) - 1)])
        rows.append(counts if model_levels[0] < model_levels[-1] else counts[::-1])
    return np.stack(rows)


@pytest.mark.parametrize(
    ("levels", "model_levels", "expected"),
    [
        ([0.0, 1.0], [0.0, 1.0], [[1.0]]),
        ([0.0, 4.0], [0.0, 1.0, 4.0], [[0.25, 0.75]]),
        ([0.0, 2.0, 4.0], [0.0, 1.0, 3.0, 4.0], [[0.5, 0.5, 0.0], [0.0, 0.5, 0.5]]),
        ([4.0, 2.0, 0.0], [0.0, 1.0, 3.0, 4.0], [[0.0, 0.5, 0.5], [0.5, 0.5, 0.0]]),
        ([4.0, 2.0, 0.0], [4.0, 3.0, 1.0, 0.0], [[0.5, 0.5, 0.0], [0.0, 0.5, 0.5]]),
        ([1.0, 2.0], [0.0, 4.0], [[1.0]]),
        ([-2.0, 2.0, 6.0], [0.0, 1.0, 4.0], [[0.25, 0.25], [0.0, 0.5]]),
        ([5.0, 6.0], [0.0, 1.0, 4.0], [[0.0, 0.0]]),
    ],
)
def test_hand_computed_means(levels, model_levels, expected):
    levels, model_levels = jnp.array(levels), jnp.array(model_levels)
    np.testing.assert_allclose(layer_means(levels, model_levels), expected, atol=1e-7)
    np.testing.assert_allclose(covered(levels, model_levels), np.sum(expected, axis=1), atol=1e-7)


def grids(seed, layers, model_layers):
    """Two grids with the same ends, in random orders."""
    rng = np.random.default_rng(seed)
    grid = lambda n: np.concatenate([[0.0], np.sort(rng.uniform(0, 1000, n - 1)), [1000.0]])  # noqa: E731
    flip = lambda levels: levels[:: rng.choice([-1, 1])].copy()  # noqa: E731
    return flip(grid(layers)), flip(grid(model_layers)), rng


@pytest.mark.x64
@given(st.integers(0, 2**31 - 1), st.sampled_from([(1, 4), (5, 1), (4, 6)]))
def test_constants_stay_and_the_whole_column_is_conserved(seed, sizes):
    levels, model_levels, rng = grids(seed, *sizes)
    means = np.asarray(layer_means(jnp.asarray(levels), jnp.asarray(model_levels)))
    np.testing.assert_allclose(means.sum(axis=1), 1.0, rtol=1e-9)
    column = rng.standard_normal(sizes[1])
    held = np.abs(np.diff(model_levels)) @ column
    np.testing.assert_allclose(np.abs(np.diff(levels)) @ (means @ column), held, atol=1e-9 * 1000)


@pytest.mark.x64
def test_the_means_are_those_of_a_fine_sampling():
    levels, model_levels, _ = grids(3, 5, 7)
    means = layer_means(jnp.asarray(levels), jnp.asarray(model_levels))
    np.testing.assert_allclose(means, means_by_sampling(levels, model_levels), atol=2e-5)


def test_reaching_moves_the_outermost_boundaries_only():
    levels = jnp.array([1100.0, 500.0, -5.0])
    for model_levels, expected in (
        ([1000.0, 600.0, 10.0], [1100.0, 600.0, -5.0]),
        ([10.0, 600.0, 1000.0], [-5.0, 600.0, 1100.0]),
        ([1200.0, 600.0, 10.0], [1200.0, 600.0, -5.0]),
    ):
        np.testing.assert_array_equal(reaching(jnp.array(model_levels), levels), expected)


@pytest.mark.parametrize(
    ("levels", "expected"),
    [([1000.0, 0.0], False), ([1000.001, 0.0], False), ([1001.0, 0.0], True), ([9.0, -1.0], True)],
)
def test_beyond_is_more_than_rounding(levels, expected):
    assert bool(beyond(jnp.array(levels), jnp.array([0.0, 400.0, 1000.0]))) == expected
