"""4DVarNet beside optimal interpolation with fitted scales: maps of sea surface height from altimeter tracks.

The ocean and its altimeters are described in `ssh_windows.py`. The methods see the same noisy tracks:

- interpolation: linear in time in each cell, over the whole test record.
- OI: `OptimalInterpolation` of a space-time covariance, Matérn in space times Matérn in time, the error variance known.
  Smoothness, lengths and variance are those with the smallest error over 60 days of the training record. It is given
  more than a window: all observations of the record from 20 days before to 20 days after, and the periodic plane.
- 4DVarNet: windows of `N_TIME` days, a bilinear convolutional prior and a ConvLSTM, which step from the OI map (or
  from zero, `--first zeros`). Trained with Adam on windows of the training record, turned around the periodic plane and
  mirrored (the model with -psi(-y) is the same). The centre day of each window is its map.

Scores are those of the mapping challenges over 300 days of the test record. The budget of training is a number of steps
and of seconds, whichever ends first; the learning rate falls to zero with the larger share that is used up.
"""

import argparse
import sys
import time

import harness
import numpy as np
from ssh_windows import NOISE, SIZE, Record, records

N_TIME, MARGIN, FITTED_DAYS = 11, 10, slice(0, 80)
SMOOTHNESS = [(nu, nu_time) for nu in (2.5, np.inf) for nu_time in (0.5, 1.5, 2.5)]
EVALUATIONS, LEARNING_RATE, WARM_UP, BATCH = 30, 5e-3, 50, 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a short record and one step; writes no results")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--steps", type=int, default=4000, help="training steps at most")
    parser.add_argument("--budget", type=float, default=720.0, help="seconds of training at most, with compilation")
    parser.add_argument("--first", choices=("oi", "zeros"), default="oi", help="where 4DVarNet starts")
    parser.add_argument("--maps", help="a file (.npz) for the maps of the last seed")
    parser.add_argument("--case", choices=("run",), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        run(options)
        return
    rows = []
    for seed in options.seeds[:1] if options.quick else options.seeds:
        flags = [
            f"--seeds={seed}",
            f"--steps={options.steps}",
            f"--budget={options.budget}",
            f"--first={options.first}",
        ]
        flags += ["--quick"] * options.quick + [f"--maps={options.maps}"] * bool(options.maps)
        rows += harness.in_fresh_process(__file__, "--case=run", *flags)["rows"]
    harness.print_table([{key: value for key, value in row.items() if key != "settings"} for row in rows])
    if not options.quick:
        print(harness.save("learned_ssh", {"noise": NOISE, "rows": rows}))


def run(options) -> None:
    seed, rows = options.seeds[0], []
    train, test = records(seed, 36, 36) if options.quick else records(seed)
    scored = slice(MARGIN, len(test.truth) - MARGIN)

    def add(method: str, maps: np.ndarray, seconds: float, **settings) -> None:
        scores = test.part(scored).scores(maps[scored])
        rows.append({"method": method, "seed": seed, **scores, "seconds": round(seconds, 1), "settings": settings})
        print(rows[-1], file=sys.stderr, flush=True)

    found = {"interpolation": test.interpolated()}
    add("interpolation", found["interpolation"], 0.0)
    start = time.perf_counter()
    scales = {"nu": 2.5, "nu_time": 1.5, "length": 3.0, "days": 5.0, "sd": 0.7} if options.quick else fitted(train)
    print(f"fitted in {time.perf_counter() - start:.0f} s: {scales}", file=sys.stderr, flush=True)
    guesses, start = oi_maps(train.observations, scales), time.perf_counter()
    found["OI"] = oi_maps(test.observations, scales)
    named = {name: str(v) if np.isinf(v) else round(v, 3) for name, v in scales.items()}
    add("OI", found["OI"], time.perf_counter() - start, **named)
    first = (guesses, found["OI"]) if options.first == "oi" else (0 * guesses, 0 * found["OI"])
    model, settings = trained(train, first[0], options)
    found["4DVarNet"] = net_maps(model, test.observations, first[1])
    add("4DVarNet", found["4DVarNet"], settings.pop("seconds"), first=options.first, **settings)
    if options.maps:
        np.savez(options.maps, truth=test.truth, seen=np.isfinite(test.observations), sd_cm=test.sd_cm, **found)
    harness.report({"rows": rows})


def oi_map(observations: np.ndarray, nu: float, nu_time: float, length: float, days: float, sd: float) -> np.ndarray:
    """The analysis (days, y, x) of a whole part of a record; lengths in cells."""
    import jax.numpy as jnp

    import vardax
    from vardax.covariances import DenseCovariance, DiagonalCovariance, KroneckerCovariance, MaternLinearOperator
    from vardax.covariances.correlations import matern_correlation

    time_axis = jnp.arange(len(observations), dtype=jnp.float32)
    apart = jnp.abs(time_axis[:, None] - time_axis)
    in_time = DenseCovariance(matern_correlation(apart / days, nu_time) + 1e-5 * jnp.eye(len(observations)))
    B = KroneckerCovariance(in_time, MaternLinearOperator((SIZE, SIZE), length, sigma=sd, nu=nu))
    R = DiagonalCovariance(jnp.full(observations.shape, NOISE**2))
    mean = jnp.zeros(observations.shape)
    method = vardax.OptimalInterpolation(vardax.MaskedIdentity(), mean, B, R, tol=1e-3, max_steps=2000)
    analysis = method.analyse(vardax.Batch3D.from_observations(observations[None, None]))
    return np.asarray(analysis.state[0])


def oi_maps(observations: np.ndarray, scales: dict, n: int = 100, beyond: int = 20) -> np.ndarray:
    """The analysis of a long record, in parts of `n` days that see `beyond` days on both sides."""
    maps, length = np.empty_like(observations), n + 2 * beyond
    for day in range(0, len(observations), n):
        begin = max(0, min(day - beyond, len(observations) - length))
        part = oi_map(observations[begin : begin + length], **scales)
        maps[day : day + n] = part[day - begin : day - begin + n]
    return maps


def fitted(train: Record) -> dict[str, float]:
    """The scales of OI with the smallest root mean square error over `FITTED_DAYS`, whose ends are left out."""
    from scipy.optimize import minimize

    part, inside = train.part(FITTED_DAYS), slice(MARGIN, -MARGIN)

    def named(p) -> dict[str, float]:
        return dict(zip(("length", "days", "sd"), np.exp(p).tolist(), strict=True))

    def error(p, nu: float, nu_time: float) -> float:
        maps = oi_map(part.observations, nu, nu_time, **named(p))
        return float(np.sqrt(np.mean((maps - part.truth)[inside] ** 2)))

    def best(start, smoothness, evaluations: int):
        simplex = start + np.vstack([np.zeros(3), np.diag([0.2, 0.3, 0.3])])
        options = {"maxfev": evaluations, "initial_simplex": simplex, "xatol": 1e-2, "fatol": 1e-5}
        return minimize(error, start, args=smoothness, method="Nelder-Mead", options=options)

    tried = {s: best(np.log([3.0, 6.0 if s[1] > 1 else 15.0, 0.7]), s, EVALUATIONS) for s in SMOOTHNESS}
    chosen = min(tried, key=lambda smoothness: tried[smoothness].fun)
    final = best(tried[chosen].x, chosen, 2 * EVALUATIONS)
    return {"nu": chosen[0], "nu_time": chosen[1], **named(final.x)}


def network(seed: int, hidden: int, n_steps: int):
    import jax

    from vardax.adjoints import DirectAdjoint
    from vardax.grad_mod import ConvLSTMGradMod2D
    from vardax.models import FourDVarNet, SolverConfig
    from vardax.obs_operators import MaskedIdentity
    from vardax.priors import BilinAEPrior2D

    for_prior, for_modulator = jax.random.split(jax.random.key(seed))
    layout = {"padding": "periodic", "downsampling": 2}
    return FourDVarNet(
        BilinAEPrior2D(N_TIME, 16, **layout, key=for_prior),
        MaskedIdentity(),
        ConvLSTMGradMod2D(N_TIME, hidden, **layout, key=for_modulator),
        SolverConfig(n_steps=n_steps, alpha=1.0),
        DirectAdjoint(),
    )


def drawn(train: Record, guesses: np.ndarray, rng: np.random.Generator):
    """(batch, first states) of random windows, turned around the plane and mirrored."""
    import jax.numpy as jnp

    import vardax

    samples = []
    for _ in range(BATCH):
        day, turn, mirrored = rng.integers(len(guesses) - N_TIME + 1), rng.integers(0, SIZE, 2), rng.random() < 0.5
        window = np.stack([field[day : day + N_TIME] for field in (train.truth, train.observations, guesses)])
        samples.append(np.roll(-window[:, :, ::-1] if mirrored else window, turn, (2, 3)))
    truth, seen, first = np.stack(samples, axis=1)
    return vardax.Batch2D.from_observations(seen, target=truth), jnp.asarray(first)


def loss(model, batch_and_first):
    """The mean square error, weighted towards the centre of the window."""
    import jax.numpy as jnp

    from vardax.training import reconstruction_loss

    batch, first = batch_and_first
    states = model.analyse(batch, first_guess=first).trajectory
    weight = jnp.exp(-0.5 * ((jnp.arange(N_TIME) - N_TIME // 2) / (N_TIME / 4)) ** 2)[:, None, None]
    return reconstruction_loss(states, batch.target, jnp.broadcast_to(weight, states.shape[1:]))


def trained(train: Record, guesses: np.ndarray, options):
    """(model, settings)."""
    import jax.numpy as jnp
    import optax

    from vardax.training import learned, train_step

    hidden, n_iterations, n_steps = (4, 2, 1) if options.quick else (48, 5, options.steps)
    model, rng = network(options.seeds[0], hidden, n_iterations), np.random.default_rng(options.seeds[0])
    adam = optax.inject_hyperparams(optax.adam)(learning_rate=LEARNING_RATE)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), adam)
    state, losses, start = optimizer.init(learned(model)), [], time.perf_counter()
    while (used := max(len(losses) / n_steps, (time.perf_counter() - start) / options.budget)) < 1:
        rate = LEARNING_RATE * min(1, (len(losses) + 1) / WARM_UP) * 0.5 * (1 + np.cos(np.pi * used))
        state[1].hyperparams["learning_rate"] = jnp.asarray(rate, jnp.float32)
        model, state, value = train_step(model, drawn(train, guesses, rng), optimizer, state, loss_fn=loss)
        losses.append(float(value))
        if len(losses) % 100 == 0:
            seconds = time.perf_counter() - start
            print(f"{len(losses)}: {np.mean(losses[-100:]):.4f}, {seconds:.0f} s", file=sys.stderr, flush=True)
    spent = {"steps": len(losses), "seconds": time.perf_counter() - start}
    return model, {"hidden": hidden, "iterations": n_iterations, "batch": BATCH, "days": N_TIME, **spent}


def net_maps(model, observations: np.ndarray, guesses: np.ndarray) -> np.ndarray:
    """The centre days of all windows; beyond the first and the last of them the first guess."""
    import vardax

    maps, half = guesses.copy(), N_TIME // 2
    days = np.arange(half, len(observations) - half)
    for some in np.array_split(days, max(1, len(days) // 20)):
        windows, first = (np.stack([f[d - half : d + half + 1] for d in some]) for f in (observations, guesses))
        analysis = model.analyse(vardax.Batch2D.from_observations(windows), first_guess=first)
        maps[some] = np.asarray(analysis.trajectory)[:, half]
    return maps


if __name__ == "__main__":
    main()
