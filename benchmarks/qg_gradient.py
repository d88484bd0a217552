"""The gradient of a 4DVar cost through quasi-geostrophic flow beside a run of the model.

One layer on 128x128 points, a window of 24 steps, every fourth point observed at every step, single precision. Claim:
after compilation the gradient of the cost of `StrongFourDVar` takes at most 6 times a forward run of the same 24 steps,
with each choice of `forward_adjoint` that stores or rematerialises. Both are called in turn in one run; beside them
stands what XLA allocates for the gradient.
"""

import harness

ALLOWED_RATIO = 6.0
ADJOINTS = ("DirectAdjoint", "RecursiveCheckpointAdjoint", "RecursiveCheckpointAdjoint(5)")


def main() -> None:
    options = harness.arguments(__doc__, task=("run",))
    if options.task:
        run(options)
        return
    flags = [f"--repeats={options.repeats}", *(["--quick"] if options.quick else [])]
    result = harness.in_fresh_process(__file__, "--task=run", *flags, EQX_ON_ERROR="nan")
    harness.print_table(result["rows"])
    print(f"claim: a gradient takes at most {ALLOWED_RATIO:g} forward runs; peak memory {result['peak_mb']} MB")
    if not options.quick:
        print(harness.save("qg_gradient", result))


def problem(size: int, n_steps: int, forward_adjoint):
    """The method and its batch: eddies of some ten cells, and a background that has their positions wrong."""
    import jax
    import jax.numpy as jnp

    from vardax import Batch2D, StrongFourDVar
    from vardax.covariances import DiagonalCovariance, MaternLinearOperator
    from vardax.dynamics import QuasiGeostrophic2D, rollout
    from vardax.obs_operators import CallableObs

    model = QuasiGeostrophic2D((size, size), beta=1.0, deformation_radius=0.5, dt=0.01)
    B = MaternLinearOperator((size, size), length_scale=size / 16, sigma=3.0, nu=2.5)
    truth, background = B.sample(jax.random.key(0), 2)
    states = rollout(model, truth, n_steps)
    observe = CallableObs(lambda q: q[::4, ::4])
    shape = (size // 4, size // 4)
    noise = 0.1 * jax.random.normal(jax.random.key(1), (n_steps + 1, *shape), truth.dtype)
    R = DiagonalCovariance(jnp.full(shape, 0.01))
    method = StrongFourDVar(model, observe, background, B, R, forward_adjoint=forward_adjoint)
    return method, Batch2D.from_observations((jax.vmap(observe)(states) + noise)[None])


def run(options) -> None:
    import diffrax
    import equinox as eqx
    import jax
    import jax.numpy as jnp

    from vardax.dynamics import rollout

    size, n_steps = (32, 6) if options.quick else (128, 24)
    specifications = {
        "DirectAdjoint": diffrax.DirectAdjoint(),
        "RecursiveCheckpointAdjoint": diffrax.RecursiveCheckpointAdjoint(),
        "RecursiveCheckpointAdjoint(5)": diffrax.RecursiveCheckpointAdjoint(5),
    }
    functions, compiled, zero = {}, {}, None
    for name, spec in specifications.items():
        method, batch = problem(size, n_steps, spec)
        posed = method.problem(batch)
        zero = posed.zero_control()
        compiled[name] = jax.jit(lambda control, posed=posed: posed.gradient(control))
        functions[name] = lambda gradient=compiled[name], zero=zero: gradient(zero)
    forward = eqx.filter_jit(lambda model, x: rollout(model, x, n_steps)[-1])
    functions["forward run"] = lambda: forward(method.forward, method.prior_mean)
    seconds = harness.alternately(functions, options.repeats)
    once, gradients = seconds["forward run"], {name: functions[name]() for name in ADJOINTS}
    rows = [{"program": "forward run", **once, "runs": 1.0, "cpu_runs": 1.0, "temp_mib": 0.0, "met": True}]
    for name in ADJOINTS:
        ratio, cpu_ratio = (seconds[name][key] / once[key] for key in ("run_s", "cpu_s"))
        rows.append(
            {
                "program": name,
                **seconds[name],
                "runs": round(ratio, 2),
                "cpu_runs": round(cpu_ratio, 2),
                "temp_mib": round(_temporary(compiled[name], zero), 1),
                "met": ratio <= ALLOWED_RATIO,
            }
        )
        reference = gradients["DirectAdjoint"]
        scale = float(jnp.max(jnp.abs(reference)))
        assert float(jnp.max(jnp.abs(gradients[name] - reference))) < 1e-4 * scale, f"{name} has another gradient"
    harness.report({"size": size, "n_steps": n_steps, "rows": rows})


def _temporary(gradient, control) -> float:
    """MiB that XLA allocates beside arguments and result."""
    return gradient.lower(control).compile().memory_analysis().temp_size_in_bytes / 2**20


if __name__ == "__main__":
    main()
