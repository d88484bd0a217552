r"""What each term contributed to J, at the background and at the analysis.

    J = J_b + Σ_i J_o,i + J_q + J_θ + J_c          i: the instruments

The terms are in every `Analysis`; `cost_report` sets them side by side, summed over the samples of a batch. In ADAO
these are CostFunctionJb and CostFunctionJo, in OOPS the terms that a `CostFunction` prints.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vardax.types import Analysis, CostTerms

__all__ = ["CostReport", "CostRow", "cost_report"]


@dataclass(frozen=True)
class CostRow:
    """One term of J: its name, its value at the background and its value at the analysis."""

    name: str
    background: float
    analysis: float


@dataclass(frozen=True)
class CostReport:
    """The terms of J, those that a problem does not have left out; the last row is their sum."""

    rows: tuple[CostRow, ...]

    def __getitem__(self, name: str) -> CostRow:
        """The row of this name."""
        for row in self.rows:
            if row.name == name:
                return row
        raise KeyError(f"no term named {name!r} in this report; it has {', '.join(row.name for row in self.rows)}.")

    def __str__(self) -> str:
        width = max(len("term"), *(len(row.name) for row in self.rows))
        lines = [f"{'term':<{width}}  {'background':>12}  {'analysis':>12}"]
        lines += [f"{row.name:<{width}}  {row.background:12.5g}  {row.analysis:12.5g}" for row in self.rows]
        return "\n".join(lines)


def cost_report(analysis: Analysis, instruments: Sequence[str] | None = None) -> CostReport:
    """The terms of J of an analysis, with J_o by instrument; `instruments` are their names (a fusion's `ids`)."""
    first, last = _terms(analysis.cost.first, instruments), _terms(analysis.cost.last, instruments)
    rows = [CostRow(name, first[name], last[name]) for name in first]
    optional = {"J_q", "J_theta", "J_c"}
    kept = [row for row in rows if row.name not in optional or row.background or row.analysis]
    return CostReport((*kept, CostRow("J", sum(r.background for r in kept), sum(r.analysis for r in kept))))


def _terms(terms: CostTerms, instruments: Sequence[str] | None) -> dict[str, float]:
    """Each term summed over the samples, by name."""
    by_instrument = np.asarray(terms.J_o_by_instrument)
    n = by_instrument.shape[-1]
    names = [str(i) for i in range(n)] if instruments is None else list(instruments)
    if len(names) != n:
        raise ValueError(f"cost_report: `instruments` has {len(names)} names, expected {n}, one per instrument.")
    each = by_instrument.reshape(-1, n).sum(axis=0)
    observations = {f"J_o[{name}]": float(value) for name, value in zip(names, each, strict=True)}
    if n == 1 and instruments is None:
        observations = {"J_o": float(each[0])}
    others = {name: float(np.sum(np.asarray(getattr(terms, name)))) for name in ("J_b", "J_q", "J_theta", "J_c")}
    return {"J_b": others.pop("J_b"), **observations, **others}
