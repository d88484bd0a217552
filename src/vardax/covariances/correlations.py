"""Isotropic correlation functions ρ(r) of a distance r counted in length scales."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from vardax.covariances.diagonal import safe_sqrt
from vardax.types import concrete_values, float_array, is_traced

__all__ = ["gaspari_cohn", "matern_correlation", "matern_of_square", "matern_reach", "require_matern_smoothness"]


def matern_correlation(distance: ArrayLike, nu: float = 1.5) -> Float[Array, "..."]:
    """The Matérn correlation at a distance of r = d / length_scale, for ν = 1/2, 3/2, 5/2, ... or ∞.

        ρ(r) = 2^{1−ν}/Γ(ν) x^ν K_ν(x),  x = √(2ν) r

    which for ν = p + 1/2 is e^{−x} times a polynomial of degree p, and tends to exp(−r²/2) for ν = ∞. Fields have
    derivatives up to the order p. Rasmussen and Williams, *Gaussian Processes for Machine Learning* (2006), ch. 4.

    >>> matern_correlation(jnp.array([0.0, 1.0]), nu=0.5)
    Array([1.        , 0.36787945], dtype=float32)
    """
    require_matern_smoothness("matern_correlation", nu)
    return matern_of_square(float_array(distance) ** 2, nu)


def gaspari_cohn(r: ArrayLike | Sequence[Any], c: ArrayLike) -> Float[Array, "..."]:
    """The correlation of Gaspari and Cohn at a distance `r`: close to a Gaussian, and exactly 0 from `r` = 2 `c` on.

        z = r/c:    0 <= z <= 1    1 − 5/3 z² + 5/8 z³ + 1/2 z⁴ − 1/4 z⁵
                    1 <= z <= 2    (2 − z)⁴ (2z² + 4z − 1) / 24z
                    2 <= z         0

    The usual taper of ensemble covariances: `c` is the half-width of the support, in the units of `r`. The correlation
    is 0.21 at `r` = `c`; the Gaussian exp(−r²/2ℓ²) of the same curvature at 0 has ℓ = c √0.3. It is positive
    semidefinite for distances on a line, in a plane or in space; around a circle (a periodic axis) while 4 `c` is at
    most its length; on a sphere for the straight (chordal) distance.

    Gaspari, G. and Cohn, S. E. (1999). Construction of correlation functions in two and three dimensions. QJRMS 125,
    723-757, equation 4.10.

    >>> gaspari_cohn(jnp.array([0.0, 500.0, 1000.0]), 500.0).round(4).tolist()
    [1.0, 0.20829999446868896, 0.0]
    """
    r = float_array(jnp.asarray(r))
    c = jnp.asarray(c, r.dtype)
    values = concrete_values(jax.lax.stop_gradient(c) if is_traced(c) else c)
    if values is not None and not np.all((values > 0) & np.isfinite(values)):
        raise ValueError(f"gaspari_cohn: `c` is {values}, expected the half-width of the support, a positive number.")
    z = jnp.abs(r) / c
    near = jnp.where(z <= 1, z, jnp.ones_like(z))  # not `minimum`, which halves the slope where both are equal
    far = jnp.where(z > 1, jnp.minimum(z, 2), jnp.ones_like(z))
    inner = 1 + near**2 * (near * (5 / 8 + near * (1 / 2 - near / 4)) - 5 / 3)
    outer = (2 - far) ** 4 * (2 * far**2 + 4 * far - 1) / (24 * far)
    return jnp.where(z <= 1, inner, outer)


def matern_of_square(square: Float[Array, "..."], nu: float) -> Float[Array, "..."]:
    """The Matérn correlation of r², with derivative 0 at r = 0 also where ρ has a cusp there."""
    if math.isinf(nu):
        return jnp.exp(-square / 2)
    x = safe_sqrt(2 * nu * square)
    polynomial = jnp.zeros_like(x)
    for coefficient in _coefficients(nu):
        polynomial = polynomial * x + coefficient
    return polynomial * jnp.exp(-x)


def matern_reach(nu: float, smallest: float) -> float:
    """The distance, in length scales, beyond which the correlation is below `smallest`.

    >>> matern_reach(0.5, 1e-3)
    7.0
    """
    distance = 1.0
    while _host_correlation(distance, nu) > smallest:
        distance += 0.5
    return distance


def require_matern_smoothness(owner: str, nu: float) -> None:
    """Raise `ValueError` unless ν is 1/2, 3/2, 5/2, ... or ∞, which have closed forms."""
    closed_form = isinstance(nu, float) and nu > 0 and (math.isinf(nu) or (nu - 0.5).is_integer())
    if not closed_form:
        raise ValueError(
            f"{owner}: `nu` is {nu!r}, expected 0.5, 1.5, 2.5, ... or infinity (floats), where the correlation has a "
            "closed form."
        )


def _coefficients(nu: float) -> list[float]:
    """Coefficients of the polynomial in x, highest power first; the last one is 1."""
    p = round(nu - 0.5)
    scale = math.factorial(p) / math.factorial(2 * p)
    counts = [math.factorial(p + i) / (math.factorial(i) * math.factorial(p - i)) for i in range(p + 1)]
    return [scale * count * 2.0 ** (p - i) for i, count in enumerate(counts)]


def _host_correlation(distance: float, nu: float) -> float:
    if math.isinf(nu):
        return math.exp(-(distance**2) / 2)
    x, polynomial = math.sqrt(2 * nu) * distance, 0.0
    for coefficient in _coefficients(nu):
        polynomial = polynomial * x + coefficient
    return polynomial * math.exp(-x)
