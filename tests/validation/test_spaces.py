"""Vectors and pytrees are the same numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vardax.validation.spaces import Space, generator, relative_error

STATE = {"u": jnp.arange(6, dtype=jnp.float32).reshape(2, 3), "v": jnp.ones(2, jnp.float32)}


def test_a_pytree_survives_the_way_to_a_vector_and_back():
    space = Space.of(STATE, "state")
    back = space.tree(space.vector(STATE))
    assert space.size == 8
    assert jax.tree.structure(back) == jax.tree.structure(STATE)
    for leaf, original in zip(jax.tree.leaves(back), jax.tree.leaves(STATE), strict=True):
        assert leaf.dtype == original.dtype
        np.testing.assert_array_equal(leaf, original)


def test_a_structure_is_as_good_as_an_example():
    assert Space.of(jax.eval_shape(lambda: STATE), "state") == Space.of(STATE, "state")


def test_noise_can_be_held_in_the_dtype_of_the_space():
    space = Space.of(STATE, "state")
    noise = space.noise(generator(None))
    np.testing.assert_array_equal(noise, noise.astype(np.float32))


def test_only_keeps_one_array():
    space = Space.of(STATE, "state")
    np.testing.assert_array_equal(space.only(np.ones(8), 1), [0, 0, 0, 0, 0, 0, 1, 1])


def test_scales_are_per_array_and_one_for_an_array_of_zeros():
    space = Space.of({"a": jnp.full(2, 3.0), "b": jnp.zeros(2)}, "state")
    np.testing.assert_allclose(space.leaf_scales(np.array([3.0, -3.0, 0.0, 0.0])), [3, 3, 1, 1])


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"u": STATE["u"]}, "found the structure"),
        ({"u": STATE["u"].T, "v": STATE["v"]}, r"found \['u'\]float32\[3, 2\], expected \['u'\]float32\[2, 3\]"),
        ({"u": STATE["u"], "v": jnp.ones(2, jnp.int32)}, r"found \['v'\]int32\[2\], expected \['v'\]float32\[2\]"),
    ],
)
def test_a_mismatch_is_said_in_words(other, words):
    import re

    assert Space.of(STATE, "state").mismatch(STATE) == ""
    assert re.search(words, Space.of(STATE, "state").mismatch(other))


@pytest.mark.parametrize("dtype", ["int32", "float16", "complex64", "bool"])
def test_other_dtypes_are_refused_with_the_remedy(dtype):
    with pytest.raises(TypeError, match=f"`state` has dtype {dtype}, expected float32 or float64.*Convert it"):
        Space.of(jnp.ones(3, dtype), "state")


def test_nothing_to_check_is_refused():
    with pytest.raises(ValueError, match="`state` has no arrays"):
        Space.of({}, "state")
    with pytest.raises(TypeError, match="`state` holds str, expected arrays"):
        Space.of({"name": "u"}, "state")


def test_the_same_key_gives_the_same_numbers():
    draw = lambda key: generator(key).standard_normal(4)  # noqa: E731
    np.testing.assert_array_equal(draw(None), draw(jax.random.key(0)))
    np.testing.assert_array_equal(draw(jax.random.PRNGKey(3)), draw(jax.random.key(3)))
    assert np.all(draw(jax.random.key(1)) != draw(None))


def test_a_key_that_is_none_is_refused_by_name():
    with pytest.raises(TypeError, match="`key` is str, expected a JAX key"):
        generator("seed")


def test_the_relative_error_of_zero_is_zero_or_infinite():
    assert relative_error(np.zeros(2), np.zeros(2)) == 0
    assert relative_error(np.ones(2), np.zeros(2)) == np.inf
