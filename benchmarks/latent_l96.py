"""Latent 4D-Var against full-space 4D-Var, on Lorenz-96 lifted to 400 cells by a nonlinear map (`lifted_lorenz96`).

Windows of four intervals of four steps of 0.05; every eighth cell observed at the five entries (noise 0.5); backgrounds
are lifted states of the 40 variables with errors of 0.5. `full` is StrongFourDVar on 400 cells with the exact model and
the covariance of the background errors of 4,000 independent states: the oracle. `latent` is LatentStrongFourDVar in
the learned space with the learned model (`train_latent_l96.py`) and the covariance of the same errors, encoded.
`exact` is the same in the 40 variables themselves, the best that any latent space can do, and `hybrid` is
LatentHybridFourDVar: learned space, exact model. Claims: `latent` has at most 1.05 times the error of `full`, over all
cells and entries of the windows, in at most a third of its time, all windows in one batch.
"""

import harness

ENTRIES, SUBSTEPS, EVERY, SIGMA_O, SIGMA_B = 5, 4, 8, 0.5, 0.5
WINDOWS, PAIRS = 40, 4_000
ALLOWED_ERROR, ALLOWED_TIME = 1.05, 1 / 3


def main() -> None:
    options = harness.arguments(__doc__, task=("run",))
    if not options.task:
        flags = [f"--repeats={options.repeats}", *(["--quick"] if options.quick else [])]
        found = harness.in_fresh_process(__file__, "--task=run", *flags, JAX_ENABLE_X64="1", EQX_ON_ERROR="nan")
        harness.print_table(found["rows"])
        print("claims met:", found["met"])
        if not options.quick:
            print(harness.save("latent_l96", found))
        return
    if options.quick:
        harness.report(compare(("full", "latent"), 2, 500, 1))
    else:
        harness.report(compare(("full", "latent", "exact", "hybrid"), WINDOWS, PAIRS, options.repeats))


def compare(names: tuple[str, ...], n_windows: int, n_pairs: int, repeats: int) -> dict:
    """One row for each method: errors, iterations and times."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    import vardax

    truth, background, y, pairs = twin(jax.random.key(1), n_windows, n_pairs)
    methods = {name: method for name, method in make_methods(pairs).items() if name in names}
    batch, one = vardax.Batch1D.from_observations(y), vardax.Batch1D.from_observations(y[:1])
    together = harness.alternately(
        {name: lambda m=m: m.analyse(batch, background=background).state for name, m in methods.items()}, repeats
    )
    alone = harness.alternately(
        {name: lambda m=m: m.analyse(one, background=background[:1]).state for name, m in methods.items()}, 3 * repeats
    )
    rms = lambda gap: float(np.sqrt(np.mean(np.square(gap))))  # noqa: E731
    rows = []
    starts = {"truth": truth[0, 0], "background": background[0], "observed": y[0, 0]}
    for name, method in methods.items():
        analysis = method.analyse(batch, background=background)
        gap, starts[name] = analysis.trajectory - truth, analysis.state[0]
        row = {"method": name, "rmse_start": rms(gap[:, 0]), "rmse_window": rms(gap)}
        row |= {"converged": float(jnp.mean(analysis.converged)), "iterations": float(jnp.mean(analysis.n_iterations))}
        rows.append(row | {"batch_s": together[name]["run_s"], "one_window_s": alone[name]["run_s"]})
    full, latent = (next(row for row in rows if row["method"] == name) for name in ("full", "latent"))
    met = {
        "error": latent["rmse_window"] <= ALLOWED_ERROR * full["rmse_window"],
        "time": latent["batch_s"] <= ALLOWED_TIME * full["batch_s"],
    }
    shown = {name: np.round(np.asarray(state), 2).tolist() for name, state in starts.items()}
    error = rms(background - truth[:, 0])
    return {"rows": rows, "background": error, "windows": n_windows, "met": met, "start_of_one_window": shown}


def twin(key, n_windows: int, n_pairs: int):
    """(truth (W, 5, 400), backgrounds (W, 400), observations (W, 5, 50), (states, states with errors) of the prior)."""
    import jax
    from lifted_lorenz96 import Lifting, N, climate

    for_truth, for_errors, for_noise, for_states, for_pairs = jax.random.split(key, 5)
    lift = jax.vmap(Lifting().decode)
    z = climate(for_truth, n_windows, ENTRIES, SUBSTEPS)
    truth = jax.vmap(lift)(z)
    background = lift(z[:, 0] + SIGMA_B * jax.random.normal(for_errors, (n_windows, N)))
    exact = truth[:, :, ::EVERY]
    y = exact + SIGMA_O * jax.random.normal(for_noise, exact.shape)
    states = climate(for_states, n_pairs // 100, 100, 8).reshape(-1, N)
    wrong = states + SIGMA_B * jax.random.normal(for_pairs, states.shape)
    return truth, background, y, (lift(states), lift(wrong))


def make_methods(pairs) -> dict:
    """The methods by name. Every background covariance is that of the errors of the same pairs of states."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    from lifted_lorenz96 import LiftedLorenz96, Lifting, M, load

    import vardax
    from vardax.covariances import DenseCovariance, DiagonalCovariance
    from vardax.dynamics import Lorenz96

    model, lifting, (autoencoder, latent_model) = LiftedLorenz96(), Lifting(), load()
    observe = vardax.PointObs(np.arange(0, M, EVERY))
    R = DiagonalCovariance(jnp.full(M // EVERY, SIGMA_O**2))
    mean = jnp.mean(pairs[0], axis=0)

    def covariance(encode):
        right, wrong = (jax.vmap(encode)(states) for states in pairs)
        return DenseCovariance(jnp.cov((wrong - right).T))

    def prior(latent_map):
        return vardax.LatentPrior(latent_map, latent_map.encode(mean), covariance(latent_map.encode))

    shared = {"n_substeps": SUBSTEPS}
    learned, exact = prior(autoencoder), prior(lifting)
    lorenz = Lorenz96(lifting.latent_dim, dt=model.dt)
    return {
        "full": vardax.StrongFourDVar(model, observe, mean, covariance(lambda x: x), R, **shared),
        "latent": vardax.LatentStrongFourDVar(autoencoder, latent_model, observe, learned, R, **shared),
        "exact": vardax.LatentStrongFourDVar(lifting, lorenz, observe, exact, R, **shared),
        "hybrid": vardax.LatentHybridFourDVar(autoencoder, model, observe, learned, R, **shared),
    }


if __name__ == "__main__":
    main()
