r"""Whether the stated uncertainty is the error that is made: spread against skill, and coverage of intervals.

    ratio      sqrt(mean σ²) / sqrt(mean (x - x_true)²)          1 where the spread is right
    by bins    the same where the stated spread is small, middling, large: whether it knows where it errs
    coverage   the share of truths inside the central interval of a level: the level, where it is right

`interval_coverage` and `spread_skill` take a mean and a standard deviation (a posterior), `ensemble_coverage` takes
members. With n members, σ² is their variance (n - 1), and the error of their mean is larger by 1 + 1 / n, which
`n_members` allows for. Entries at which something is not finite are left out.

Leutbecher, M. and Palmer, T. (2008), Journal of Computational Physics 227, 3515-3539; Fortin, V. and others (2014),
Journal of Hydrometeorology 15, 1708-1713.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from vardax.diagnostics.rank_histogram import members_and_truth
from vardax.types import float_array, is_traced

__all__ = ["SpreadSkill", "ensemble_coverage", "interval_coverage", "spread_skill"]


class SpreadSkill(eqx.Module):
    """Root mean square `spread` and `error` of each bin (bins,), smallest spread first, with their `count`.

    `ratio` is that of all entries together, over 1 for a spread that is too large.
    """

    spread: Float[Array, "bins"]
    error: Float[Array, "bins"]
    count: Float[Array, "bins"]
    ratio: Float[Array, ""]


def spread_skill(
    mean: ArrayLike, std: ArrayLike, truth: ArrayLike, *, bins: int = 10, n_members: int | None = None
) -> SpreadSkill:
    """Spread and error in `bins` bins of equally many entries, sorted by their spread.

    >>> float(spread_skill(jnp.zeros(4), jnp.full(4, 2.0), jnp.array([1.0, -1.0, 1.0, -1.0]), bins=2).ratio)
    2.0
    """
    mean, std, truth = (jnp.ravel(a) for a in _alike(mean, std, truth, "spread_skill"))
    if not 1 <= bins <= mean.size:
        raise ValueError(f"spread_skill: `bins` is {bins}, expected 1 to {mean.size}, the number of entries.")
    if n_members is not None and n_members < 2:
        raise ValueError(f"spread_skill: `n_members` is {n_members}, expected at least 2.")
    inflation = 1.0 if n_members is None else 1 + 1 / n_members
    return _spread_skill(inflation * std**2, (mean - truth) ** 2, bins)


def interval_coverage(mean: ArrayLike, std: ArrayLike, truth: ArrayLike, level: ArrayLike = 0.9) -> Float[Array, "..."]:
    """The share of truths within mean ± z σ, the central interval of `level` of a Gaussian, for each level.

    >>> float(interval_coverage(jnp.zeros(4), jnp.ones(4), jnp.array([0.0, 1.6, 1.7, -3.0])))
    0.5
    """
    levels = _levels(level, "interval_coverage")
    return _interval_coverage(*_alike(mean, std, truth, "interval_coverage"), levels)


@jax.jit
def _interval_coverage(mean: Array, std: Array, truth: Array, levels: Array) -> Float[Array, "..."]:
    z = jax.scipy.stats.norm.ppf(0.5 + 0.5 * levels).astype(mean.dtype)
    known = jnp.isfinite(mean) & jnp.isfinite(std) & jnp.isfinite(truth)
    inside = jax.vmap(lambda width: _share(jnp.abs(truth - mean) <= width * std, known))(z.ravel())
    return inside.reshape(levels.shape)


def ensemble_coverage(members: ArrayLike, truth: ArrayLike, level: ArrayLike = 0.9) -> Float[Array, "..."]:
    """The share of truths within the central interval of `level` of the members (n, ...), for each level.

    The ends are where the truth has the rank that cuts off (1 - level) / 2 on each side, interpolated between members
    so that a truth that is one more member falls inside with the level: positions p (n + 1) in the sorted ensemble
    (Weibull's). Ensembles of fewer than 2 / (1 - level) members cannot reach that far; their ends are the extremes.
    """
    levels = _levels(level, "ensemble_coverage")
    return _ensemble_coverage(*members_and_truth(members, truth, "ensemble_coverage"), levels)


@jax.jit
def _ensemble_coverage(ensemble: Array, verification: Array, levels: Array) -> Float[Array, "..."]:
    n = ensemble.shape[0]
    ordered = jnp.sort(ensemble, axis=0)
    known = jnp.all(jnp.isfinite(ensemble), axis=0) & jnp.isfinite(verification)

    def at(p: Array) -> Array:
        position = jnp.clip(p * (n + 1) - 1, 0, n - 1)
        below = jnp.clip(jnp.floor(position), 0, max(n - 2, 0)).astype(int)
        fraction = (position - below.astype(position.dtype)).astype(ordered.dtype)
        above = jnp.minimum(below + 1, n - 1)
        return (1 - fraction) * jnp.take(ordered, below, axis=0) + fraction * jnp.take(ordered, above, axis=0)

    def inside(level: Array) -> Array:
        low, high = at(0.5 - 0.5 * level), at(0.5 + 0.5 * level)
        return _share((verification >= low) & (verification <= high), known)

    return jax.vmap(inside)(levels.ravel()).reshape(levels.shape)


def _share(inside: Array, known: Array) -> Array:
    """The share of the entries that are known; NaN where there are none."""
    count = jnp.sum(known)
    return jnp.where(count > 0, jnp.sum(inside & known) / jnp.maximum(count, 1), jnp.nan)


def _levels(level: ArrayLike, owner: str) -> Array:
    levels = float_array(level)
    if not is_traced(levels) and not bool(jnp.all((levels > 0) & (levels < 1))):
        raise ValueError(f"{owner}: `level` is {levels.tolist()}, expected numbers between 0 and 1.")
    return levels


def _alike(mean: ArrayLike, std: ArrayLike, truth: ArrayLike, owner: str) -> list[Array]:
    arrays = [float_array(a) for a in (mean, std, truth)]
    if len({a.shape for a in arrays}) > 1:
        raise ValueError(f"{owner}: `mean`, `std`, `truth` have shapes {[a.shape for a in arrays]}, expected the same.")
    dtype = jnp.result_type(*(a.dtype for a in arrays))
    return [a.astype(dtype) for a in arrays]


@eqx.filter_jit
def _spread_skill(variance: Float[Array, "n"], square: Float[Array, "n"], bins: int) -> SpreadSkill:
    known = jnp.isfinite(variance) & jnp.isfinite(square)
    order = jnp.argsort(jnp.where(known, variance, jnp.inf))
    rank = jnp.zeros(order.size, int).at[order].set(jnp.arange(order.size))
    total = jnp.maximum(jnp.sum(known), 1)
    number = jnp.where(known, jnp.minimum(rank * bins // total, bins - 1), bins)
    add = lambda values: jax.ops.segment_sum(values, number, num_segments=bins)  # noqa: E731
    count = add(known.astype(variance.dtype))
    clean = [jnp.where(known, values, 0) for values in (variance, square)]
    mean = lambda values: jnp.sqrt(jnp.where(count > 0, add(values) / jnp.maximum(count, 1), jnp.nan))  # noqa: E731
    ratio = jnp.sqrt(jnp.sum(clean[0]) / jnp.sum(clean[1]))
    return SpreadSkill(mean(clean[0]), mean(clean[1]), count, ratio)
