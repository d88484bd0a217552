"""The windows of Lorenz systems on which 4DVarNet was published, and the scores of a reconstruction.

Fablet, R. et al. (2021), JAMES 13, e2021MS002572; the settings are those of its programs (CIA-Oceanix,
DinAE_4DVarNN_torch). One trajectory; windows at random places of its first part are for training, of its second for
testing. Observations have noise of variance 2.

- Lorenz-96: 40 cells, F = 8, dt = 0.05; 10,000 steps after 5 time units from 8 + 0.01 at one cell; windows of 200,
  2,000 from steps 0 to 7000 and 256 from step 7500 on; a random half of the cells is observed at every fourth step.
- Lorenz-63: dt = 0.01; windows of 200 steps, 10,000 from the first 48,000 steps of a trajectory and 2,000 from the next
  12,000; everything is observed at every eighth step; the first and the last ten steps are left out of the scores.
"""

import dataclasses

import numpy as np

LENGTH, NOISE_VARIANCE = 200, 2.0


@dataclasses.dataclass(frozen=True)
class Windows:
    """Truth and observations (windows, steps, components), NaN where nothing was observed; `margin` is not scored.

    A random `fraction` of the components is observed at every so many steps, `every`.
    """

    truth: np.ndarray
    observations: np.ndarray
    every: int
    fraction: float
    margin: int = 0

    def first(self, n: int) -> "Windows":
        return dataclasses.replace(self, truth=self.truth[:n], observations=self.observations[:n])

    def scores(self, states) -> dict[str, float]:
        """Mean squared errors over all entries, the observed and the missing ones."""
        inside = slice(self.margin, LENGTH - self.margin)
        error = (np.asarray(states, float) - self.truth)[:, inside] ** 2
        seen = np.isfinite(self.observations)[:, inside]
        parts = {"all": error, "observed": error[seen], "missing": error[~seen]}
        return {name: round(float(part.mean()), 4) for name, part in parts.items()}

    def drawn(self, rng: np.random.Generator, n: int, length: int, *, circle: bool) -> "Windows":
        """n pieces of so many steps, from observed steps on and observed anew; turned round, where that is allowed."""
        which = rng.integers(0, len(self.truth), n)
        first = rng.integers(0, (LENGTH - length) // self.every + 1, n) * self.every
        turns = rng.integers(0, self.truth.shape[-1], n) if circle else np.zeros(n, int)
        pieces = [self.truth[w, f : f + length] for w, f in zip(which, first, strict=True)]
        truth = np.stack([np.roll(piece, turn, axis=-1) for piece, turn in zip(pieces, turns, strict=True)])
        return observed(truth, rng, self.every, self.fraction, self.margin)

    def interpolated(self) -> np.ndarray:
        """Linear in time at each component, level beyond its first and last observation: the first guess."""
        steps, out = np.arange(LENGTH), np.empty_like(self.truth)
        for window, y in enumerate(self.observations):
            for i in range(y.shape[1]):
                seen = np.flatnonzero(np.isfinite(y[:, i]))
                out[window, :, i] = np.interp(steps, seen, y[seen, i])
        return out


def lorenz96(seed: int, n_train: int = 2000, n_test: int = 256) -> tuple[Windows, Windows]:
    """(training, test) windows of Lorenz-96."""
    import jax.numpy as jnp

    from vardax.dynamics import Lorenz96, rollout

    model = Lorenz96(40, dt=0.05)
    spun_up = rollout(model, jnp.full(40, 8.0).at[19].add(0.01), 100)[-1]
    trajectory = np.asarray(rollout(model, spun_up, 10_000 - 1))
    rng = np.random.default_rng(seed)
    return tuple(
        _cut(trajectory, rng.integers(first, last - LENGTH, n), rng, every=4, fraction=0.5)
        for first, last, n in ((0, 7000, n_train), (7500, 10_000, n_test))
    )


def lorenz63(seed: int, n_train: int = 10_000, n_test: int = 2000) -> tuple[Windows, Windows]:
    """(training, test) windows of Lorenz-63."""
    import jax.numpy as jnp

    from vardax.dynamics import Lorenz63, rollout

    model = Lorenz63(dt=0.01)
    spun_up = rollout(model, jnp.asarray([8.0, 0.0, 30.0]), 1000)[-1]
    trajectory = np.asarray(rollout(model, spun_up, 60_000 - 1))
    rng = np.random.default_rng(seed)
    return tuple(
        _cut(trajectory, rng.integers(first, last - LENGTH, n), rng, every=8, fraction=1.0, margin=10)
        for first, last, n in ((0, 48_000, n_train), (48_000, 60_000, n_test))
    )


def _cut(trajectory: np.ndarray, starts: np.ndarray, rng, *, every: int, fraction: float, margin: int = 0) -> Windows:
    return observed(trajectory[starts[:, None] + np.arange(LENGTH)], rng, every, fraction, margin)


def observed(truth: np.ndarray, rng: np.random.Generator, every: int, fraction: float, margin: int) -> Windows:
    """Windows with observations of a random fraction of the components at every so many steps."""
    _, length, n = truth.shape
    order = rng.random(truth.shape).argsort(axis=-1)
    seen = (order < round(fraction * n)) & (np.arange(length) % every == 0)[:, None]
    noisy = truth + np.sqrt(NOISE_VARIANCE) * rng.standard_normal(truth.shape)
    seen = np.where(seen, noisy, np.nan)
    return Windows(truth.astype(np.float32), seen.astype(np.float32), every, fraction, margin)
