"""How large are the variances of smoothed white noise? Σ_j P_ij², for a symmetric P that is known by its products.

Divided by them, diffusion has the variance that it is asked for, near coasts and where lengths vary as well.

    Exact()          ‖P e_i‖² for every cell i of the sea: as many products as cells
    Randomised(n)    Σ_z (P z)_i² for n patterns z of well separated sources (`vardax.covariances.patterns`)

Reference: Weaver and Courtier (2001), Correlation modelling on the sphere using a generalized diffusion equation,
*Quarterly Journal of the Royal Meteorological Society* 127, for normalisation by random vectors; Bekas, Kokiopoulou
and Saad (2007), An estimator for the diagonal of a matrix, *Applied Numerical Mathematics* 57, and Tang and Saad
(2012), A probing method for computing the diagonal of a matrix inverse, *Numerical Linear Algebra with Applications*
19, for patterns.
"""

import abc
import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from vardax.covariances.box import known
from vardax.covariances.factors import AbstractFactor
from vardax.covariances.lengths import Reach
from vardax.covariances.patterns import Blocks, block_layout, lost_in_blocks, sources

__all__ = ["EXACT_LIMIT", "AbstractNormalisation", "Exact", "Randomised", "exact_variances"]

EXACT_LIMIT = 2**14
"""The largest number of cells of the sea for which `Exact` makes a product for every cell."""

ROWS_AT_ONCE = 32
"""How many products are made together, on grids of at most `EXACT_LIMIT` cells."""

FEWEST_PATTERNS = 16
"""With fewer patterns an estimated variance might come close to zero."""

CHECKED_CELLS = 32
"""In how many cells `Randomised` compares with the exact variance."""


class AbstractNormalisation(eqx.Module):
    """A way to find Σ_j P_ij²."""

    @abc.abstractmethod
    def variances(
        self, smoothing: AbstractFactor, mask: Bool[Array, "..."], reach: tuple[Reach, ...], periodic: tuple[int, ...]
    ) -> tuple[Float[Array, "..."], Float[Array, ""]]:
        """Σ_j P_ij² in each cell i of the sea (`mask`), and the relative error (root mean square) of these."""


class Exact(AbstractNormalisation):
    """The exact variances, by one product for each cell of the sea, up to `EXACT_LIMIT` of them.

    Gradients of the variances, with respect to length scales for instance, are exact as well.
    """

    def variances(
        self, smoothing: AbstractFactor, mask: Bool[Array, "..."], reach: tuple[Reach, ...], periodic: tuple[int, ...]
    ) -> tuple[Float[Array, "..."], Float[Array, ""]]:
        cells = _cells_of_the_sea(mask)
        if cells.size > EXACT_LIMIT:
            raise ValueError(
                f"Exact: {cells.size} cells need as many products, more than EXACT_LIMIT = {EXACT_LIMIT}; use "
                "`Randomised(n)` with some hundred patterns."
            )
        return _exact(smoothing, jnp.asarray(cells), mask.shape, reach[0].correlation.dtype)


@eqx.filter_jit
def _exact(
    smoothing: AbstractFactor, cells: Int[Array, "k"], shape: tuple[int, ...], dtype: Any
) -> tuple[Float[Array, "..."], Float[Array, ""]]:
    """The variances in `cells`, and 1 elsewhere; their error is 0."""
    found = exact_variances(smoothing, cells, shape, dtype)
    return jnp.ones(math.prod(shape), dtype).at[cells].set(found).reshape(shape), jnp.zeros((), dtype)


class Randomised(AbstractNormalisation):
    """The variances from at most `n` products, at any size.

    How good they are is measured in `CHECKED_CELLS` random cells and kept with the covariance
    (`DiffusionCovariance.normalisation_error`, relative, root mean square). In two dimensions n = 256 gives about 0.5 %
    for lengths of two or more cells that are the same everywhere. Where the longest length is several times the
    shortest one the error grows, at worst to the √(2/n) of independent signs; three dimensions need more patterns.

    The signs are fixed by `key` (by default the same in every call), so equal arguments give equal covariances.
    Gradients with respect to length scales are those of the estimate.
    """

    n: int = eqx.field(static=True)
    key: PRNGKeyArray | None

    def __init__(self, n: int, *, key: PRNGKeyArray | None = None):
        if not (isinstance(n, int) and n >= FEWEST_PATTERNS):
            raise ValueError(f"Randomised: `n` is {n!r}, expected a number of patterns, at least {FEWEST_PATTERNS}.")
        self.n, self.key = n, key

    def variances(
        self, smoothing: AbstractFactor, mask: Bool[Array, "..."], reach: tuple[Reach, ...], periodic: tuple[int, ...]
    ) -> tuple[Float[Array, "..."], Float[Array, ""]]:
        key = jax.random.key(0) if self.key is None else self.key
        return _estimate(smoothing, key, mask, reach, block_layout(self.n, mask, reach, periodic))


@eqx.filter_jit
def _estimate(
    smoothing: AbstractFactor,
    key: PRNGKeyArray,
    mask: Bool[Array, "..."],
    reach: tuple[Reach, ...],
    layout: tuple[Blocks, ...],
) -> tuple[Float[Array, "..."], Float[Array, ""]]:
    """The variances from patterns, and their relative error in random cells."""
    signs_key, cells_key = jax.random.split(key)
    all_sources, pattern = sources(signs_key, mask, layout, reach[0].correlation.dtype)

    @jax.checkpoint
    def add(total: Array, number: Array) -> tuple[Array, None]:
        return total + smoothing.mv(jnp.where(pattern == number, all_sources, jnp.zeros_like(all_sources))) ** 2, None

    n_patterns = math.prod(blocks.n_colours for blocks in layout)
    found, _ = jax.lax.scan(add, jnp.zeros_like(all_sources), jnp.arange(n_patterns, dtype=pattern.dtype))
    found = jnp.where(mask, found * lost_in_blocks(layout, reach), jnp.ones_like(found))
    cells = jax.random.choice(cells_key, mask.size, (CHECKED_CELLS,), p=jnp.ravel(mask).astype(found.dtype))
    ratios = exact_variances(smoothing, cells, mask.shape, found.dtype) / jnp.ravel(found)[cells]
    return found, jnp.sqrt(jnp.mean((ratios - 1) ** 2))


@eqx.filter_jit
def exact_variances(
    smoothing: AbstractFactor, cells: Int[Array, "k"], shape: tuple[int, ...], dtype: Any
) -> Float[Array, "k"]:
    """Σ_j P_ij² = ‖P e_i‖² in some cells."""

    @jax.checkpoint
    def squared_row(cell: Array) -> Array:
        unit = jnp.zeros(math.prod(shape), dtype).at[cell].set(1.0)
        return jnp.sum(smoothing.mv(unit.reshape(shape)) ** 2)

    if math.prod(shape) > EXACT_LIMIT:
        return jax.lax.map(squared_row, cells)
    filled = jnp.pad(cells, (0, -cells.size % ROWS_AT_ONCE))
    return jax.lax.map(squared_row, filled, batch_size=ROWS_AT_ONCE)[: cells.size]


def _cells_of_the_sea(mask: Bool[Array, "..."]) -> np.ndarray:
    """Row-major indices; all cells where the mask has no values."""
    sea = known(mask)
    return np.arange(mask.size) if sea is None else np.flatnonzero(sea)
