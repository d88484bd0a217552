"""Run the examples (`>>>`) in the docstrings of every module of vardax, with JAX's defaults.

python docs/run_docstrings.py [module ...]
"""

import doctest
import importlib
import pkgutil
import sys

import vardax

OPTIONS = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS


def main() -> None:
    """Run the named modules, or all; say how many examples there were, and exit with 1 if one failed."""
    found = [info.name for info in pkgutil.walk_packages(vardax.__path__, "vardax.")]
    names = sys.argv[1:] or ["vardax", *(name for name in found if not name.endswith("__main__"))]
    results = [doctest.testmod(importlib.import_module(name), optionflags=OPTIONS) for name in names]
    failed = sum(result.failed for result in results)
    print(f"{sum(result.attempted for result in results)} examples in {len(names)} modules, {failed} failed")
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
