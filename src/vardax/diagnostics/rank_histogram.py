r"""Rank histograms: whether the truth could be one more member of the ensemble.

The rank of the truth among n members, 0 to n, is uniform where the ensemble is calibrated. A slope means a bias, a U an
ensemble that is too narrow, a dome one that is too wide. The test of uniformity is Pearson's,

    χ² = Σ_k (c_k - N / (n + 1))² / (N / (n + 1)),      n degrees of freedom,

and its parts along a straight line and along a V (`slope`, `convexity`), each standard normal where the histogram is
flat, name the fault: with 1000 ranks in 20 bins they see a bias or a spread of a few percent that χ² as a whole does
not. Ties, exact zeros of rain for example, are broken at random with `key`.

The tests take ranks for independent. Neighbouring points and times are not: thin them before.

Talagrand, O., Vautard, R. and Strauss, B. (1997); Hamill, T. (2001), Monthly Weather Review 129, 550-560; Jolliffe, I.
and Primo, C. (2008), Monthly Weather Review 136, 2133-2139 (the decomposition).
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, PRNGKeyArray

from vardax.types import float_array

__all__ = ["RankHistogram", "rank_histogram", "uniformity_test"]


class RankHistogram(eqx.Module):
    """`counts` (n + 1,) of the ranks, and the test of their uniformity.

    - `chi_square`, `p_value`: Pearson's statistic with n degrees of freedom, and how often a flat histogram exceeds it.
    - `slope`: positive where the truth lies high in the ensemble, which is too low; standard normal if flat.
    - `convexity`: positive for a U, an ensemble that is too narrow; negative for a dome; standard normal if flat.
    """

    counts: Float[Array, "bins"]
    chi_square: Float[Array, ""]
    p_value: Float[Array, ""]
    slope: Float[Array, ""]
    convexity: Float[Array, ""]


def rank_histogram(members: ArrayLike, truth: ArrayLike, *, key: PRNGKeyArray | None = None) -> RankHistogram:
    """The ranks of `truth` (...) among `members` (n, ...), over all entries at which everything is finite.

    `key` (default `jax.random.key(0)`) breaks ties at random. The truth may be a verifying observation, if its error is
    added to the members.

    >>> rank_histogram(jnp.array([[0.0, 0.0], [1.0, 1.0]]), jnp.array([0.5, 2.0])).counts
    Array([0., 1., 1.], dtype=float32)
    """
    ensemble, verification = members_and_truth(members, truth, "rank_histogram")
    return _rank_histogram(ensemble, verification, jax.random.key(0) if key is None else key)


def uniformity_test(counts: ArrayLike) -> RankHistogram:
    """The test of a histogram that is at hand: of ranks that were counted elsewhere, or of simulation-based ranks."""
    values = float_array(counts)
    if values.ndim != 1 or values.size < 2:
        raise ValueError(f"uniformity_test: `counts` has shape {values.shape}, expected (bins,) with at least 2 bins.")
    return _tested(values)


def members_and_truth(members: ArrayLike, truth: ArrayLike, owner: str) -> tuple[Array, Array]:
    """An ensemble (n, ...) and the truth (...), as arrays of one dtype."""
    ensemble, verification = float_array(members), float_array(truth)
    if ensemble.ndim == 0 or ensemble.shape[1:] != verification.shape or ensemble.shape[0] < 1:
        raise ValueError(
            f"{owner}: `members` has shape {ensemble.shape} and `truth` {verification.shape}, expected (n, ...) and "
            "(...): members on the first axis."
        )
    dtype = jnp.result_type(ensemble.dtype, verification.dtype)
    return ensemble.astype(dtype), verification.astype(dtype)


@jax.jit
def _rank_histogram(members: Float[Array, "n ..."], truth: Float[Array, "..."], key: PRNGKeyArray) -> RankHistogram:
    n = members.shape[0]
    valid = jnp.isfinite(truth) & jnp.all(jnp.isfinite(members), axis=0)
    below = jnp.sum(members < truth[None], axis=0)
    ties = jnp.sum(members == truth[None], axis=0)
    ranks = below + jax.random.randint(key, below.shape, 0, ties + 1, below.dtype)
    counts = jnp.zeros(n + 1, truth.dtype).at[ranks.ravel()].add(valid.ravel().astype(truth.dtype))
    return _tested(counts)


@jax.jit
def _tested(counts: Float[Array, "bins"]) -> RankHistogram:
    bins = counts.shape[0]
    expected = jnp.sum(counts) / bins
    deviation = (counts - expected) / jnp.sqrt(jnp.where(expected > 0, expected, 1))
    chi_square = jnp.sum(deviation**2)
    p_value = jax.scipy.special.gammaincc(jnp.asarray((bins - 1) / 2, counts.dtype), chi_square / 2)
    line = jnp.arange(bins).astype(counts.dtype) - (bins - 1) / 2
    vee = jnp.abs(line) - jnp.mean(jnp.abs(line))
    along = lambda shape: jnp.sum(deviation * shape) / jnp.sqrt(jnp.maximum(jnp.sum(shape**2), 1e-30))  # noqa: E731
    return RankHistogram(counts, chi_square, p_value, along(line), along(vee))
