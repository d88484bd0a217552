"""Arrays as bytes, in the safetensors format: a JSON header with names, dtypes, shapes and offsets, then raw numbers.

    8 bytes      length n of the header, little-endian
    n bytes      {"name": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}, ...}
    the rest     the arrays, little-endian, in C order

Reading it can execute nothing, and every library that reads safetensors reads it. Numbers without a code there are
stored under one that has their bytes: complex ones as pairs of real ones, times as integers, text as code points.
"""

import json
import sys
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

__all__ = ["from_bytes", "restored", "stored", "to_bytes"]

CODES = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
    "int64": "I64",
    "int32": "I32",
    "int16": "I16",
    "int8": "I8",
    "uint64": "U64",
    "uint32": "U32",
    "uint16": "U16",
    "uint8": "U8",
    "bool": "BOOL",
}
DTYPES = {code: np.dtype(getattr(jnp, "bool_" if name == "bool" else name)) for name, code in CODES.items()}

SUBSTITUTES = {"complex64": "float32", "complex128": "float64"}
BY_KIND = {"M": "int64", "m": "int64", "U": "uint32"}


def stored(name: str, array: np.ndarray) -> np.ndarray:
    """The array, little-endian and contiguous, of a dtype that has a code."""
    if array.dtype.name in CODES:
        return _little(array)
    substitute = SUBSTITUTES.get(array.dtype.name) or BY_KIND.get(array.dtype.kind)
    if substitute is None or array.dtype.itemsize == 0:
        raise ValueError(f"`{name}` has dtype {array.dtype}, which cannot be stored; expected numbers, times or text.")
    return _little(array)[..., None].view(np.dtype(substitute).newbyteorder("<"))


def _little(array: np.ndarray) -> np.ndarray:
    """Little-endian and contiguous; a scalar stays one."""
    order = (
        array.dtype if array.dtype.byteorder in "|<=" and sys.byteorder == "little" else array.dtype.newbyteorder("<")
    )
    return np.ascontiguousarray(array, order).reshape(array.shape)


def restored(array: np.ndarray, dtype: str) -> np.ndarray:
    """What `stored` was given, with this dtype."""
    return array if dtype in CODES else array.view(np.dtype(dtype))[..., 0]


def to_bytes(arrays: Mapping[str, np.ndarray]) -> bytes:
    """The arrays, each as `stored` makes it, sorted by name: the same bytes for the same arrays."""
    header, parts, offset = {}, [], 0
    for name in sorted(arrays):
        array = stored(name, np.asarray(arrays[name]))
        parts.append(array.tobytes())
        end = offset + len(parts[-1])
        code = CODES[array.dtype.name]
        header[name] = {"dtype": code, "shape": list(array.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, sort_keys=True, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the numbers start aligned
    return len(text).to_bytes(8, "little") + text + b"".join(parts)


def from_bytes(data: bytes) -> dict[str, np.ndarray]:
    """The arrays of `to_bytes`, or a `ValueError` that says where the bytes are damaged."""
    start = 8 + int.from_bytes(data[:8], "little")
    if len(data) < 8 or start > len(data):
        raise ValueError(f"the weights are truncated: {len(data)} bytes, and the header should end at byte {start}.")
    try:
        header = json.loads(data[8:start])
        entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
        return {name: _array(name, entry, data[start:]) for name, entry in entries.items()}
    except (json.JSONDecodeError, UnicodeDecodeError, AttributeError) as error:
        raise ValueError(f"the header of the weights is damaged: {error}.") from error


def _array(name: str, entry: Any, data: bytes) -> np.ndarray:
    try:
        dtype, shape = DTYPES[entry["dtype"]], tuple(map(int, entry["shape"]))
        begin, end = map(int, entry["data_offsets"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"the weights describe `{name}` by {entry!r}, expected dtype, shape, data_offsets.") from error
    size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    if not (0 <= begin <= end <= len(data) and end - begin == size):
        raise ValueError(
            f"the weights are truncated or damaged: `{name}`, {dtype} of shape {shape}, should be bytes {begin} to "
            f"{end} of {len(data)}."
        )
    little = dtype if sys.byteorder == "little" else dtype.newbyteorder("<")
    return np.frombuffer(data[begin:end], little).astype(dtype).reshape(shape)
