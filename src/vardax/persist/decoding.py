"""A model from JSON and named arrays, as `encoding` wrote them.

An object is made again from its fields, as JAX does when it unflattens a pytree, and then checked by its own
`__check_init__`; its constructor, which may have computed the fields from other arguments, is not run. Classes and
functions are found by their public names and nothing else is ever imported. What only has a foreign name comes from a
skeleton, a model of the same structure.
"""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vardax.persist.encoding import default_of, joined, parts_of_partial
from vardax.persist.names import is_known, named
from vardax.persist.weights import restored

__all__ = ["MISSING", "as_leaf", "decode"]

MISSING: Any = object()
"""There is no skeleton here."""


def as_leaf(array: np.ndarray, described: Mapping[str, Any]) -> Any:
    """A stored array as it was: of JAX (with its key type or weak type) or of numpy."""
    array = restored(array, described["dtype"])
    if described.get("numpy"):
        return array
    wide = array.dtype.name in ("float64", "int64", "uint64", "complex128")
    if wide and jnp.result_type(float).itemsize < 8:
        raise ValueError(f"it was saved as {array.dtype}, and this process has 64-bit numbers disabled.")
    if "key" in described:
        return jax.random.wrap_key_data(jnp.asarray(array), impl=described["key"])
    return jnp.asarray(array.item()) if described.get("weak") else jnp.asarray(array)


def decode(node: Any, path: str, arrays: Mapping[str, Any], skeleton: Any = MISSING) -> Any:
    """The value that was written as `node`; `skeleton` supplies what only has a foreign name."""
    if not isinstance(node, dict):
        return node
    (kind, content), *fields = node.items()
    inside = functools.partial(decode, arrays=arrays)
    if kind == "class":
        return _made(content, dict(fields)["fields"], path, arrays, skeleton)
    if kind in ("array", "numpy", "number"):
        return arrays[content] if kind != "number" else arrays[content][()]
    if kind in ("list", "tuple", "set", "slice"):
        known = [MISSING] * len(content) if skeleton is MISSING or kind in ("set", "slice") else list(skeleton)
        values = [inside(v, f"{path}[{i}]", skeleton=s) for i, (v, s) in enumerate(zip(content, known, strict=True))]
        return slice(*values) if kind == "slice" else {"list": list, "tuple": tuple, "set": frozenset}[kind](values)
    if kind == "dict":
        keys = [inside(k, f"{path}.key") for k, _ in content]
        known = [MISSING if skeleton is MISSING else skeleton[k] for k in keys]
        values = [inside(v, f"{path}[{k!r}]", skeleton=s) for (_, v), k, s in zip(content, keys, known, strict=True)]
        return dict(zip(keys, values, strict=True))
    if kind in ("partial", "method"):
        return _callable(kind, content, path, arrays, skeleton)
    if kind == "foreign":
        if skeleton is MISSING:
            raise ValueError(_needs_skeleton(path, content))
        return skeleton
    return _value(kind, content)


def _value(kind: str, content: Any) -> Any:
    """What was written by itself."""
    match kind:
        case "name":
            return named(content)
        case "default":
            return default_of(named(content[0]), content[1])
        case "float":
            return float(content)
        case "complex":
            return complex(*map(float, content))
        case "dtype":
            return _dtype(content)
        case "struct":
            return jax.ShapeDtypeStruct(tuple(content[0]), _dtype(content[1]))
        case "enum":
            return named(content[0])[content[1]]
        case "ellipsis":
            return Ellipsis
    raise ValueError(f"the manifest has an entry of the unknown kind {kind!r}; a later version of vardax wrote it.")


def _dtype(name: str) -> np.dtype:
    return np.dtype(getattr(jnp, "bool_" if name == "bool" else name, name))


def _callable(kind: str, content: Any, path: str, arrays: Mapping[str, Any], skeleton: Any) -> Any:
    """A partial application or a bound method."""
    if kind == "method":
        name, owner = content
        known = MISSING if skeleton is MISSING else skeleton.__self__
        return getattr(decode(owner, f"{path}.__self__", arrays, known), name)
    known = [(n, MISSING) for n in ("func", "args", "keywords")] if skeleton is MISSING else parts_of_partial(skeleton)
    func, args, keywords = (decode(v, joined(path, n), arrays, s) for v, (n, s) in zip(content, known, strict=True))
    return functools.partial(func, *args, **keywords)


def _made(name: str, fields: Mapping[str, Any], path: str, arrays: Mapping[str, Any], skeleton: Any) -> Any:
    """An object of the class `name` with these fields."""
    if skeleton is MISSING and not is_known(name):
        raise ValueError(_needs_skeleton(path, name))
    cls = named(name) if skeleton is MISSING else type(skeleton)
    known = {n: MISSING if skeleton is MISSING else getattr(skeleton, n) for n in fields}
    values = {n: decode(v, joined(path, n), arrays, known[n]) for n, v in fields.items()}
    if issubclass(cls, tuple):
        return cls(**values)
    made = object.__new__(cls)
    for field, value in values.items():
        object.__setattr__(made, field, value)
    for base in cls.__mro__:
        if "__check_init__" in vars(base):
            vars(base)["__check_init__"](made)
    return made


def _needs_skeleton(path: str, name: str) -> str:
    return (
        f"persist.load: `{path or 'the model'}` is {name}, which is not of vardax or the libraries under it, and code "
        "is not loaded from files; give `skeleton=`, a model of the same structure, which has it."
    )
