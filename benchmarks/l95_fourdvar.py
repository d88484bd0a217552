"""Incremental 4D-Var on the scalable Lorenz-95 problem, beside a numpy program with a hand-written adjoint.

Two outer loops of ten inner steps for 4,000, 40,000 and 400,000 cells. Claims: the costs are k times those of OOPS for
one tile (to 1e-9 in double, 2e-4 in single precision); in double precision faster than the numpy program at every size;
at 400,000 under 3 s an outer loop, in single precision under 1 s; compilation under 10 s. The numpy program and vardax
run in turn in one process; the peak memory of each choice of `forward_adjoint` is that of a process of its own.
"""

import os

import harness
import numpy as np
from peers import l95_numpy

SIZES = {"4000": 4_000, "40000": 40_000, "400000": 400_000}
MEMORY = ("direct", "automatic", "checkpoints")
N_OUTER, N_INNER = 2, 10


def main() -> None:
    options = harness.arguments(__doc__, size=tuple(SIZES), task=("beside", "alone"), memory=MEMORY)
    if options.task:
        beside(options) if options.task == "beside" else alone(options)
        return
    rows, memory = [], []
    for size in ("4000",) if options.quick else SIZES:
        flags = [f"--size={size}", f"--repeats={min(options.repeats, 1 if options.quick else 3)}"]
        settings = {"EQX_ON_ERROR": "nan", "OPENBLAS_NUM_THREADS": "1"}
        row = harness.in_fresh_process(__file__, "--task=beside", *flags, JAX_ENABLE_X64="1", **settings)
        row |= harness.in_fresh_process(__file__, "--task=alone", *flags, JAX_ENABLE_X64="0", **settings)
        rows.append(row)
        harness.print_table(rows[-1:])
        for choice in MEMORY:
            flags_memory = [*flags, f"--memory={choice}"]
            found = harness.in_fresh_process(__file__, "--task=alone", *flags_memory, JAX_ENABLE_X64="1", **settings)
            memory.append({"n": SIZES[size], "forward_adjoint": choice, **found})
    harness.print_table(rows)
    harness.print_table(memory)
    if not options.quick:
        print(harness.save("l95_fourdvar", {"times": rows, "memory": memory}))


def method(n: int, choice: str = "automatic"):
    """The method of n cells and its batch, in JAX's default precision."""
    import diffrax
    import jax.numpy as jnp

    import vardax
    from vardax.covariances import DiagonalCovariance, MaternLinearOperator
    from vardax.dynamics import Lorenz96

    case = l95_numpy.problem(n)
    y = np.full((1, len(l95_numpy.ENTRIES) + 1, n // 2), np.nan)
    y[0, 1:] = case.y
    adjoints = {
        "direct": diffrax.DirectAdjoint(),
        "automatic": diffrax.RecursiveCheckpointAdjoint(),
        "checkpoints": diffrax.RecursiveCheckpointAdjoint(checkpoints=4),
    }
    dtype = jnp.result_type(float)
    config = vardax.IncrementalConfig(n_outer=N_OUTER, n_inner=N_INNER, cg_rtol=0.0, cg_atol=0.0)
    model = vardax.IncrementalFourDVar(
        Lorenz96(n, dt=l95_numpy.DT),
        vardax.PointObs(np.arange(0, n, 2)),
        jnp.asarray(case.background, dtype),
        MaternLinearOperator((n,), 1.0, l95_numpy.SIGMA_B, nu=np.inf, dtype=dtype),
        DiagonalCovariance(jnp.full(n // 2, l95_numpy.SIGMA_O**2, dtype)),
        config,
        adjoints[choice],
        n_substeps=2,
    )
    return model, vardax.Batch1D.from_observations(jnp.asarray(y, dtype)), case


def cost_error(costs, n: int) -> float:
    """The largest relative difference from the known costs."""
    expected = n / 40 * np.array(l95_numpy.J_ONE_TILE)
    return float(np.max(np.abs(np.asarray(costs, float) / expected - 1)))


def beside(options) -> None:
    """Double precision and numpy, in turn."""
    n = SIZES[options.size]
    model, batch, case = method(n)
    functions = {
        "vardax": lambda: model.analyse(batch).history.total,
        "numpy": lambda: np.asarray(l95_numpy.analyse(case, N_OUTER, N_INNER)),
    }
    seconds = harness.alternately(functions, options.repeats)
    error = cost_error(functions["vardax"]()[0, : N_OUTER + 1], n)
    found = {
        "n": n,
        "vardax_s": seconds["vardax"]["run_s"],
        "numpy_s": seconds["numpy"]["run_s"],
        "ratio": round(seconds["vardax"]["run_s"] / seconds["numpy"]["run_s"], 3),
        "outer_loop_s": round(seconds["vardax"]["run_s"] / N_OUTER, 4),
        "compile_s": seconds["vardax"]["compile_s"],
        "cost_error": error,
        "cost_error_numpy": cost_error(functions["numpy"](), n),
    }
    assert error < 1e-9, f"the costs are wrong by {error:.2g}"
    harness.report(found)


def alone(options) -> None:
    """One choice of memory, in a process of its own; without one, single precision."""
    n, single = SIZES[options.size], os.environ["JAX_ENABLE_X64"] == "0"
    model, batch, _ = method(n, options.memory or "automatic")
    history, seconds = harness.timed(lambda: model.analyse(batch).history.total, options.repeats)
    error = cost_error(history[0, : N_OUTER + 1], n)
    assert error < (2e-4 if single else 1e-9), f"the costs are wrong by {error:.2g}"
    if single:
        print(f'{{"float32_outer_loop_s": {seconds["run_s"] / N_OUTER:.5f}, "float32_cost_error": {error:.3g}}}')
    else:
        harness.report({"outer_loop_s": round(seconds["run_s"] / N_OUTER, 4), "cost_error": error})


if __name__ == "__main__":
    main()
