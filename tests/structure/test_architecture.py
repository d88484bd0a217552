"""The architecture as tests: one-way imports, abstract-or-final classes, documented and exported modules.

The sources are read as syntax trees, so that imports inside functions count as well.
"""

import ast
import importlib
import importlib.util
import inspect
import pathlib
import pkgutil
from collections.abc import Iterator

import equinox as eqx
import pytest

import vardax

# Lowest floor first. A module imports from its own floor and from those below it.
FLOORS = (
    "types protocols",
    "adjoints",
    "covariances obs_operators dynamics networks",
    "priors grad_mod",
    "minimisers",
    "primitives posterior amortized latent simulation",
    "models",
    "training persist cycle validation diagnostics metrics",
    "data plotting",
    "experiments",
    "cli",
)
FLOOR = {package: height for height, packages in enumerate(FLOORS) for package in packages.split()}

# Subclasses of a final class, asked for by name: a one-step adjoint is a k-step one with k = 1, and the learned
# solver's dimensions only set defaults.
MAY_SUBCLASS = {
    "OneStepAdjoint": "KStepAdjoint",
    "FourDVarNet1D": "FourDVarNet",
    "FourDVarNet2D": "FourDVarNet",
    "FourDVarNet3D": "FourDVarNet",
}

PRIVATE_OF = ("jax", "jaxlib", "equinox", "lineax", "optimistix", "diffrax", "optax", "jaxtyping")
LONGEST_METHOD_FILE = 150

NAMES = [info.name for info in pkgutil.walk_packages(vardax.__path__, "vardax.") if not info.name.endswith("__main__")]
MODULES = [vardax, *(importlib.import_module(name) for name in NAMES)]
PACKAGES = [module for module in MODULES if hasattr(module, "__path__") and module is not vardax]
CLASSES = sorted(
    {
        value
        for module in MODULES
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, eqx.Module) and value.__module__.startswith("vardax.")
    },
    key=lambda cls: f"{cls.__module__}.{cls.__qualname__}",
)

every_module = pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
every_package = pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.__name__)
every_class = pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: f"{cls.__module__}.{cls.__qualname__}")


def source(module) -> str:
    return pathlib.Path(module.__file__).read_text(encoding="utf-8")


def imports(module) -> Iterator[tuple[str, str | None]]:
    """Every import of a module: (module, None) for `import module`, (module, name) for `from module import name`."""
    package = module.__name__ if hasattr(module, "__path__") else module.__name__.rpartition(".")[0]
    for node in ast.walk(ast.parse(source(module))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            origin = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
            yield from ((origin, alias.name) for alias in node.names)


def is_module(name: str) -> bool:
    return name == "vardax" or name in NAMES


def is_abstract(cls: type) -> bool:
    return bool(
        inspect.isabstract(cls) or getattr(cls, "__abstractvars__", ()) or getattr(cls, "__abstractclassvars__", ())
    )


@every_class
def test_a_class_is_abstract_or_final(cls):
    assert cls.__name__.lstrip("_").startswith("Abstract") == is_abstract(cls), (
        f"{cls.__name__} is {'abstract' if is_abstract(cls) else 'not abstract'}: its name says otherwise"
    )
    for base in cls.__mro__[1:]:
        if base.__module__.startswith("vardax.") and base.__name__ != MAY_SUBCLASS.get(cls.__name__):
            assert base.__name__.lstrip("_").startswith("Abstract"), (
                f"{cls.__name__} subclasses the final {base.__name__}"
            )


@every_module
def test_a_module_says_what_it_is_for(module):
    assert (module.__doc__ or "").strip()


@every_module
def test_a_module_says_what_it_exports(module):
    missing = [name for name in module.__all__ if not hasattr(module, name)]
    assert not missing, f"{module.__name__}.__all__ names {missing}, which it does not have"


@every_package
def test_every_final_class_of_a_package_is_exported(package):
    inside = {
        cls.__name__
        for cls in CLASSES
        if cls.__module__.rpartition(".")[0] == package.__name__ and not cls.__name__.startswith("_")
    }
    missing = inside - set(package.__all__)
    assert not missing, f"add {sorted(missing)} to {package.__name__}.__all__"


def test_every_package_has_a_floor():
    homeless = {name.split(".")[1] for name in NAMES} - set(FLOOR)
    assert not homeless, f"{sorted(homeless)} stand on no floor: put them where the data flow says"


@every_module
def test_imports_follow_the_data_flow(module):
    if module is vardax:
        return
    here = FLOOR[module.__name__.split(".")[1]]
    for origin, name in imports(module):
        target = origin if origin != "vardax" or name is None else f"vardax.{name}"
        parts = target.split(".")
        if parts[0] == "vardax" and len(parts) > 1:
            assert FLOOR[parts[1]] <= here, f"{module.__name__} imports {target}, which is downstream of it"


@every_module
def test_imports_come_from_the_defining_module(module):
    """Never through a package's `__init__`: a name has one home, and packages can be read in any order."""
    if module is vardax:  # the shop window shows what its packages export
        return
    for origin, name in imports(module):
        if origin.split(".")[0] != "vardax":
            continue
        assert name is not None, f"{module.__name__}: write `from {origin} import ...`"
        if is_module(f"{origin}.{name}"):
            continue
        home = importlib.import_module(origin)
        assert not hasattr(home, "__path__"), f"{module.__name__} imports {name} through the package {origin}"
        defined_in = getattr(getattr(home, name), "__module__", None)
        if defined_in and defined_in.startswith("vardax."):
            assert defined_in == origin, f"{module.__name__} imports {name} from {origin}; its home is {defined_in}"


def private_names(module) -> Iterator[str]:
    """Private parts of the libraries below, imported or reached through an attribute."""
    aliases = {}
    for node in ast.walk(ast.parse(source(module))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                aliases[alias.asname or alias.name.split(".")[0]] = alias.name
    paths = [origin if name is None else f"{origin}.{name}" for origin, name in imports(module)]
    for node in ast.walk(ast.parse(source(module))):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in aliases:
            paths.append(f"{aliases[node.value.id]}.{node.attr}")
    for path in paths:
        first, *rest = path.split(".")
        if first in PRIVATE_OF and any(
            part == "internal" or part.startswith("_") and not part.startswith("__") for part in rest
        ):
            yield path


@every_module
def test_nothing_depends_on_private_parts_of_other_libraries(module):
    assert not list(private_names(module))


@every_module
def test_there_are_no_stubs(module):
    raised = [node for node in ast.walk(ast.parse(source(module))) if isinstance(node, ast.Raise)]
    names = {node.id for statement in raised for node in ast.walk(statement) if isinstance(node, ast.Name)}
    assert "NotImplementedError" not in names, f"{module.__name__} promises something that it does not do"


METHOD_FILES = sorted(
    {cls.__module__ for cls in CLASSES if cls.__module__.startswith("vardax.models.") and not is_abstract(cls)}
)


@pytest.mark.parametrize("name", METHOD_FILES)
def test_a_method_file_can_be_read_in_one_go(name):
    lines = len(source(importlib.import_module(name)).splitlines())
    assert lines <= LONGEST_METHOD_FILE, f"{name} has {lines} lines: what methods share belongs into a shared module"
