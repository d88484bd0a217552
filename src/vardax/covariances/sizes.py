"""How large a matrix may be before a covariance refuses to build it.

Covariances work through products. A few questions about an operator that nothing is known about can only be answered
from its matrix; they are answered up to these sizes and refused beyond, instead of filling the memory.
"""

__all__ = ["DENSE_LIMIT", "RESTRICT_LIMIT", "TooLarge", "require_dense_size"]

DENSE_LIMIT = 8192
"""The largest number of rows of a matrix that is built from an operator (512 MiB in float64)."""

RESTRICT_LIMIT = 512
"""The largest dense observation-error block that is restricted to its observed entries by Cholesky factorisation."""


class TooLarge(ValueError):
    """An answer was asked for that needs a matrix of more than `DENSE_LIMIT` rows."""


def require_dense_size(owner: str, size: int, remedy: str = "use products (`mv`, `half`) instead") -> None:
    """Raise `TooLarge`, a `ValueError`, if a matrix of `size` rows is more than `DENSE_LIMIT`.

    >>> require_dense_size("half", 100)
    """
    if size > DENSE_LIMIT:
        raise TooLarge(f"{owner} needs a dense matrix of {size} rows, more than DENSE_LIMIT = {DENSE_LIMIT}; {remedy}.")
