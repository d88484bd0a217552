"""Incremental 4D-Var on Lorenz-96 at both ends of the scale: 40 cells in double, a million in single precision.

Ten steps of 0.05 and two outer loops of fifteen inner steps. `small`: every second cell observed (the problem of
handwritten_4dvar.py); claim: 5 ms for a call. `large`: 25,000 copies of a tile of 40 cells, every tenth cell observed;
claims: 60 s and 4 GB, with costs within 2e-4 of 25,000 times those of one tile in double precision, before and after
each outer loop. Each in a process of its own; the peak memory is that of the process.
"""

import harness

N_LARGE, TILE, N_STEPS, DT, SIGMA_O = 1_000_000, 40, 10, 0.05, 0.5
N_OUTER, N_INNER = 2, 15
ALLOWED = {"small": {"run_s": 0.005}, "large": {"run_s": 60.0, "peak_mb": 4000.0, "cost_error": 2e-4}}


def main() -> None:
    options = harness.arguments(__doc__, task=("tile", *ALLOWED))
    if options.task:
        {"tile": tile_costs, "small": small, "large": large}[options.task](options)
        return
    flags = [f"--repeats={options.repeats}", *(["--quick"] if options.quick else [])]
    double, single = ({"JAX_ENABLE_X64": flag, "EQX_ON_ERROR": "nan"} for flag in "10")
    one = harness.in_fresh_process(__file__, "--task=tile", *flags, **double)["costs"]
    found = {"small": harness.in_fresh_process(__file__, "--task=small", *flags, **double)}
    found["large"] = harness.in_fresh_process(__file__, "--task=large", *flags, **single)
    costs = found["large"].pop("costs")
    expected = [found["large"]["n"] / TILE * J for J in one]
    found["large"]["cost_error"] = max(abs(a / b - 1) for a, b in zip(costs, expected, strict=True))
    found["small"]["cost_error"] = 0.0
    harness.print_table([{"case": case, **row} for case, row in found.items()])
    met = {case: all(found[case][key] <= most for key, most in limits.items()) for case, limits in ALLOWED.items()}
    print("claims met:", met)
    if not options.quick:
        print(harness.save("l96_scale", {"cases": found, "claims": ALLOWED, "met": met}))


def repeated(n: int):
    """(method, batch): n / 40 copies of one tile, drawn in double precision by numpy, in JAX's default precision."""
    import jax.numpy as jnp
    import numpy as np

    import vardax
    from vardax.covariances import DiagonalCovariance, MaternLinearOperator
    from vardax.dynamics import Lorenz96
    from vardax.minimisers import LanczosCG

    def tendency(x):
        return (np.roll(x, -1) - np.roll(x, 2)) * np.roll(x, 1) - x + 8.0

    def step(x):
        k1 = DT * tendency(x)
        k2 = DT * tendency(x + k1 / 2)
        k3 = DT * tendency(x + k2 / 2)
        return x + (k1 + 2 * k2 + 2 * k3 + DT * tendency(x + k3)) / 6

    rng = np.random.default_rng(0)
    states = [8 + rng.standard_normal(TILE)]
    for _ in range(1000 + N_STEPS):
        states.append(step(states[-1]))
    truth = np.stack(states[-N_STEPS - 1 :])
    background = truth[0] + np.convolve(np.tile(0.3 * rng.standard_normal(TILE), 3), [0.5, 1, 0.5], "same")[TILE:-TILE]
    y = truth[:, ::10] + SIGMA_O * rng.standard_normal((N_STEPS + 1, TILE // 10))
    dtype, copies = jnp.result_type(float), n // TILE
    method = vardax.IncrementalFourDVar(
        Lorenz96(n, dt=DT),
        vardax.PointObs(np.arange(0, n, 10)),
        jnp.asarray(np.tile(background, copies), dtype),
        MaternLinearOperator((n,), 1.0, 0.5, nu=np.inf, dtype=dtype),
        DiagonalCovariance(jnp.full(n // 10, SIGMA_O**2, dtype)),
        vardax.IncrementalConfig(N_OUTER, N_INNER, cg_rtol=0.0, cg_atol=0.0, inner_solver=LanczosCG()),
    )
    return method, vardax.Batch1D.from_observations(jnp.asarray(np.tile(y, (1, copies))[None], dtype))


def costs_of(analysis) -> list[float]:
    """J at the background and after each outer loop."""
    return [float(J) for J in analysis.history.total[0, : N_OUTER + 1]]


def tile_costs(options) -> None:
    method, batch = repeated(TILE)
    harness.report({"costs": costs_of(method.analyse(batch))})


def small(options) -> None:
    from handwritten_4dvar import method

    model, batch = method(TILE)
    _, seconds = harness.timed(lambda: model.analyse(batch), 5 if options.quick else 20 * options.repeats)
    harness.report({"n": TILE, **seconds})


def large(options) -> None:
    n = 4000 if options.quick else N_LARGE
    method, batch = repeated(n)
    analysis, seconds = harness.timed(lambda: method.analyse(batch), 1 if options.quick else min(options.repeats, 3))
    harness.report({"n": n, **seconds, "costs": costs_of(analysis)})


if __name__ == "__main__":
    main()
