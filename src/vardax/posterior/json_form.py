"""Arrays and what holds them as JSON, and back without loss.

    array            {"__type__": "array", "dtype": "float32", "shape": [2], "values": [0.5, "NaN"]}
    tuple            {"__type__": "tuple", "items": [...]}
    NaN, ±infinity   {"__type__": "float", "value": "Infinity"}

Everything else is what JSON has: dicts with strings as keys, lists, strings, numbers, true, false, null. Numbers are
written with the shortest decimals that give them back, so floats of every precision return bit for bit.
"""

import math
from typing import Any

import jax.numpy as jnp
import numpy as np

from vardax.types import is_traced

__all__ = ["from_json_form", "to_json_form"]

TAG = "__type__"
SPECIAL = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


def to_json_form(value: Any, name: str) -> Any:
    """`value` as JSON can write it; `name` is what messages call it.

    >>> to_json_form({"k": (1, float("inf"))}, "example")
    {'k': {'__type__': 'tuple', 'items': [1, {'__type__': 'float', 'value': 'Infinity'}]}}
    """
    if hasattr(value, "dtype") and hasattr(value, "shape"):
        return _of_array(value, name)
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else {TAG: "float", "value": _word(value)}
    if isinstance(value, list | tuple):
        items = [to_json_form(item, f"{name}[{index}]") for index, item in enumerate(value)]
        return items if isinstance(value, list) else {TAG: "tuple", "items": items}
    if isinstance(value, dict):
        for key in value:
            if not isinstance(key, str) or key == TAG:
                raise TypeError(f"`{name}` has the key {key!r}, expected strings other than {TAG!r}.")
        return {key: to_json_form(item, f"{name}[{key!r}]") for key, item in value.items()}
    raise TypeError(
        f"`{name}` is {type(value).__name__}, expected strings, numbers, arrays, and dicts, lists and tuples of these; "
        "write a time as `.isoformat()`."
    )


def from_json_form(form: Any, name: str) -> Any:
    """The value that `to_json_form` wrote, with arrays of numpy.

    >>> from_json_form({"__type__": "array", "dtype": "float32", "shape": [2], "values": [1.0, "NaN"]}, "example")
    array([ 1., nan], dtype=float32)
    """
    if isinstance(form, list):
        return [from_json_form(item, f"{name}[{index}]") for index, item in enumerate(form)]
    if not isinstance(form, dict):
        return form
    match form.get(TAG):
        case None:
            return {key: from_json_form(item, f"{name}[{key!r}]") for key, item in form.items()}
        case "float":
            return SPECIAL[form["value"]]
        case "tuple":
            return tuple(from_json_form(form["items"], name))
        case "array":
            return _to_array(form, name)
        case other:
            raise ValueError(f"`{name}` is of the unknown type {other!r}; expected array, tuple or float.")


def _of_array(value: Any, name: str) -> dict[str, Any]:
    if is_traced(value):
        raise TypeError(f"`{name}` has no values while it is traced; write it down outside `jit`.")
    array = np.asarray(value)
    if array.dtype.kind not in "biu" and not jnp.issubdtype(array.dtype, jnp.floating):
        raise TypeError(f"`{name}` has dtype {array.dtype}, expected real numbers, integers or booleans.")
    wide = array if array.dtype.kind in "biu" else array.astype(np.float64)
    flat = [_word(x) if isinstance(x, float) and not math.isfinite(x) else x for x in wide.ravel().tolist()]
    return {TAG: "array", "dtype": array.dtype.name, "shape": list(array.shape), "values": _nested(flat, array.shape)}


def _to_array(form: dict[str, Any], name: str) -> np.ndarray:
    dtype, shape = jnp.dtype(form["dtype"]), tuple(form["shape"])
    flat = _flat(form["values"], len(shape))
    if len(flat) != math.prod(shape):
        raise ValueError(f"`{name}` has {len(flat)} values, expected {math.prod(shape)} for shape {shape}.")
    numbers = [SPECIAL[x] if isinstance(x, str) else x for x in flat]
    return np.array(numbers, dtype if dtype.kind in "biu" else np.float64).astype(dtype).reshape(shape)


def _word(x: float) -> str:
    return "NaN" if math.isnan(x) else "Infinity" if x > 0 else "-Infinity"


def _nested(flat: list, shape: tuple[int, ...]) -> Any:
    """The numbers as lists of lists of this shape; the number itself without axes."""
    if not shape:
        return flat[0]
    size = math.prod(shape[1:])
    return [_nested(flat[i * size : (i + 1) * size], shape[1:]) for i in range(shape[0])]


def _flat(values: Any, ndim: int) -> list:
    """The numbers of lists that are nested `ndim` deep."""
    if ndim == 0:
        return [values]
    return [x for part in values for x in _flat(part, ndim - 1)]
