"""Kernels of soundings on the layers of a model: the formula, gaps, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vardax.obs_operators.soundings import check_model_levels, check_soundings, reduce_soundings

P, L, K = 6, 4, 7


def parts(seed=0):
    rng = np.random.default_rng(seed)
    return {
        "kernel": rng.uniform(0.1, 1.2, (P, L)),
        "prior": rng.normal(5.0, 1.0, (P, L)),
        "weights": rng.dirichlet(np.ones(L), P),
        "levels": np.sort(rng.uniform(0, 1000, (P, L + 1)), axis=1)[:, ::-1],
    }


def as_arrays(numbers):
    return {name: jnp.asarray(array) for name, array in numbers.items()}


def column_by_definition(numbers, sounding, model_levels, model_column, outside):
    """sum_j w_j [x_a,j + a_j (x_j - x_a,j)] by loops over layers."""
    kernel, prior, weights, levels = (numbers[name][sounding] for name in ("kernel", "prior", "weights", "levels"))
    total = 0.0
    for j in range(L):
        low, high = sorted(levels[j : j + 2])
        held = covered = 0.0
        for k in range(len(model_column)):
            bottom, top = sorted(model_levels[k : k + 2])
            if outside == "clamp":
                bottom = -np.inf if bottom == model_levels.min() else bottom
                top = np.inf if top == model_levels.max() else top
            shared = max(0.0, min(high, top) - max(low, bottom))
            held, covered = held + shared * model_column[k], covered + shared
        mean = (held + (high - low - covered) * prior[j]) / (high - low)
        total += weights[j] * (prior[j] + kernel[j] * (mean - prior[j]))
    return total


@pytest.mark.x64
@pytest.mark.parametrize("outside", ["clamp", "prior"])
@pytest.mark.parametrize("order", [1, -1])
def test_gain_and_offset_give_the_column_of_the_definition(outside, order):
    """Retrieval layers lie inside, across the ends of, and beyond the model's range [200, 800]."""
    numbers, rng = parts(), np.random.default_rng(1)
    model_levels = np.linspace(200.0, 800.0, K + 1)[::order].copy()
    column = rng.normal(4.0, 1.0, K)
    counted = jnp.ones(P, bool)
    gain, offset, seen = reduce_soundings(as_arrays(numbers), jnp.asarray(model_levels), counted, outside)
    expected = [column_by_definition(numbers, i, model_levels, column, outside) for i in range(P)]
    np.testing.assert_allclose(np.asarray(gain).T @ column + offset, expected, rtol=1e-12)
    np.testing.assert_array_equal(seen, 1.0)


def test_gaps_make_a_sounding_missing_and_weightless_layers_do_not_count():
    numbers = parts()
    for sounding, name in enumerate(("kernel", "prior", "weights", "levels")):
        numbers[name][sounding, 1] = np.nan
    numbers["weights"][4, 2], numbers["kernel"][4, 2], numbers["prior"][4, 2] = 0.0, np.nan, np.nan
    model_levels = jnp.linspace(0.0, 1000.0, K + 1)
    gain, offset, seen = reduce_soundings(as_arrays(numbers), model_levels, jnp.arange(P) != 5, "clamp")
    np.testing.assert_array_equal(seen, [0, 0, 0, 0, 1, 0])
    np.testing.assert_array_equal(gain[:, jnp.array([0, 1, 2, 3, 5])], 0.0)
    np.testing.assert_array_equal(offset[jnp.array([0, 1, 2, 3, 5])], 0.0)
    assert np.isfinite(gain).all()
    assert float(jnp.sum(gain[:, 4])) > 0


def test_gaps_do_not_reach_gradients():
    numbers = parts()
    numbers["kernel"][0, 1] = numbers["levels"][1, 0] = np.nan
    arrays, model_levels = as_arrays(numbers), jnp.linspace(0.0, 1000.0, K + 1)

    def total(arrays, model_levels):
        gain, offset, _ = reduce_soundings(arrays, model_levels, jnp.ones(P, bool), "prior")
        return jnp.sum(gain) + jnp.sum(offset)

    gradients = jax.grad(total, argnums=(0, 1))(arrays, model_levels)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))


def test_without_model_levels_the_layers_are_those_of_the_retrieval():
    numbers = parts()
    arrays = as_arrays(numbers) | {"levels": None}
    gain, _, _ = reduce_soundings(arrays, None, jnp.ones(P, bool), "clamp")
    np.testing.assert_allclose(gain.T, numbers["weights"] * numbers["kernel"], rtol=1e-6)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"prior": None}, "`prior` of the soundings is missing"),
        ({"weights": None, "prior": None}, "`prior`, `weights` of the soundings is missing"),
        ({"levels": None}, "`levels` of the soundings is missing"),
        ({"kernel": np.ones(L)}, r"`kernel` has shape \(4,\), expected \(p, L\), soundings by layers"),
        ({"prior": np.ones((P, L + 1))}, r"`prior` has shape \(6, 5\), expected \(6, 4\): as `kernel`"),
        ({"levels": np.ones((P, L))}, r"`levels` has shape \(6, 4\), expected \(6, 5\): the boundaries of the layers"),
        (
            {"levels": np.tile([0.0, 2.0, 1.0, 3.0, 4.0], (P, 1))},
            "`levels` of 6 of 6 soundings, the first is number 0, are not boundaries of layers",
        ),
        ({"levels": np.tile([0.0, 1.0, 1.0, 3.0, 4.0], (P, 1))}, "two may be equal around a layer of weight 0"),
    ],
)
def test_soundings_that_do_not_fit_are_refused(change, words):
    numbers = {name: None if a is None else jnp.asarray(a) for name, a in (parts() | change).items()}
    with pytest.raises(ValueError, match=words):
        check_soundings(numbers, jnp.linspace(0.0, 1000.0, K + 1), "ColumnRetrieval")


def test_equal_boundaries_around_a_weightless_layer_are_taken():
    numbers = parts()
    numbers["levels"][:, 1], numbers["weights"][:, 0] = numbers["levels"][:, 0], 0.0
    check_soundings(as_arrays(numbers), None, "ColumnRetrieval")


@pytest.mark.parametrize(
    ("model_levels", "words"),
    [
        (np.array(3.0), r"shape \(\), expected \(K\+1,\)"),
        (np.array([3.0]), r"shape \(1,\), expected \(K\+1,\)"),
        (np.array([0.0, 2.0, 1.0]), "must increase or decrease throughout along its first axis"),
        (np.array([[0.0, 1.0], [1.0, 1.0]]), "must increase or decrease throughout along its first axis"),
    ],
)
def test_model_levels_that_are_no_boundaries_are_refused(model_levels, words):
    with pytest.raises(ValueError, match=words):
        check_model_levels(jnp.asarray(model_levels), "ColumnRetrieval")
