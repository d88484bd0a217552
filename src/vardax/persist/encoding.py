"""A model as JSON and named arrays.

What is not an array is written where it stands, each kind as an object with one telling key:

| written | what it was |
|---|---|
| `3`, `"text"`, `true`, `null` | itself; floats as JSON writes them, which is exact; `{"float": "nan"}` |
| `{"array": "prior_cov_op.variance"}` | an array of JAX, by its place in the model; `{"numpy": ...}` one of numpy |
| `{"class": "vardax.covariances.dense:DenseCovariance", "fields": {...}}` | an object: a dataclass or equinox module |
| `{"name": "jax.nn:relu"}` | a function, class or sentinel, by its public name |
| `{"default": ["equinox.nn:MLP", "final_activation"]}` | a function without a name: the default of a constructor |
| `{"list": []}`, `{"tuple": []}`, `{"set": []}`, `{"dict": [[key, value]]}` | a container |
| `{"foreign": "my_code:step"}` | anything else: only its name, and a skeleton has to supply it |

The fields of an object are its configuration: what its constructor made of its arguments. `decoding` goes back.
"""

import dataclasses
import enum
import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vardax.persist.names import full_name, public_name

__all__ = ["Encoded", "default_of", "encode", "joined", "parts_of_partial"]


class Encoded:
    """A model as JSON (`tree`), its arrays by name, and what the manifest says of each of them."""

    def __init__(self, model: Any):
        self.arrays: dict[str, np.ndarray] = {}
        self.described: dict[str, dict[str, Any]] = {}
        self.tree = encode(model, "", self._keep)

    def _keep(self, path: str, array: Any) -> str:
        """Keep an array under its place in the model."""
        name = path or "model"
        is_key = isinstance(array, jax.Array) and jnp.issubdtype(array.dtype, jax.dtypes.prng_key)
        array_here = np.asarray(jax.random.key_data(array) if is_key else array)
        self.arrays[name] = array_here.astype(array_here.dtype.newbyteorder("="), copy=False)
        described: dict[str, Any] = {"dtype": str(self.arrays[name].dtype), "shape": list(self.arrays[name].shape)}
        if not isinstance(array, jax.Array):
            described["numpy"] = True
        elif is_key:
            described["key"] = str(jax.random.key_impl(array))
        elif array.weak_type and array.ndim == 0:  # JAX can make no other array weak again
            described["weak"] = True
        self.described[name] = described
        return name


def encode(value: Any, path: str, keep: Callable[[str, Any], str]) -> Any:
    """`value`, found at `path`, as JSON; `keep(path, array)` takes its arrays and gives their names."""
    if value is None or type(value) in (bool, int, str):
        return value
    if type(value) is float:
        return value if np.isfinite(value) else {"float": repr(value)}
    if isinstance(value, np.generic):
        return {"number": keep(path, value)}
    if isinstance(value, jax.Array):
        return {"array": keep(path, value)}
    if isinstance(value, np.ndarray):
        return {"numpy": keep(path, value)}
    if (special := _special(value)) is not None:
        return special
    if (name := public_name(value)) is not None:
        return {"name": name}
    return _structured(value, path, keep)


def _special(value: Any) -> Any:
    """Values that are written by themselves."""
    if type(value) is complex:
        return {"complex": [repr(value.real), repr(value.imag)]}
    if isinstance(value, np.dtype):
        return {"dtype": value.name}
    if isinstance(value, jax.ShapeDtypeStruct):
        return {"struct": [list(value.shape), np.dtype(value.dtype).name]}
    if isinstance(value, enum.Enum) and (name := public_name(type(value))) is not None:
        return {"enum": [name, value.name]}
    return {"ellipsis": True} if value is Ellipsis else None


def _structured(value: Any, path: str, keep: Callable[[str, Any], str]) -> Any:
    """Containers and objects."""
    inside = functools.partial(encode, keep=keep)
    items = lambda values: [inside(v, f"{path}[{i}]") for i, v in enumerate(values)]  # noqa: E731
    names: Any = getattr(value, "_fields", None)
    if isinstance(value, tuple) and names is not None:
        fields = {name: inside(v, joined(path, name)) for name, v in zip(names, value, strict=True)}
        return {"class": public_name(type(value)) or full_name(type(value)), "fields": fields}
    if type(value) in (list, tuple):
        return {type(value).__name__: items(value)}
    if isinstance(value, set | frozenset):
        written = [inside(v, f"{path}[...]") for v in value]
        return {"set": sorted(written, key=repr)}
    if isinstance(value, slice):
        return {"slice": items((value.start, value.stop, value.step))}
    if isinstance(value, Mapping):
        return {"dict": [[inside(k, f"{path}.key"), inside(v, f"{path}[{k!r}]")] for k, v in value.items()]}
    if isinstance(value, functools.partial):
        return {"partial": [inside(v, joined(path, n)) for n, v in parts_of_partial(value)]}
    if (method := _bound_method(value)) is not None:
        return {"method": [method[0], inside(method[1], f"{path}.__self__")]}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _object(value, path, inside)
    return {"foreign": full_name(value)}


def _object(value: Any, path: str, inside: Callable[[Any, str], Any]) -> Any:
    """An object by its class and fields; a function in a field that is the constructor's default is written as that."""
    cls, fields = type(value), {}
    for name in [field.name for field in dataclasses.fields(value) if hasattr(value, field.name)]:
        content = getattr(value, name)
        written = inside(content, joined(path, name))
        if isinstance(written, dict) and "foreign" in written and default_of(cls, name) is content:
            written = {"default": [public_name(cls) or full_name(cls), name]}
        fields[name] = written
    return {"class": public_name(cls) or full_name(cls), "fields": fields}


def default_of(cls: type, name: str) -> Any:
    """The default of the constructor's argument `name`; None without one."""
    parameters = inspect.signature(cls).parameters
    return parameters[name].default if name in parameters else None


def joined(path: str, name: str) -> str:
    """The place of a field."""
    return f"{path}.{name}" if path else name


def parts_of_partial(value: functools.partial) -> tuple[tuple[str, Any], ...]:
    """What a partial application consists of."""
    return ("func", value.func), ("args", value.args), ("keywords", value.keywords)


def _bound_method(value: Any) -> tuple[str, Any] | None:
    """(name, object) of a bound method of a class that may be named."""
    owner, name = getattr(value, "__self__", None), getattr(value, "__name__", "")
    if owner is None or isinstance(owner, type) or public_name(type(owner)) is None:
        return None
    return (name, owner) if callable(getattr(type(owner), name, None)) else None
