"""Where two models differ: their encoded forms side by side, the first difference in words."""

from typing import Any

from vardax.persist.encoding import joined

__all__ = ["first_difference"]


def first_difference(saved: Any, here: Any, path: str = "") -> str | None:
    """Where two encoded models first differ, in words; arrays are compared by name only."""
    where = f"`{path}`" if path else "the model"
    if not (isinstance(saved, dict) and isinstance(here, dict)):
        return None if saved == here and type(saved) is type(here) else f"{where} is {_short(saved)}, {_short(here)}"
    kind = next(iter(saved))
    if kind != next(iter(here)):
        return f"{where} is {_short(saved)}, {_short(here)}"
    if kind == "class":
        if saved["class"] != here["class"]:
            return f"{where} is of class {saved['class']}, {here['class']}"
        old, new = saved["fields"], here["fields"]
        if list(old) != list(new):
            return f"{where} has the fields {', '.join(old)}, {', '.join(new)}"
        differences = (first_difference(old[n], new[n], joined(path, n)) for n in old)
        return next(filter(None, differences), None)
    if kind in ("list", "tuple", "dict") and len(saved[kind]) == len(here[kind]):
        pairs = enumerate(zip(saved[kind], here[kind], strict=True))
        if kind == "dict":
            named_pairs = [(f"{path}[{old[0]!r}]", old, new) for _, (old, new) in pairs]
            if bad := next((p for p, old, new in named_pairs if old[0] != new[0]), None):
                return f"`{bad}` is missing, or in another place"
            differences = (first_difference(old[1], new[1], p) for p, old, new in named_pairs)
        else:
            differences = (first_difference(old, new, f"{path}[{i}]") for i, (old, new) in pairs)
        return next(filter(None, differences), None)
    return None if saved == here else f"{where} is {_short(saved)}, {_short(here)}"


def _short(node: Any) -> str:
    """A node in a message."""
    text = node.get("class") or repr(node) if isinstance(node, dict) else repr(node)
    return text if len(text) <= 80 else text[:77] + "..."
