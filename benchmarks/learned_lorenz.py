"""4DVarNet beside interpolation, OI and converged weak-constraint 4D-Var: what the Lorenz benchmarks share.

- interpolation: linear in time at each component, the first guess of the others.
- OI: the climatological covariance of the training windows, stationary in time (and on the circle of Lorenz-96).
- weak 4D-Var: `WeakFourDVar` by Gauss-Newton with the climate as background, Q = q I and q lowered in stages, each
  from the trajectory of the stage before; in double precision, since single precision is forgotten by a trajectory of
  some time units. The truth has no model error: q is there for the sake of the minimisation.
- 4DVarNet: the model as prior and a ConvLSTM, 20 iterations from the interpolation, trained with Adam: at first
  with few iterations, then with all, on pieces of the training windows that are observed anew each time (and turned
  round the circle). Convolutions take any length, so pieces train what runs on whole windows.

The training budget is a number of steps and a number of seconds, whichever ends first; each of `--seeds` draws windows,
noise and weights anew. Weak 4D-Var takes long, so it has the first `--weak` test windows; every method is scored on
these, `first`, and on all.
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
TOGETHER = 8  # windows of one minimisation, which goes on until the last of them has converged


@dataclasses.dataclass(frozen=True)
class Training:
    """`phases` are (iterations of the solver, steps of training); `piece` is the length of what it is trained on.

    `prior_weight` is the weight of the model's residual in the cost whose gradient the solver sees.
    """

    phases: tuple[tuple[int, int], ...]
    batch: int
    piece: int
    rate: float
    prior_weight: float = 1.0

    @property
    def n_steps(self) -> int:
        return sum(n for _, n in self.phases)


@dataclasses.dataclass(frozen=True)
class Setting:
    """One benchmark: its windows, whether they lie on a circle, model and networks, and the stages of weak 4D-Var."""

    program: str
    windows: Callable[..., tuple[Windows, Windows]]
    circle: bool
    model: Callable[[], Any]
    prior: Callable[[], Any]
    modulator: Callable[[int], Any]
    training: Training
    stages: tuple[float, ...]
    n_outer: int
    published: dict[str, float] | None

    @property
    def name(self) -> str:
        return os.path.basename(self.program).removesuffix(".py")


def main(setting: Setting, description: str) -> None:
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a few windows and steps, in seconds; writes no results")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--budget", type=float, default=1200.0, help="seconds of training at most")
    parser.add_argument("--weak", type=int, default=32, help="test windows of weak 4D-Var")
    parser.add_argument("--case", choices=("baselines", "learned"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        {"baselines": baselines, "learned": learned}[options.case](setting, options)
        return
    rows = []
    for seed in options.seeds[:1] if options.quick else options.seeds:
        flags = [f"--seeds={seed}", f"--budget={options.budget}", f"--weak={options.weak}"]
        flags += ["--quick"] if options.quick else []
        for case, x64 in (("baselines", "1"), ("learned", "0")):
            rows += harness.in_fresh_process(setting.program, f"--case={case}", *flags, JAX_ENABLE_X64=x64)["rows"]
    harness.print_table(rows)
    harness.print_table(over_seeds(rows))
    if not options.quick:
        about = {"published": setting.published, "training": dataclasses.asdict(setting.training)}
        print(harness.save(setting.name, {**about, "over_seeds": over_seeds(rows), "rows": rows}))


def over_seeds(rows: list[dict]) -> list[dict]:
    """Mean and standard deviation over the seeds of each score of each method."""
    summary = []
    for method in dict.fromkeys(row["method"] for row in rows):
        mine = [row for row in rows if row["method"] == method]
        spread = {"method": method, "seeds": len(mine)}
        for score in ("all", "observed", "missing", "first", "seconds"):
            values = [row[score] for row in mine if score in row]
            if values:
                spread[score] = f"{np.mean(values):.3f} ± {np.std(values):.3f}"
        summary.append(spread)
    return summary


def windows_of(setting: Setting, options) -> tuple[Windows, Windows]:
    return setting.windows(options.seeds[0], 32, 2) if options.quick else setting.windows(options.seeds[0])


def row(method: str, options, test: Windows, states, seconds: float, **more) -> dict:
    """The scores of the windows that `states` has: of all of them, and of those that weak 4D-Var has."""
    scores = test.scores(states) if len(states) == len(test.truth) else {}
    first = test.first(options.weak).scores(states[: options.weak])["all"]
    return {"method": method, "seed": options.seeds[0], **scores, "first": first, "seconds": round(seconds, 1), **more}


def baselines(setting: Setting, options) -> None:
    train, test = windows_of(setting, options)
    rows, guess = [], test.interpolated()
    rows.append(row("interpolation", options, test, guess, 0.0))
    start = time.perf_counter()
    rows.append(row("OI", options, test, optimal_interpolation(setting, train, test), time.perf_counter() - start))
    start, states, few = time.perf_counter(), guess[: options.weak], test.first(options.weak)
    for q in () if options.quick else setting.stages:
        states, converged = weak_four_dvar(setting, train, few, states, q)
        seconds = time.perf_counter() - start
        rows.append(row(f"weak 4D-Var, q = {q:g}", options, few, states, seconds, converged=round(converged, 3)))
        print(rows[-1], file=sys.stderr, flush=True)
    harness.report({"rows": rows})


def optimal_interpolation(setting: Setting, train: Windows, test: Windows) -> np.ndarray:
    """The best linear estimate with the training windows' mean and covariance."""
    n = train.truth.shape[-1]
    mean = np.full(n, train.truth.mean(dtype=float)) if setting.circle else train.truth.mean((0, 1), dtype=float)
    covariance = _covariance(train.truth - mean, setting.circle)
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
    trajectories, converged = [], []
    for first in range(0, len(states), TOGETHER):
        some = slice(first, first + TOGETHER)
        batch = vardax.Batch1D.from_observations(test.observations[some].astype(float))
        analysis = method.analyse(batch, first_guess=(states[some, 0], errors[some]))
        trajectories.append(np.asarray(analysis.trajectory))
        converged.append(np.asarray(analysis.converged))
    return np.concatenate(trajectories), float(np.concatenate(converged).mean())


def learned(setting: Setting, options) -> None:
    """Train, and reconstruct the test windows."""
    import equinox as eqx

    import vardax

    train, test = windows_of(setting, options)
    start = time.perf_counter()
    model, step = trained(setting, train, options, start)
    seconds = time.perf_counter() - start
    call = eqx.filter_jit(lambda model, y: model(vardax.Batch1D.from_observations(y)))
    parts = np.array_split(test.observations, max(1, len(test.truth) // 64))
    states = np.concatenate([np.asarray(call(model, y)) for y in parts])
    harness.report({"rows": [row("4DVarNet", options, test, states, seconds, steps=step)]})


def trained(setting: Setting, train: Windows, options, start: float) -> tuple[Any, int]:
    """(the method, the steps of training that the budget was enough for)."""
    import optax

    import vardax
    from vardax.training import learned as parameters
    from vardax.training import train_step

    plan = Training(((1, 1),), 2, 32, 1e-3) if options.quick else setting.training
    rates = optax.warmup_cosine_decay_schedule(
        plan.rate / 10, plan.rate, plan.n_steps // 20, plan.n_steps, plan.rate / 100
    )
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rates))
    method, rng, step = network(setting, options.seeds[0]), np.random.default_rng(options.seeds[0]), 0
    state = optimizer.init(parameters(method))
    for n_iterations, n_steps in plan.phases:
        method, losses = method.with_(config=solver_config(plan, n_iterations)), []
        while len(losses) < n_steps and time.perf_counter() - start < options.budget:
            drawn = train.drawn(rng, plan.batch, plan.piece, circle=setting.circle)
            batch = vardax.Batch1D.from_observations(drawn.observations, target=drawn.truth)
            method, state, loss = train_step(method, batch, optimizer, state)
            losses, step = [*losses, float(loss)], step + 1
            if step % 50 == 0:
                seconds = time.perf_counter() - start
                print(f"step {step}: loss {np.mean(losses[-50:]):.3f}, {seconds:.0f} s", file=sys.stderr, flush=True)
    return method.with_(config=solver_config(plan, N_ITERATIONS)), step


def solver_config(plan: Training, n_iterations: int):
    from vardax.models import SolverConfig

    weights = {"obs_weight": 1 / NOISE_VARIANCE, "prior_weight": plan.prior_weight}
    return SolverConfig(n_steps=n_iterations, alpha=1.0, **weights)


def network(setting: Setting, seed: int):
    from vardax.adjoints import DirectAdjoint
    from vardax.models import FourDVarNet
    from vardax.models.first_states import Interpolated
    from vardax.obs_operators import MaskedIdentity

    return FourDVarNet(
        setting.prior(),
        MaskedIdentity(),
        setting.modulator(seed),
        solver_config(setting.training, N_ITERATIONS),
        DirectAdjoint(),
        start=Interpolated(),
    )
