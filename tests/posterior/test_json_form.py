"""What is written as JSON comes back as it was, or is refused by name."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as nps

from vardax.posterior.json_form import from_json_form, to_json_form


def back(value):
    return from_json_form(json.loads(json.dumps(to_json_form(value, "value"), allow_nan=False)), "value")


plain = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
trees = st.recursive(
    plain, lambda t: st.lists(t) | st.tuples(t, t) | st.dictionaries(st.text().filter("__type__".__ne__), t)
)


@given(trees)
def test_trees_come_back_as_they_were(tree):
    assert back(tree) == tree


@given(nps.arrays(st.sampled_from(["float64", "float32", "float16", "int32", "bool"]), nps.array_shapes(min_dims=0)))
def test_arrays_come_back_bit_for_bit(array):
    found = back(array)
    assert (found.dtype, found.shape) == (array.dtype, array.shape)
    np.testing.assert_array_equal(found, array)
    if array.dtype.kind == "f" and not np.any(np.isnan(array)):
        assert found.tobytes() == array.tobytes()


def test_not_a_number_comes_back():
    assert math.isnan(back(math.nan))
    assert back([-math.inf]) == [-math.inf]


def test_what_json_cannot_hold_is_named():
    with pytest.raises(TypeError, match=r"`m\['a'\]\[1\]` is set, expected strings, numbers, arrays"):
        to_json_form({"a": [1, {2}]}, "m")
    with pytest.raises(TypeError, match=r"`m` has the key 3, expected strings"):
        to_json_form({3: 1}, "m")
    with pytest.raises(TypeError, match="`m` has dtype complex64"):
        to_json_form(np.zeros(1, "complex64"), "m")
    with pytest.raises(TypeError, match="`m` has no values while it is traced"):
        jax.jit(lambda x: to_json_form(x, "m"))(jnp.zeros(1))


def test_damaged_forms_are_named():
    with pytest.raises(ValueError, match=r"`m` has 1 values, expected 2 for shape \(2,\)"):
        from_json_form({"__type__": "array", "dtype": "float32", "shape": [2], "values": [1.0]}, "m")
    with pytest.raises(ValueError, match="`m` is of the unknown type 'matrix'"):
        from_json_form({"__type__": "matrix"}, "m")
