"""What a cycle carries from one call to the next, and what it remembers.

A cycle is called as `state, da_state = cycle(state, da_state)`. `DAState` is the clock beside the model state; with
`save_history` its `extras["history"]` holds a `CycleHistory`, stacked over the cycles of the last call.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float, Int, PyTree

from vardax.types import Analysis, Observations

__all__ = ["CycleHistory", "CycleReport", "DAState"]


class DAState(eqx.Module):
    """The clock of a cycle, and what travels with it.

    - `t`: model time. Of a filter cycle the time of the state, of a smoother cycle the control time of its next window.
    - `cycle_count`: cycles done so far, which is the number of the next one.
    - `obs_err_cov`: the R handed to the analysis step; None leaves it to the step.
    - `extras`: a dict of the user's own entries, and of what the cycle adds (`"history"`, `"background"`).
    """

    t: ArrayLike = 0.0
    cycle_count: ArrayLike = 0
    obs_err_cov: Any = None
    extras: dict[str, Any] | None = None


class CycleReport(eqx.Module):
    """How each analysis went: the cost at the background and at the analysis, and how the minimisation ended."""

    cost_background: Float[Array, "..."]
    J_b: Float[Array, "..."]
    J_o: Float[Array, "..."]
    cost: Float[Array, "..."]
    n_iterations: Int[Array, "..."]
    converged: Bool[Array, "..."]
    status: Int[Array, "..."]

    @classmethod
    def of(cls, analysis: Analysis) -> "CycleReport":
        """The report of one analysis."""
        first, last = analysis.cost.first, analysis.cost.last
        return cls(
            first.total, last.J_b, last.J_o, last.total, analysis.n_iterations, analysis.converged, analysis.status
        )


class CycleHistory(eqx.Module):
    """What happened in each cycle; every array has the cycles on its first axis.

    - `time`: the time at which the analyses are valid.
    - `forecast`, `analysis`: the states at that time, before and after the analysis.
    - `n_observed`: observations that the analysis used.
    - `report`: costs, iterations and convergence; None where the analysis step has no `analyse`.
    """

    time: Float[Array, "..."]
    forecast: PyTree[Array]
    analysis: PyTree[Array]
    n_observed: Int[Array, "..."]
    report: CycleReport | None = None


def count_observed(observations: PyTree) -> Int[Array, ""]:
    """The number of finite entries in one cycle's observations, or of points that are valid."""
    if isinstance(observations, Observations):
        return jnp.sum(observations.valid != 0, dtype=jnp.int32)
    leaves = [leaf for leaf in jax.tree.leaves(observations) if eqx.is_inexact_array(leaf)]
    counts = [jnp.sum(jnp.isfinite(leaf), dtype=jnp.int32) for leaf in leaves]
    return sum(counts, jnp.zeros((), jnp.int32))
