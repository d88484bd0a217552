"""4DVarNet beside interpolation, OI and converged weak-constraint 4D-Var: what the Lorenz benchmarks share.

- interpolation: linear in time at each component, the first guess of the others.
- OI: the climatological covariance of the training windows, stationary in time (and on the circle of Lorenz-96).
- weak 4D-Var: `WeakFourDVar` by Gauss-Newton with the climate as background, Q = q I and q lowered in stages, each
  from the trajectory of the stage before; in double precision, since single precision is forgotten by a trajectory of
  some time units. The truth has no model error: q is there for the sake of the minimisation.
- 4DVarNet: the model as prior and a ConvLSTM that sees the whole window at once, 20 iterations, trained with Adam.

The budget is a number of training steps and a number of seconds, whichever ends first; each of `--seeds` draws windows,
noise and weights anew.
"""

import argparse
import dataclasses
import os
import sys
import time
from collections.abc import Callable
from typing import Any

import harness
import numpy as np
from lorenz_windows import LENGTH, NOISE_VARIANCE, Windows

N_ITERATIONS, N_INNER = 20, 60


@dataclasses.dataclass(frozen=True)
class Setting:
    """One benchmark: its windows, model, prior, padding of the ConvLSTM, and the stages of weak 4D-Var."""

    program: str
    windows: Callable[..., tuple[Windows, Windows]]
    model: Callable[[], Any]
    prior: Callable[[], Any]
    padding: str
    stages: tuple[float, ...]
    n_outer: int
    hidden: int
    batch: int
    published: dict[str, float] | None

    @property
    def name(self) -> str:
        return os.path.basename(self.program).removesuffix(".py")


def main(setting: Setting, description: str) -> None:
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a few windows and steps, in seconds; writes no results")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=4000, help="training steps at most")
    parser.add_argument("--budget", type=float, default=3000.0, help="seconds of training at most")
    parser.add_argument("--case", choices=("baselines", "learned"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        {"baselines": baselines, "learned": learned}[options.case](setting, options)
        return
    rows = []
    for seed in options.seeds[:1] if options.quick else options.seeds:
        flags = [f"--seeds={seed}", f"--steps={options.steps}", f"--budget={options.budget}"]
        flags += ["--quick"] if options.quick else []
        for case, x64 in (("baselines", "1"), ("learned", "0")):
            rows += harness.in_fresh_process(setting.program, f"--case={case}", *flags, JAX_ENABLE_X64=x64)["rows"]
    harness.print_table(rows)
    if not options.quick:
        print(harness.save(setting.name, {"published": setting.published, "rows": rows}))


def windows_of(setting: Setting, options) -> tuple[Windows, Windows]:
    return setting.windows(options.seeds[0], 32, 2) if options.quick else setting.windows(options.seeds[0])


def row(method: str, options, test: Windows, states, seconds: float, steps: int = 0) -> dict:
    named = {"method": method, "seed": options.seeds[0], "windows": len(test.truth)}
    return {**named, **test.scores(states), "steps": steps, "seconds": round(seconds, 1)}


def baselines(setting: Setting, options) -> None:
    train, test = windows_of(setting, options)
    rows, guess = [], test.interpolated()
    rows.append(row("interpolation", options, test, guess, 0.0))
    start = time.perf_counter()
    rows.append(row("OI", options, test, optimal_interpolation(setting, train, test), time.perf_counter() - start))
    start, states = time.perf_counter(), guess
    for q in () if options.quick else setting.stages:
        states, converged = weak_four_dvar(setting, train, test, states, q)
        name = f"weak 4D-Var, q = {q:g}, {converged:.0%} converged"
        rows.append(row(name, options, test, states, time.perf_counter() - start))
    harness.report({"rows": rows})


def optimal_interpolation(setting: Setting, train: Windows, test: Windows) -> np.ndarray:
    """The best linear estimate with the training windows' mean and covariance."""
    n = train.truth.shape[-1]
    circle = setting.padding == "periodic"
    mean = np.full(n, train.truth.mean(dtype=float)) if circle else train.truth.mean((0, 1), dtype=float)
    covariance = _covariance(train.truth - mean, circle)
    step, cell = np.divmod(np.arange(LENGTH * n), n)
    out = np.empty_like(test.truth)
    for window, y in enumerate(test.observations.reshape(-1, LENGTH * n)):
        seen = np.flatnonzero(np.isfinite(y))
        between = covariance[step[:, None] - step[seen], cell[:, None], cell[seen]]
        error = NOISE_VARIANCE * np.eye(len(seen))
        weights = np.linalg.solve(between[seen] + error, y[seen] - mean[cell[seen]])
        out[window] = mean + (between @ weights).reshape(LENGTH, n)
    return out


def _covariance(anomalies: np.ndarray, circle: bool) -> np.ndarray:
    """(lag, i, j): the covariance of components i and j, i later by `lag` steps (modulo twice the window)."""
    n, lag = anomalies.shape[-1], np.arange(2 * LENGTH)
    wide = np.fft.fft(np.concatenate([anomalies, np.zeros_like(anomalies)], axis=1), axis=1)
    overlap = np.maximum(np.abs(LENGTH - lag), 1)
    products = np.einsum("wti,wtj->tij", wide, wide.conj()) / len(anomalies)
    covariance = np.fft.ifft(products, axis=0).real / overlap[:, None, None]
    if not circle:
        return covariance
    i = np.arange(n)
    by_distance = np.stack([covariance[:, (i + d) % n, i].mean(1) for d in range(n)], axis=1)
    return by_distance[:, (i[:, None] - i) % n]


def weak_four_dvar(setting: Setting, train: Windows, test: Windows, states: np.ndarray, q: float) -> tuple:
    """(trajectories, share of converged windows) of the minimisation from the trajectories `states`."""
    import jax
    import jax.numpy as jnp

    import vardax
    from vardax.covariances import DiagonalCovariance
    from vardax.minimisers.gauss_newton import GaussNewtonKrylov
    from vardax.obs_operators import MaskedIdentity

    model, truth = setting.model(), train.truth
    B = DiagonalCovariance(jnp.asarray(truth.var((0, 1), dtype=float)))
    R, Q = (DiagonalCovariance(jnp.full(truth.shape[-1], v)) for v in (NOISE_VARIANCE, q))
    config = vardax.IncrementalConfig(n_outer=setting.n_outer, n_inner=N_INNER)
    mean = jnp.asarray(truth.mean((0, 1), dtype=float))
    minimiser = GaussNewtonKrylov(config)
    method = vardax.WeakFourDVar(
        model, MaskedIdentity(), mean, B, R, Q, minimiser, parallel=True, tol=1e-3, max_steps=setting.n_outer
    )
    states = jnp.asarray(states, float)
    errors = states[:, 1:] - jax.vmap(jax.vmap(lambda x: model.step(x, model.dt)))(states[:, :-1])
    batch = vardax.Batch1D.from_observations(test.observations.astype(float))
    analysis = method.analyse(batch, first_guess=(states[:, 0], errors))
    return np.asarray(analysis.trajectory), float(np.mean(analysis.converged))


def learned(setting: Setting, options) -> None:
    """Train, and reconstruct the test windows."""
    import equinox as eqx
    import optax

    import vardax
    from vardax.training import learned as parameters
    from vardax.training import train_step

    train, test = windows_of(setting, options)
    n_steps = 1 if options.quick else options.steps
    model = network(setting, options.seeds[0], hidden=4 if options.quick else setting.hidden)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(optax.cosine_decay_schedule(1e-3, n_steps)))
    state, rng = optimizer.init(parameters(model)), np.random.default_rng(options.seeds[0])
    start, step = time.perf_counter(), 0
    while step < n_steps and time.perf_counter() - start < options.budget:
        chosen = rng.integers(0, len(train.truth), setting.batch)
        batch = vardax.Batch1D.from_observations(train.observations[chosen], target=train.truth[chosen])
        model, state, loss = train_step(model, batch, optimizer, state)
        step += 1
        if step % 100 == 0:
            print(
                f"step {step}: loss {float(loss):.3f}, {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True
            )
    seconds = time.perf_counter() - start
    call = eqx.filter_jit(lambda model, y: model(vardax.Batch1D.from_observations(y)))
    parts = np.array_split(test.observations, max(1, len(test.truth) // 64))
    states = np.concatenate([np.asarray(call(model, y)) for y in parts])
    harness.report({"rows": [row("4DVarNet", options, test, states, seconds, step)]})


def network(setting: Setting, seed: int, hidden: int):
    import jax

    from vardax.adjoints import DirectAdjoint
    from vardax.grad_mod import ConvLSTMGradMod1D
    from vardax.models import FourDVarNet, SolverConfig
    from vardax.models.first_states import Interpolated
    from vardax.obs_operators import MaskedIdentity

    return FourDVarNet(
        setting.prior(),
        MaskedIdentity(),
        ConvLSTMGradMod1D(LENGTH, hidden, padding=setting.padding, key=jax.random.key(seed)),
        SolverConfig(n_steps=N_ITERATIONS, alpha=1.0, obs_weight=1 / NOISE_VARIANCE),
        DirectAdjoint(),
        start=Interpolated(),
    )
