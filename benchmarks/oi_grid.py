"""Optimal interpolation of 100,000 observations on a 1024x1024 grid, through the public API.

Claims: after compilation at most 2.5 s with a periodic boundary and 4 s with a free one, under 2 GB, and within 5 % of
the posterior standard deviation (root mean square) of the solution converged to 1e-8; for random positions, and for
observations along tracks that are twenty times more accurate than the background.

Errors are compared with the solution in double precision; the posterior standard deviation of each cell is that of the
analysis error over draws of truth and observations.
"""

import tempfile
from pathlib import Path

import harness
import numpy as np

PATTERNS = ("random", "tracks", "sparse-tracks")
CASES = tuple(f"{boundary}/{pattern}" for pattern in PATTERNS for boundary in ("periodic", "free"))
TARGET_S = {"periodic": 2.5, "free": 4.0}
TARGET_MB, TARGET_ERROR = 2000, 0.05
TOLERANCE = 1e-4  # the default of OptimalInterpolation in single precision
MAX_STEPS = 20_000


def main() -> None:
    options = harness.arguments(__doc__, case=CASES, task=("run", "reference"))
    if options.task:
        run(options) if options.task == "run" else reference(options)
        return
    rows = []
    for case in CASES:
        rows.append(measure(case, options))
        harness.print_table(rows[-1:])
    harness.print_table(rows)
    if not options.quick:
        print(harness.save("oi_grid", rows))


def measure(case: str, options) -> dict:
    """Run one case, and its reference, in processes of their own, and compare them."""
    flags = [f"--case={case}", f"--repeats={options.repeats}", *(["--quick"] if options.quick else [])]
    with tempfile.TemporaryDirectory() as folder:
        common = {"OI_GRID_FOLDER": folder, "EQX_ON_ERROR": "nan"}
        row = harness.in_fresh_process(__file__, "--task=run", *flags, **common)
        harness.in_fresh_process(__file__, "--task=reference", *flags, JAX_ENABLE_X64="1", **common)
        files = {name: np.load(Path(folder) / f"{name}.npy") for name in ("analysis", "reference", "deviation")}
    error, deviation = files["analysis"] - files["reference"], files["deviation"]
    boundary = case.split("/")[0]
    row |= {
        "error_rms": float(np.sqrt(np.mean(error**2))),
        "sd_rms": float(np.sqrt(np.mean(deviation**2))),
        "error/sd_rms": float(np.sqrt(np.mean((error / deviation) ** 2))),
        "error/sd_max": float(np.max(np.abs(error) / deviation)),
        "target_s": TARGET_S[boundary],
    }
    within = row["run_s"] <= TARGET_S[boundary] and row["peak_mb"] <= TARGET_MB and row["error/sd_rms"] <= TARGET_ERROR
    return row | {"met": within}


def _problem(options):
    from oi_problem import problem

    size, n_obs = (128, 1562) if options.quick else (1024, 100_000)
    return problem(size, n_obs, *options.case.split("/"))


def _folder() -> Path:
    import os

    return Path(os.environ["OI_GRID_FOLDER"])


def run(options) -> None:
    """Time the analysis in single precision."""
    import jax
    from oi_problem import batch, draw, method

    case = _problem(options)
    model = method(case, TOLERANCE, MAX_STEPS)
    _, observations = draw(case, model.prior_cov_op, jax.random.key(0))
    np.save(_folder() / "observations.npy", np.asarray(observations))
    window = batch(observations)
    analysis, seconds = harness.timed(lambda: model.analyse(window), options.repeats)
    np.save(_folder() / "analysis.npy", np.asarray(analysis.state[0], float))
    counts = {"tol": TOLERANCE, "iterations": int(analysis.n_iterations[0]), "converged": bool(analysis.converged[0])}
    harness.report({"case": options.case, **counts, **seconds})


def reference(options) -> None:
    """The solution converged to 1e-8 in double precision, and the posterior standard deviation."""
    import jax
    import jax.numpy as jnp
    from oi_problem import batch, draw, method

    case, folder = _problem(options), _folder()
    observations = jnp.asarray(np.load(folder / "observations.npy"), float)
    exact = method(case, 1e-8, MAX_STEPS, dtype=float).analyse(batch(observations))
    assert bool(exact.converged[0]), "the reference did not converge"
    np.save(folder / "reference.npy", np.asarray(exact.state[0]))
    model = method(case, TOLERANCE, MAX_STEPS)
    total = np.zeros((case.size, case.size))
    n_draws = 8 if options.quick else 24
    for number in range(n_draws):
        truth, drawn = draw(case, model.prior_cov_op, jax.random.key(1 + number))
        total += np.asarray(model.analyse(batch(drawn)).state[0] - truth, float) ** 2
    np.save(folder / "deviation.npy", np.sqrt(total / n_draws))
    harness.report({})


if __name__ == "__main__":
    main()
