"""Where on a grid each observation looks, read from products with H alone.

For an observation of a field near one cell c, H f ≈ s f(c) for every smooth f: the gain s is H 1, and the cell follows
from the phase of H exp(2πi x/n), the wave that goes once around each axis of n cells. An observation is local when a
wave of about `LOCAL_WAVE` cells loses little of its amplitude: H averages over fewer cells than that.

Exact for single cells (`PointObs`); interpolation between cells gives the nearest one.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from vardax.minimisers.krylov_result import Observing

__all__ = ["ObservedCells", "observed_cells"]

LOCAL_WAVE = 16.0
LEAST_AMPLITUDE = 0.9


class ObservedCells(NamedTuple):
    """Gain, cell (an index for each axis of the grid), and whether it is near one cell, of each observation."""

    gain: Float[Array, "m"]
    cells: tuple[Int[Array, "m"], ...]
    local: Bool[Array, "m"]


def observed_cells(observing: Observing, shape: tuple[int, ...]) -> ObservedCells:
    """The cells that H looks at, for fields of this shape; observations in ravelled order."""
    gain = jnp.ravel(observing.predict(jnp.ones(shape, observing.B.dtype)))
    local = jnp.ones(gain.shape, bool)
    cells = []
    for axis, n in enumerate(shape):
        cosine, sine = _predicted_wave(observing, shape, axis, 1)
        turn = jnp.arctan2(sine * jnp.sign(gain), cosine * jnp.sign(gain)) / (2 * np.pi)
        cells.append(jnp.round(n * turn).astype(int) % n)
        cosine, sine = _predicted_wave(observing, shape, axis, max(1, round(n / LOCAL_WAVE)))
        local &= cosine**2 + sine**2 >= (LEAST_AMPLITUDE * gain) ** 2
    return ObservedCells(gain, tuple(cells), local)


def _predicted_wave(observing: Observing, shape: tuple[int, ...], axis: int, number: int) -> tuple[Array, Array]:
    """H cos(2π k x / n) and H sin(2π k x / n) along one axis, k = `number`."""
    angle = 2 * np.pi * number * np.arange(shape[axis]) / shape[axis]
    angle = angle.reshape([-1 if k == axis else 1 for k in range(len(shape))])
    waves = [jnp.broadcast_to(jnp.asarray(wave, observing.B.dtype), shape) for wave in (np.cos(angle), np.sin(angle))]
    cosine, sine = (jnp.ravel(observing.predict(wave)) for wave in waves)
    return cosine, sine
