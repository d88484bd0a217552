r"""Twin experiments: a simulated truth, its observations, and every method cycled over them.

    truth        x(k+1) = M(x(k)),  x(0) ~ N(first guess, x0_variance I),   k = 0 .. K - 1
    observations y(k) = H(x(k)) + N(0, R),                                  k = 1 .. K
    climatology  mean and covariance C of the truth's K + 1 states

`simulate` makes the twin, a `Row` says how a method is cycled over it, `assimilate` runs it (in equal pieces, so that
progress shows and compilation is timed apart), and gives an `Estimate`: trajectories, costs and seconds. The truth is
never shown to a method, but for its climatology.
"""

import dataclasses
import time
import warnings
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from vardax.cycle.filter import DACycle, VarDACycle
from vardax.cycle.smoother import VarSmootherCycle
from vardax.cycle.state import CycleHistory, DAState
from vardax.dynamics.discrete import DiscreteForward
from vardax.dynamics.rollout import rollout
from vardax.simulation.observations import observe
from vardax.types import ConvergenceWarning

__all__ = [
    "Estimate",
    "Row",
    "Twin",
    "assimilate",
    "climatology_forward",
    "interval_forward",
    "quietly",
    "simulate",
]

PIECES = 10
"""A run is cut into this many equal calls of the cycle: the first one compiles, the others time it."""


@dataclasses.dataclass(frozen=True)
class Twin:
    """A truth and what is known of it."""

    forward: Any
    obs_op: Any
    obs_cov_op: Any
    first_guess: Float[Array, "n"]
    truth: Float[Array, "entries n"]
    observations: Float[Array, "cycles p"]
    mean: Float[Array, "n"]
    covariance: Float[Array, "n n"]

    @property
    def n_cycles(self) -> int:
        return self.observations.shape[0]


def simulate(
    key: PRNGKeyArray,
    forward: Any,
    obs_op: Any,
    obs_cov_op: Any,
    *,
    first_guess: Float[Array, "n"],
    x0_variance: float,
    n_cycles: int,
) -> Twin:
    """The truth, its climatology and its observations, each with its own part of `key`."""
    for_start, for_noise = jax.random.split(key)
    start = first_guess + x0_variance**0.5 * jax.random.normal(for_start, first_guess.shape, first_guess.dtype)
    truth = eqx.filter_jit(rollout)(forward, start, n_cycles)
    observations = observe(for_noise, truth[1:], obs_op, obs_cov_op)
    return Twin(
        forward, obs_op, obs_cov_op, first_guess, truth, observations, jnp.mean(truth, axis=0), jnp.cov(truth.T)
    )


class _Constant(eqx.Module):
    """The step function that forgets where it was."""

    value: Float[Array, "n"]

    def __call__(self, state: Float[Array, "n"]) -> Float[Array, "n"]:
        return self.value


def climatology_forward(twin: Twin) -> DiscreteForward:
    """The model that forecasts the mean of the truth, whatever the state."""
    return DiscreteForward(_Constant(twin.mean), twin.forward.dt)


@dataclasses.dataclass(frozen=True)
class Row:
    """One row of the table: a method and how it is cycled.

    - `model`: the method; None is a run without observations.
    - `forward`: what makes the forecasts.
    - `takes_window`: analyse the interval before each observation time (4D methods) instead of that time alone.
    - `spread`: for rows without a method, the error that they expect of themselves.
    """

    name: str
    note: str
    forward: Any
    model: Any = None
    takes_window: bool = False
    spread: float | None = None

    def cycle(self, observations: Float[Array, "cycles p"], n_steps: int) -> Callable[..., Any]:
        """The cycle over `observations`, `n_steps` at a time."""
        if self.model is None:
            return DACycle(self.forward, None, _no_analysis, n_steps=n_steps)
        if not self.takes_window:
            return VarDACycle(self.forward, None, self.model, obs_source=observations, n_steps=n_steps)
        start = jnp.full_like(observations[:1], jnp.nan)  # nothing is observed at the first control time
        entries = jnp.concatenate([start, observations])
        return VarSmootherCycle(self.forward, None, self.model, window=2, obs_source=entries, n_steps=n_steps)


def _no_analysis(forecast: Any, obs: Any, *, obs_op: Any, obs_err_cov: Any) -> Any:
    return forecast


@dataclasses.dataclass(frozen=True)
class Estimate:
    """What a row gave: states before and after each analysis, the reports of the analyses, and seconds.

    `spread` and `coverage` are what it expects of its errors, and how often it is right (`uncertainty`).
    """

    row: Row
    history: CycleHistory
    compile_seconds: float
    run_seconds: float
    spread: float | None
    coverage: float | None = None


def assimilate(twin: Twin, row: Row, advance: Callable[[int], None] = lambda done: None) -> Estimate:
    """Cycle a row over all observations; `advance(done)` hears of every piece."""
    piece = -(-twin.n_cycles // min(PIECES, twin.n_cycles))
    n_pieces = -(-twin.n_cycles // piece)
    surplus = n_pieces * piece - twin.n_cycles
    observations = jnp.pad(twin.observations, ((0, surplus), (0, 0)), constant_values=jnp.nan)
    cycle = row.cycle(observations, piece)
    state, da_state, histories, seconds = twin.first_guess, DAState(), [], []
    for _ in range(n_pieces):
        begin = time.perf_counter()
        state, da_state = jax.block_until_ready(quietly(cycle, state, da_state))
        seconds.append(time.perf_counter() - begin)
        histories.append(jax.tree.map(np.asarray, da_state.extras["history"]))
        advance(piece)
    history = jax.tree.map(lambda *parts: np.concatenate(parts)[: twin.n_cycles], *histories)
    once = float(np.median(seconds[1:])) if n_pieces > 1 else 0.0
    compiling = max(seconds[0] - once, 0.0)
    return Estimate(row, history, compiling, sum(seconds) - compiling, row.spread)


def quietly(function: Callable[..., Any], *arguments: Any, **keywords: Any) -> Any:
    """A call whose unconverged analyses are counted in the table and so need no warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return function(*arguments, **keywords)


class _Interval(eqx.Module):
    """The step function of an interval of `n_steps` model steps."""

    model: Any
    n_steps: int = eqx.field(static=True)

    def __call__(self, state: Float[Array, "n"]) -> Float[Array, "n"]:
        return rollout(self.model, state, 1, n_substeps=self.n_steps)[-1]


def interval_forward(model: Any, n_steps: int) -> DiscreteForward:
    """The model whose step is the interval between observations, `n_steps` steps of `model`."""
    return DiscreteForward(_Interval(model, n_steps), model.dt * n_steps)
