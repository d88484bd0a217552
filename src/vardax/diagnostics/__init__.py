"""Checks of an assimilation against its own assumptions, and of its uncertainty against a truth.

From what an analysis returns, without a truth:

- `consistency`: chi-square 2 J(x*) / p
- `costs`: J by term and instrument
- `innovations`, `desroziers`: OMB, OMA and increments; the size of B and R from them
- `signal`: degrees of freedom for signal, also before the values are known; `influence`: the matrix HK behind it
- `hessian`: spectrum and condition number
- `impact`: what each observation did to a quantity of the analysis

Against a truth, or verifying observations:

- `rank_histogram`, `crps`, `reliability` (spread against skill, coverage of intervals)

Most take `problem = method.problem(batch)` and the `Analysis`, so that masks, correlated R, positions and the model are
those of the analysis.
"""

from vardax.diagnostics.consistency import chi_square, chi_square_sampling_error
from vardax.diagnostics.costs import CostReport, CostRow, cost_report
from vardax.diagnostics.crps import crps_ensemble, crps_gaussian, fair_crps_ensemble
from vardax.diagnostics.desroziers import (
    ErrorCrossProducts,
    ErrorScales,
    ErrorVariances,
    error_cross_products,
    error_scales,
    error_variances,
    tuned_scales,
)
from vardax.diagnostics.hessian import HessianSpectrum, hessian_spectrum
from vardax.diagnostics.impact import (
    ObservationImpact,
    ObservationSensitivity,
    observation_impact,
    observation_sensitivity,
)
from vardax.diagnostics.influence import ObservationInfluence
from vardax.diagnostics.innovations import Innovations, InnovationStatistics, innovations
from vardax.diagnostics.rank_histogram import RankHistogram, rank_histogram, uniformity_test
from vardax.diagnostics.reliability import SpreadSkill, ensemble_coverage, interval_coverage, spread_skill
from vardax.diagnostics.signal import DegreesOfFreedom, degrees_of_freedom, information_preview

__all__ = [
    "CostReport",
    "CostRow",
    "DegreesOfFreedom",
    "ErrorCrossProducts",
    "ErrorScales",
    "ErrorVariances",
    "HessianSpectrum",
    "InnovationStatistics",
    "Innovations",
    "ObservationImpact",
    "ObservationInfluence",
    "ObservationSensitivity",
    "RankHistogram",
    "SpreadSkill",
    "chi_square",
    "chi_square_sampling_error",
    "cost_report",
    "crps_ensemble",
    "crps_gaussian",
    "degrees_of_freedom",
    "ensemble_coverage",
    "error_cross_products",
    "error_scales",
    "error_variances",
    "fair_crps_ensemble",
    "hessian_spectrum",
    "information_preview",
    "innovations",
    "interval_coverage",
    "observation_impact",
    "observation_sensitivity",
    "rank_histogram",
    "spread_skill",
    "tuned_scales",
    "uniformity_test",
]
