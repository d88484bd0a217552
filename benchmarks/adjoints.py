"""Which adjoint to pick: time, memory and error of the gradient, for both adjoint slots.

Three tables, each case in a process of its own, in double precision:

- `minimiser`: the gradient of a 4D-Var analysis (Lorenz-96, L-BFGS) with respect to all observations, for every
  `minimiser_adjoint`. The error is relative to the gradient of an analysis that is converged to 1e-10.
- `forward`: the gradient of the 4D-Var cost over a long window, for every `forward_adjoint`. The error is relative to
  `DirectAdjoint`.
- `rate`: the error of k-step derivatives by k, for gradient descent on a quadratic (contraction rho = 0.8, so rho^k),
  and for L-BFGS and Gauss-Newton on the 4D-Var of the first table, at a size where Gauss-Newton can factorise.

Memory is what XLA allocates for the compiled gradient beside its arguments and results, and the peak of the process.
"""

import tempfile
from pathlib import Path

import harness
import numpy as np

MINIMISER = {
    "ImplicitAdjoint()": "implicit",
    "OneStepAdjoint()": 1,
    "KStepAdjoint(5)": 5,
    "KStepAdjoint(20)": 20,
    "RecursiveCheckpointAdjoint()": "checkpointed",
    "DirectAdjoint()": "direct",
}
FORWARD = {
    "DirectAdjoint()": None,
    "RecursiveCheckpointAdjoint(64)": 64,
    "RecursiveCheckpointAdjoint(16)": 16,
    "BacksolveAdjoint()": "backsolve",
}
K = (1, 2, 3, 5, 8, 12, 18, 27, 40)
RHO = 0.8
QUICK = ("minimiser/reference", "minimiser/OneStepAdjoint()", "forward/DirectAdjoint()", "rate/quadratic")


def main() -> None:
    cases = (
        "minimiser/reference",
        *(f"minimiser/{name}" for name in MINIMISER),
        *(f"forward/{name}" for name in FORWARD),
        *(f"rate/{name}" for name in ("quadratic", "L-BFGS", "Gauss-Newton")),
    )
    options = harness.arguments(__doc__, case=cases)
    if options.case:
        table, _, case = options.case.partition("/")
        harness.report({"minimiser": minimiser, "forward": forward, "rate": rate}[table](case, options))
        return
    results: dict[str, list] = {"minimiser": [], "forward": [], "rate": []}
    with tempfile.TemporaryDirectory() as folder:
        for case in QUICK if options.quick else cases:
            row = in_process(case, options, folder)
            if not case.endswith("reference"):
                results[case.partition("/")[0]].append(row)
                print(row)
    harness.print_table(results["minimiser"])
    harness.print_table(results["forward"])
    if not options.quick:
        print(harness.save("adjoints", results))


def in_process(case: str, options, folder: str) -> dict:
    flags = [f"--case={case}", f"--repeats={options.repeats}", *(["--quick"] if options.quick else [])]
    return harness.in_fresh_process(__file__, *flags, JAX_ENABLE_X64="1", ADJOINTS_FOLDER=folder)


def kept(name: str) -> Path:
    """Where a process leaves what the next ones compare with."""
    import os

    return Path(os.environ["ADJOINTS_FOLDER"]) / f"{name}.npy"


def error_of(found, name: str) -> float:
    exact = np.load(kept(name))
    return float(np.linalg.norm(np.asarray(found) - exact) / np.linalg.norm(exact))


def four_dvar(n: int, entries: int, **options):
    """(method, observations, truth): Lorenz-96 of n cells, every second one observed, a background error of one."""
    import jax
    import jax.numpy as jnp

    import vardax
    from vardax.covariances import DiagonalCovariance, MaternLinearOperator
    from vardax.dynamics import Lorenz96, rollout

    model, keys = Lorenz96(n, dt=0.025), jax.random.split(jax.random.key(0), 3)
    spun_up = rollout(model, 8.0 + jax.random.normal(keys[0], (n,)), 200)[-1]
    B = MaternLinearOperator((n,), length_scale=2.0, sigma=1.0, nu=2.5, boundary="periodic")
    truth = rollout(model, spun_up, entries - 1)
    observed = jnp.arange(0, n, 2)
    y = truth[None, :, observed] + 0.5 * jax.random.normal(keys[1], (1, entries, len(observed)))
    method = vardax.StrongFourDVar(
        model,
        vardax.PointObs(observed),
        spun_up + B.sample(keys[2], 1)[0],
        B,
        DiagonalCovariance(jnp.full(len(observed), 0.25)),
        **options,
    )
    return method, y, truth


def score_of(method, truth):
    """Squared distance of the analysis to the truth, as a function of the observations."""
    import jax.numpy as jnp

    import vardax

    def score(y):
        return jnp.mean((method.analyse(vardax.Batch1D.from_observations(y)).state[0] - truth[0]) ** 2)

    return score


def temporary_mb(function, *arguments) -> float:
    """What XLA allocates beside arguments and results."""
    return round(function.lower(*arguments).compile().memory_analysis().temp_size_in_bytes / 1e6, 1)


def minimiser_adjoint(kind):
    import optimistix as optx

    from vardax.adjoints import DirectAdjoint, KStepAdjoint

    named = {
        "implicit": optx.ImplicitAdjoint,
        "checkpointed": optx.RecursiveCheckpointAdjoint,
        "direct": DirectAdjoint,
    }
    return KStepAdjoint(kind) if isinstance(kind, int) else named[kind]()


def minimiser(case: str, options) -> dict:
    """Time and memory of the analysis and of its gradient."""
    import jax

    n, entries = (60, 3) if options.quick else (2000, 11)
    method, y, truth = four_dvar(n, entries, max_steps=100)
    if case == "reference":
        converged = method.with_(tol=1e-10, max_steps=400)
        np.save(kept("minimiser"), np.asarray(jax.jit(jax.grad(score_of(converged, truth)))(y)))
        return {}
    score = score_of(method.with_(minimiser_adjoint=minimiser_adjoint(MINIMISER[case])), truth)
    value, gradient = jax.jit(score), jax.jit(jax.grad(score))
    _, of_value = harness.timed(lambda: value(y), options.repeats)
    found, of_gradient = harness.timed(lambda: gradient(y), options.repeats)
    return {
        "case": case,
        **seconds("analysis", of_value),
        **seconds("gradient", of_gradient),
        "compile_s": of_gradient["compile_s"],
        "temp_mb": temporary_mb(gradient, y),
        "error": error_of(found, "minimiser"),
    }


def seconds(name: str, times: dict) -> dict:
    return {f"{name}_s": times["run_s"], f"{name}_cpu_s": times["cpu_s"]}


def forward(case: str, options) -> dict:
    """Time and memory of the gradient of the cost."""
    import diffrax
    import jax
    import optimistix as optx

    import vardax

    n, entries, kind = *((1000, 17) if options.quick else (10_000, 257)), FORWARD[case]
    chosen = diffrax.BacksolveAdjoint() if kind == "backsolve" else optx.RecursiveCheckpointAdjoint(kind)
    method, y, _ = four_dvar(n, entries, forward_adjoint=diffrax.DirectAdjoint() if kind is None else chosen)
    problem = method.problem(vardax.Batch1D.from_observations(y))
    chi = 0.1 * jax.random.normal(jax.random.key(5), problem.zero_control().shape)
    cost, gradient = jax.jit(lambda chi: problem.cost(chi)), jax.jit(lambda chi: problem.gradient(chi))
    _, of_cost = harness.timed(lambda: cost(chi), options.repeats)
    found, of_gradient = harness.timed(lambda: gradient(chi), options.repeats)
    if kind is None:
        np.save(kept("forward"), np.asarray(found))
    return {
        "case": case,
        **seconds("cost", of_cost),
        **seconds("gradient", of_gradient),
        "cpu_ratio": round(of_gradient["cpu_s"] / of_cost["cpu_s"], 2),
        "temp_mb": temporary_mb(gradient, chi),
        "error": error_of(found, "forward"),
    }


def rate(case: str, options) -> dict:
    """The relative error of the k-step derivative, by k."""
    errors = quadratic_error() if case == "quadratic" else analysis_error(case)
    steps = K[:3] if options.quick else K
    return {"case": case, "rho": RHO if case == "quadratic" else None, "k": steps, "error": [errors(k) for k in steps]}


def quadratic_error():
    """k -> error of the Jacobian of gradient descent on a quadratic with curvatures from 1 - rho to 1."""
    import jax
    import jax.numpy as jnp
    import optimistix as optx

    from vardax.adjoints import KStepAdjoint

    curvature = jnp.linspace(1 - RHO, 1.0, 20)

    def cost(y, b):
        return 0.5 * jnp.sum(curvature * y**2) - jnp.sum(b * y)

    def error(k: int) -> float:
        def run(b):
            descent = optx.GradientDescent(1.0, 1e-12, 1e-12)
            return optx.minimise(cost, descent, jnp.zeros(20), b, adjoint=KStepAdjoint(k), max_steps=500).value

        wrong = jnp.diag(1 / curvature) - jax.jit(jax.jacrev(run))(jnp.ones(20))
        return float(jnp.linalg.norm(wrong, 2) / jnp.max(1 / curvature))

    return error


def analysis_error(solver: str):
    """k -> error of the gradient of a converged 4D-Var analysis."""
    import jax
    import jax.numpy as jnp
    import optimistix as optx

    from vardax.adjoints import KStepAdjoint

    method, y, truth = four_dvar(40, 5, tol=1e-10, max_steps=200)
    if solver == "Gauss-Newton":
        method = method.with_(minimiser=optx.GaussNewton(1e-10, 1e-10))
    exact = jax.jit(jax.grad(score_of(method, truth)))(y)

    def error(k: int) -> float:
        found = jax.jit(jax.grad(score_of(method.with_(minimiser_adjoint=KStepAdjoint(k)), truth)))(y)
        return float(jnp.linalg.norm(found - exact) / jnp.linalg.norm(exact))

    return error


if __name__ == "__main__":
    main()
