"""A method as the update of a cycle: forecast and observations in, analysis out."""

from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from vardax.minimisers.observed import ObservedSamples
from vardax.minimisers.problem import BatchedProblem
from vardax.types import Analysis, float_array, observed_entries

__all__ = ["MethodAnalysisStep"]


class MethodAnalysisStep(eqx.Module):
    """A method as the update of a cycle, on one state without a batch axis.

    The forecast is the background. `obs` is one array, or a list of arrays for a window whose entry 0 is valid at the
    forecast time; NaN means missing. `obs_op` and `obs_err_cov` replace the method's own unless they are None. The
    result is the state that the cycle carries on: the analysis, or its model state at the end of the window.
    """

    method: Any

    def __call__(self, forecast: PyTree[Array], obs: Any, *, obs_op: Any = None, obs_err_cov: Any = None) -> Any:
        analysis = self.analyse(forecast, obs, obs_op=obs_op, obs_err_cov=obs_err_cov)
        if analysis.trajectory is None:
            return analysis.state
        return jax.tree.map(lambda x: x[-1], analysis.trajectory)

    def analyse(self, forecast: PyTree[Array], obs: Any, *, obs_op: Any = None, obs_err_cov: Any = None) -> Analysis:
        """The `Analysis` behind the step."""
        entries = list(obs) if isinstance(obs, Sequence) else [obs]
        value, mask = observed_entries(jnp.stack([float_array(entry) for entry in entries]))
        overrides = {"background": forecast}
        if obs_op is not None and obs_op is not self.method.obs_op:
            overrides["obs_op"] = obs_op
        if obs_err_cov is not None:
            overrides["obs_cov_op"] = obs_err_cov
        window = ObservedSamples(value=value[None], mask=mask[None])
        analysis = self.method.analyse(window, **overrides)
        return jax.tree.map(lambda a: a[0] if eqx.is_array(a) else a, analysis)

    def problem(self, batch: Any) -> BatchedProblem:
        """The method's control-space problem of a batch."""
        return self.method.problem(batch)
