r"""Innovation statistics: observations less background, observations less analysis, and the increment between them.

    OMB  d_b = y - H(x_b)      OMA  d_a = y - H(x_a)      increment  H(x_a) - H(x_b) = d_b - d_a

`innovations` computes them with the problem's own operator, model, mask and positions; `by_entry` and `by_instrument`
are their count, mean, standard deviation and chi-square d R⁻¹ d / p, over the observed entries alone. A mean that is
not zero is a bias of the background, or of an instrument. In the mean the chi-square of OMA is 1 - DFS / p where B and
R are right (`degrees_of_freedom`), that of OMB 1 + tr(HBHᵀR⁻¹) / p.

Statistics want many analyses: pool the samples of a batch, and several of them with `Innovations.joined`. ADAO stores
these as OMB (or Innovation) and OMA, OOPS as ombg and oman.
"""

from collections.abc import Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from vardax.diagnostics.influence import control_of
from vardax.minimisers.problem import BatchedProblem, ControlSpaceProblem
from vardax.types import Analysis

__all__ = ["InnovationStatistics", "Innovations", "innovations"]


class InnovationStatistics(eqx.Module):
    """Count, and mean, standard deviation (about the mean, n - 1) and mean d R⁻¹ d of each group of observations.

    A group is an instrument (I,), or an entry (E, *obs). NaN where there are too few observations.
    """

    count: Float[Array, "..."]
    background_mean: Float[Array, "..."]
    background_std: Float[Array, "..."]
    background_chi_square: Float[Array, "..."]
    analysis_mean: Float[Array, "..."]
    analysis_std: Float[Array, "..."]
    analysis_chi_square: Float[Array, "..."]
    increment_mean: Float[Array, "..."]
    increment_std: Float[Array, "..."]

    def table(self, instruments: Sequence[str] | None = None) -> str:
        """The statistics by instrument in columns, one line each; `instruments` are their names."""
        n = self.count.size
        names = [str(i) for i in range(n)] if instruments is None else list(instruments)
        if len(names) != n:
            raise ValueError(f"table: `instruments` has {len(names)} names, expected {n}, one per group.")
        width = max(len("instrument"), *map(len, names))
        header = ("OMB mean", "OMB std", "OMB chi2", "OMA mean", "OMA std", "OMA chi2")
        lines = [f"{'instrument':<{width}}  {'count':>8}" + "".join(f"  {title:>9}" for title in header)]
        for i, name in enumerate(names):
            background = (self.background_mean, self.background_std, self.background_chi_square)
            analysis = (self.analysis_mean, self.analysis_std, self.analysis_chi_square)
            numbers = "".join(f"  {float(column.ravel()[i]):9.3g}" for column in (*background, *analysis))
            lines.append(f"{name:<{width}}  {int(self.count.ravel()[i]):8d}{numbers}")
        return "\n".join(lines)


class Innovations(eqx.Module):
    """OMB (`background`) and OMA (`analysis`) of each sample, (B, E, *obs), zero where `mask` is.

    `weighted_background` and `weighted_analysis` are R⁻¹ times these, with R between the observed entries.
    """

    background: Float[Array, "B ..."]
    analysis: Float[Array, "B ..."]
    weighted_background: Float[Array, "B ..."]
    weighted_analysis: Float[Array, "B ..."]
    mask: Float[Array, "B ..."]
    instrument: Int[Array, "B ..."] | None
    n_instruments: int = eqx.field(static=True, default=1)

    @property
    def increment(self) -> Float[Array, "B ..."]:
        """H(x_a) - H(x_b), zero where nothing was observed."""
        return self.background - self.analysis

    @staticmethod
    def joined(parts: Sequence["Innovations"]) -> "Innovations":
        """The innovations of several batches as those of one."""
        if not parts:
            raise ValueError("Innovations.joined: there are no parts to join, expected at least one.")
        return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts)

    def sum_by_instrument(self, values: Float[Array, "B ..."]) -> Float[Array, "instruments"]:
        """The sums of `values` over all observed entries of each instrument."""
        observed = jnp.where(self.mask != 0, values, jnp.zeros_like(values))
        if self.instrument is None or self.n_instruments == 1:
            return jnp.sum(observed)[None]
        return jax.ops.segment_sum(observed.ravel(), self.instrument.ravel(), num_segments=self.n_instruments)

    def by_instrument(self) -> InnovationStatistics:
        """The statistics of each instrument, over all samples and entries."""

        def spread(means: Array) -> Array:
            return means[None] if self.instrument is None or self.n_instruments == 1 else means[self.instrument]

        return self._statistics(self.sum_by_instrument, spread)

    def by_entry(self) -> InnovationStatistics:
        """The statistics of each entry (E, *obs), over the samples."""
        return self._statistics(lambda values: jnp.sum(values * self.mask, axis=0), lambda means: means[None])

    def _statistics(self, total, spread) -> InnovationStatistics:
        """`total` sums over a group, `spread` gives each observation the value of its group."""
        count = total(self.mask)
        over = lambda values, n: jnp.where(n > 0, total(values) / jnp.where(n > 0, n, 1), jnp.nan)  # noqa: E731

        def moments(d: Array) -> tuple[Array, Array]:
            mean = over(d, count)
            known = jnp.where(jnp.isfinite(mean), mean, 0)
            around = d - jnp.broadcast_to(_same_rank(spread(known), d), d.shape)
            return mean, jnp.sqrt(over(around**2, count - 1))

        background, analysis = moments(self.background), moments(self.analysis)
        return InnovationStatistics(
            count,
            *background,
            over(self.background * self.weighted_background, count),
            *analysis,
            over(self.analysis * self.weighted_analysis, count),
            *moments(self.increment),
        )


def _same_rank(values: Array, like: Array) -> Array:
    """`values` with axes of length one behind, so that they broadcast over `like`."""
    return values.reshape(*values.shape, *(1,) * (like.ndim - values.ndim))


def innovations(problem: BatchedProblem | ControlSpaceProblem, analysis: Analysis | PyTree[Array]) -> Innovations:
    """OMB and OMA of an analysis (or of its control); `problem` is `method.problem(batch)`."""
    found = _innovations(problem, control_of(analysis))
    if isinstance(problem, BatchedProblem):
        return found
    return jax.tree.map(lambda leaf: leaf[None], found)


@eqx.filter_jit
def _innovations(problem: BatchedProblem | ControlSpaceProblem, control: PyTree[Array]) -> Innovations:
    def one(sample: ControlSpaceProblem, chi: PyTree[Array]) -> Innovations:
        observed = sample.observed
        before, after = (observed.innovation(sample.predicted(c)) for c in (sample.zero_control(), chi))
        weighted = (observed.solve(before), observed.solve(after))
        return Innovations(before, after, *weighted, observed.mask, observed.instrument, observed.n_instruments)

    return problem.map_samples(one, control)
