"""Lorenz-96: the atmosphere on one circle of latitude, in n numbers.

    dx_i/dt = (x_{i+1} - x_{i-2}) x_{i-1} - x_i + F,   i = 0 .. n - 1,   indices modulo n

The quadratic term conserves energy (advection), -x_i dissipates it, F feeds it. With F = 8 the system is chaotic;
one unit of time is about five days. Time stepping is the classical fourth-order Runge-Kutta scheme.

The derivative of the stencil is written by hand (`advection`). Left to itself, XLA turns the transpose of concatenated
slices into pads and additions, three times as slow as the tangent for large n, and that of a gather into a scatter,
four times as slow; shifts that know their transposes need less than twice its time. The value is computed with slices
of the wrapped state, where those are fastest; the barrier makes XLA write it down once instead of computing the whole
stage again for each slice (2.6 times faster for n = 400,000).

Reference: E. N. Lorenz, "Predictability: a problem partly solved", ECMWF seminar (1996); E. N. Lorenz and
K. A. Emanuel, J. Atmos. Sci. 55 (1998), 399-414.
"""

from typing import Any, SupportsIndex

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, PRNGKeyArray

from vardax.dynamics.rollout import rollout
from vardax.dynamics.runge_kutta import beyond_limit, rk4
from vardax.dynamics.stepping import checked_count, checked_dt, in_state_dtype
from vardax.types import concrete_values, float_array

__all__ = ["Lorenz96", "advection", "largest_stable_dt", "simulate_lorenz96"]


@jax.custom_jvp
def advection(x: Float[Array, "*batch n"]) -> Float[Array, "*batch n"]:
    """(x_{i+1} - x_{i-2}) x_{i-1} on the last axis.

    >>> advection(jnp.array([1.0, 2.0, 3.0, 4.0])).tolist()
    [-4.0, -1.0, 6.0, -3.0]
    """
    wrapped = jax.lax.optimization_barrier(jnp.concatenate([x[..., -2:], x, x[..., :1]], axis=-1))
    return (wrapped[..., 3:] - wrapped[..., :-3]) * wrapped[..., 1:-2]


@advection.defjvp
def _advection_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (x,), (dx,) = primals, tangents
    tangent = (_shifted(dx, 1) - _shifted(dx, -2)) * _neighbour(x, -1)
    return advection(x), tangent + (_neighbour(x, 1) - _neighbour(x, -2)) * _shifted(dx, -1)


def _shifted(x: Array, offset: int) -> Array:
    """`_neighbour` as a linear map that knows its transpose, the shift back; that of a gather is a slow scatter.

    A shift solves the system whose matrix is the shift back: so JAX learns the transpose by its public means.
    """
    return jax.lax.custom_linear_solve(
        lambda v: _neighbour(v, -offset),
        x,
        solve=lambda _, b: _neighbour(b, offset),
        transpose_solve=lambda _, c: _neighbour(c, -offset),
    )


def _neighbour(x: Array, offset: int) -> Array:
    """x_{i + offset} as a gather by a constant index."""
    n = x.shape[-1]
    index = jax.lax.rem(jnp.arange(n, dtype=jnp.uint32) + jnp.uint32(offset % n), jnp.uint32(n))  # signs cost code
    return x.at[..., index].get(mode="promise_in_bounds", unique_indices=True)


def largest_stable_dt(forcing: float) -> float:
    """The longest time step that is accepted with this forcing: 0.9 / (1 + |F| + F^2 / 150), at most 0.5.

    Fitted below the steps at which runs of 20,000 steps from F + N(0, 1) first blow up, F from -8 to 64 (0.12 for
    F = 8, 0.059 for 16, 0.027 for 32, 0.011 for 64); states far off the attractor may need shorter steps.

    >>> round(largest_stable_dt(8.0), 4)
    0.0955
    """
    return min(0.5, 0.9 / (1.0 + abs(forcing) + forcing**2 / 150.0))


class Lorenz96(eqx.Module):
    """The Lorenz-96 model as a `ForwardModel`; the last axis of the state has the n variables.

    `forcing` is a scalar or one value per variable, and a traced leaf: it can be estimated. `dt` beyond
    `largest_stable_dt` is refused instead of returning NaN.

    >>> model = Lorenz96()
    >>> float(model.step(jnp.full(40, 8.0), model.dt)[0])
    8.0
    """

    n: int = eqx.field(static=True)
    forcing: Float[Array, "..."]
    dt: float | Array

    def __init__(self, n: SupportsIndex = 40, forcing: ArrayLike = 8.0, dt: ArrayLike = 0.05):
        self.n = checked_count(n, "n", "Lorenz96", least=4, meaning=", the stencil's points")
        self.forcing = float_array(forcing)
        if self.forcing.shape not in ((), (self.n,)):
            raise ValueError(f"Lorenz96: `forcing` has shape {self.forcing.shape}, expected () or ({self.n},).")
        self.dt = checked_dt(dt, "Lorenz96")
        self._check_stable(self.dt)

    @property
    def state_signature(self) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((self.n,), self.forcing.dtype)

    def tendency(self, state: Float[Array, "*batch n"]) -> Float[Array, "*batch n"]:
        """dx/dt."""
        forcing = self.forcing.astype(state.dtype)
        return advection(state) - state + jnp.broadcast_to(forcing, state.shape)

    def vector_field(self, t: Any, y: Float[Array, "*batch n"], args: Any) -> Float[Array, "*batch n"]:
        """dx/dt as diffrax asks for it; the system does not depend on `t`, and takes no `args`."""
        return self.tendency(y)

    def step(self, state: Float[Array, "*batch n"], dt: ArrayLike) -> Float[Array, "*batch n"]:
        """One Runge-Kutta step of length `dt`, in the dtype of `state`."""
        if state.shape[-1:] != (self.n,):
            raise ValueError(f"Lorenz96.step: `state` has shape {state.shape}, expected (..., {self.n}).")
        self._check_stable(dt)
        return rk4(self.tendency, state, in_state_dtype(dt, state))

    def _check_stable(self, dt: ArrayLike) -> None:
        forcing, step = concrete_values(self.forcing), concrete_values(dt)
        if forcing is None or step is None:
            return
        limit = largest_stable_dt(float(abs(forcing).max()))
        if beyond_limit(float(step), limit):
            raise ValueError(
                f"Lorenz96: `dt` is {float(step):g}, beyond the stability limit {limit:.3g} of the Runge-Kutta scheme "
                f"for forcing {float(abs(forcing).max()):g}; take a shorter `dt` and more steps (`n_substeps`)."
            )


def simulate_lorenz96(
    key: PRNGKeyArray,
    n_steps: SupportsIndex,
    *,
    n: SupportsIndex = 40,
    forcing: ArrayLike = 8.0,
    dt: ArrayLike = 0.05,
    spin_up: SupportsIndex = 1000,
    dtype: jnp.dtype | type | None = None,
) -> Float[Array, "entries n"]:
    """A trajectory on the attractor: `n_steps` + 1 states, `dt` apart.

    Starts at F + N(0, 1) and throws the first `spin_up` steps away (50 units of time by default).

    >>> simulate_lorenz96(jax.random.key(0), 4, spin_up=10).shape
    (5, 40)
    """
    n_steps = checked_count(n_steps, "n_steps", "simulate_lorenz96", least=0)
    spin_up = checked_count(spin_up, "spin_up", "simulate_lorenz96", least=0)
    model, dtype = Lorenz96(n, forcing, dt), jnp.dtype(dtype or jnp.result_type(float))
    mean = jnp.broadcast_to(model.forcing.astype(dtype), (model.n,))
    start = mean + jax.random.normal(key, (model.n,), dtype)
    if spin_up:
        start = rollout(model, start, 1, n_substeps=spin_up)[1]
    return rollout(model, start, n_steps)
