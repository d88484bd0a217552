"""The two-level Lorenz-96 experiment at work: its windows, and its rows. Settings are in `lorenz96_two_level`."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vardax.covariances.diagonal import DiagonalCovariance
from vardax.dynamics.two_level_lorenz96 import TwoLevelLorenz96
from vardax.experiments.cycled import chosen_methods
from vardax.experiments.lorenz96_two_level import TwoLevelConfig
from vardax.experiments.recipes import lacking_slots, required_slots
from vardax.experiments.results import Results
from vardax.experiments.twin import Row
from vardax.experiments.windows import Windows, observe_windows, score_windows, simulate_windows
from vardax.obs_operators.point import PointObs

__all__ = ["assimilate_all", "make_rows", "make_windows"]

SPIN_UP, GAP = 4000, 400
"""Steps before the first window, and from one start to the next: 20 and 2 units of time."""

CLIMATOLOGY = 300
"""Windows of their own that the climatology is taken from, so that it does not depend on how many are scored."""


def assimilate_all(
    config: TwoLevelConfig, expected: Mapping[str, Any], watch: Callable[..., Any] | None = None
) -> Results:
    """Every row over all windows, in the precision asked for, and their scores."""
    with jax.enable_x64(config.precision == "float64"):
        windows, variances = make_windows(config)
        rows, left_out = make_rows(config, windows, variances)
        return score_windows(windows, rows, expected=expected, left_out=left_out, watch=watch)


def make_windows(config: TwoLevelConfig) -> tuple[Windows, Any]:
    """The windows with their observations, and the variances of the climatology."""
    dtype = jnp.dtype(config.precision)
    forward = TwoLevelLorenz96(config.K, config.J, config.forcing, dt=config.dt)
    start = jnp.concatenate([jnp.full(config.K, 0.25 * config.forcing, dtype), jnp.zeros(config.K * config.J, dtype)])
    observed = np.arange(0, config.K, config.every_variable)
    obs_op = PointObs(observed)
    obs_cov_op = DiagonalCovariance(jnp.full(observed.size, config.obs_error**2, dtype))
    for_past, for_truth, for_noise = jax.random.split(jax.random.key(config.seed), 3)
    sizes = {"gap": GAP, "spin_up": SPIN_UP}
    past = simulate_windows(for_past, forward, start, n_windows=CLIMATOLOGY, n_steps=0, **sizes)[:, 0]
    truth = simulate_windows(for_truth, forward, start, n_windows=config.cycles, n_steps=config.steps, **sizes)
    observations = observe_windows(for_noise, truth, obs_op, obs_cov_op, config.every)
    mean, variances = _by_level(jnp.mean(past, axis=0), config.K), _by_level(jnp.var(past, axis=0), config.K)
    return Windows(forward, obs_op, obs_cov_op, observed, mean, truth, observations), variances


def _by_level(values: Any, K: int) -> Any:
    """The mean over each level, all of whose variables are alike."""
    slow, fast = values[:K], values[K:]
    return jnp.concatenate([jnp.full_like(slow, jnp.mean(slow)), jnp.full_like(fast, jnp.mean(fast))])


def make_rows(config: TwoLevelConfig, windows: Windows, variances: Any) -> tuple[list[Row], dict[str, list[str]]]:
    """The rows of the table, and the methods that are left out with the slots that they lack."""
    slots = {
        "forward": windows.forward,
        "obs_op": windows.obs_op,
        "prior_mean": windows.prior_mean,
        "prior_cov_op": DiagonalCovariance(variances),
        "obs_cov_op": windows.obs_cov_op,
        "model_err_cov_op": DiagonalCovariance(config.xQ * variances),
    }
    rows = [
        Row("climatology", "the mean of the climatology", windows.forward),
        Row("background", "the model from the mean of the climatology", windows.forward, takes_window=True),
    ]
    left_out = {}
    for name, method in chosen_methods(config.methods).items():
        if missing := lacking_slots(method, slots):
            left_out[name] = missing
            continue
        needed = required_slots(method)
        whole = "forward" in needed
        note = "the window as a whole" if whole else "each state alone"
        rows.append(Row(name, note, windows.forward, method(**{k: slots[k] for k in needed}), takes_window=whole))
    return rows, left_out
