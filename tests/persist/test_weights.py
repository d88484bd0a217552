"""Arrays as bytes: the safetensors layout, every dtype, and damage that is named."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from vardax.persist.weights import CODES, from_bytes, restored, stored, to_bytes


@pytest.mark.parametrize("dtype", [*CODES, "complex64", "complex128", "datetime64[ns]", "timedelta64[s]", "<U5", ">f4"])
@pytest.mark.parametrize("shape", [(), (3,), (0, 2), (2, 3)])
def test_every_dtype_comes_back_bit_for_bit(dtype, shape):
    name = {"bool": "bool_"}.get(dtype, dtype)
    wanted = np.dtype(getattr(jnp, name, dtype))
    array = np.asarray(np.arange(np.prod(shape, dtype=int)).reshape(shape) % 2).astype(wanted)
    found = from_bytes(to_bytes({"a": array}))["a"]
    back = restored(found, str(array.dtype.newbyteorder("=") if dtype == ">f4" else array.dtype))
    assert back.dtype.name == wanted.name
    assert back.shape == shape
    assert np.array_equal(back, array)


def test_special_numbers_keep_their_bits():
    array = np.array([np.nan, -np.inf, -0.0, 5e-324])
    assert from_bytes(to_bytes({"a": array}))["a"].tobytes() == array.tobytes()


def test_the_layout_is_that_of_safetensors():
    data = to_bytes({"b": np.array([1, 2], np.int16), "a": np.array([[1.5]], np.float32)})
    length = int.from_bytes(data[:8], "little")
    assert json.loads(data[8 : 8 + length]) == {
        "a": {"dtype": "F32", "shape": [1, 1], "data_offsets": [0, 4]},
        "b": {"dtype": "I16", "shape": [2], "data_offsets": [4, 8]},
    }
    assert length % 8 == 0
    assert data[8 + length :] == np.float32(1.5).tobytes() + b"\x01\x00\x02\x00"


def test_objects_are_refused_by_name():
    with pytest.raises(ValueError, match="`a.b` has dtype object"):
        stored("a.b", np.array([print], dtype=object))


@pytest.mark.parametrize("cut", [0, 5, 8, 40, -1])
def test_truncated_bytes_are_refused(cut):
    data = to_bytes({"a": np.arange(6.0)})
    with pytest.raises(ValueError, match="truncated|damaged"):
        from_bytes(data[:cut])


@pytest.mark.parametrize(
    "entry",
    [
        "[]",
        '{"a": 3}',
        '{"a": {"dtype": "F32"}}',
        '{"a": {"dtype": "OBJ", "shape": [1], "data_offsets": [0, 8]}}',
        '{"a": {"dtype": "F64", "shape": [2], "data_offsets": [0, 8]}}',
        '{"a": {"dtype": "F64", "shape": [-1], "data_offsets": [8, 0]}}',
    ],
)
def test_a_header_that_does_not_fit_is_refused(entry):
    data = len(entry).to_bytes(8, "little") + entry.encode() + bytes(8)
    with pytest.raises(ValueError, match="weights"):
        from_bytes(data)
