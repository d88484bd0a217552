"""vardax's IncrementalFourDVar beside what an expert would write in plain JAX for the same problem.

Lorenz-96, ten steps of 0.05 observed at every second cell, a background error correlated over two cells; two outer
loops of fifteen steps of conjugate gradients in control space, in double precision, for 40 and for 40,000 cells. The
handwritten program is one jitted function of the background and the observations to the analysed trajectory and the
costs: B^{1/2} by FFT, a scan over the steps, `jax.linearize` and `jax.linear_transpose` once per outer loop, conjugate
gradients with re-orthogonalised residuals in a loop (without, they take other steps at 40 cells after a dozen
iterations). It does without what the library adds: a line search, gaps, a record of what happened, a status. Claims:
vardax takes at most 1.15 times its run time and 1.5 times its compile time, and gives the same trajectory and costs.
Both are called in turn in one run; `compile_s` is what the first call takes beyond a later one, `compile_cpu_s` the
processor seconds of the same, which other programs on the machine do not lengthen.
"""

import harness

SIZES = {"40": 40, "40000": 40_000}
DT, FORCING, N_STEPS, N_OUTER, N_INNER = 0.05, 8.0, 10, 2, 15
SIGMA_O, SIGMA_B, LENGTH_SCALE = 0.5, 0.5, 2.0
ALLOWED_RUN, ALLOWED_COMPILE = 1.15, 1.5
PROCESSES = 3


def handwritten(background, y, spectrum):
    """(x_0 ... x_T, J before and after each outer loop) of incremental 4D-Var; `y` is (entries, n / 2)."""
    import jax
    import jax.numpy as jnp

    n = background.size
    amplitude = jnp.sqrt(jnp.maximum(spectrum, 0.0))

    def half(chi):
        return jnp.fft.irfft(amplitude * jnp.fft.rfft(chi), n)

    def tendency(x):
        return (jnp.roll(x, -1) - jnp.roll(x, 2)) * jnp.roll(x, 1) - x + FORCING

    def step(x, _):
        k1 = tendency(x)
        k2 = tendency(x + 0.5 * DT * k1)
        k3 = tendency(x + 0.5 * DT * k2)
        k4 = tendency(x + DT * k3)
        x = x + DT / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        return x, x

    def trajectory(chi):
        x = background + half(chi)
        return jnp.concatenate([x[None], jax.lax.scan(step, x, length=N_STEPS)[1]])

    def residual(chi):
        return (trajectory(chi)[:, ::2] - y) / SIGMA_O

    def conjugate_gradients(product, b):
        def iteration(i, carry):
            x, r, d, square, basis = carry
            curved = product(d)
            length = square / jnp.vdot(d, curved)
            x, r = x + length * d, r - length * curved
            r = r - (basis @ r) @ basis
            before, square = square, jnp.vdot(r, r)
            return x, r, r + square / before * d, square, basis.at[i + 1].set(r / jnp.sqrt(square))

        square = jnp.vdot(b, b)
        basis = jnp.zeros((N_INNER + 1, n)).at[0].set(b / jnp.sqrt(square))
        return jax.lax.fori_loop(0, N_INNER, iteration, (jnp.zeros_like(b), b, b, square, basis))[0]

    def cost(chi, r):
        return 0.5 * jnp.vdot(chi, chi) + 0.5 * jnp.vdot(r, r)

    def outer(chi, _):
        r, G = jax.linearize(residual, chi)
        GT = jax.linear_transpose(G, chi)
        b = -chi - GT(r)[0]
        return chi + conjugate_gradients(lambda v: v + GT(G(v))[0], b), cost(chi, r)

    chi, costs = jax.lax.scan(outer, jnp.zeros(n), length=N_OUTER)
    states = trajectory(chi)
    return states, jnp.append(costs, cost(chi, (states[:, ::2] - y) / SIGMA_O))


def main() -> None:
    options = harness.arguments(__doc__, task=("run",), size=tuple(SIZES))
    if options.task:
        run(options)
        return
    rows = []
    for size in ("40",) if options.quick else SIZES:
        flags = ["--task=run", f"--size={size}", f"--repeats={3 if options.quick else 4 * options.repeats}"]
        found = [
            harness.in_fresh_process(__file__, *flags, JAX_ENABLE_X64="1", EQX_ON_ERROR="nan")
            for _ in range(1 if options.quick else PROCESSES)
        ]
        rows.append(middle(found))
    harness.print_table(rows)
    print(f"claims: run_ratio at most {ALLOWED_RUN}, compile_ratio at most {ALLOWED_COMPILE}")
    if not options.quick:
        print(harness.save("handwritten_4dvar", {"median_of_processes": rows}))


def middle(found: list[dict]) -> dict:
    """The median of each entry over the processes."""
    import statistics

    return {name: statistics.median(row[name] for row in found) for name in found[0]}


def method(n: int):
    """(the method, its batch) of n cells."""
    import jax
    import jax.numpy as jnp

    import vardax
    from vardax.covariances import DiagonalCovariance, MaternLinearOperator
    from vardax.dynamics import Lorenz96, rollout

    model, keys = Lorenz96(n, dt=DT), jax.random.split(jax.random.key(0), 3)
    B = MaternLinearOperator((n,), LENGTH_SCALE, SIGMA_B, nu=2.5)
    truth = rollout(model, rollout(model, FORCING + jax.random.normal(keys[0], (n,)), 400)[-1], N_STEPS)
    y = truth[None, :, ::2] + SIGMA_O * jax.random.normal(keys[1], (1, N_STEPS + 1, n // 2))
    analysis_method = vardax.IncrementalFourDVar(
        model,
        vardax.PointObs(jnp.arange(0, n, 2)),
        truth[0] + B.sample(keys[2], 1)[0],
        B,
        DiagonalCovariance(jnp.full(n // 2, SIGMA_O**2)),
        vardax.IncrementalConfig(n_outer=N_OUTER, n_inner=N_INNER, cg_rtol=0.0, cg_atol=0.0),
    )
    return analysis_method, vardax.Batch1D.from_observations(y)


def run(options) -> None:
    import jax
    import jax.numpy as jnp

    n = SIZES[options.size]
    model, batch = method(n)
    by_hand = jax.jit(handwritten)
    arguments = (model.prior_mean, batch.input[0], model.prior_cov_op.spectrum())
    functions = {"vardax": lambda: model.analyse(batch), "handwritten": lambda: by_hand(*arguments)}
    seconds = harness.alternately(functions, options.repeats)
    (states, costs), analysis = functions["handwritten"](), functions["vardax"]()
    found, found_costs = analysis.trajectory[0], analysis.history.total[0, : N_OUTER + 1]
    difference = float(jnp.max(jnp.abs(found - states)))
    cost_difference = float(jnp.max(jnp.abs(found_costs / costs - 1)))
    assert difference < 1e-7, f"the states differ by {difference:.2g}"
    assert cost_difference < 1e-9, f"the costs differ by {cost_difference:.2g}"
    row = {"n": n}
    for key in ("run_s", "cpu_s", "compile_s", "compile_cpu_s"):
        by_program = {name: seconds[name][key] for name in functions}
        row |= {f"{name}_{key}": value for name, value in by_program.items()}
        row[f"{key[:-2]}_ratio"] = round(by_program["vardax"] / by_program["handwritten"], 3)
    harness.report({**row, "state_difference": difference, "cost_difference": cost_difference})


if __name__ == "__main__":
    main()
