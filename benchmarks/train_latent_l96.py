"""Learn a latent space of 40 numbers, and a model in it, from trajectories of 400 cells (`lifted_lorenz96`).

    min ‖D(E(x_t)) - x_t‖² + Σ_{k=1,2} ‖D(M_z^k(E(x_t))) - x_{t+k}‖² + 4 ‖M_z(E(x_t)) - E(x_{t+1})‖²

over encoder E, decoder D and latent model M_z together: a model that can only be bilinear chooses the coordinates. The
40 variables behind the cells are never shown. Writes `latent_l96.npz`; Adam with a falling rate, some minutes on a
processor.
"""

import argparse
import time

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from lifted_lorenz96 import CELLS, DT, Autoencoder, BilinearModel, Lifting, climate, store

WEIGHTS = jnp.array([1.0, 1.0, 1.0, 4.0])
"""Of decoded states, those one and two steps ahead, and of the latent model."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a few steps, to see that it works; writes nothing")
    options = parser.parse_args()
    steps, runs = (10, 2) if options.quick else (16_000, 128)
    for_runs, for_nets, for_batches, for_test = jax.random.split(jax.random.key(0), 4)
    train, test = (make_windows(key, n) for key, n in ((for_runs, runs), (for_test, 16)))
    blocks = train.reshape(-1, CELLS)
    parts = (Autoencoder(jnp.mean(blocks, axis=0), jnp.std(blocks), key=for_nets), BilinearModel())
    rate = optax.warmup_cosine_decay_schedule(0.0, 3e-3, steps // 20, steps)
    optimiser = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rate))
    state, begin = optimiser.init(eqx.filter(parts, eqx.is_array)), time.perf_counter()
    for number in range(steps):
        parts, state = update(parts, state, optimiser, train, jax.random.fold_in(for_batches, number))
        if number % (steps // 10) == 0 or number == steps - 1:
            report(number, parts, test, time.perf_counter() - begin)
    if not options.quick:
        store(parts)


def make_windows(key, n_runs: int):
    """Pieces of three consecutive states of 400 cells: (windows, 3, 400)."""
    lifted = jax.vmap(jax.vmap(Lifting().decode))(climate(key, n_runs, 3 * 40))
    return lifted.reshape(n_runs * 40, 3, -1).astype(jnp.float32)


def errors(parts, windows):
    """Mean square errors over the spread: reconstruction, one and two steps ahead, and of the latent model."""
    autoencoder, model = parts
    z = jax.vmap(jax.vmap(autoencoder.encode))(windows)
    decode = jax.vmap(autoencoder.decode)
    step = jax.vmap(lambda v: model.step(v, DT))
    one = step(z[:, 0])
    two = step(one)
    gaps = (decode(z[:, 0]) - windows[:, 0], decode(one) - windows[:, 1], decode(two) - windows[:, 2])
    cells = [jnp.mean((gap / autoencoder.scale) ** 2) for gap in gaps]
    return jnp.stack([*cells, jnp.mean((one - z[:, 1]) ** 2)])


@eqx.filter_jit
def update(parts, state, optimiser, windows, key):
    """One step of Adam on 64 windows."""
    batch = windows[jax.random.randint(key, (64,), 0, windows.shape[0])]
    gradient = eqx.filter_grad(lambda p: errors(p, batch) @ WEIGHTS)(parts)
    # What scales the data is fixed.
    gradient = eqx.tree_at(lambda p: (p[0].mean, p[0].scale), gradient, replace_fn=lambda g: jnp.zeros_like(g))
    change, state = optimiser.update(gradient, state)
    return eqx.apply_updates(parts, change), state


def report(number, parts, test, seconds) -> None:
    found = jnp.sqrt(eqx.filter_jit(errors)(parts, test)) * jnp.array([*[float(parts[0].scale)] * 3, 1.0])
    names = ("decoded", "one step", "two steps", "latent")
    words = "  ".join(f"{name} {float(error):.4f}" for name, error in zip(names, found, strict=True))
    print(f"{number:6d} {seconds:6.0f} s  {words}", flush=True)


if __name__ == "__main__":
    main()
