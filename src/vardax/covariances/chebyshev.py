"""exp(−A/2) v by a Chebyshev polynomial of fixed degree: diffusion over a given time without solving anything.

For a self-adjoint A with eigenvalues in [0, bound], X = (2/bound) A − 1 has eigenvalues in [−1, 1] and

    exp(−A/2) ≈ p(A) = Σ_k c_k T_k(X),     k = 0, ..., steps

with the Chebyshev polynomials T_k. Each step is one product with A. The coefficients fall off so fast that about
√(6 bound) of them reach 1e-5, where explicit time steps would need bound/4 for stability alone.

A = V⁻¹ S (`Stencil`) is self-adjoint for the inner product with the cell volumes V, so V^{1/2} p(A) V^{-1/2} is
symmetric: that is the product here, and its own transpose.

Reference: Mason and Handscomb (2003), *Chebyshev Polynomials*, sections 2.4 and 5.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import jax.scipy.fft
import numpy as np
from jaxtyping import Array, Float

from vardax.covariances.factors import AbstractFactor
from vardax.covariances.stencil import Stencil

__all__ = ["TRUNCATION", "ChebyshevExponential", "needed_steps"]

TRUNCATION = 1e-5
"""How far p is from the exponential at most, on the whole spectrum. Correlations are off by about as much."""


class ChebyshevExponential(AbstractFactor):
    """v -> V^{1/2} p(A) V^{-1/2} v, symmetric, for A given by `stencil` and an upper bound of its eigenvalues."""

    stencil: Stencil
    bound: Float[Array, ""]
    coefficients: Float[Array, "terms"]

    def __init__(self, stencil: Stencil, bound: Float[Array, ""], steps: int):
        self.stencil, self.bound = stencil, jnp.maximum(bound, 1e-6)  # without any connection it is 0
        self.coefficients = chebyshev_coefficients(self.bound, steps)

    @property
    def steps(self) -> int:
        """How many products with A one product costs."""
        return self.coefficients.size - 1

    def mv(self, vector: Float[Array, "..."]) -> Float[Array, "..."]:
        root = jnp.sqrt(self.stencil.volume)
        return root * self._sum(vector / root)

    def transpose_mv(self, vector: Float[Array, "..."]) -> Float[Array, "..."]:
        return self.mv(vector)

    def in_structure(self) -> jax.ShapeDtypeStruct:
        return self.stencil.in_structure()

    def out_structure(self) -> jax.ShapeDtypeStruct:
        return self.in_structure()

    def _sum(self, v: Float[Array, "..."]) -> Float[Array, "..."]:
        """Σ_k c_k T_k(X) v by Clenshaw's recurrence, b_k = c_k v + 2X b_{k+1} − b_{k+2} down to k = 1.

        Written as leapfrog, for p = ±b_k with k even and q = ±b_k with k odd, where each is updated in its place: that
        keeps XLA from copying fields, and from calculating a step twice in the transposed product.
        """
        turn = self._doubled()
        weights = self._leapfrog_weights()

        def step(pair: tuple[Array, Array], weight: Array) -> tuple[tuple[Array, Array], None]:
            p, q = pair
            p = p + (weight[0] * v - turn(q))
            q = q + (weight[1] * v + turn(p))
            return (p, q), None

        (p, q), _ = jax.lax.scan(step, (jnp.zeros_like(v), jnp.zeros_like(v)), weights)
        sign = -1 if len(weights) % 2 == 0 else 1
        return self.coefficients[0] * v + sign * (turn(q) / 2 - p)

    def _doubled(self) -> Callable[[Array], Array]:
        """v -> 2X v. With equal volumes they go into the weights, and fewer numbers are read in each step."""
        scale = 4 / (self.bound * self.stencil.volume)
        if scale.size == 1:
            scaled = self.stencil.times(jnp.squeeze(scale))
            return lambda b: -2 * b + scaled.mv(b)
        scale = jnp.broadcast_to(scale, self.stencil.shape)
        return lambda b: -2 * b + scale * self.stencil.mv(b)

    def _leapfrog_weights(self) -> Float[Array, "rounds 2"]:
        """c_k from the highest k down to 1, in pairs (k even, k odd) of alternating sign."""
        pairs = jnp.pad(self.coefficients[1:], (0, self.steps % 2))[::-1].reshape(-1, 2)
        return pairs.at[1::2].multiply(-1)


@functools.partial(jax.jit, static_argnames="steps")
def chebyshev_coefficients(bound: Float[Array, ""], steps: int) -> Float[Array, "terms"]:
    """The Chebyshev coefficients of exp(−bound (1 + x)/4), from its values at twice as many Chebyshev nodes.

    NaN if there are by far too few of them.
    """
    n = 2 * (steps + 1)
    nodes = jnp.cos((jnp.arange(n, dtype=bound.dtype) + 0.5) * (np.pi / n))
    series = jax.scipy.fft.dct(jnp.exp(-bound / 4 * (1 + nodes)), type=2)[: steps + 1] / n
    enough = jnp.abs(series[-1]) <= 100 * TRUNCATION
    return jnp.where(enough, series.at[0].divide(2), jnp.nan)


def needed_steps(bound: float) -> int:
    """The fewest steps whose polynomial is within `TRUNCATION` of the exponential on [0, bound].

    >>> needed_steps(400.0)  # a length of ten cells in two dimensions
    44
    """
    n = 2 * (32 + int(8 * np.sqrt(bound)))
    nodes = np.cos((np.arange(n) + 0.5) * (np.pi / n))
    values = np.exp(-bound / 4 * (1 + nodes))
    phase = np.exp(-0.5j * np.pi * np.arange(n) / n)
    series = np.abs((phase * np.fft.fft(np.concatenate([values, values[::-1]]))[:n]).real / n)
    beyond = np.cumsum(series[::-1])[::-1]  # from term k on
    return max(1, int(np.argmax(beyond < TRUNCATION)) - 1)
