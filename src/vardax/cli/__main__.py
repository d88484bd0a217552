"""`python -m vardax.cli` is the `vardax` command."""

import sys

from vardax.cli.main import main

__all__: list[str] = []

if __name__ == "__main__":
    sys.exit(main())
