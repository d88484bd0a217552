r"""Smoother cycles: an analysis over a window of observation times, then the window moves on.

    window i      entries y(i·S), ..., y(i·S + W - 1),  W = window, S = stride
    x_0*          = analysis of those entries with the background at the window's start, where entry 0 is valid
    result        the state at the last entry, M^(W-1)(x_0*)
    background    of the next window: M^S(x_0*), a point of the analysed trajectory when S <= W - 1
    t += S dt,  cycle_count += 1

With `reuse=False` entries that an earlier window has assimilated are masked (NaN), so every observation is used once:
lag-L 4D-Var is `window=L+1, stride=1`. With `reuse=True` every window sees all its entries; then R has to be inflated
by the number of uses. The first call's state is the background at `da_state.t`, where entry 0 is valid.

Reference: M. Bocquet and P. Sakov, Joint state and parameter estimation with an iterative ensemble Kalman smoother,
Nonlin. Processes Geophys. 20 (2013), 803-818: windows, shifts, single and multiple assimilation.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from vardax.cycle.engine import analyse, check_same_structure, run_cycles, wants_strict
from vardax.cycle.filter import analysis_step_of, check_parts, positive_count
from vardax.cycle.sources import as_source
from vardax.cycle.state import CycleHistory, CycleReport, DAState, count_observed
from vardax.dynamics.rollout import rollout
from vardax.types import float_array, is_traced

__all__ = ["SmootherCycle", "VarSmootherCycle"]


class _WindowUpdate(eqx.Module):
    """One window: its analysis, the state at its last entry, and the background of the next window."""

    forward: Any
    obs_op: Any
    step: Any
    window: int = eqx.field(static=True)
    stride: int = eqx.field(static=True)
    reuse: bool = eqx.field(static=True)

    def __call__(self, carry, entries, number, time, obs_err_cov):
        background, _ = carry
        length = self.window - 1
        forecast = self._run(background, time, 0, length)
        check_same_structure(forecast, background, "forecast")
        if entries is None:
            end, analysis, observed = forecast, None, None
        else:
            observed = entries if self.reuse else self._mask_used(entries, number)
            end, analysis = analyse(self.step, background, observed, self.obs_op, obs_err_cov)
            check_same_structure(end, background, "analysis")
        following = self._next_background(background, end, analysis, entries is None, time)
        valid = time + length * float_array(self.forward.dt, time.dtype)
        report = None if analysis is None else CycleReport.of(analysis)
        return (following, end), CycleHistory(valid, forecast, end, count_observed(observed), report)

    def _mask_used(self, entries: list, number: Array) -> list:
        """NaN where an earlier window has had the entry: entries 0 .. W - S - 1 of all windows but the first."""
        used = max(self.window - self.stride, 0)
        hide = lambda leaf: jnp.where(number > 0, jnp.full_like(leaf, jnp.nan), leaf)  # noqa: E731
        return [jax.tree.map(hide, entry) if j < used else entry for j, entry in enumerate(entries)]

    def _next_background(self, background, end, analysis, free, time):
        if free:
            return self._run(background, time, 0, self.stride)
        if self.stride >= self.window - 1:
            return self._run(end, time, self.window - 1, self.stride)
        return jax.tree.map(lambda path: path[self.stride], analysis.trajectory)

    def _run(self, state: PyTree[Array], time: Array, first: int, last: int) -> PyTree[Array]:
        """The state at entry `last`, from the one at entry `first`."""
        start = time + first * float_array(self.forward.dt, time.dtype)
        return jax.tree.map(lambda path: path[-1], rollout(self.forward, state, last - first, t0=start))


class SmootherCycle(eqx.Module):
    """A cycle of overlapping or adjoining windows, called as `state, da_state = cycle(state, da_state)`.

    - `forward_model`, `obs_op`, `analysis_step`, `n_steps`, `save_history` as for `DACycle`; the step is given a list
      of `window` entries and returns the state at the last one.
    - `obs_source`: entry k is valid k intervals after the first call's state; a callable, an iterator, or an array.
    - `window`: entries per window. `stride`: entries from one window to the next. Windows that overlap by more than
      their end (stride < window - 1) need a step with `analyse`, because the next background is inside the window.
    - `reuse`: whether a window sees entries that an earlier one has assimilated.

    The state of the first call (cycle_count 0) is the background at the first window's start. Later calls go on where
    the last one ended: from the state when the windows adjoin (stride = window - 1), where it is the next background,
    and otherwise from `da_state.extras["background"]`.
    """

    forward_model: Any
    obs_op: Any
    analysis_step: Any
    obs_source: Any
    window: int = eqx.field(static=True)
    stride: int = eqx.field(static=True)
    n_steps: int = eqx.field(static=True)
    reuse: bool = eqx.field(static=True)
    save_history: bool = eqx.field(static=True)

    def __init__(
        self,
        forward_model: Any,
        obs_op: Any,
        analysis_step: Any,
        *,
        window: int,
        stride: int = 1,
        obs_source: Any = None,
        n_steps: int = 1,
        reuse: bool = False,
        save_history: bool = True,
    ):
        check_parts(forward_model, analysis_step)
        self.forward_model, self.obs_op, self.analysis_step = forward_model, obs_op, analysis_step
        self.window, self.stride = positive_count("window", window), positive_count("stride", stride)
        self.n_steps, self.reuse, self.save_history = positive_count("n_steps", n_steps), reuse, save_history
        self.obs_source = as_source(obs_source, self.window)
        if self.stride < self.window - 1 and not hasattr(analysis_step, "analyse"):
            raise ValueError(
                f"`stride` is {self.stride}, expected at least window - 1 = {self.window - 1}: the next window would "
                "start inside this one, but `analysis_step` has no `analyse` and so gives only the state at its end."
            )

    def __call__(self, state: PyTree, da_state: DAState | None = None) -> tuple[PyTree[Array], DAState]:
        """The state at the last entry of the last window, and the clock at the next window's start."""
        da_state = DAState() if da_state is None else da_state
        background = jax.tree.map(float_array, self._background(state, da_state))
        (following, end), da_state = run_cycles(
            _WindowUpdate(self.forward_model, self.obs_op, self.analysis_step, self.window, self.stride, self.reuse),
            (background, background),
            da_state,
            self.obs_source,
            n_steps=self.n_steps,
            dt=self.forward_model.dt,
            window=self.window,
            stride=self.stride,
            save_history=self.save_history,
            strict=wants_strict(self.analysis_step),
        )
        return end, da_state if self._adjoining else _with_background(da_state, following)

    @property
    def _adjoining(self) -> bool:
        """Whether the next window starts at the end of this one."""
        return self.stride == self.window - 1

    def _background(self, state: PyTree, da_state: DAState) -> PyTree:
        """The state at the start of the next window."""
        extras = da_state.extras or {}
        if self._adjoining or "background" not in extras:
            self._check_first(da_state)
            return state
        return extras["background"]

    def _check_first(self, da_state: DAState) -> None:
        if self._adjoining or is_traced(da_state.cycle_count):
            return
        count = int(np.asarray(da_state.cycle_count))
        if count:
            raise ValueError(
                f"`da_state` has cycle_count {count} but no extras['background'], the state at the next window's "
                "start; hand on the DAState that the last call returned, or begin anew with DAState(t=...)."
            )


class VarSmootherCycle(eqx.Module):
    """A `SmootherCycle` with the analysis step of a method: `VarSmootherCycle(forward, obs_op, method, window=...)`.

    Strong-constraint 4D-Var with lag L: `VarSmootherCycle(forward, obs_op, StrongFourDVar(...), window=L + 1)`.
    """

    cycle: SmootherCycle

    def __init__(
        self,
        forward: Any,
        obs_op: Any,
        method: Any,
        *,
        window: int,
        stride: int = 1,
        obs_source: Any = None,
        n_steps: int = 1,
        reuse: bool = False,
        save_history: bool = True,
    ):
        self.cycle = SmootherCycle(
            forward,
            obs_op,
            analysis_step_of(method),
            window=window,
            stride=stride,
            obs_source=obs_source,
            n_steps=n_steps,
            reuse=reuse,
            save_history=save_history,
        )

    def __call__(self, state: PyTree, da_state: DAState | None = None) -> tuple[PyTree[Array], DAState]:
        """As `SmootherCycle`."""
        return self.cycle(state, da_state)


def _with_background(da_state: DAState, background: PyTree[Array]) -> DAState:
    extras = {**(da_state.extras or {}), "background": background}
    return DAState(da_state.t, da_state.cycle_count, da_state.obs_err_cov, extras)
