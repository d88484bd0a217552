"""The ranks of simulation-based calibration, and whether they could be uniform.

Four tests, each on every statistic, and each asked as one question of the worst of them:

    bias      the histogram has no slope                 Σ_k z_k (k - k̄),  in standard deviations
    spread    it is neither a U nor a dome               Σ_k z_k (|k - k̄| - mean),  in standard deviations
    uniform   Pearson's χ² = Σ_k z_k²                     z_k = (counts_k - expected) / √expected
    ECDF      max_r |F_N(r) - (r + 1) / (L + 1)|          beside the band √(ln(2/α) / 2N)

The band holds for all r at once and for every N (Dvoretzky, Kiefer and Wolfowitz, with Massart's constant).
"""

import dataclasses
import math
import statistics
from collections.abc import Mapping

import numpy as np

from vardax.diagnostics.rank_histogram import RankHistogram, uniformity_test
from vardax.validation.report import Check, ValidationReport

__all__ = ["CalibrationReport"]

MOST_BINS, LEAST_EXPECTED = 20, 10
TESTS = 4


@dataclasses.dataclass(frozen=True)
class CalibrationReport:
    """A `ValidationReport` of the tests, with the numbers behind it.

    - `report`: the table and the verdict; `passed`, `verdict`, `raise_if_failed()` and the truth value are its own.
    - `ranks`: for each statistic the ranks of the truths among `n_draws` draws, (simulations,); -1 where not finite.
    - `histograms`: their counts in bins, with the tests of uniformity.
    - `ecdf_band`: how far the distribution of ranks may be from the uniform one.
    """

    report: ValidationReport
    ranks: Mapping[str, np.ndarray]
    n_draws: int
    histograms: Mapping[str, RankHistogram]
    ecdf_band: float

    @classmethod
    def of(
        cls, title: str, ranks: Mapping[str, np.ndarray], n_draws: int, significance: float, n_unconverged: int = 0
    ) -> "CalibrationReport":
        """The tests of these ranks."""
        usable = {name: r[r >= 0] for name, r in ranks.items()}
        least = min(len(r) for r in usable.values())
        n_bins = _bins(n_draws + 1, least)
        histograms = {name: uniformity_test(_counts(r, n_draws, n_bins)) for name, r in usable.items()}
        alpha = significance / (TESTS * len(ranks))
        band = math.sqrt(math.log(2 / alpha) / (2 * max(least, 1)))
        not_finite = sum(int(np.sum(r < 0)) for r in ranks.values())
        meaning = "statistics of truths or draws are not finite, and their ranks are left out"
        rows = (
            Check("finite", float(not_finite), 0.0, meaning),
            *_rows(histograms, {name: _ecdf_distance(r, n_draws) for name, r in usable.items()}, alpha, band),
        )
        notes = [_table(histograms)]
        if n_unconverged:
            notes.append(f"{n_unconverged} analyses did not converge: `tol` and `max_steps` of the method say when.")
        return cls(ValidationReport(title, rows, tuple(notes)), ranks, n_draws, histograms, band)

    @property
    def passed(self) -> bool:
        return self.report.passed

    @property
    def verdict(self) -> str:
        return self.report.verdict

    @property
    def p_values(self) -> dict[str, float]:
        """Of Pearson's test, for each statistic."""
        return {name: float(h.p_value) for name, h in self.histograms.items()}

    def ecdf_difference(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """(positions in 0 .. 1, F_N minus the uniform distribution), which stays within ± `ecdf_band`."""
        ranks = self.ranks[name]
        return _ecdf(ranks[ranks >= 0], self.n_draws)

    def __bool__(self) -> bool:
        return self.passed

    def __str__(self) -> str:
        return str(self.report)

    def __getitem__(self, name: str) -> Check:
        """The row with this name."""
        return self.report[name]

    def raise_if_failed(self) -> "CalibrationReport":
        """The report itself, or a `ValidationError` with the table as its message."""
        self.report.raise_if_failed()
        return self


def _rows(
    histograms: Mapping[str, RankHistogram], distances: Mapping[str, float], alpha: float, band: float
) -> tuple[Check, ...]:
    """The four tests, each of the statistic that does worst."""
    quantile = statistics.NormalDist().inv_cdf(1 - alpha / 2)
    slopes = {name: float(h.slope) for name, h in histograms.items()}
    bends = {name: float(h.convexity) for name, h in histograms.items()}
    p_values = {name: float(h.p_value) for name, h in histograms.items()}
    worst = [max(d, key=lambda name: _size(d[name])) for d in (slopes, bends, distances)]
    least = min(p_values, key=lambda name: p_values[name])
    side, width = "low" if slopes[worst[0]] > 0 else "high", "narrow" if bends[worst[1]] > 0 else "wide"
    return (
        Check("bias", abs(slopes[worst[0]]), quantile, f"the posterior lies too {side}, most for {worst[0]}"),
        Check("spread", abs(bends[worst[1]]), quantile, f"the posterior is too {width}, most for {worst[1]}"),
        Check("uniform", p_values[least], alpha, f"the ranks of {least} are not uniform", at_least=True),
        Check("ECDF", distances[worst[2]], band, f"the distribution of the ranks of {worst[2]} leaves its band"),
    )


def _size(x: float) -> float:
    """|x|, with NaN as the worst of all."""
    return math.inf if math.isnan(x) else abs(x)


def _bins(n_ranks: int, n_simulations: int) -> int:
    """The largest divisor of the number of ranks that leaves enough simulations to a bin."""
    most = max(2, min(MOST_BINS, n_simulations // LEAST_EXPECTED))
    divisors = [d for d in range(2, n_ranks + 1) if n_ranks % d == 0 and d <= most]
    if not divisors:
        raise ValueError(
            f"simulation_based_calibration: `n_draws` is {n_ranks - 1}, and its {n_ranks} ranks cannot be cut "
            f"into up to {most} equal bins; take 99."
        )
    return divisors[-1]


def _counts(ranks: np.ndarray, n_draws: int, n_bins: int) -> np.ndarray:
    return np.bincount(ranks // ((n_draws + 1) // n_bins), minlength=n_bins).astype(float)


def _ecdf(ranks: np.ndarray, n_draws: int) -> tuple[np.ndarray, np.ndarray]:
    uniform = np.arange(1, n_draws + 2) / (n_draws + 1)
    return uniform, np.cumsum(np.bincount(ranks, minlength=n_draws + 1)) / max(len(ranks), 1) - uniform


def _ecdf_distance(ranks: np.ndarray, n_draws: int) -> float:
    return float(np.max(np.abs(_ecdf(ranks, n_draws)[1])))


def _table(histograms: Mapping[str, RankHistogram]) -> str:
    width = max(len(name) for name in histograms)
    lines = [
        "ranks by statistic: p-value of uniformity; bias (+: the posterior lies high), bend (+: it is narrow) in σ"
    ]
    for name, h in histograms.items():
        lines.append(
            f"{name:<{width}}  p {float(h.p_value):.2g}  bias {-float(h.slope):+.1f}  bend {float(h.convexity):+.1f}"
        )
    return "\n".join(lines)
