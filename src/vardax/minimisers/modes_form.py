"""The large analysis in the Fourier modes of a Matérn covariance, preconditioned for even coverage.

With white modes chi, dx = L chi, the normal equations are those of control space,

    (I + Lᵀ Hᵀ R⁻¹ H L) chi = Lᵀ Hᵀ R⁻¹ d.

A step costs one real transform forth and one back, rounding does not accumulate, and where the observations cover the
field evenly, Hᵀ R⁻¹ H is close to a number c times the identity, and (I + c B)⁻¹ is a preconditioner that Fourier
space has for free.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
from jaxtyping import Array, Float

from vardax.covariances.matern import MaternLinearOperator
from vardax.covariances.spectral import apply_spectrum, spectral_weights
from vardax.minimisers.krylov_result import KrylovResult, ObservationError, Observing, background_cost, krylov_result
from vardax.minimisers.paired_gradients import Look, implicit_solve

__all__ = ["SHARPNESS", "observation_coverage", "solve_in_modes"]

SHARPNESS = 30.0
"""How sharply the density of observations is seen: smoothed by c B / (1 + c B), c this over the largest eigenvalue."""


class _Modes(NamedTuple):
    """The control of a Matérn covariance as its Fourier transform, scaled to be orthonormal.

    Modes are the real and imaginary parts (first axis) of the half spectrum. `up` is L, from white modes to a field
    with covariance B, `down` its transpose.
    """

    amplitude: Array
    domain: tuple[int, ...]
    shape: tuple[int, ...]

    def up(self, modes: Array) -> Array:
        """L chi."""
        field = self._field(modes, self.amplitude)
        return field if self.shape == self.domain else field[tuple(slice(n) for n in self.shape)]

    def down(self, field: Array) -> Array:
        """Lᵀ v."""
        spectrum = jnp.fft.rfftn(field, s=self.domain)
        scale = self.amplitude * self._unit()
        return jnp.stack([scale * spectrum.real, scale * spectrum.imag])

    def control(self, modes: Array) -> Array:
        """The control field of `MaternLinearOperator.half()`."""
        return self._field(modes, jnp.ones_like(self.amplitude))

    def damping(self, coverage: Array) -> Array:
        """(I + c B)⁻¹, for all modes."""
        return 1 / (1 + coverage * self.amplitude**2)[None]

    def _field(self, modes: Array, factor: Array) -> Array:
        scale = factor / self._unit()
        return jnp.fft.irfftn(jax.lax.complex(scale * modes[0], scale * modes[1]), s=self.domain)

    def _unit(self) -> Array:
        """Scales the half spectrum of a field so that the sum of squares is that of the field."""
        weights = spectral_weights(self.domain) / math.prod(self.domain)
        return jnp.broadcast_to(jnp.asarray(np.sqrt(weights), self.amplitude.dtype), self.amplitude.shape)


def solve_in_modes(
    B: MaternLinearOperator,
    H: lx.AbstractLinearOperator,
    R: ObservationError,
    innovation: Float[Array, "..."],
    *,
    coverage: Float[Array, ""] | float = 0.0,
    tol: float,
    max_steps: int,
) -> KrylovResult:
    """`solve_blue` by conjugate gradients in the Fourier modes of B, preconditioned by (I + c B)⁻¹, c = `coverage`.

    With c = diag(Hᵀ R⁻¹ H) the same everywhere the preconditioner would be the inverse Hessian. Where the observations
    are denser than c the Hessian is larger than I + c B, and smaller where they are sparser: the least density (see
    `observation_coverage`) keeps the preconditioned Hessian above I. `coverage=0` is no preconditioner.
    """
    modes = _Modes(B.half().amplitude, B.domain_shape, B.shape)
    observing = Observing(B, H, R, innovation.dtype)
    damping = jax.lax.stop_gradient(modes.damping(jnp.asarray(coverage, B.dtype)))

    def D(chi: Array) -> Array:
        return modes.down(observing.weigh(modes.up(chi)).astype(B.dtype))

    def look(residual: Array) -> Look:
        damped = damping * residual
        return Look(damped, None, (jnp.vdot(residual, residual), jnp.vdot(residual, damped)))

    weighted = R.solve(innovation)
    b = modes.down(observing.spread(weighted).astype(B.dtype))
    cost = background_cost(innovation, weighted).astype(B.dtype)
    chi, record = implicit_solve(look, lambda v: v, D, b, cost, tol=tol, max_steps=max_steps)
    increment = modes.up(chi)
    weights = R.solve(innovation - observing.predict(increment))
    return krylov_result(increment, modes.control(chi), weights, record, tol)


def observation_coverage(
    B: MaternLinearOperator, H: lx.AbstractLinearOperator, R: ObservationError
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """(least density, evenness): the R⁻¹ that the observations put on each cell of the field.

    The density is Hᵀ R⁻¹ H 1, smoothed at a fraction of the length of B by c B / (1 + c B), with c = `SHARPNESS` over
    the largest eigenvalue. Evenness is its least value over its mean, from 0 (some part of the field is unobserved) to
    1. It is 0 also where H averages over many cells, so that the observations do not see the small scales; that shows
    in tr(Hᵀ R⁻¹ H), estimated with one random vector, well below 1ᵀ Hᵀ R⁻¹ H 1.
    """
    observing = Observing(B, H, R, H.out_structure().dtype)
    ones = jnp.ones(B.shape, B.dtype)
    signs = jax.random.rademacher(jax.random.key(0), B.shape, B.dtype)
    row_sums = observing.weigh(ones).astype(B.dtype)
    trace = jnp.vdot(signs, observing.weigh(signs).astype(B.dtype))
    spectrum = SHARPNESS * B.spectrum() / jnp.max(B.spectrum())
    smooth = functools.partial(apply_spectrum, spectrum / (1 + spectrum), domain=B.domain_shape, shape=B.shape)
    least = jnp.min(smooth(row_sums) / smooth(ones))
    mean = jnp.mean(row_sums)
    local = (mean > 0) & (least > 0) & (trace > 0.3 * jnp.sum(row_sums))
    return jnp.maximum(least, 0), jnp.where(local, least / mean, jnp.zeros_like(mean))
