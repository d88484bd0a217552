"""Isotropic correlation functions ρ(r) of a distance r counted in length scales."""

import math

import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from vardax.covariances.diagonal import safe_sqrt
from vardax.types import float_array

__all__ = ["matern_correlation", "matern_of_square", "matern_reach", "require_matern_smoothness"]


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
