"""What an attention knows of where things lie: a score for each difference of two positions, on any grid.

    b(δ) = sum_s (w_s + sum_a v_sa δ_a / s) prod_a exp(-δ_a² / 2s²),        s = 1, 2, 4, 8, 16 places

with weights w and v for each head: bumps of five widths, and the same tilted along each axis a. It decays, so places
that are further apart than any in training are treated like distant ones. On a periodic axis δ_a is the shorter way
around. Bumps are products over axes, so no table of all pairs but that of the scores is made.
"""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

__all__ = ["OffsetBias"]

SCALES = (1.0, 2.0, 4.0, 8.0, 16.0)


class OffsetBias(eqx.Module):
    """b(i - j) for all pairs of places of a grid: (heads, n, n).

    >>> OffsetBias(2, 1, True, jnp.float32, jax.random.key(0))((6,)).shape
    (2, 6, 6)
    """

    weight: Float[Array, "terms heads scales"]
    periodic: bool = eqx.field(static=True)

    def __init__(self, n_heads: int, n_spatial: int, periodic: bool, dtype: jnp.dtype | type, key: PRNGKeyArray):
        self.weight = jax.random.normal(key, (1 + n_spatial, n_heads, len(SCALES)), dtype)
        self.periodic = periodic

    @property
    def n_heads(self) -> int:
        return self.weight.shape[1]

    def __call__(self, grid: tuple[int, ...]) -> Float[Array, "heads n n"]:
        bumps, tilted = zip(*[self._along(n) for n in grid], strict=True)
        total = _products(self.weight[0], list(bumps))
        for axis in range(len(grid)):
            factors = [tilted[k] if k == axis else bumps[k] for k in range(len(grid))]
            total = total + _products(self.weight[1 + axis], factors)
        n = math.prod(grid)
        return total.reshape(self.n_heads, n, n)

    def _along(self, n: int) -> tuple[Float[Array, "scales n n"], Float[Array, "scales n n"]]:
        """exp(-δ²/2s²) along one axis, and δ/s times that."""
        places = jnp.arange(n)
        offsets = places[:, None] - places[None, :]
        if self.periodic:
            offsets = (offsets + n // 2) % n - n // 2
        scaled = offsets.astype(self.weight.dtype)[None] / jnp.asarray(SCALES, self.weight.dtype)[:, None, None]
        bump = jnp.exp(-(scaled**2) / 2)
        return bump, scaled * bump


def _products(weight: Float[Array, "heads scales"], factors: list[Array]) -> Array:
    """sum_s w_hs prod_a f_a[s, i_a, j_a], as (heads, i_1, .., i_d, j_1, .., j_d)."""
    d = len(factors)
    rows, columns = "abc"[:d], "xyz"[:d]
    pairs = ",".join(f"s{i}{j}" for i, j in zip(rows, columns, strict=True))
    return jnp.einsum(f"hs,{pairs}->h{rows}{columns}", weight, *factors)
