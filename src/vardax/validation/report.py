"""What a validation returns: one row per check, and a verdict.

A check measures one number and compares it with a limit. A `ValidationReport` is the table of the checks made on one
object. It is true when all of them passed, prints as text, and can raise:

    report = covariance_test(my_covariance)
    print(report)                # the table and the verdict
    assert report                # in your own tests: the failing table is the message of
    report.raise_if_failed()     # this one
"""

import textwrap
from collections.abc import Iterable
from dataclasses import dataclass

__all__ = ["Check", "ValidationError", "ValidationReport"]

LINE = 110


class ValidationError(AssertionError):
    """A validation failed; the message is its table."""


@dataclass(frozen=True)
class Check:
    """One row: what was measured, the limit, and what to look at when the limit is broken.

    `measured` has to be at most `limit`, or at least `limit` with `at_least=True`. NaN never passes.

    >>> Check("symmetric", 1e-6, 1e-12, "Bu.v and u.Bv differ").passed
    False
    """

    name: str
    measured: float
    limit: float
    meaning: str
    at_least: bool = False

    @property
    def passed(self) -> bool:
        return bool(self.measured >= self.limit if self.at_least else self.measured <= self.limit)


@dataclass(frozen=True)
class ValidationReport:
    """The table and the verdict of one validation.

    - `title`: the object and the test;
    - `rows`: the checks, each with `name`, `measured`, `limit`, `passed` and `meaning`;
    - `notes`: what was not checked and why, and the numbers behind a row.

    >>> report = ValidationReport("MyOperator", (Check("adjoint", 0.2, 1e-12, "the adjoint is not the transpose"),))
    >>> report.passed, [row.name for row in report.failures]
    (False, ['adjoint'])
    """

    title: str
    rows: tuple[Check, ...]
    notes: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        return all(row.passed for row in self.rows)

    @property
    def failures(self) -> tuple[Check, ...]:
        return tuple(row for row in self.rows if not row.passed)

    @property
    def verdict(self) -> str:
        """PASSED, or FAILED and what to look at: the first failing row says most, the later ones may follow from it."""
        if self.passed:
            return f"PASSED: {_count(len(self.rows))} within the limits."
        names = "; ".join(row.name for row in self.failures)
        return f"FAILED: {len(self.failures)} of {_count(len(self.rows))}: {names}. Look at: {self.failures[0].meaning}"

    def __bool__(self) -> bool:
        return self.passed

    def __str__(self) -> str:
        lines = [self.title, *_table(self.rows), *(_wrapped(f"note: {note}") for note in self.notes)]
        return "\n".join([*lines, _wrapped(self.verdict)])

    def __getitem__(self, name: str) -> Check:
        """The row with this name."""
        for row in self.rows:
            if row.name == name:
                return row
        raise KeyError(f"no check named {name!r} in this report; it has {', '.join(row.name for row in self.rows)}.")

    def raise_if_failed(self) -> "ValidationReport":
        """The report itself, or a `ValidationError` with the table as its message."""
        if not self.passed:
            raise ValidationError(str(self))
        return self


def _count(n: int) -> str:
    return f"{n} check" if n == 1 else f"{n} checks"


def _wrapped(text: str) -> str:
    paragraphs = text.split("\n")
    return "\n".join(textwrap.fill(p, LINE, initial_indent="  ", subsequent_indent="    ") for p in paragraphs)


def _table(rows: Iterable[Check]) -> list[str]:
    """Aligned columns: name, measured, limit, verdict of the row."""
    cells = [("check", "measured", "limit", "")]
    for row in rows:
        limit = f"{'>=' if row.at_least else '<='} {row.limit:.3g}"
        cells.append((row.name, f"{row.measured:.3g}", limit, "ok" if row.passed else "FAILED"))
    widths = [max(len(line[column]) for line in cells) for column in range(4)]
    return [
        f"  {name:<{widths[0]}}  {measured:>{widths[1]}}  {limit:<{widths[2]}}  {result}".rstrip()
        for name, measured, limit, result in cells
    ]
