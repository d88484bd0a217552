"""What there is to run and to read about, without importing JAX.

Experiments are named in `vardax.experiments.index`; methods are the final classes of `vardax.models.__all__` that
have `as_analysis_step`. Their descriptions are their docstrings, read from the sources as syntax trees, so that listing
them takes no longer than reading a few files.
"""

import ast
import dataclasses
import functools
import inspect
import pathlib

from vardax.experiments.index import EXPERIMENTS, module_name

__all__ = ["Entry", "experiments", "methods", "summary"]

ROOT = pathlib.Path(__file__).parents[1]
MODELS = "vardax.models"
METHOD_MARK = "as_analysis_step"


@dataclasses.dataclass(frozen=True)
class Entry:
    """A name with what its module says (equation, assumptions, use) and, for a class, what it says itself."""

    name: str
    module_text: str
    class_text: str = ""

    @property
    def line(self) -> str:
        """One line."""
        return summary(self.module_text or self.class_text)


def summary(text: str) -> str:
    """The first line of a docstring.

    >>> summary("3DVar: the most probable state.\\n\\nMore.")
    '3DVar: the most probable state.'
    """
    return text.strip().partition("\n")[0].strip()


def experiments() -> dict[str, Entry]:
    """The experiments by name."""
    found = {}
    for name in EXPERIMENTS:
        tree = _tree(module_name(name))
        found[name] = Entry(name, ast.get_docstring(tree) or "")
    return found


def methods() -> dict[str, Entry]:
    """The exported methods by name."""
    homes = _imported_names(MODELS)
    found = {}
    for name in (name for name in _exported(MODELS) if not name.startswith("Abstract")):
        definition = _class(homes.get(name, MODELS), name)
        if definition is not None and _has(homes[name], definition, METHOD_MARK):
            text = inspect.cleandoc(ast.get_docstring(definition) or "")
            found[name] = Entry(name, ast.get_docstring(_tree(homes[name])) or "", text)
    return found


@functools.cache
def _tree(module: str) -> ast.Module:
    """The syntax tree of a module, which is not imported."""
    package, _, last = module.rpartition(".")
    folder = ROOT.joinpath(*package.split(".")[1:], last)
    path = folder / "__init__.py" if folder.is_dir() else folder.with_suffix(".py")
    return ast.parse(path.read_text(encoding="utf-8"))


def _exported(module: str) -> list[str]:
    """The names in `__all__`."""
    for node in _tree(module).body:
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == "__all__" for t in node.targets):
            return list(ast.literal_eval(node.value))
    return []


def _imported_names(module: str) -> dict[str, str]:
    """Where the names of a module come from, of those from this library."""
    nodes = [(node, node.module or "") for node in _tree(module).body if isinstance(node, ast.ImportFrom)]
    own = [(node, home) for node, home in nodes if home.startswith("vardax.")]
    return {alias.asname or alias.name: home for node, home in own for alias in node.names}


def _class(module: str, name: str) -> ast.ClassDef | None:
    return next((n for n in _tree(module).body if isinstance(n, ast.ClassDef) and n.name == name), None)


def _has(module: str, definition: ast.ClassDef, member: str) -> bool:
    """Whether a class or one of its bases in this library defines a method."""
    if any(isinstance(node, ast.FunctionDef) and node.name == member for node in definition.body):
        return True
    for base in definition.bases:
        if isinstance(base, ast.Name):
            home = _imported_names(module).get(base.id, module)
            above = _class(home, base.id)
            if above is not None and _has(home, above, member):
                return True
    return False
