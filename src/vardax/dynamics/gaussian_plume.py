r"""Gaussian plume: the steady concentration downwind of point sources, such as methane from facilities.

    C(x, y, z) = Q / (2π U σ_y σ_z) exp(-y² / 2σ_y²) [exp(-(z - H)² / 2σ_z²) + exp(-(z + H)² / 2σ_z²)]

x is the distance downwind, y across, z above the ground, Q the emission rate, H the height of the source and U the wind
speed; the second exponential is the reflection at the ground. σ_y(x) and σ_z(x) are Briggs's curves for open country.
Integrated over the column, what a satellite sees, it is Q / (sqrt(2π) U σ_y) exp(-y² / 2σ_y²). Nothing is upwind.

The state is the emission rates, one per source. As a `ForwardModel` it is steady: the emissions persist from one time
to the next. As an observation operator, `plume(state)` gives what the receptors measure, linear in the state:

    ThreeDVar(obs_op=plume, prior_mean=inventory, ...)

Reference: G. A. Briggs, "Diffusion estimation for small emissions", NOAA ATDL report 79 (1973); S. R. Hanna,
G. A. Briggs and R. P. Hosker, "Handbook on atmospheric diffusion" (1982), chapter 4.
"""

import enum
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from vardax.dynamics.stepping import checked_dt
from vardax.types import concrete_values, float_array

__all__ = ["LEAST_WIND", "GaussianPlume", "Stability"]

LEAST_WIND = 0.5
"""Below this wind speed (m/s) a plume spreads as fast upwind as it is carried away, and has no such steady form."""


class Stability(enum.Enum):
    """Pasquill's classes of the atmosphere, from A, very unstable (strong sun, little wind), to F, stable (night).

    Each has the coefficients of σ_y = a x / sqrt(1 + 1e-4 x) and σ_z = b x (1 + c x)^p, in metres.
    """

    A = (0.22, 0.20, 0.0, 1.0)
    B = (0.16, 0.12, 0.0, 1.0)
    C = (0.11, 0.08, 2e-4, -0.5)
    D = (0.08, 0.06, 1.5e-3, -0.5)
    E = (0.06, 0.03, 3e-4, -1.0)
    F = (0.04, 0.016, 3e-4, -1.0)

    def spread(self, x: Float[Array, "..."]) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
        """(σ_y, σ_z) at the distance x > 0 downwind."""
        a, b, c, p = self.value
        return a * x / jnp.sqrt(1.0 + 1e-4 * x), b * x * (1.0 + c * x) ** p


class GaussianPlume(eqx.Module):
    """Steady plumes of point sources, as a `ForwardModel` of emissions and as the observation operator of receptors.

    - `sources`: (S, 3), x, y and height of each, in metres.
    - `receptors`: (p, 3) for concentrations (kg/m³ for emissions in kg/s), or (p, 2) for columns (kg/m²).
    - `wind`: its two components in m/s, where it blows to; refused below 0.5 m/s.
    - `stability`: a Pasquill class. `dt`: the length of a step, in which nothing changes.

    Sources, receptors and wind are traced leaves: a wind can be estimated with the emissions.

    >>> plume = GaussianPlume([[0.0, 0.0, 10.0]], [[1000.0, 0.0, 2.0], [-1000.0, 0.0, 2.0]], wind=(4.0, 0.0))
    >>> plume(jnp.array([0.1])).tolist()[1]  # nothing upwind
    0.0
    """

    sources: Float[Array, "S 3"]
    receptors: Float[Array, "p d"]
    wind: Float[Array, "2"]
    dt: float | Array
    stability: Stability = eqx.field(static=True)

    def __init__(
        self,
        sources: Any,
        receptors: Any,
        wind: Any = (5.0, 0.0),
        stability: Any = Stability.D,
        dt: ArrayLike = 1.0,
    ):
        owner = "GaussianPlume"
        sources, receptors, wind = (float_array(jnp.asarray(value)) for value in (sources, receptors, wind))
        if sources.ndim != 2 or sources.shape[1] != 3:
            raise ValueError(f"{owner}: `sources` has shape {sources.shape}, expected (S, 3): x, y and height.")
        if receptors.ndim != 2 or receptors.shape[1] not in (2, 3):
            raise ValueError(
                f"{owner}: `receptors` has shape {receptors.shape}, expected (p, 3) for concentrations or (p, 2) for "
                "columns."
            )
        if wind.shape != (2,):
            raise ValueError(f"{owner}: `wind` has shape {wind.shape}, expected (2,): its components.")
        if not isinstance(stability, Stability):
            names = ", ".join(f"Stability.{member.name}" for member in Stability)
            raise TypeError(f"{owner}: `stability` is {stability!r}, expected one of {names}.")
        values = concrete_values(wind)
        if values is not None and not np.hypot(*values) >= LEAST_WIND:
            raise ValueError(
                f"{owner}: `wind` is {np.hypot(*values):.3g} m/s, expected at least {LEAST_WIND} m/s: without wind "
                "there is no steady plume."
            )
        self.sources, self.receptors, self.wind = sources, receptors, wind
        self.stability, self.dt = stability, checked_dt(dt, owner)

    @property
    def state_signature(self) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(self.sources.shape[:1], self.sources.dtype)

    def step(self, state: Float[Array, "S"], dt: ArrayLike) -> Float[Array, "S"]:
        """The emissions after `dt`: the same."""
        return state

    def __call__(self, state: Float[Array, "S"]) -> Float[Array, "p"]:
        """What the receptors measure of the emissions `state`."""
        self._check_state(state)
        return self.footprint(state.dtype) @ state

    def linearize(self, state: Float[Array, "S"]) -> lx.AbstractLinearOperator:
        """The footprint: linear, so the same at every state."""
        self._check_state(state)
        return lx.MatrixLinearOperator(self.footprint(state.dtype))

    def footprint(self, dtype: Any = None) -> Float[Array, "p S"]:
        """What each receptor measures of a unit emission from each source."""
        dtype = dtype or self.sources.dtype
        sources, receptors, wind = (a.astype(dtype) for a in (self.sources, self.receptors, self.wind))
        speed = jnp.sqrt(jnp.sum(wind**2))
        along, across = wind / speed, jnp.stack([-wind[1], wind[0]]) / speed
        offset = receptors[:, None, :2] - sources[None, :, :2]
        x, y = offset @ along, offset @ across
        downwind = x > 0
        sigma_y, sigma_z = self.stability.spread(jnp.where(downwind, x, jnp.ones_like(x)))
        column = jnp.exp(-0.5 * (y / sigma_y) ** 2) / (jnp.sqrt(2 * jnp.pi).astype(dtype) * speed * sigma_y)
        if receptors.shape[1] == 3:
            z, height = receptors[:, None, 2], sources[None, :, 2]
            up, reflected = (jnp.exp(-0.5 * ((z - sign * height) / sigma_z) ** 2) for sign in (1.0, -1.0))
            column = column * (up + reflected) / (jnp.sqrt(2 * jnp.pi).astype(dtype) * sigma_z)
        return jnp.where(downwind, column, jnp.zeros_like(column))

    def _check_state(self, state: Array) -> None:
        if state.shape != self.sources.shape[:1]:
            raise ValueError(
                f"GaussianPlume: `state` has shape {state.shape}, expected ({self.sources.shape[0]},): one emission "
                "rate per source."
            )
