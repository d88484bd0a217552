r"""Single-window experiments: many windows of one truth, each analysed on its own from the same background.

    truth        W windows of T + 1 states, `gap` steps apart, from one trajectory on the attractor
    observations y = H(x) + N(0, R) at every `every`-th state of a window, from its first on
    background   N(mean, B) at the start of each window, the same for all

A method with a window gets it whole; one without gets every state's observations alone, with the same background. The
windows are the samples of one batch, so a row is one call: the first compiles, the second is timed. What comes out is
what a cycle gives, with the windows' states one after the other, so that scores, tables and figures are the same.
"""

import dataclasses
import time
from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from vardax.cycle.state import CycleHistory, CycleReport
from vardax.dynamics.rollout import rollout
from vardax.experiments.results import Results, score_estimates
from vardax.experiments.twin import Estimate, Row, quietly
from vardax.experiments.uncertainty import uncertainty_of_windows
from vardax.simulation.observations import observe
from vardax.types import Batch1D

__all__ = ["Windows", "assimilate_windows", "observe_windows", "score_windows", "simulate_windows"]


@dataclasses.dataclass(frozen=True)
class Windows:
    """The windows of a truth and what is known of them. `observed` are the observed entries of a state."""

    forward: Any
    obs_op: Any
    obs_cov_op: Any
    observed: np.ndarray
    prior_mean: Float[Array, "n"]
    truth: Float[Array, "windows entries n"]
    observations: Float[Array, "windows entries p"]

    @property
    def in_state_space(self) -> np.ndarray:
        """The observations at their places in the state, NaN elsewhere: (windows entries, n)."""
        placed = np.full(self.truth.shape, np.nan, self.truth.dtype)
        placed[..., self.observed] = np.asarray(self.observations)
        return placed.reshape(-1, self.truth.shape[-1])


def simulate_windows(
    key: PRNGKeyArray,
    forward: Any,
    start: Float[Array, "n"],
    *,
    n_windows: int,
    n_steps: int,
    gap: int,
    spin_up: int,
) -> Float[Array, "windows entries n"]:
    """Windows of `n_steps` + 1 states, `gap` steps from start to start, after `spin_up` steps from near `start`."""
    near = start + 0.1 * jax.random.normal(key, start.shape, start.dtype)
    on_attractor = rollout(forward, near, 1, n_substeps=spin_up)[1]
    starts = rollout(forward, on_attractor, n_windows - 1, n_substeps=gap)
    return eqx.filter_jit(jax.vmap(lambda x: rollout(forward, x, n_steps)))(starts)


def observe_windows(
    key: PRNGKeyArray, truth: Array, obs_op: Any, obs_cov_op: Any, every: int
) -> Float[Array, "windows entries p"]:
    """Noisy observations of every `every`-th state; NaN at the others."""
    n_windows, n_entries, _ = truth.shape
    seen = jnp.tile(jnp.arange(n_entries) % every == 0, n_windows)
    return observe(key, _flat(truth), obs_op, obs_cov_op, mask=seen).reshape(n_windows, n_entries, -1)


def assimilate_windows(windows: Windows, row: Row) -> Estimate:
    """All windows by one method: its states, the background's, how the minimisations went, and seconds."""
    n_windows, n_entries, _ = windows.truth.shape
    if row.model is None:
        states = _background(windows) if row.takes_window else jnp.broadcast_to(windows.prior_mean, windows.truth.shape)
        return Estimate(row, _history(windows, states, np.zeros(n_windows, int), None), 0.0, 0.0, row.spread)
    y = windows.observations if row.takes_window else windows.observations.reshape(n_windows * n_entries, 1, -1)
    batch, seconds = Batch1D.from_observations(y), []
    for _ in range(2):
        begin = time.perf_counter()
        analysis = jax.block_until_ready(quietly(row.model.analyse, batch))
        seconds.append(time.perf_counter() - begin)
    states = analysis.trajectory if row.takes_window else analysis.state.reshape(windows.truth.shape)
    counts = np.isfinite(np.asarray(y)).reshape(y.shape[0], -1).sum(axis=1)
    used = np.flatnonzero(counts)  # a state without observations is no analysis
    report = jax.tree.map(lambda leaf: leaf[used], CycleReport.of(analysis))
    history = _history(windows, states, counts[used], report)
    return Estimate(row, history, max(seconds[0] - seconds[1], 0.0), seconds[1], row.spread)


def _background(windows: Windows) -> Float[Array, "windows entries n"]:
    """The model from the background's mean, the same in all windows."""
    one = rollout(windows.forward, windows.prior_mean, windows.truth.shape[1] - 1)
    return jnp.broadcast_to(one, windows.truth.shape)


def _history(windows: Windows, states: Array, counts: np.ndarray, report: CycleReport | None) -> CycleHistory:
    """The states of the windows one after the other, as those of a cycle, in numpy arrays."""
    times = windows.forward.dt * jnp.arange(windows.truth.shape[0] * windows.truth.shape[1]).astype(states.dtype)
    history = CycleHistory(times, _flat(_background(windows)), _flat(states), jnp.asarray(counts), report)
    return jax.tree.map(np.asarray, history)


def _flat(states: Array) -> Array:
    return states.reshape(-1, states.shape[-1])


def score_windows(
    windows: Windows, rows: list[Row], *, expected: Mapping[str, Any], left_out: Mapping[str, list[str]], watch: Any
) -> Results:
    """Run every row over all windows, and score it."""
    estimates = []
    for row in rows:
        with watch(1, row.name) if watch else nullcontext(lambda done: None) as advance:
            estimate, expects = assimilate_windows(windows, row), uncertainty_of_windows(windows, row)
            estimates.append(dataclasses.replace(estimate, spread=expects.spread, coverage=expects.coverage))
            advance(1)
    return score_estimates(
        estimates,
        _flat(windows.truth),
        windows.in_state_space,
        first=0,
        expected=expected,
        left_out=left_out,
    )
