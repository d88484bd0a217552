r"""Rotating shallow water on a doubly periodic plane: gravity waves, vortices and the balance between them.

    ∂u/∂t =  (f + ζ) v - ∂(g h + ½|u|²)/∂x + ν ∇²u        D = depth + h   thickness of the layer
    ∂v/∂t = -(f + ζ) u - ∂(g h + ½|u|²)/∂y + ν ∇²v        ζ = ∂v/∂x - ∂u/∂y   vorticity
    ∂h/∂t = -∂(u D)/∂x - ∂(v D)/∂y

The state is a dict of fields (ny, nx): `h`, the elevation of the surface, in the middle of each cell; `u` on its
western and `v` on its southern face (Arakawa's C grid); ζ lives on its south-western corner. The scheme is Sadourny's,
in its energy-conserving form: without viscosity, Σ h changes by rounding only and the energy by the error of the time
stepping, which is the classical fourth-order Runge-Kutta scheme.

Reference: R. Sadourny, "The dynamics of finite-difference models of the shallow-water equations", J. Atmos. Sci. 32
(1975), 680-689.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from vardax.dynamics.runge_kutta import LIMIT_IMAGINARY, LIMIT_REAL, beyond_limit, rk4_looped
from vardax.dynamics.stepping import checked_dt, checked_pair, checked_shape, in_state_dtype
from vardax.types import concrete_values, float_array

__all__ = ["ShallowWater2D", "largest_stable_dt"]

State = Mapping[str, Array]


def largest_stable_dt(
    wave_speed: float, flow: tuple[float, float], coriolis: float, viscosity: float, spacing: tuple[float, float]
) -> float:
    """The longest time step for waves of `wave_speed` on a `flow` (max |v|, max |u|), `spacing` (dy, dx).

    The shortest waves oscillate at 2 c sqrt(1/Δx² + 1/Δy²) + |u|/Δx + |v|/Δy + |f|, and are damped at
    4 ν (1/Δx² + 1/Δy²): dt takes the shares of both in the stability region of Runge-Kutta.

    >>> round(largest_stable_dt(10.0, (0.0, 0.0), 0.0, 0.0, (100.0, 100.0)), 3)
    9.998
    """
    inverse_squares = sum(1.0 / d**2 for d in spacing)
    frequency = 2.0 * wave_speed * np.sqrt(inverse_squares) + sum(v / d for v, d in zip(flow, spacing, strict=True))
    rate = (frequency + abs(coriolis)) / LIMIT_IMAGINARY + 4.0 * viscosity * inverse_squares / LIMIT_REAL
    return float(1.0 / rate)


class ShallowWater2D(eqx.Module):
    """The shallow-water equations on a doubly periodic C grid as a `ForwardModel`; the state is `{"h", "u", "v"}`.

    - `shape`: (ny, nx). `spacing`: (dy, dx), or one number for both.
    - `depth` of the layer at rest (a number, or one per cell: a bottom), `gravity`, `coriolis` f, `viscosity` ν: traced
      leaves, to be estimated if need be.
    - `dt`: refused beyond the limit of gravity waves on the layer at rest; `check_state` refuses a state whose flow
      makes it too long, or whose layer is dry, where its values are at hand: in a first step, and by `rollout`.

    The defaults are a layer of 100 m on cells of 20 km in middle latitudes, in SI units.

    >>> model = ShallowWater2D((16, 16))
    >>> waves = model.step(model.at_rest(jnp.zeros((16, 16)).at[8, 8].set(1.0)), model.dt)
    >>> sorted(waves), round(float(jnp.sum(waves["h"])), 4)
    (['h', 'u', 'v'], 1.0)
    """

    shape: tuple[int, int] = eqx.field(static=True)
    spacing: tuple[float, float] = eqx.field(static=True)
    depth: Float[Array, "..."]
    gravity: Float[Array, ""]
    coriolis: Float[Array, ""]
    viscosity: Float[Array, ""]
    dt: float | Array

    def __init__(
        self,
        shape: Sequence[int] = (32, 32),
        spacing: float | tuple[float, float] = 20e3,
        depth: ArrayLike = 100.0,
        gravity: ArrayLike = 9.81,
        coriolis: ArrayLike = 1e-4,
        viscosity: ArrayLike = 0.0,
        dt: ArrayLike = 300.0,
    ):
        owner = "ShallowWater2D"
        self.shape = checked_shape(shape, owner, least=3)
        self.spacing = checked_pair(spacing, "spacing", owner)
        self.depth = float_array(depth)
        if self.depth.shape not in ((), self.shape):
            raise ValueError(f"{owner}: `depth` has shape {self.depth.shape}, expected () or {self.shape}.")
        for name, value in (("gravity", gravity), ("coriolis", coriolis), ("viscosity", viscosity)):
            if jnp.shape(value) != ():
                raise ValueError(f"{owner}: `{name}` has shape {jnp.shape(value)}, expected a scalar.")
            setattr(self, name, float_array(value))
        self.dt = checked_dt(dt, owner)
        self._check_stable(self.dt, None)

    @property
    def state_signature(self) -> dict[str, jax.ShapeDtypeStruct]:
        return {name: jax.ShapeDtypeStruct(self.shape, self.depth.dtype) for name in ("h", "u", "v")}

    # -- states ------------------------------------------------------------------------------------------------------

    def at_rest(self, h: Float[Array, "ny nx"]) -> dict[str, Array]:
        """The elevation `h` without any flow."""
        return {"h": h, "u": jnp.zeros_like(h), "v": jnp.zeros_like(h)}

    def balanced(self, h: Float[Array, "ny nx"]) -> dict[str, Array]:
        """The elevation `h` with the flow that Coriolis force and pressure gradient balance: u = -(g/f) ∂h/∂y."""
        dy, dx = self.spacing
        scale = (self.gravity / self.coriolis).astype(h.dtype)
        slope_y, slope_x = (
            (jnp.roll(h, -1, axis) - jnp.roll(h, 1, axis)) / (2.0 * d) for axis, d in ((-2, dy), (-1, dx))
        )
        return {"h": h, "u": -scale * _west(slope_y), "v": scale * _south(slope_x)}

    def vorticity(self, state: State) -> Float[Array, "ny nx"]:
        """ζ on the south-western corners."""
        dy, dx = self.spacing
        return (state["v"] - jnp.roll(state["v"], 1, -1)) / dx - (state["u"] - jnp.roll(state["u"], 1, -2)) / dy

    def energy(self, state: State) -> Float[Array, ""]:
        """½ Σ (D u² + D v² + g h²) ΔxΔy, per density."""
        D = self._thickness(state)
        kinetic = jnp.sum(_west(D) * state["u"] ** 2) + jnp.sum(_south(D) * state["v"] ** 2)
        potential = self.gravity.astype(D.dtype) * jnp.sum(state["h"] ** 2)
        return 0.5 * (kinetic + potential) * self.spacing[0] * self.spacing[1]

    def _thickness(self, state: State) -> Array:
        return state["h"] + jnp.broadcast_to(self.depth.astype(state["h"].dtype), state["h"].shape)

    # -- motion ------------------------------------------------------------------------------------------------------

    def tendency(self, state: State) -> dict[str, Array]:
        """∂h/∂t, ∂u/∂t, ∂v/∂t."""
        (dy, dx), h, u, v = self.spacing, state["h"], state["u"], state["v"]
        g, f, nu = (parameter.astype(h.dtype) for parameter in (self.gravity, self.coriolis, self.viscosity))
        D = self._thickness(state)
        U, V = _west(D) * u, _south(D) * v
        q = (f + self.vorticity(state)) / _south(_west(D))
        head = g * h + 0.5 * (_east(u**2) + _north(v**2))
        return {
            "h": -(jnp.roll(U, -1, -1) - U) / dx - (jnp.roll(V, -1, -2) - V) / dy,
            "u": _north(q * _west(V)) - (head - jnp.roll(head, 1, -1)) / dx + nu * self._laplacian(u),
            "v": -_east(q * _south(U)) - (head - jnp.roll(head, 1, -2)) / dy + nu * self._laplacian(v),
        }

    def _laplacian(self, field: Array) -> Array:
        along_y, along_x = (jnp.roll(field, -1, a) - 2.0 * field + jnp.roll(field, 1, a) for a in (-2, -1))
        return along_y / self.spacing[0] ** 2 + along_x / self.spacing[1] ** 2

    def vector_field(self, t: Any, y: State, args: Any) -> dict[str, Array]:
        """The tendency as diffrax asks for it; the system does not depend on `t`, and takes no `args`."""
        return self.tendency(y)

    def step(self, state: State, dt: ArrayLike) -> dict[str, Array]:
        """One Runge-Kutta step of length `dt`, in the dtype of `state`."""
        self._check_stable(dt, state)
        return rk4_looped(self.tendency, dict(state), in_state_dtype(dt, state))

    # -- checks ------------------------------------------------------------------------------------------------------

    def check_state(self, state: State) -> None:
        """Refuse a state that steps of `dt` cannot move, where its values are at hand."""
        self._check_stable(self.dt, state)

    def _check_stable(self, dt: ArrayLike, state: State | None) -> None:
        names = {"h", "u", "v"}
        if state is not None and (set(state) != names or any(state[n].shape[-2:] != self.shape for n in names)):
            found = {name: jnp.shape(leaf) for name, leaf in state.items()}
            raise ValueError(f"ShallowWater2D: `state` is {found}, expected `h`, `u` and `v` of shape {self.shape}.")
        leaves = (self.depth, self.gravity, self.coriolis, self.viscosity, dt)
        parameters = [values for leaf in leaves if (values := concrete_values(leaf)) is not None]
        if len(parameters) < len(leaves):
            return
        depth, gravity, coriolis, viscosity, step = (np.asarray(p, float) for p in parameters)
        thickness, flow, what = depth, (0.0, 0.0), "`depth` is"
        known = {name: field for name in names if (field := concrete_values((state or {}).get(name, 0.0))) is not None}
        if state is not None and len(known) == len(names):
            thickness, what = depth + known["h"], "`state` has a layer of"
            flow = (float(np.abs(known["v"]).max()), float(np.abs(known["u"]).max()))
        if not np.all(thickness > 0):
            raise ValueError(f"ShallowWater2D: {what} {thickness.min():.3g} somewhere, expected a positive thickness.")
        if viscosity > 0 and step < 0:
            raise ValueError(f"ShallowWater2D: `dt` is {float(step):g}; with `viscosity` it cannot be negative.")
        wave_speed = float(np.sqrt(gravity * thickness.max()))
        limit = largest_stable_dt(wave_speed, flow, float(coriolis), float(viscosity), self.spacing)
        if beyond_limit(float(step), limit):
            raise ValueError(
                f"ShallowWater2D: `dt` is {float(step):g}, beyond the stability limit {limit:.3g} of the Runge-Kutta "
                f"scheme for waves of {wave_speed:.3g} on a flow of {max(flow):.3g} and cells of {min(self.spacing):g} "
                "(CFL); take a shorter `dt` and more steps (`n_substeps`)."
            )


def _west(field: Array) -> Array:
    """From the middle of cells to their western faces, or from southern faces to corners."""
    return 0.5 * (field + jnp.roll(field, 1, -1))


def _east(field: Array) -> Array:
    """Back: from western faces to the middle of cells."""
    return 0.5 * (field + jnp.roll(field, -1, -1))


def _south(field: Array) -> Array:
    """From the middle of cells to their southern faces, or from western faces to corners."""
    return 0.5 * (field + jnp.roll(field, 1, -2))


def _north(field: Array) -> Array:
    """Back: from southern faces to the middle of cells."""
    return 0.5 * (field + jnp.roll(field, -1, -2))
