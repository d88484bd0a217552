"""Where a posterior comes from: what is kept beside the numbers so that they can be made again.

`method`, `adapter`, `iterations`, `cost` (J at the analysis), `converged`, `status`, `instruments` (how many
observations of each were used, (B, instruments)), and `versions` of the libraries.
"""

import importlib.metadata
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from vardax.minimisers.problem import BatchedProblem, ControlSpaceProblem
from vardax.types import Analysis

__all__ = ["provenance_of"]

LIBRARIES = ("vardax", "jax", "equinox", "lineax", "optimistix")


def provenance_of(
    analysis: Analysis | PyTree[Array], problem: BatchedProblem | ControlSpaceProblem, adapter: Any, method: str
) -> dict[str, Any]:
    """The record of a posterior; of an analysis that is only a state, the parts that are known."""
    record = {"method": method, "adapter": type(adapter).__name__, "instruments": _counts(problem)}
    record["versions"] = {name: importlib.metadata.version(name) for name in LIBRARIES}
    if isinstance(analysis, Analysis):
        record |= {"iterations": analysis.n_iterations, "cost": analysis.cost.last.total}
        record |= {"converged": analysis.converged, "status": analysis.status}
    return record


@eqx.filter_jit
def _counts(problem: BatchedProblem | ControlSpaceProblem) -> Array:
    def one(sample: ControlSpaceProblem) -> Array:
        observed, seen = sample.observed, (sample.observed.mask != 0).astype(int)
        if observed.instrument is None or observed.n_instruments == 1:
            return jnp.sum(seen)[None]
        return jax.ops.segment_sum(seen.ravel(), observed.instrument.ravel(), num_segments=observed.n_instruments)

    return problem.map_samples(one)
