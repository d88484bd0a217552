"""The loop of every cycle: entries in, one update per cycle, history out.

    entries of cycle i   obs_source(i * stride), ..., obs_source(i * stride + window - 1)
    carry, record        = update(carry, entries, number=i, time, obs_err_cov)

`update` is a module of the cycle at hand (a filter's forecast and analysis, a smoother's window). With a stacked array
all cycles are one compiled `lax.scan`; with a callable or an iterator the host asks for the entries and runs one
compiled update per cycle. Values of states, observations, times and numbers are traced: only new shapes compile.
"""

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from vardax.cycle.sources import as_observations, check_length, first_number
from vardax.cycle.state import CycleHistory, DAState
from vardax.dynamics.stepping import in_state_dtype, step_convention
from vardax.types import Analysis, ConvergenceError, ConvergenceWarning, float_array, is_traced

__all__ = ["Update", "advance", "analyse", "check_same_structure", "run_cycles", "wants_strict"]

Update = Callable[..., tuple[PyTree, CycleHistory]]
"""update(carry, entries, number, time, obs_err_cov) -> (carry, record of this cycle)."""


def run_cycles(
    update: Update,
    carry: PyTree[Array],
    da_state: DAState,
    source: Any,
    *,
    n_steps: int,
    dt: Any,
    window: int = 1,
    stride: int = 1,
    save_history: bool,
    strict: bool = False,
) -> tuple[PyTree[Array], DAState]:
    """`n_steps` cycles from `da_state` on; the new clock has their history in its extras when asked for.

    `dt` is the time between entries. `strict` raises where an analysis did not converge, instead of a warning.
    """
    start = float_array(da_state.t, jnp.result_type(float))
    interval = float_array(dt, start.dtype) * stride
    plan, update = _Plan(n_steps, window, stride, save_history), jax.tree.map(_hashable, update)
    if callable(source):
        first = first_number(da_state.cycle_count, carry)
        carry, history, failures = _loop(update, carry, source, first, start, interval, da_state.obs_err_cov, plan)
    else:
        if source is not None:
            check_length(source, da_state.cycle_count, n_steps, window, stride)
        first = jnp.asarray(da_state.cycle_count, jnp.int32)
        carry, history, failures = _scan(update, carry, source, first, start, interval, da_state.obs_err_cov, plan)
    _tell(failures, n_steps, strict)
    extras = da_state.extras if history is None else {**(da_state.extras or {}), "history": history}
    on_host = isinstance(da_state.t, int | float) and isinstance(dt, int | float)
    t = da_state.t + n_steps * stride * dt if on_host else start + n_steps * interval
    return carry, DAState(t, da_state.cycle_count + n_steps, da_state.obs_err_cov, extras)


class _Plan(NamedTuple):
    """What is fixed when a cycle is compiled."""

    n_steps: int
    window: int
    stride: int
    save_history: bool


@eqx.filter_jit
def _scan(update, carry, source, first, start, interval, obs_err_cov, plan):
    update = jax.tree.map(_unwrapped, update)

    def one(state, k):
        carry, failures = state
        number = first + k
        entries = None
        if source is not None:
            chosen = jax.lax.dynamic_slice_in_dim(source, number * plan.stride, plan.window)
            entries = [chosen[j] for j in range(plan.window)]
        carry, record = update(carry, entries, number, start + k.astype(start.dtype) * interval, obs_err_cov)
        return (carry, failures + _failed(record)), record if plan.save_history else None

    steps = jnp.arange(plan.n_steps, dtype=jnp.int32)
    (carry, failures), history = jax.lax.scan(one, (carry, jnp.zeros((), jnp.int32)), steps)
    return carry, history, failures


def _loop(update, carry, ask, first, start, interval, obs_err_cov, plan):
    records, failures = [], 0
    for k in range(plan.n_steps):
        entries = [as_observations(ask((first + k) * plan.stride + j)) for j in range(plan.window)]
        number, time = jnp.asarray(first + k, jnp.int32), start + k * interval
        carry, record, failed = _one(update, carry, entries, number, time, obs_err_cov)
        failures += int(failed)
        records += [record] if plan.save_history else []
    stacked = jax.tree.map(lambda *leaves: jnp.asarray(np.stack(leaves)), *records) if records else None
    return carry, stacked, failures


@eqx.filter_jit
def _one(update, carry, entries, number, time, obs_err_cov):
    carry, record = jax.tree.map(_unwrapped, update)(carry, entries, number, time, obs_err_cov)
    return carry, record, _failed(record)


class _ByIdentity:
    """A user's object that has no hash (a plain dataclass, say), made static under jit by what it is."""

    def __init__(self, value: Any):
        self.value = value

    def __hash__(self) -> int:
        return id(self.value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _ByIdentity) and self.value is other.value


def _hashable(leaf: Any) -> Any:
    return leaf if eqx.is_array(leaf) or getattr(leaf, "__hash__", None) else _ByIdentity(leaf)


def _unwrapped(leaf: Any) -> Any:
    return leaf.value if isinstance(leaf, _ByIdentity) else leaf


def _failed(record: CycleHistory) -> Array:
    """1 where the analysis says that it did not converge."""
    if record.report is None:
        return jnp.zeros((), jnp.int32)
    return jnp.logical_not(record.report.converged).astype(jnp.int32)


def _tell(failures: Any, n_steps: int, strict: bool) -> None:
    """Not converged is never silent; under the user's own jit only the history can say it."""
    if is_traced(failures) or not int(failures):
        return
    message = (
        f"{int(failures)} of {n_steps} analyses of a cycle did not converge; its history says why (report.status)."
    )
    if strict:
        raise ConvergenceError(message)
    warnings.warn(message, ConvergenceWarning, stacklevel=4)


def advance(forward: Any, state: PyTree[Array], time: Array) -> PyTree[Array]:
    """One `step` of `dt` from `time`, which a model that asks for it is told."""
    call = step_convention(forward.step, f"{type(forward).__name__}.step")
    return call(forward.step, state, in_state_dtype(forward.dt, state), in_state_dtype(time, state))


def analyse(
    step: Any, forecast: PyTree[Array], observations: PyTree, obs_op: Any, obs_err_cov: Any
) -> tuple[PyTree[Array], Analysis | None]:
    """The analysis state that the cycle carries on, and the whole `Analysis` where the step offers one."""
    if not hasattr(step, "analyse"):
        return step(forecast, observations, obs_op=obs_op, obs_err_cov=obs_err_cov), None
    analysis = step.analyse(forecast, observations, obs_op=obs_op, obs_err_cov=obs_err_cov)
    if analysis.trajectory is None:
        return analysis.state, analysis
    return jax.tree.map(lambda path: path[-1], analysis.trajectory), analysis


def wants_strict(step: Any) -> bool:
    """Whether the method behind an analysis step asks for an error where it does not converge."""
    return bool(getattr(getattr(step, "method", None), "strict", False))


def check_same_structure(found: PyTree[Array], expected: PyTree[Array], what: str) -> None:
    """A cycle hands its state on, so forecast and analysis must look like the state that came in."""

    def describe(tree):
        return jax.tree.map(lambda leaf: f"{leaf.dtype}{list(leaf.shape)}", tree)

    if jax.tree.structure(found) != jax.tree.structure(expected) or describe(found) != describe(expected):
        raise ValueError(
            f"the {what} is {describe(found)}, expected {describe(expected)}, as the state that the cycle was given: "
            "a cycle carries its state on, so shapes and dtypes must stay."
        )
