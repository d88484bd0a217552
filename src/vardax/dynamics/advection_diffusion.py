r"""Advection and diffusion of a tracer on a circle, in one dimension.

    ∂c/∂t = -∂F/∂x + s,   F = u c - κ ∂c/∂x

Finite volumes: c is the mean over a cell, F is taken at the faces, and what leaves one cell enters the next, so that
without a source the mass Σ c Δx does not change. The advected value at a face is third-order upwind biased,
c_{i+1/2} = (-c_{i-1} + 5 c_i + 2 c_{i+1}) / 6 for u > 0; the gradient is a centred difference. The model is linear in
c. Time stepping is the classical fourth-order Runge-Kutta scheme.

The scheme is not positive: next to a jump it may undershoot zero.
"""

from typing import Any, SupportsIndex

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from vardax.dynamics.runge_kutta import LIMIT_REAL, beyond_limit, rk4_looped
from vardax.dynamics.stepping import checked_count, checked_dt, in_state_dtype
from vardax.types import concrete_values, float_array

__all__ = ["AdvectionDiffusion1D", "largest_stable_dt"]

LIMIT_ADVECTION = 1.74
"""|u| dt / Δx at which the third-order flux with fourth-order Runge-Kutta ends to be stable."""


def largest_stable_dt(speed: float, diffusivity: float, dx: float) -> float:
    """The longest time step: |u| dt / (1.74 Δx) + 4 κ dt / (2.785 Δx²) = 1, which keeps every wave from growing.

    >>> round(largest_stable_dt(1.0, 0.0, 0.1), 3)
    0.174
    """
    rate = abs(speed) / (LIMIT_ADVECTION * dx) + 4.0 * diffusivity / (LIMIT_REAL * dx**2)
    return 1.0 / rate if rate else np.inf


class AdvectionDiffusion1D(eqx.Module):
    """Advection-diffusion of a tracer on n cells of a circle as a `ForwardModel`; the state is c, (n,).

    - `velocity` u and `diffusivity` κ >= 0: a number, or one per face; face i lies between cells i and i + 1.
    - `source` s: a number, or one per cell; to be estimated, for instance, as an emission.
    - `length`: that of the circle. `dt` is refused beyond `largest_stable_dt`, and if it is negative: diffusion cannot
      be run backwards.

    All are traced leaves, but for the sizes.

    >>> model = AdvectionDiffusion1D(50, velocity=1.0, diffusivity=1e-3, dt=0.01)
    >>> round(float(jnp.sum(model.step(jnp.zeros(50).at[10].set(1.0), model.dt))), 5)
    1.0
    """

    n: int = eqx.field(static=True)
    length: float = eqx.field(static=True)
    velocity: Float[Array, "..."]
    diffusivity: Float[Array, "..."]
    source: Float[Array, "..."]
    dt: float | Array

    def __init__(
        self,
        n: SupportsIndex = 100,
        velocity: ArrayLike = 1.0,
        diffusivity: ArrayLike = 0.0,
        source: ArrayLike = 0.0,
        length: float = 1.0,
        dt: ArrayLike = 0.005,
    ):
        owner = "AdvectionDiffusion1D"
        self.n = checked_count(n, "n", owner, least=4, meaning=", the stencil's points")
        self.length = float(length)
        if not self.length > 0:
            raise ValueError(f"{owner}: `length` is {length}, expected a positive number.")
        for name, value in (("velocity", velocity), ("diffusivity", diffusivity), ("source", source)):
            array = float_array(value)
            if array.shape not in ((), (self.n,)):
                raise ValueError(f"{owner}: `{name}` has shape {array.shape}, expected () or ({self.n},).")
            setattr(self, name, array)
        values = concrete_values(self.diffusivity)
        if values is not None and np.any(values < 0):
            raise ValueError(f"{owner}: `diffusivity` is {values.min():g} somewhere, expected no negative number.")
        self.dt = checked_dt(dt, owner)
        self._check_stable(self.dt)

    @property
    def dx(self) -> float:
        """The size of a cell."""
        return self.length / self.n

    @property
    def x(self) -> Float[Array, "n"]:
        """The centres of the cells."""
        return (jnp.arange(self.n).astype(self.velocity.dtype) + 0.5) * self.dx

    @property
    def state_signature(self) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((self.n,), self.velocity.dtype)

    def flux(self, state: Float[Array, "*batch n"]) -> Float[Array, "*batch n"]:
        """F at the face between each cell and the next."""
        u, kappa = (jnp.broadcast_to(p.astype(state.dtype), state.shape) for p in (self.velocity, self.diffusivity))
        before, after, beyond = (jnp.roll(state, -k, axis=-1) for k in (-1, 1, 2))
        from_left = (-before + 5.0 * state + 2.0 * after) / 6.0
        from_right = (2.0 * state + 5.0 * after - beyond) / 6.0
        advected = jnp.where(u >= 0, u * from_left, u * from_right)
        return advected - kappa * (after - state) / self.dx

    def tendency(self, state: Float[Array, "*batch n"]) -> Float[Array, "*batch n"]:
        """∂c/∂t."""
        flux = self.flux(state)
        source = jnp.broadcast_to(self.source.astype(state.dtype), state.shape)
        return source - (flux - jnp.roll(flux, 1, axis=-1)) / self.dx

    def vector_field(self, t: Any, y: Float[Array, "*batch n"], args: Any) -> Float[Array, "*batch n"]:
        """∂c/∂t as diffrax asks for it; the system does not depend on `t`, and takes no `args`."""
        return self.tendency(y)

    def step(self, state: Float[Array, "*batch n"], dt: ArrayLike) -> Float[Array, "*batch n"]:
        """One Runge-Kutta step of length `dt`, in the dtype of `state`."""
        if state.shape[-1:] != (self.n,):
            raise ValueError(f"AdvectionDiffusion1D.step: `state` has shape {state.shape}, expected (..., {self.n}).")
        self._check_stable(dt)
        return rk4_looped(self.tendency, state, in_state_dtype(dt, state))

    def _check_stable(self, dt: ArrayLike) -> None:
        leaves = (self.velocity, self.diffusivity, dt)
        parameters = [values for leaf in leaves if (values := concrete_values(leaf)) is not None]
        if len(parameters) < len(leaves):
            return
        speed, kappa, step = (float(np.max(np.abs(values))) for values in parameters)
        if parameters[2] < 0:
            raise ValueError(
                f"AdvectionDiffusion1D: `dt` is {-step:g}, expected a positive number: the upwind scheme and diffusion "
                "damp, and grow without bound backwards."
            )
        limit = largest_stable_dt(speed, kappa, self.dx)
        if beyond_limit(step, limit):
            raise ValueError(
                f"AdvectionDiffusion1D: `dt` is {step:g}, beyond the stability limit {limit:.3g} of the Runge-Kutta "
                f"scheme for speed {speed:g}, diffusivity {kappa:g} and cells of {self.dx:.3g} (CFL); take a shorter "
                "`dt` and more steps (`n_substeps`), or fewer cells."
            )
