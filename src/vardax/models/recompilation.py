"""A warning where every call compiles anew, with the name of the slot that is to blame.

JAX compiles an analysis once for the shapes of its arrays and for all that is no array. A function among the latter is
compared by identity: a method built inside a loop around `lambda x: ...` is a new program each time, compiled in
seconds and run once. `note_compilation` is called where a method is traced, so a call that finds its program costs
nothing. It remembers which functions (or other objects without an equality of their own) there were in programs that
are otherwise the same: same method, same shapes, same values, same lines of code. When the third one comes, it warns.

New shapes, another model and another option are other programs, and no reason to warn.
"""

import collections
import dataclasses
import functools
import sys
import types
import warnings
from collections.abc import Hashable, Iterator
from typing import Any

import equinox as eqx
import jax
import numpy as np

__all__ = ["RecompilationWarning", "note_compilation"]

NOTED = 3
"""So many compilations that differ in a function only bring the warning."""

REMEMBERED = 256
"""Programs that are kept in mind at most."""

_functions_of: collections.OrderedDict[Hashable, dict[str, set[int]]] = collections.OrderedDict()
"""For each program, the functions that each slot had, as identities; this shadows JAX's own cache of programs."""

_WRAPPERS = ("", "vardax", "equinox", "jax", "jaxtyping", "beartype", "contextlib")


class RecompilationWarning(UserWarning):
    """A method is compiled again and again for the same shapes, because a function in it is always a new one."""


def note_compilation(method: Any, *inputs: Any) -> None:
    """Note that `method` is traced for `inputs`; the third time for another function in the same place, warn."""
    kinds, functions = [], {}
    for path, value in _parts(method, ""):
        kind = _kind(value)
        kinds.append((path, kind))
        if kind is not value and not _is_data(value):
            functions[path] = id(value)
    leaves, structure = jax.tree.flatten(inputs)
    program = (type(method), tuple(kinds), structure, tuple(_kind(leaf) for leaf in leaves))
    seen = _functions_of.setdefault(program, {path: set() for path in functions})
    _functions_of.move_to_end(program)
    if len(_functions_of) > REMEMBERED:
        _functions_of.popitem(last=False)
    new = [path for path, one in functions.items() if one not in seen[path]]
    for path in new:
        seen[path].add(functions[path])
    if to_blame := [path for path in new if len(seen[path]) == NOTED]:
        _warn(type(method).__name__, to_blame)


def _parts(node: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Everything in a method that is no container, static fields included, with the way to it."""
    if isinstance(node, functools.partial):
        yield from _parts((node.func, node.args, node.keywords), path)
    elif dataclasses.is_dataclass(node) and not isinstance(node, type):
        for field in dataclasses.fields(node):
            yield from _parts(getattr(node, field.name, None), f"{path}.{field.name}".lstrip("."))
    elif isinstance(node, tuple | list):
        for number, part in enumerate(node):
            yield from _parts(part, f"{path}[{number}]")
    elif isinstance(node, dict):
        for name, part in node.items():
            yield from _parts(part, f"{path}[{name!r}]")
    else:
        yield path, node


def _is_data(value: Any) -> bool:
    return eqx.is_array(value) or isinstance(value, np.ndarray)


def _kind(value: Any) -> Hashable:
    """What two values share when only their identity differs; the value itself where it has an equality."""
    if _is_data(value):
        return (value.shape, value.dtype.name)
    if isinstance(value, types.MethodType):
        return (type(value), _kind(value.__func__))
    if isinstance(value, types.FunctionType):
        return (type(value), value.__code__)
    if isinstance(value, type | types.BuiltinFunctionType):
        return value
    hashable = isinstance(value, Hashable)
    return value if hashable and type(value).__eq__ is not object.__eq__ else (type(value),)


def _warn(method: str, paths: list[str]) -> None:
    """One warning at the user's line: the first frame outside vardax and what calls it while tracing."""
    frame, level = sys._getframe(), 1
    while frame and frame.f_globals.get("__name__", "").partition(".")[0] in _WRAPPERS:
        frame, level = frame.f_back, level + 1
    slots = " and ".join(f"`{path}`" for path in paths)
    message = (
        f"{method}: compiled {NOTED} times for the same shapes, because {slots} was a new function each time. Make the "
        "method, or the function, once and keep it; numbers that change belong in the arrays of an eqx.Module, which "
        "need no compilation."
    )
    warnings.warn(message, RecompilationWarning, stacklevel=level)
