"""Whether an analysis is the minimum that a posterior is the curvature of.

converged                                  yes
stopped by design, with J lowered          taken: the caller warns (incremental methods)
stopped at `max_steps`, or stalled         refused
a cost that was not finite                 refused
"""

import numpy as np

from vardax.types import Analysis, ConvergenceError, Status, is_traced

__all__ = ["check_minimum"]


def check_minimum(analysis: Analysis, owner: str, stops_by_design: bool) -> None:
    """Raise `ConvergenceError` for an analysis, any sample of it, that a posterior is refused for. Eager calls only."""
    if is_traced(analysis.converged) or np.all(np.asarray(analysis.converged)):
        return
    open_samples = ~np.asarray(analysis.converged)
    met_nan = np.asarray(analysis.status) == Status.NON_FINITE
    lowered = np.asarray(analysis.cost.last.total) < np.asarray(analysis.cost.first.total)
    if stops_by_design and np.all((lowered & ~met_nan) | ~open_samples):
        return
    remedy = "raise `max_steps`, or loosen `tol`"
    if np.any(met_nan):
        remedy = "look for what makes the model or the operator non-finite, or shorten the window"
    elif stops_by_design:
        remedy = "allow more loops in `config`, because none lowered the cost"
    status = Status(int(np.max(np.asarray(analysis.status)))).name
    raise ConvergenceError(
        f"{owner}.posterior: {int(np.sum(open_samples))} of {open_samples.size} analyses did not converge (status "
        f"{status}), {analysis.message()}. A posterior is the curvature of J at its minimum; {remedy}. `force=True` "
        "takes the analysis as it is."
    )
