r"""Quasi-geostrophic flow: eddies and Rossby waves in one layer on a doubly periodic plane.

    ∂q/∂t + J(ψ, q) + β ∂ψ/∂x = -r ∇²ψ - ν ∇⁴q,   q = ∇²ψ - ψ / L_d²,   u = -∂ψ/∂y,   v = ∂ψ/∂x

One layer, barotropic (L_d = ∞) or equivalent-barotropic (L_d: the deformation radius, as for the first baroclinic mode
of the ocean, the usual model of sea surface height). The state is q on the grid, (ny, nx).

Pseudo-spectral: derivatives and the inversion for ψ are exact for each wave. Since J(ψ, ψ) = 0, only the vorticity is
advected, and J(ψ, ∇²ψ) = (∂_xx - ∂_yy)(u v) + ∂_xy(v² - u²) takes four transforms instead of five. Products are formed
from the waves below a third of the grid's, so that nothing is aliased and, without friction, energy and enstrophy
change only by the error of the time stepping (classical fourth-order Runge-Kutta). Shorter waves feel the linear terms
alone.

Reference: C. Basdevant, "Technical improvements for direct numerical simulation of homogeneous three-dimensional
turbulence", J. Comput. Phys. 50 (1983), 209-214, for the form of the products; G. K. Vallis, "Atmospheric and oceanic
fluid dynamics", chapter 5.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Complex, Float

from vardax.dynamics.runge_kutta import LIMIT_IMAGINARY, LIMIT_REAL, rk4_looped
from vardax.dynamics.stepping import checked_dt, checked_pair, checked_shape, in_state_dtype
from vardax.types import concrete_values, float_array

__all__ = ["QuasiGeostrophic2D"]


class _Waves(NamedTuple):
    """Wavenumbers of a real transform. `kx` and `ky` are 0 at the grid's own frequency, whose slope it cannot see."""

    kx: Any
    ky: Any
    squared: Any
    resolved: Any


def _waves(shape: tuple[int, int], lengths: tuple[float, float]) -> _Waves:
    ny, nx = shape
    y, x = np.fft.fftfreq(ny, 1.0 / ny)[:, None], np.fft.rfftfreq(nx, 1.0 / nx)[None]
    resolved = (np.abs(y) <= (ny - 1) // 3) & (x <= (nx - 1) // 3)
    ky, kx = 2 * np.pi / lengths[0] * y, 2 * np.pi / lengths[1] * x
    odd_y, odd_x = np.where(2 * np.abs(y) == ny, 0.0, ky), np.where(2 * x == nx, 0.0, kx)
    full = np.broadcast_arrays(odd_x, odd_y, kx**2 + ky**2, resolved.astype(float))
    return _Waves(*full)


class QuasiGeostrophic2D(eqx.Module):
    """One-layer quasi-geostrophic flow on a doubly periodic plane as a `ForwardModel`; the state is q, (ny, nx).

    - `shape`: (ny, nx). `lengths`: (ly, lx) of the plane, or one number for both.
    - `beta` β, `deformation_radius` L_d (infinite for none), `drag` r and `viscosity` ν (of ∇⁴): traced leaves, to be
      estimated if need be.
    - `dt`: refused beyond the limit of Rossby waves and friction; `check_state` refuses a state whose flow makes it too
      long, where its values are at hand: in a first step, and by `rollout`.

    >>> model = QuasiGeostrophic2D((16, 16))
    >>> x = 2 * jnp.pi * jnp.arange(16) / 16
    >>> q = jnp.broadcast_to(jnp.cos(x), (16, 16))
    >>> round(float(model.energy(q)), 4)  # half the mean of v², v = sin(x)
    0.25
    """

    shape: tuple[int, int] = eqx.field(static=True)
    lengths: tuple[float, float] = eqx.field(static=True)
    beta: Float[Array, ""]
    deformation_radius: Float[Array, ""]
    drag: Float[Array, ""]
    viscosity: Float[Array, ""]
    dt: float | Array

    def __init__(
        self,
        shape: Sequence[int] = (64, 64),
        lengths: float | tuple[float, float] = 2 * np.pi,
        beta: ArrayLike = 0.0,
        deformation_radius: ArrayLike = np.inf,
        drag: ArrayLike = 0.0,
        viscosity: ArrayLike = 0.0,
        dt: ArrayLike = 0.01,
    ):
        owner = "QuasiGeostrophic2D"
        self.shape = checked_shape(shape, owner, least=4)
        self.lengths = checked_pair(lengths, "lengths", owner)
        parameters = {"beta": beta, "deformation_radius": deformation_radius, "drag": drag, "viscosity": viscosity}
        for name, value in parameters.items():
            if jnp.shape(value) != ():
                raise ValueError(f"{owner}: `{name}` has shape {jnp.shape(value)}, expected a scalar.")
            found = concrete_values(float_array(value))
            if name != "beta" and found is not None and (found < 0 or (found == 0 and name == "deformation_radius")):
                raise ValueError(f"{owner}: `{name}` is {float(found):g}, expected a positive number.")
            setattr(self, name, float_array(value))
        self.dt = checked_dt(dt, owner)
        self._check_stable(self.dt, None)

    @property
    def state_signature(self) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(self.shape, self.beta.dtype)

    # -- what a state says -------------------------------------------------------------------------------------------

    def streamfunction(self, q: Float[Array, "*batch ny nx"]) -> Float[Array, "*batch ny nx"]:
        """ψ, without its mean."""
        return self._to_grid(self._inverted(jnp.fft.rfft2(q)))

    def velocity(self, q: Float[Array, "*batch ny nx"]) -> tuple[Array, Array]:
        """(u, v)."""
        waves, psi = self._waves_in(q.dtype), self._inverted(jnp.fft.rfft2(q))
        return self._to_grid(_turned(-waves.ky, psi)), self._to_grid(_turned(waves.kx, psi))

    def potential_vorticity(self, psi: Float[Array, "*batch ny nx"]) -> Float[Array, "*batch ny nx"]:
        """The state of a streamfunction: q = ∇²ψ - ψ / L_d²."""
        squared = self._waves_in(psi.dtype).squared
        return self._to_grid(_scaled(-(squared + self._stretching(psi.dtype)), jnp.fft.rfft2(psi)))

    def energy(self, q: Float[Array, "ny nx"]) -> Float[Array, ""]:
        """The mean of ½ (u² + v² + ψ² / L_d²), which is that of -½ ψ q."""
        return -0.5 * jnp.mean(self.streamfunction(q) * (q - jnp.mean(q)))

    def enstrophy(self, q: Float[Array, "ny nx"]) -> Float[Array, ""]:
        """The mean of ½ q²."""
        return 0.5 * jnp.mean(q**2)

    # -- motion ------------------------------------------------------------------------------------------------------

    def tendency(self, q: Float[Array, "*batch ny nx"]) -> Float[Array, "*batch ny nx"]:
        """∂q/∂t."""
        return self._to_grid(self._tendency(jnp.fft.rfft2(q)))

    def vector_field(self, t: Any, y: Float[Array, "*batch ny nx"], args: Any) -> Float[Array, "*batch ny nx"]:
        """∂q/∂t as diffrax asks for it; the system does not depend on `t`, and takes no `args`."""
        return self.tendency(y)

    def step(self, state: Float[Array, "*batch ny nx"], dt: ArrayLike) -> Float[Array, "*batch ny nx"]:
        """One Runge-Kutta step of length `dt`, in the dtype of `state`."""
        if state.shape[-2:] != self.shape:
            raise ValueError(f"QuasiGeostrophic2D.step: `state` has shape {state.shape}, expected (..., {self.shape}).")
        self._check_stable(dt, state)
        return self._to_grid(rk4_looped(self._tendency, jnp.fft.rfft2(state), in_state_dtype(dt, state)))

    def _tendency(self, q: Complex[Array, "*batch ky kx"]) -> Complex[Array, "*batch ky kx"]:
        """∂q/∂t in waves."""
        waves, psi = self._waves_in(q.real.dtype), self._inverted(q)
        beta, drag, nu = (p.astype(q.real.dtype) for p in (self.beta, self.drag, self.viscosity))
        resolved = _scaled(waves.resolved, psi)
        u, v = self._to_grid(jnp.stack([_turned(-waves.ky, resolved), _turned(waves.kx, resolved)]))
        shear, stretch = jnp.fft.rfft2(jnp.stack([u * v, v**2 - u**2]))
        advection = _scaled(waves.resolved * (waves.ky**2 - waves.kx**2), shear) - _scaled(
            waves.resolved * waves.kx * waves.ky, stretch
        )
        waving = _turned(beta * waves.kx, psi)
        friction = _scaled(-drag * waves.squared, psi) + _scaled(nu * waves.squared**2, q)
        return -(advection + waving + friction)

    def _inverted(self, q: Complex[Array, "*batch ky kx"]) -> Complex[Array, "*batch ky kx"]:
        """ψ of q, both in waves; the mean, which moves nothing, is left out."""
        squared = self._waves_in(q.real.dtype).squared
        mean = squared == 0
        total = jnp.where(mean, 1.0, squared + self._stretching(q.real.dtype))
        return _scaled(jnp.where(mean, 0.0, -1.0 / total), q)

    def _stretching(self, dtype: Any) -> Array:
        """1 / L_d²."""
        return 1.0 / self.deformation_radius.astype(dtype) ** 2

    def _to_grid(self, waves: Complex[Array, "*batch ky kx"]) -> Float[Array, "*batch ny nx"]:
        return jnp.fft.irfft2(waves, s=self.shape)

    def _waves_in(self, dtype: Any) -> _Waves:
        return _Waves(*(jnp.asarray(part, dtype) for part in _waves(self.shape, self.lengths)))

    # -- checks ------------------------------------------------------------------------------------------------------

    def check_state(self, state: Float[Array, "*batch ny nx"]) -> None:
        """Refuse a state that steps of `dt` cannot move, where its values are at hand."""
        self._check_stable(self.dt, state)

    def _check_stable(self, dt: ArrayLike, state: Array | None) -> None:
        """|frequency| dt / 2.828 + damping dt / 2.785 <= 1 for every wave."""
        leaves = (self.beta, self.deformation_radius, self.drag, self.viscosity, dt)
        parameters = [float(values) for leaf in leaves if (values := concrete_values(leaf)) is not None]
        if len(parameters) < len(leaves):
            return
        beta, radius, drag, viscosity, step = parameters
        speeds = (0.0, 0.0)
        if state is not None and concrete_values(state) is not None:
            speeds = tuple(float(np.abs(np.asarray(part)).max()) for part in self.velocity(state))
        waves = _waves(self.shape, self.lengths)
        total = np.where(waves.squared == 0, 1.0, waves.squared + 1.0 / radius**2)
        carried = waves.resolved * (speeds[0] * np.abs(waves.kx) + speeds[1] * np.abs(waves.ky))
        frequency = np.abs(beta * waves.kx) / total + carried
        damping = drag * waves.squared / total + viscosity * waves.squared**2
        rate = float((frequency / LIMIT_IMAGINARY + damping / LIMIT_REAL).max())
        if step < 0 and damping.max() > 0:
            raise ValueError(f"QuasiGeostrophic2D: `dt` is {step:g}; with `drag` or `viscosity` it cannot be negative.")
        if not abs(step) * rate <= 1.0:
            raise ValueError(
                f"QuasiGeostrophic2D: `dt` is {step:g}, beyond the stability limit {1.0 / rate:.3g} of the Runge-Kutta "
                f"scheme for a flow of {max(speeds):.3g}, beta {beta:g} and viscosity {viscosity:g} (CFL); take a "
                "shorter `dt` and more steps (`n_substeps`)."
            )


def _scaled(factor: Array, waves: Array) -> Array:
    """factor · waves for a real factor, in two real products."""
    factor = jnp.broadcast_to(factor, waves.shape)
    return jax.lax.complex(factor * waves.real, factor * waves.imag)


def _turned(factor: Array, waves: Array) -> Array:
    """i · factor · waves: a derivative."""
    factor = jnp.broadcast_to(factor, waves.shape)
    return jax.lax.complex(-factor * waves.imag, factor * waves.real)
