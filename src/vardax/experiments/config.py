"""Settings of an experiment: a frozen dataclass, read from TOML and `key=value` assignments.

The dataclass is the only list of what can be set: names, types, defaults and, in the field's metadata, a line of help
(`setting`). `build` makes one from a nested mapping and refuses what the dataclass does not have, naming the nearest
key that it has. `to_toml` writes one back, complete and with the help as comments, so that a run can be repeated.
"""

import dataclasses
import difflib
import pathlib
import tomllib
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

__all__ = ["ConfigError", "assignments", "build", "merge", "read_toml", "setting", "settings", "to_toml", "unknown"]

Config = TypeVar("Config")  # a frozen dataclass


class ConfigError(ValueError):
    """A setting that does not exist or cannot have the value it was given."""


def setting(default: Any, help: str) -> Any:
    """A field of a configuration with its line of help."""
    return dataclasses.field(default=default, metadata={"help": help})


def unknown(kind: str, name: str, known: Iterable[str]) -> str:
    """What to say about a name that does not exist.

    >>> unknown("method", "ThreDVar", ["OptimalInterpolation", "ThreeDVar"])
    "unknown method 'ThreDVar'; did you mean 'ThreeDVar'? Known: OptimalInterpolation, ThreeDVar."
    """
    names = sorted(known)
    lower = {candidate.lower(): candidate for candidate in names}
    near = difflib.get_close_matches(name.lower(), lower, n=1, cutoff=0.4)
    hint = f"; did you mean {lower[near[0]]!r}?" if near else "."
    return f"unknown {kind} {name!r}{hint} Known: {', '.join(names)}."


def build(cls: Callable[..., Config], values: Mapping[str, Any], path: str = "") -> Config:
    """A `cls` with `values` in place of its defaults; nested tables fill nested dataclasses.

    >>> @dataclasses.dataclass(frozen=True)
    ... class Run:
    ...     cycles: int = 10
    >>> build(Run, {"cycles": 20})
    Run(cycles=20)
    """
    hints = typing.get_type_hints(cls)
    names = _field_names(cls)
    for key in values:
        if key not in names:
            raise ConfigError(unknown("key", _join(path, key), [_join(path, name) for name in names]))
    given = {key: _convert(hints[key], value, _join(path, key)) for key, value in values.items()}
    try:
        return cls(**given)
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(str(error)) from None


def _field_names(cls: Any) -> list[str]:
    return [field.name for field in dataclasses.fields(cls)]


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


def _convert(hint: Any, value: Any, path: str) -> Any:
    """`value` as the type that the dataclass asks for."""
    origin = typing.get_origin(hint)
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        if not isinstance(value, Mapping):
            raise _wrong(path, value, "a table")
        return build(hint, value, path)
    if origin is typing.Literal:
        choices = typing.get_args(hint)
        if value not in choices:
            raise ConfigError(unknown(f"value of {path}", str(value), map(str, choices)))
        return value
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise _wrong(path, value, 'a list, such as ["a", "b"]')
        return tuple(_convert(typing.get_args(hint)[0], item, f"{path}[{k}]") for k, item in enumerate(value))
    if origin in (types.UnionType, typing.Union):
        return value if value is None else _convert(typing.get_args(hint)[0], value, path)
    return _plain(hint, value, path)


def _plain(hint: type, value: Any, path: str) -> Any:
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise _wrong(
            path, value, {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}[hint]
        )
    return value


def _wrong(path: str, value: Any, expected: str) -> ConfigError:
    return ConfigError(f"{path} is {value!r}, expected {expected}.")


def read_toml(path: str | pathlib.Path) -> dict[str, Any]:
    """The tables of a TOML file."""
    try:
        return tomllib.loads(pathlib.Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read the settings file {str(path)!r}: {error.strerror}.") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"the settings file {str(path)!r} is not TOML: {error}.") from None


def assignments(texts: Iterable[str]) -> dict[str, Any]:
    """Nested tables from `key=value` texts. Dots go into tables; values are TOML, and bare words are texts.

    >>> assignments(["cycles=200", "precision=float32", "plot.dpi=90"])
    {'cycles': 200, 'precision': 'float32', 'plot': {'dpi': 90}}
    """
    tables: dict[str, Any] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key.strip():
            raise ConfigError(f"the setting {text!r} is not of the form key=value.")
        *parents, last = key.strip().split(".")
        merge(tables, _nested(parents, {last: _value(value.strip())}))
    return tables


def _nested(parents: list[str], table: dict[str, Any]) -> dict[str, Any]:
    for parent in reversed(parents):
        table = {parent: table}
    return table


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def merge(tables: dict[str, Any], later: Mapping[str, Any]) -> dict[str, Any]:
    """`tables` with what `later` says, in place; tables are merged, everything else is replaced."""
    for key, value in later.items():
        if isinstance(value, Mapping) and isinstance(tables.get(key), dict):
            merge(tables[key], value)
        else:
            tables[key] = dict(value) if isinstance(value, Mapping) else value
    return tables


def settings(config: Any) -> list[tuple[str, Any, str]]:
    """(dotted key, value, help) of every setting, tables last."""
    plain, tables = [], []
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            tables += [(f"{field.name}.{key}", v, text) for key, v, text in settings(value)]
        else:
            plain.append((field.name, value, field.metadata.get("help", "")))
    return plain + tables


def to_toml(config: Any, header: str = "") -> str:
    """The complete configuration as TOML; `build(cls, tomllib.loads(text))` gives it back."""
    lines = [f"# {line}".rstrip() for line in header.splitlines()]
    table = ""
    for key, value, text in settings(config):
        *parents, last = key.split(".")
        if ".".join(parents) != table:
            table = ".".join(parents)
            lines += ["", f"[{table}]"]
        if value is not None:
            lines.append(f"{last} = {_toml(value)}" + (f"  # {text}" if text else ""))
    return "\n".join(lines) + "\n"


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        escaped = value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
        return f'"{escaped}"'
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    return repr(value)
