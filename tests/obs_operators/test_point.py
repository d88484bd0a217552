"""PointObs: entries of the state, by number or by index arrays."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vardax.obs_operators import PointObs
from vardax.protocols import ObservationOperator

FIELD = np.arange(12.0).reshape(3, 4)
FLAT = [0, 7, 7, 11]
TUPLE = (np.array([0, 1, 1, 2]), np.array([0, 3, 3, 3]))


def dense(indices, n):
    """The selection matrix, row by row."""
    matrix = np.zeros((len(indices), n))
    matrix[np.arange(len(indices)), indices] = 1.0
    return matrix


@pytest.mark.parametrize(
    "indices", [FLAT, np.array(FLAT), jnp.array(FLAT), TUPLE], ids=["list", "numpy", "jax", "tuple"]
)
def test_agrees_with_the_selection_matrix(indices):
    H, state = PointObs(indices), jnp.asarray(FIELD)
    assert isinstance(H, ObservationOperator)
    np.testing.assert_array_equal(H(state), [0.0, 7.0, 7.0, 11.0])
    operator = H.linearize(state)
    np.testing.assert_array_equal(operator.as_matrix(), dense(FLAT, 12))
    np.testing.assert_array_equal(operator.T.as_matrix(), dense(FLAT, 12).T)


def test_transpose_adds_up_what_is_observed_twice():
    transposed = PointObs(FLAT).linearize(jnp.asarray(FIELD)).T.mv(jnp.array([1.0, 2.0, 3.0, 4.0]))
    assert transposed[0, 0] == 1.0
    assert transposed[1, 3] == 5.0
    assert transposed[2, 3] == 4.0


def test_observations_have_the_shape_of_the_indices():
    assert PointObs(np.array([[0, 1], [2, 3], [4, 5]]))(jnp.asarray(FIELD)).shape == (3, 2)


def test_a_tuple_of_integers_is_a_list_of_indices():
    np.testing.assert_array_equal(PointObs((1, 2))(jnp.asarray(FIELD)), [1.0, 2.0])


def test_no_index_at_all_observes_nothing():
    assert PointObs([])(jnp.asarray(FIELD)).shape == (0,)


def test_new_indices_of_the_same_count_do_not_compile(count_compilations):
    transpose = jax.jit(lambda H, x: H.linearize(x).T.mv(H(x)))
    state, first, second = jnp.asarray(FIELD), PointObs(FLAT), PointObs([1, 2, 3, 4])
    transpose(first, state)
    with count_compilations() as compiled:
        transpose(second, state).block_until_ready()
    assert compiled.n == 0, compiled.names


def test_its_linear_operator_crosses_a_jit_without_compiling_again(count_compilations):
    product = jax.jit(lambda operator, y: operator.T.mv(y))
    state, y = jnp.asarray(FIELD), jnp.ones(4)
    product(PointObs(FLAT).linearize(state), y)
    other = PointObs([1, 2, 3, 4]).linearize(state)
    with count_compilations() as compiled:
        product(other, y).block_until_ready()
    assert compiled.n == 0, compiled.names


def test_works_under_vmap_over_states_and_indices():
    states = jnp.stack([jnp.asarray(FIELD), -jnp.asarray(FIELD)])
    assert jax.vmap(PointObs(FLAT))(states).shape == (2, 4)
    indices = jnp.array([[0, 1], [2, 3]])
    np.testing.assert_array_equal(jax.vmap(lambda i: PointObs(i)(states[0]))(indices), [[0.0, 1.0], [2.0, 3.0]])


def test_float32_stays_float32():
    H, state = PointObs(FLAT), jnp.asarray(FIELD, jnp.float32)
    assert H(state).dtype == H.linearize(state).T.mv(H(state)).dtype == jnp.float32


@pytest.mark.parametrize("indices", [[0.0, 1.0], np.ones(12, bool), (np.array([0.5]), np.array([1]))])
def test_refuses_indices_that_are_not_integers(indices):
    with pytest.raises(TypeError, match="PointObs: `indices.* has dtype .*, expected integers"):
        PointObs(indices)


def test_says_how_to_turn_a_mask_into_indices():
    with pytest.raises(TypeError, match="flatnonzero"):
        PointObs(np.ones(12, bool))


def test_refuses_negative_indices_at_construction():
    with pytest.raises(ValueError, match="`indices` holds -1, expected indices from 0 on"):
        PointObs([0, -1])


def test_refuses_indices_beyond_the_state_and_counts_them():
    with pytest.raises(ValueError, match=r"2 of 3 `indices` are out of range \(largest 40\); expected 0 to 11"):
        PointObs([1, 12, 40])(jnp.asarray(FIELD))
    with pytest.raises(ValueError, match=r"1 of 2 `indices\[1\]` are out of range"):
        PointObs(([0, 1], [3, 4])).check(jax.ShapeDtypeStruct((3, 4), jnp.float32))


def test_traced_indices_beyond_the_state_predict_nan():
    predicted = jax.jit(lambda indices: PointObs(indices)(jnp.asarray(FIELD)))(jnp.array([1, 12]))
    assert predicted[0] == 1.0
    assert np.isnan(predicted[1])


def test_refuses_a_tuple_that_does_not_fit_the_axes():
    with pytest.raises(ValueError, match="3 index arrays, expected 2, one per axis"):
        PointObs(([0], [0], [0]))(jnp.asarray(FIELD))
    with pytest.raises(ValueError, match="expected one shape"):
        PointObs(([0, 1], [0]))


def test_refuses_a_pytree_state():
    with pytest.raises(TypeError, match="PointObs observes a state that is one array.*CallableObs"):
        PointObs(FLAT)({"u": jnp.ones(12)})
