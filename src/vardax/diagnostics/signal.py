r"""Degrees of freedom for signal: how many pieces of information an analysis takes from its observations.

    DFS = tr(HK) = tr(A (I + A)⁻¹),      A = G Gᵀ, G the derivative of the whitened prediction

It lies between 0 (R → ∞: the observations change nothing) and the rank of G (R → 0: every piece of what is observed is
taken). What is left, p - DFS, comes from the background: in the mean 2 J_o(x_a) = p - DFS and 2 J_b(x_a) = DFS where B
and R are right. `DegreesOfFreedom` has it per observation, diag(HK), and summed over each instrument and over all.

It depends on where and how well one observes, not on what one sees. `information_preview` asks before the values are
known: which of two planned networks tells more. IMI's preview and its DOFS are this number, which is also the trace of
the averaging kernel KH in state space; `share` is the mean self-sensitivity.

The diagonal is exact where the smaller of control and observations has at most 1024 entries. Beyond it is estimated by
`n_probes` products with random signs (Hutchinson; for the trace Girard), each one conjugate-gradient solve, and comes
with its standard error. Instruments with many observations average the noise of theirs: their sums are sharper than
the map.

Rodgers, C. D. (2000). Inverse Methods for Atmospheric Sounding, section 2.4. Fisher, M. (2003). Estimation of entropy
reduction and degrees of freedom for signal for large variational analysis systems. ECMWF Technical Memorandum 397.
Girard, D. (1987), Hutchinson, M. (1989): stochastic traces.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from vardax.diagnostics.influence import ObservationInfluence, by_instrument, control_of, observed_counts
from vardax.minimisers.point_counts import as_points
from vardax.minimisers.problem import BatchedProblem, ControlSpaceProblem
from vardax.models.method import AbstractAnalysisMethod
from vardax.types import AbstractBatch, Analysis, Observations

__all__ = ["DegreesOfFreedom", "degrees_of_freedom", "information_preview"]


class DegreesOfFreedom(eqx.Module):
    """Degrees of freedom for signal of each sample: `total` (B,), `by_instrument` (B, I), `per_observation`
    (B, E, *obs), zero where nothing was observed. `count` (B, I) is the number of observations.

    The `..._error` fields are standard errors, zero where `exact`.
    """

    per_observation: Float[Array, "..."]
    per_observation_error: Float[Array, "..."]
    by_instrument: Float[Array, "... instruments"]
    by_instrument_error: Float[Array, "... instruments"]
    total: Float[Array, "..."]
    total_error: Float[Array, "..."]
    count: Float[Array, "... instruments"]
    exact: bool = eqx.field(static=True)

    @property
    def share(self) -> Float[Array, "... instruments"]:
        """Degrees of freedom per observation of each instrument, 0 to 1; NaN for one without observations."""
        return jnp.where(self.count > 0, self.by_instrument / jnp.maximum(self.count, 1), jnp.nan)


def degrees_of_freedom(
    problem: BatchedProblem | ControlSpaceProblem,
    analysis: Analysis | PyTree[Array] | None = None,
    *,
    n_probes: int = 64,
    key: PRNGKeyArray | None = None,
) -> DegreesOfFreedom:
    """diag(HK) and its sums, linearised at the analysis (an `Analysis`, or its control), by default at the background.

    `problem` is `method.problem(batch)`. `n_probes` and `key` (default `jax.random.key(0)`) are used only where neither
    side is small enough to be exact.
    """
    if n_probes < 2:
        raise ValueError(f"degrees_of_freedom: `n_probes` is {n_probes}, expected at least 2, for a standard error.")
    key = jax.random.key(0) if key is None else key
    keys = jax.random.split(key, problem.n_samples) if isinstance(problem, BatchedProblem) else key
    return _degrees_of_freedom(problem, control_of(analysis), keys, n_probes)


def information_preview(
    method: AbstractAnalysisMethod, batch: Any, *, n_probes: int = 64, key: PRNGKeyArray | None = None
) -> DegreesOfFreedom:
    """The degrees of freedom of observations that are planned: from masks, positions and errors alone.

    The values in `batch` are not looked at: give zeros with the mask of what will be observed,
    `Batch1D(jnp.zeros_like(mask), mask)`, or `Observations` with zeros. A nonlinear operator or model is linearised at
    the method's background.
    """
    return degrees_of_freedom(method.problem(_without_values(batch)), n_probes=n_probes, key=key)


def _without_values(batch: Any) -> Any:
    """The same masks, positions and errors with zeros for values."""
    points = as_points(batch)
    if points is not None:
        blank = [eqx.tree_at(lambda o: o.value, one, jnp.zeros_like(one.value)) for one in points]
        return blank[0] if isinstance(batch, Observations) else blank
    if isinstance(batch, AbstractBatch):
        return eqx.tree_at(lambda b: b.input, batch, jnp.zeros_like(batch.input))
    return batch  # refused by the method, with the words that it has for it


@eqx.filter_jit
def _degrees_of_freedom(
    problem: BatchedProblem | ControlSpaceProblem, control: PyTree[Array] | None, keys: Array, n_probes: int
) -> DegreesOfFreedom:
    def one(sample: ControlSpaceProblem, chi: PyTree[Array] | None, key: PRNGKeyArray) -> DegreesOfFreedom:
        influence = ObservationInfluence.at(sample, chi)
        if influence.factor is not None:
            return _exact(influence)
        return _estimated(influence, jax.random.split(key, n_probes))

    return problem.map_samples(one, control, keys)


def _exact(influence: ObservationInfluence) -> DegreesOfFreedom:
    observed, each = influence.problem.observed, influence.exact_diagonal()
    groups = by_instrument(observed, each)
    values = (each, groups, jnp.sum(each))
    each, groups, total = ((value, jnp.zeros_like(value)) for value in values)
    return DegreesOfFreedom(*each, *groups, *total, count=observed_counts(observed), exact=True)


def _estimated(influence: ObservationInfluence, keys: Array) -> DegreesOfFreedom:
    """Means of z ∘ HK z over random signs z, and how much they scatter."""
    observed = influence.problem.observed
    zero = jnp.zeros_like(observed.value)

    def probe(sums: tuple[Array, Array], key: PRNGKeyArray) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
        signs = jax.random.rademacher(key, zero.shape, zero.dtype) * observed.mask
        each = signs * influence.mv(signs)
        return (sums[0] + each, sums[1] + each**2), (by_instrument(observed, each), jnp.sum(each))

    (first, second), (groups, totals) = jax.lax.scan(probe, (zero, zero), keys)
    n = keys.shape[0]
    mean = first / n
    variance = jnp.maximum(second / n - mean**2, 0) / (n - 1)
    scatter = lambda values: jnp.std(values, axis=0, ddof=1) / n**0.5  # noqa: E731
    return DegreesOfFreedom(
        mean,
        jnp.sqrt(variance),
        jnp.mean(groups, axis=0),
        scatter(groups),
        jnp.mean(totals),
        scatter(totals),
        count=observed_counts(observed),
        exact=False,
    )
