r"""Filter cycles: forecast, analysis, forecast, analysis, ...

    x_f(i) = M(x_a(i-1))                 one step of dt; the forecast is the background of the analysis
    x_a(i) = analysis(x_f(i), y(i))      y(i) = obs_source(i)
    t += dt,  cycle_count += 1

Forecast-aware: the analysis step is given the forecast itself, never a fixed background, and the history keeps both.
"""

from typing import Any

import equinox as eqx
import jax
from jaxtyping import Array, PyTree

from vardax.cycle.engine import advance, analyse, check_same_structure, run_cycles, wants_strict
from vardax.cycle.sources import as_source
from vardax.cycle.state import CycleHistory, CycleReport, DAState, count_observed
from vardax.protocols import AnalysisStep
from vardax.types import float_array

__all__ = ["DACycle", "VarDACycle", "analysis_step_of", "check_parts", "positive_count"]


class _FilterUpdate(eqx.Module):
    """One forecast and its analysis."""

    forward: Any
    obs_op: Any
    step: Any

    def __call__(self, state, entries, number, time, obs_err_cov):
        forecast = advance(self.forward, state, time)
        check_same_structure(forecast, state, "forecast")
        observations = None if entries is None else entries[0]
        if observations is None:
            updated, report = forecast, None
        else:
            updated, found = analyse(self.step, forecast, observations, self.obs_op, obs_err_cov)
            check_same_structure(updated, state, "analysis")
            report = None if found is None else CycleReport.of(found)
        valid = time + float_array(self.forward.dt, time.dtype)
        return updated, CycleHistory(valid, forecast, updated, count_observed(observations), report)


class DACycle(eqx.Module):
    """A cycle of forecasts and analyses, called as `state, da_state = cycle(state, da_state)`.

    - `forward_model`: moves the state by one interval, `step(state, dt)`.
    - `obs_op`: handed to the analysis step; None leaves it to the step.
    - `analysis_step`: `step(forecast, obs, *, obs_op, obs_err_cov) -> analysis`. One with `analyse` (the same, giving
      an `Analysis`) has its costs and iterations in the history.
    - `obs_source`: the observations of cycle i, as `obs_source(i)`, an iterator, or an array (cycles, *obs); NaN is
      missing. Scattered `Observations` come from the first two or as a list. None: a free run of the model.
    - `n_steps`: cycles per call. `save_history`: keep `da_state.extras["history"]`, a `CycleHistory`.

    With an array the cycles of a call are one compiled loop. Under the user's own jit only an array will do.

    >>> import jax.numpy as jnp
    >>> from types import SimpleNamespace
    >>> halve = SimpleNamespace(step=lambda x, dt: 0.5 * x, dt=1.0, state_signature=None)
    >>> nudge = lambda forecast, obs, *, obs_op, obs_err_cov: forecast + 0.5 * (obs - forecast)
    >>> cycle = DACycle(halve, None, nudge, obs_source=jnp.array([[3.0], [4.0]]), n_steps=2)
    >>> state, da_state = cycle(jnp.array([2.0]), DAState())
    >>> state.tolist(), da_state.t, da_state.cycle_count, da_state.extras["history"].forecast.tolist()
    ([2.5], 2.0, 2, [[1.0], [1.0]])
    """

    forward_model: Any
    obs_op: Any
    analysis_step: Any
    obs_source: Any
    n_steps: int = eqx.field(static=True)
    save_history: bool = eqx.field(static=True)

    def __init__(
        self,
        forward_model: Any,
        obs_op: Any,
        analysis_step: Any,
        obs_source: Any = None,
        n_steps: int = 1,
        save_history: bool = True,
    ):
        check_parts(forward_model, analysis_step)
        self.forward_model, self.obs_op, self.analysis_step = forward_model, obs_op, analysis_step
        self.obs_source = as_source(obs_source, window=1)
        self.n_steps, self.save_history = positive_count("n_steps", n_steps), save_history

    def __call__(self, state: PyTree, da_state: DAState | None = None) -> tuple[PyTree[Array], DAState]:
        """The state after the last of `n_steps` analyses, and the clock at that time."""
        return run_cycles(
            _FilterUpdate(self.forward_model, self.obs_op, self.analysis_step),
            jax.tree.map(float_array, state),
            DAState() if da_state is None else da_state,
            self.obs_source,
            n_steps=self.n_steps,
            dt=self.forward_model.dt,
            save_history=self.save_history,
            strict=wants_strict(self.analysis_step),
        )


class VarDACycle(eqx.Module):
    """A `DACycle` with the analysis step of a method: `VarDACycle(forward, obs_op, method, obs_source=..., ...)`.

    The method's own `prior_mean` is not used: the forecast is the background.
    """

    cycle: DACycle

    def __init__(self, forward: Any, obs_op: Any, method: Any, **kw: Any):
        self.cycle = DACycle(forward, obs_op, analysis_step_of(method), **kw)

    def __call__(self, state: PyTree, da_state: DAState | None = None) -> tuple[PyTree[Array], DAState]:
        """As `DACycle`."""
        return self.cycle(state, da_state)


def analysis_step_of(method: Any) -> AnalysisStep:
    """The analysis step of a method."""
    if not hasattr(method, "as_analysis_step"):
        raise TypeError(
            f"`method` is a {type(method).__name__} without `as_analysis_step`, expected a method of vardax.models; a "
            "bare analysis step goes into DACycle or SmootherCycle."
        )
    return method.as_analysis_step()


def check_parts(forward: Any, step: Any) -> None:
    """Refuse what is no model and what is no analysis step."""
    missing = [name for name in ("step", "dt") if not hasattr(forward, name)]
    if missing:
        raise TypeError(
            f"`forward_model` is a {type(forward).__name__} without {' and '.join(missing)}, expected "
            "`step(state, dt)` and `dt`; vardax.dynamics.DiscreteForward(step_fn, dt) makes one of a function."
        )
    if not callable(step):
        raise TypeError(
            f"`analysis_step` is a {type(step).__name__}, expected a callable (forecast, obs, *, obs_op, obs_err_cov). "
            "A method gives one by `method.as_analysis_step()`; VarDACycle and VarSmootherCycle take the method."
        )


def positive_count(name: str, value: Any) -> int:
    """`value` as a whole number of at least one."""
    if int(value) != value or value < 1:
        raise ValueError(f"`{name}` is {value!r}, expected a whole number of at least 1.")
    return int(value)
