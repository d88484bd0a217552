"""Public names of what a manifest refers to: classes, functions, sentinels of vardax and of the libraries under it.

A name is `module:attribute`. Only names of the modules below are written and looked up, so a manifest cannot refer to
anything else, whatever it says. Of vardax an object must be at home in the module that is named, so that what a module
imports (`os`, `subprocess`) cannot be reached through it.
"""

import functools
import importlib
from typing import Any

__all__ = ["full_name", "is_known", "named", "public_name"]

LIBRARIES = ("jax.numpy", "jax.nn", "jax.nn.initializers", "jax.lax", "jax", "equinox.nn", "equinox", "lineax")
LIBRARIES = (*LIBRARIES, "optimistix", "diffrax")


def public_name(value: Any) -> str | None:
    """`module:attribute` where `value` is found; None if it is not public in any module that may be named.

    >>> import jax
    >>> public_name(jax.nn.relu)
    'jax.nn:relu'
    """
    module, qualname = getattr(value, "__module__", None), getattr(value, "__qualname__", None)
    if isinstance(module, str) and module.startswith("vardax.") and isinstance(qualname, str):
        return f"{module}:{qualname}" if _attribute_of(module, qualname) is value else None
    return _names_of_libraries().get(id(value))


def full_name(value: Any) -> str:
    """The name of a class or function for messages and for what is not public."""
    module = getattr(value, "__module__", None) or type(value).__module__
    return f"{module}:{getattr(value, '__qualname__', type(value).__qualname__)}"


def is_known(name: Any) -> bool:
    """Whether `named(name)` finds something."""
    try:
        named(name)
    except ValueError:
        return False
    return True


def named(name: Any) -> Any:
    """What `public_name` gave this name to.

    >>> named("jax.nn:relu") is public_name.__globals__["importlib"].import_module("jax.nn").relu
    True
    """
    module, _, attribute = name.partition(":") if isinstance(name, str) else ("", "", "")
    if module in LIBRARIES:
        found = vars(importlib.import_module(module)).get(attribute)
        if found is not None and not attribute.startswith("_"):
            return found
    elif module.startswith("vardax."):
        found = _attribute_of(module, attribute)
        if getattr(found, "__module__", None) == module and getattr(found, "__qualname__", None) == attribute:
            return found
    raise ValueError(
        f"{name!r} is not a public name of vardax, jax, equinox, lineax, optimistix or diffrax, of the versions that "
        "are installed."
    )


def _attribute_of(module: str, qualname: str) -> Any:
    """The attribute, or None."""
    try:
        found: Any = importlib.import_module(module)
    except ImportError:
        return None
    for part in qualname.split("."):
        found = getattr(found, part, None)
    return found


@functools.cache
def _names_of_libraries() -> dict[int, str]:
    """Names by identity: the objects live as long as their modules. The first library that has an object names it."""
    names: dict[int, str] = {}
    for library in LIBRARIES:
        for attribute, value in vars(importlib.import_module(library)).items():
            if not attribute.startswith("_") and not isinstance(value, bool | int | float | str | tuple | type(None)):
                names.setdefault(id(value), f"{library}:{attribute}")
    return names
