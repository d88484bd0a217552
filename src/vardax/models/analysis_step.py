"""A method as the update of a cycle: forecast and observations in, analysis out."""

from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from vardax.minimisers.observed import ObservedSamples
from vardax.minimisers.problem import BatchedProblem
from vardax.types import Analysis, Observations, float_array, observed_entries

__all__ = ["MethodAnalysisStep"]


class MethodAnalysisStep(eqx.Module):
    """A method as the update of a cycle, on one state without a batch axis.

    The forecast is the background. `obs` is one array, or a list of arrays for a window whose entry 0 is valid at the
    forecast time; NaN means missing. Scattered observations are one `Observations`, of one time or of a window that
    starts at the forecast time (its `start`). `obs_op` and `obs_err_cov` replace the method's own unless they are
    None. The result is the state that the cycle carries on: the analysis, or its model state at the end of the window.
    """

    method: Any

    def __call__(self, forecast: PyTree[Array], obs: Any, *, obs_op: Any = None, obs_err_cov: Any = None) -> Any:
        analysis = self.analyse(forecast, obs, obs_op=obs_op, obs_err_cov=obs_err_cov)
        if analysis.trajectory is None:
            return analysis.state
        return jax.tree.map(lambda x: x[-1], analysis.trajectory)

    def analyse(self, forecast: PyTree[Array], obs: Any, *, obs_op: Any = None, obs_err_cov: Any = None) -> Analysis:
        """The `Analysis` behind the step."""
        window = [obs] if isinstance(obs, Observations) else _on_entries(obs)
        overrides = {"background": forecast}
        if obs_op is not None and obs_op is not self.method.obs_op:
            overrides["obs_op"] = obs_op
        if obs_err_cov is not None:
            overrides["obs_cov_op"] = obs_err_cov
        analysis = self.method.analyse(window, **overrides)
        return jax.tree.map(lambda a: a[0] if eqx.is_array(a) else a, analysis)

    def problem(self, batch: Any) -> BatchedProblem:
        """The method's control-space problem of a batch."""
        return self.method.problem(batch)


def _on_entries(obs: Any) -> ObservedSamples:
    """One array, or a list of one for each entry of a window, as samples of one."""
    entries = list(obs) if isinstance(obs, Sequence) else [obs]
    if any(isinstance(entry, Observations) for entry in entries):
        raise TypeError(
            "the observations of a window are a list of Observations, expected one Observations with all points of the "
            "window, each with its time, or a list of arrays."
        )
    value, mask = observed_entries(jnp.stack([float_array(entry) for entry in entries]))
    return ObservedSamples(value=value[None], mask=mask[None])
