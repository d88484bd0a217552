r"""Lorenz-63: convection in a layer of fluid, in three numbers.

    dx/dt = σ (y - x)            x: strength of the convection
    dy/dt = x (ρ - z) - y        y: temperature difference between rising and sinking fluid
    dz/dt = x y - β z            z: departure of the vertical temperature profile from a straight line

With σ = 10, ρ = 28, β = 8/3 the trajectory circles two unstable fixed points (±s, ±s, ρ - 1), s = sqrt(β (ρ - 1)), and
changes sides at times that look random. Time stepping is the classical fourth-order Runge-Kutta scheme.

Reference: E. N. Lorenz, "Deterministic nonperiodic flow", J. Atmos. Sci. 20 (1963), 130-141.
"""

import math
from typing import Any, SupportsIndex

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, PRNGKeyArray

from vardax.dynamics.rollout import rollout
from vardax.dynamics.runge_kutta import beyond_limit, rk4
from vardax.dynamics.stepping import checked_count, checked_dt, in_state_dtype
from vardax.types import concrete_values, float_array

__all__ = ["Lorenz63", "largest_stable_dt", "simulate_lorenz63"]


def largest_stable_dt(sigma: float, rho: float, beta: float) -> float:
    """The longest time step that is accepted: 2 / λ with λ the fastest decay, at the origin or of z.

    λ = max(β, (σ + 1 + sqrt((σ - 1)² + 4 σ ρ)) / 2), 22.8 for the classical parameters. Runs of 5,000 steps from around
    the attractor first blow up between 2.2 / λ and 3.3 / λ, for ρ from 0.5 to 200.

    >>> round(largest_stable_dt(10.0, 28.0, 8.0 / 3.0), 4)
    0.0876
    """
    square = (sigma - 1.0) ** 2 + 4.0 * sigma * rho
    fastest = max(abs(beta), 0.5 * (abs(sigma + 1.0) + math.sqrt(abs(square))))
    return 2.0 / fastest


class Lorenz63(eqx.Module):
    """The Lorenz-63 model as a `ForwardModel`; the last axis of the state has x, y and z.

    The parameters are traced leaves: they can be estimated. `dt` beyond `largest_stable_dt` is refused instead of
    returning NaN.

    >>> model = Lorenz63(sigma=10.0, rho=10.0, beta=1.0)
    >>> model.step(jnp.array([3.0, 3.0, 9.0]), model.dt).tolist()  # a fixed point
    [3.0, 3.0, 9.0]
    """

    sigma: Float[Array, ""]
    rho: Float[Array, ""]
    beta: Float[Array, ""]
    dt: float | Array

    def __init__(
        self, sigma: ArrayLike = 10.0, rho: ArrayLike = 28.0, beta: ArrayLike = 8.0 / 3.0, dt: ArrayLike = 0.01
    ):
        for name, value in (("sigma", sigma), ("rho", rho), ("beta", beta)):
            if jnp.shape(value) != ():
                raise ValueError(f"Lorenz63: `{name}` has shape {jnp.shape(value)}, expected a scalar.")
        self.sigma, self.rho, self.beta = float_array(sigma), float_array(rho), float_array(beta)
        self.dt = checked_dt(dt, "Lorenz63")
        self._check_stable(self.dt)

    @property
    def state_signature(self) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((3,), self.sigma.dtype)

    def tendency(self, state: Float[Array, "*batch n"]) -> Float[Array, "*batch n"]:
        """dx/dt."""
        sigma, rho, beta = (parameter.astype(state.dtype) for parameter in (self.sigma, self.rho, self.beta))
        x, y, z = state[..., 0], state[..., 1], state[..., 2]
        return jnp.stack([sigma * (y - x), x * (rho - z) - y, x * y - beta * z], axis=-1)

    def vector_field(self, t: Any, y: Float[Array, "*batch n"], args: Any) -> Float[Array, "*batch n"]:
        """dx/dt as diffrax asks for it; the system does not depend on `t`, and takes no `args`."""
        return self.tendency(y)

    def step(self, state: Float[Array, "*batch n"], dt: ArrayLike) -> Float[Array, "*batch n"]:
        """One Runge-Kutta step of length `dt`, in the dtype of `state`."""
        if state.shape[-1:] != (3,):
            raise ValueError(f"Lorenz63.step: `state` has shape {state.shape}, expected (..., 3).")
        self._check_stable(dt)
        return rk4(self.tendency, state, in_state_dtype(dt, state))

    def _check_stable(self, dt: ArrayLike) -> None:
        values = [concrete_values(value) for value in (self.sigma, self.rho, self.beta, dt)]
        if any(value is None for value in values):
            return
        sigma, rho, beta, step = (float(value) for value in values if value is not None)
        limit = largest_stable_dt(sigma, rho, beta)
        if beyond_limit(step, limit):
            raise ValueError(
                f"Lorenz63: `dt` is {step:g}, beyond the stability limit {limit:.3g} of the Runge-Kutta scheme for "
                f"sigma {sigma:g}, rho {rho:g}, beta {beta:.3g}; take a shorter `dt` and more steps (`n_substeps`)."
            )


def simulate_lorenz63(
    key: PRNGKeyArray,
    n_steps: SupportsIndex,
    *,
    sigma: ArrayLike = 10.0,
    rho: ArrayLike = 28.0,
    beta: ArrayLike = 8.0 / 3.0,
    dt: ArrayLike = 0.01,
    spin_up: SupportsIndex = 2000,
    dtype: jnp.dtype | type | None = None,
) -> Float[Array, "entries n"]:
    """A trajectory on the attractor: `n_steps` + 1 states, `dt` apart.

    Starts at (0, 0, ρ - 1) + N(0, I) and throws the first `spin_up` steps away (20 units of time by default).

    >>> simulate_lorenz63(jax.random.key(0), 4, spin_up=10).shape
    (5, 3)
    """
    n_steps = checked_count(n_steps, "n_steps", "simulate_lorenz63", least=0)
    spin_up = checked_count(spin_up, "spin_up", "simulate_lorenz63", least=0)
    model, dtype = Lorenz63(sigma, rho, beta, dt), jnp.dtype(dtype or jnp.result_type(float))
    start = jax.random.normal(key, (3,), dtype).at[2].add(model.rho.astype(dtype) - 1)
    if spin_up:
        start = rollout(model, start, 1, n_substeps=spin_up)[1]
    return rollout(model, start, n_steps)
