"""Posterior variances of a large field that is observed at single cells, from the observations near each cell.

    var_i = B_ii - k_iᵀ (K + D)⁻¹ k_i

with K the covariance of the `NEIGHBOURS` observations that say most about the cells around i, D their error variances
and k_i their covariance with cell i. Cells are taken in tiles that share their neighbours; one Cholesky factorisation
of neighbours and tile gives all the tile's variances. The observations that are left out could only lower a variance,
so the result lies between the posterior's and the prior's, as a posterior does that was given fewer data.

What an observation says about a cell c by itself is k_c² / (K + D), which picks the neighbours: nearby ones for a B
that decays, whatever its lengths and boundaries, and accurate ones before others. They are picked from the `CANDIDATES`
of a block of tiles, so the work is proportional to the number of cells. Observations of one cell count as one.

It applies where B knows its covariance between cells, and each whitened observation is a multiple of one cell: R
diagonal, no interpolation, no model. That is found out by applying the derivative of the prediction to test fields.
"""

import itertools
import math
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array, Bool, Float, Int, PyTree

from vardax.minimisers.factor_plan import CellwiseCovariance
from vardax.minimisers.krylov_result import Observing
from vardax.minimisers.observed_cells import observed_cells
from vardax.minimisers.problem import BatchedProblem, ControlSpaceProblem
from vardax.minimisers.vecchia import CellCovariance

__all__ = ["CANDIDATES", "NEIGHBOURS", "is_cellwise", "looks_at_cells", "untransformed_variances"]

NEIGHBOURS = 128
"""Observations that the cells of a tile are conditioned on."""

CANDIDATES = 1024
"""Observations among which the tiles of a block look for their neighbours."""

TILE = 1.5
"""Side of a tile over the mean distance between observations, at most `LARGEST_TILE` cells."""

LARGEST_TILE = 8

TILES = {1: 64, 2: 8, 3: 2}
"""Tiles along each axis of a block, in one, two and three dimensions."""

AT_ONCE = 32
"""Tiles that are factorised together: their matrices stay in the cache."""

Cells = tuple[Int[Array, "..."], ...]


class _Observed(NamedTuple):
    """The observed cells, each once, with the sum of the precisions of their observations; zero where there is none."""

    cells: Cells
    precision: Float[Array, "m"]

    def take(self, index: Array) -> "_Observed":
        return _Observed(tuple(cell[index] for cell in self.cells), self.precision[index])


def is_cellwise(problem: BatchedProblem | ControlSpaceProblem) -> bool:
    """Whether B and the observations are of a kind for which `looks_at_cells` is worth asking."""
    B = problem.covariance
    if not isinstance(B, CellwiseCovariance) or len(B.shape) not in TILES or not problem.observe.proper:
        return False
    leaves = jax.tree.leaves(problem.background)
    return len(leaves) == 1 and leaves[0].shape[-len(B.shape) :] == B.shape and not problem.penalties


@eqx.filter_jit
def looks_at_cells(problem: BatchedProblem | ControlSpaceProblem, control: PyTree[Array]) -> Bool[Array, "..."]:
    """Whether every observation of a sample is a multiple of a single cell, in errors that are independent."""

    def one(sample: ControlSpaceProblem, control: Array) -> Array:
        B: Any = sample.covariance
        observing = _whitened(sample, control)
        seen = observed_cells(observing, B.shape)
        field = jax.random.normal(jax.random.key(0), B.shape, B.in_structure().dtype)
        found, expected = jnp.ravel(observing.predict(field)), seen.gain * field[seen.cells].astype(seen.gain.dtype)
        rounding = float(jnp.finfo(found.dtype).eps) ** 0.5
        return jnp.all(jnp.abs(found - expected) <= rounding * jnp.max(jnp.abs(seen.gain)))

    return problem.map_samples(one, control)


@eqx.filter_jit
def untransformed_variances(
    problem: BatchedProblem | ControlSpaceProblem, control: PyTree[Array]
) -> Float[Array, "..."]:
    """The posterior variances of z = T⁻¹(x), for each sample."""

    def one(sample: ControlSpaceProblem, control: Array) -> Array:
        B: Any = sample.covariance
        observing = _whitened(sample, control)
        seen = observed_cells(observing, B.shape)
        observed = _merged(seen.cells, jnp.square(seen.gain), B.shape)
        return _by_tiles(B.between_cells(), observed, B.shape).astype(sample.background.dtype)

    return problem.map_samples(one, control)


def _whitened(problem: ControlSpaceProblem, control: Array) -> Observing:
    """The derivative of the whitened prediction by z: unit errors, and a gain for each observation."""
    F, _ = problem.linearise_increment(control)
    H = lx.FunctionLinearOperator(F, jax.ShapeDtypeStruct(problem.background.shape, problem.background.dtype))
    return Observing(problem.covariance, H, None, problem.observed.value.dtype)


def _merged(cells: Cells, precision: Float[Array, "m"], shape: tuple[int, ...]) -> _Observed:
    """Each observed cell once."""
    total = jnp.zeros(shape, precision.dtype).at[cells].add(precision).ravel()
    found = jnp.nonzero(total > 0, size=min(precision.size, total.size), fill_value=total.size)[0]
    inside = jnp.minimum(found, total.size - 1)
    return _Observed(jnp.unravel_index(inside, shape), jnp.where(found < total.size, total[inside], 0))


def _by_tiles(B: CellCovariance, observed: _Observed, shape: tuple[int, ...]) -> Float[Array, "..."]:
    """The variances of all cells: blocks of tiles, tiles of cells."""
    ndim, n_obs = len(shape), observed.precision.size
    distance = (math.prod(shape) / n_obs) ** (1 / ndim)
    side = min(max(1, round(TILE * distance)), LARGEST_TILE)
    per_block = TILES[ndim]
    counts = [-(-n // (side * per_block)) for n in shape]
    blocks = _corners(counts, side * per_block)
    tiles, offsets = _corners([per_block] * ndim, side), _corners([side] * ndim, 1)

    def inside(cells: Array) -> Cells:
        """Cells (..., ndim) of the grid; those beyond its edge count as those on it, and are cut off at the end."""
        return tuple(jnp.minimum(cells[..., axis], n - 1) for axis, n in enumerate(shape))

    def of_block(corner: Array) -> Array:
        candidates = _most_telling(B, observed, inside(corner + side * per_block // 2), CANDIDATES)

        def of_tile(tile: Array) -> Array:
            neighbours = _most_telling(B, candidates, inside(tile + side // 2), NEIGHBOURS)
            return _conditional_variances(B, neighbours, inside(tile[None] + offsets))

        return jax.lax.map(of_tile, corner[None] + tiles, batch_size=min(AT_ONCE, tiles.shape[0]))

    variances = jax.lax.map(of_block, blocks).reshape(*counts, *(per_block,) * ndim, *(side,) * ndim)
    order = itertools.chain.from_iterable((axis, ndim + axis, 2 * ndim + axis) for axis in range(ndim))
    whole = variances.transpose(*order).reshape([count * per_block * side for count in counts])
    return whole[tuple(slice(n) for n in shape)]


def _corners(counts: list[int], step: int) -> Int[Array, "n ndim"]:
    """The first cell of each of a grid of boxes."""
    axes = jnp.meshgrid(*(step * jnp.arange(count) for count in counts), indexing="ij")
    return jnp.stack([axis.ravel() for axis in axes], axis=-1)


def _most_telling(B: CellCovariance, observed: _Observed, cell: Cells, k: int) -> _Observed:
    """The k observations that lower the variance of one cell most, each by itself."""
    if observed.precision.size <= k:
        return observed
    dtype, seen = observed.precision.dtype, observed.precision > 0
    error = 1 / jnp.where(seen, observed.precision, jnp.ones_like(observed.precision))
    with_cell = B(observed.cells, tuple(index[None] for index in cell)).astype(dtype)
    lowered = with_cell**2 / (B(observed.cells, observed.cells).astype(dtype) + error)
    return observed.take(jax.lax.top_k(jnp.where(seen, lowered, -1.0), k)[1])


def _conditional_variances(B: CellCovariance, given: _Observed, cells: Cells) -> Float[Array, "c"]:
    """The variances of `cells`, given the observations: B_ii less the squares of their rows of the Cholesky factor.

    The rows need not be factorised among themselves, so their own block is made safely positive. Where rounding leaves
    the neighbours without a factor, each cell has the best single observation.
    """
    k, dtype, seen = given.precision.size, given.precision.dtype, given.precision > 0
    every = tuple(jnp.concatenate([a, b]) for a, b in zip(given.cells, cells, strict=True))
    between = B(tuple(a[:, None] for a in every), tuple(a[None, :] for a in every)).astype(dtype)
    variances = jnp.diagonal(between)
    counted = jnp.concatenate([seen, jnp.ones(cells[0].shape, bool)])
    matrix = jnp.where(counted[:, None] & counted[None, :], between, 0)
    error = 1 / jnp.where(seen, given.precision, jnp.ones_like(given.precision))
    rounding = every[0].size * float(jnp.finfo(dtype).eps) * variances
    own = jnp.sum(variances[k:])
    raised = jnp.where(counted, rounding, 1) + jnp.concatenate([error, jnp.broadcast_to(own, cells[0].shape)])
    factor = jax.lax.linalg.cholesky(matrix + jnp.diag(raised), symmetrize_input=False)
    lowered = jnp.sum(factor[k:, :k] ** 2, axis=1)
    singly = jnp.max(matrix[k:, :k] ** 2 / (variances[:k] + error)[None, :], axis=1)
    lowered = jnp.where(jnp.all(jnp.isfinite(factor)), lowered, singly)
    return jnp.maximum(variances[k:] - lowered, 0)
