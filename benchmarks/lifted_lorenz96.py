"""Lorenz-96 lifted to 400 cells, and an autoencoder with a model in its latent space that never sees the 40 variables.

    u = S z                                     cubic B-splines, 10 cells for each of the 40 variables
    x_j = (1 - a_j) u_j + 4 a_j asinh(u_j / 2)  a_j = (3 + cos(2 pi j / 10)) / 4, which is 1 at the nodes

a smooth nonlinear map (`lift`); what it makes lies on a curved surface of 40 dimensions. From values at the nodes z is
found again (`unlift`), so that x(t + dt) = lift(M(unlift(x))) is the exact model of the 400 cells (`LiftedLorenz96`),
the oracle.

The learned part (`Autoencoder`) knows that the cells lie on a circle and that the dynamics are the same everywhere:
encoder and decoder are one small network each, shared by the 40 blocks of ten cells; the latent model (`BilinearModel`)
has a tendency that is quadratic in the neighbours, with coefficients that are learned, stepped by Runge-Kutta.
"""

from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from vardax.dynamics import Lorenz96

N, CELLS = 40, 10
M = N * CELLS
DT = 0.05
WEIGHTS = Path(__file__).parent / "latent_l96.npz"


def splines() -> np.ndarray:
    """S (400, 40): cubic B-splines around the nodes, which are cells 0, 10, 20, ..."""
    distance = (np.arange(M)[:, None] / CELLS - np.arange(N)[None] + N / 2) % N - N / 2
    r = np.abs(distance)
    return np.where(r < 1, 2 / 3 - r**2 + r**3 / 2, np.where(r < 2, (2 - r) ** 3 / 6, 0.0))


class Lifting(eqx.Module):
    """The exact map: `decode` is the lifting, `encode` its inverse from the values at the nodes."""

    S: jax.Array
    inverse: jax.Array
    bend: jax.Array
    latent_dim: int = eqx.field(static=True, default=N)

    def __init__(self):
        S = splines()
        self.S, self.inverse = jnp.asarray(S), jnp.asarray(np.linalg.inv(S[::CELLS]))
        self.bend = jnp.asarray((3 + np.cos(2 * np.pi * np.arange(M) / CELLS)) / 4)

    def decode(self, z):
        u = self.S.astype(z.dtype) @ z
        a = self.bend.astype(z.dtype)
        return (1 - a) * u + 4 * a * jnp.arcsinh(u / 2)

    def encode(self, x):
        return self.inverse.astype(x.dtype) @ (2 * jnp.sinh(x[::CELLS] / 4))


class LiftedLorenz96(eqx.Module):
    """The model of the 400 cells."""

    lifting: Lifting
    model: Lorenz96
    dt: float = eqx.field(static=True, default=DT)
    state_signature: None = eqx.field(static=True, default=None)

    def __init__(self):
        self.lifting, self.model = Lifting(), Lorenz96(N, dt=DT)

    def step(self, state, dt):
        return self.lifting.decode(self.model.step(self.lifting.encode(state), dt))


def neighbours(v, reach: int):
    """(N, 2 reach + 1): each entry with those up to `reach` places away, on the circle."""
    return jnp.stack([jnp.roll(v, -k) for k in range(-reach, reach + 1)], axis=-1)


class Autoencoder(eqx.Module):
    """400 cells <-> 40 numbers, one for each block of ten cells, by networks that all blocks share."""

    mean: jax.Array
    scale: jax.Array
    encoder: eqx.nn.MLP
    filter: jax.Array
    decoder: eqx.nn.MLP
    spread: jax.Array
    latent_dim: int = eqx.field(static=True, default=N)

    def __init__(self, mean, scale, *, key):
        for_encoder, for_decoder = jax.random.split(key)
        self.mean, self.scale = mean, scale
        self.encoder = eqx.nn.MLP(3 * CELLS, 1, 32, 1, activation=jnp.tanh, key=for_encoder)
        self.decoder = eqx.nn.MLP(5, CELLS, 32, 1, activation=jnp.tanh, key=for_decoder)
        self.filter = jnp.zeros(3 * CELLS).at[CELLS].set(1.0)
        self.spread = jnp.zeros((CELLS, 5)).at[:, 2].set(1.0)

    def _ground(self):
        return jnp.tile(self.mean, N)

    def encode(self, x):
        blocks = ((x - self._ground().astype(x.dtype)) / self.scale.astype(x.dtype)).reshape(N, CELLS)
        patch = jnp.concatenate([jnp.roll(blocks, 1, axis=0), blocks, jnp.roll(blocks, -1, axis=0)], axis=1)
        return patch @ self.filter.astype(x.dtype) + _shared(self.encoder, patch)[:, 0]

    def decode(self, z):
        near = neighbours(z, 2)
        blocks = near @ self.spread.T.astype(z.dtype) + _shared(self.decoder, near)
        return self._ground().astype(z.dtype) + self.scale.astype(z.dtype) * blocks.reshape(M)


def _shared(net, rows):
    """A network of one hidden layer on every row, in the dtype of the rows."""
    first, last = jax.tree.map(lambda w: w.astype(rows.dtype) if eqx.is_array(w) else w, net).layers
    return jnp.tanh(rows @ first.weight.T + first.bias[None]) @ last.weight.T + last.bias[None]


class BilinearModel(eqx.Module):
    """dv_i/dt = c + Σ_k l_k v_{i+k} + Σ_{k<=m} q_km v_{i+k} v_{i+m}, neighbours up to three places away."""

    constant: jax.Array
    linear: jax.Array
    quadratic: jax.Array
    dt: float = eqx.field(static=True, default=DT)
    latent_signature: None = eqx.field(static=True, default=None)

    def __init__(self):
        self.constant, self.linear, self.quadratic = jnp.zeros(()), jnp.zeros(7), jnp.zeros((7, 7))

    def tendency(self, v):
        near = neighbours(v, 3)
        return self.constant + near @ self.linear + jnp.sum((near @ self.quadratic) * near, axis=-1)

    def step(self, latent, dt):
        return runge_kutta(self.tendency, latent, dt)


class FilteredModel(eqx.Module):
    """The same as a sum of squares, Σ_r λ_r (F_r v)_i², by the eigenvectors of q: two matrix products."""

    constant: jax.Array
    linear: jax.Array
    filters: jax.Array
    eigenvalues: jax.Array
    dt: float = eqx.field(static=True, default=DT)
    latent_signature: None = eqx.field(static=True, default=None)

    def __init__(self, model: BilinearModel):
        q = np.asarray(model.quadratic, float)
        eigenvalues, vectors = np.linalg.eigh((q + q.T) / 2)
        shifts = np.stack([np.roll(np.eye(N), k, axis=1) for k in range(-3, 4)])
        self.constant, self.eigenvalues = jnp.asarray(model.constant, float), jnp.asarray(eigenvalues)
        self.linear = jnp.asarray(np.tensordot(np.asarray(model.linear, float), shifts, axes=1))
        self.filters = jnp.asarray(np.tensordot(vectors.T, shifts, axes=1).reshape(-1, N))

    def tendency(self, v):
        constant, linear, filters, eigenvalues = (
            a.astype(v.dtype) for a in (self.constant, self.linear, self.filters, self.eigenvalues)
        )
        return constant + linear @ v + eigenvalues @ (filters @ v).reshape(-1, N) ** 2

    def step(self, latent, dt):
        return runge_kutta(self.tendency, latent, dt)


def runge_kutta(tendency, v, dt):
    """One step of the classical scheme."""
    k1 = tendency(v)
    k2 = tendency(v + dt / 2 * k1)
    k3 = tendency(v + dt / 2 * k2)
    return v + dt / 6 * (k1 + 2 * k2 + 2 * k3 + tendency(v + dt * k3))


def climate(key, n_runs: int, n_steps: int, every: int = 1):
    """States of the 40 variables on the attractor: (n_runs, n_steps, 40), `every` steps apart."""
    from vardax.dynamics import rollout

    model = Lorenz96(N, dt=DT)
    start = 8 + jax.random.normal(key, (n_runs, N))
    run = lambda x: rollout(model, rollout(model, x, 1, n_substeps=400)[1], n_steps - 1, n_substeps=every)  # noqa: E731
    return jax.jit(jax.vmap(run))(start)


def load():
    """(autoencoder, latent model) as trained; the model in its fast form."""
    skeleton = (Autoencoder(jnp.zeros(CELLS), jnp.ones(()), key=jax.random.key(0)), BilinearModel())
    leaves, structure = jax.tree.flatten(eqx.filter(skeleton, eqx.is_array))
    with np.load(WEIGHTS) as file:
        found = [jnp.asarray(file[f"leaf{i}"], leaf.dtype) for i, leaf in enumerate(leaves)]
    autoencoder, model = eqx.combine(jax.tree.unflatten(structure, found), skeleton)
    return autoencoder, FilteredModel(model)


def store(parts) -> None:
    """Keep the weights, in single precision."""
    leaves = jax.tree.leaves(eqx.filter(parts, eqx.is_array))
    np.savez_compressed(WEIGHTS, **{f"leaf{i}": np.asarray(leaf, np.float32) for i, leaf in enumerate(leaves)})
