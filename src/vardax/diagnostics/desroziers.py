r"""Whether B and R have the right size, separately, from innovations alone (Desroziers and others 2005).

With OMB d_b = y - H(x_b) and OMA d_a = y - H(x_a), if B and R are right,

    E[d_a d_bᵀ] = R        E[(d_b - d_a) d_bᵀ] = HBHᵀ        E[(d_b - d_a) d_aᵀ] = HPHᵀ        E[d_b d_bᵀ] = HBHᵀ + R

`error_variances` takes the diagonals by instrument, `error_cross_products` the matrices. `error_scales` compares with
what was assumed: factors by which R (of each instrument) and B would have to be multiplied,

    s_R = E[d_aᵀ R⁻¹ d_b] / p,          s_B = E[(d_b - d_a)ᵀ R⁻¹ d_b] / tr(HBHᵀR⁻¹)

One pass with wrong factors finds others that are less wrong, because d_a depends on them. `tuned_scales` repeats the
analyses with the new factors until they stay: the fixed point is where B and R agree with the innovations. It can tell
B from R only where their structures differ: correlated background errors, uncorrelated observation errors. An R that is
small beside HBHᵀ is found slowly, the factor of one pass is 1 - R / (HBHᵀ + R), and badly: it is the small difference
of two variances.

ADAO has the factors of one pass, over all observations together, as SigmaObs2 and SigmaBck2.

Desroziers, G., Berre, L., Chapnik, B. and Poli, P. (2005). Diagnosis of observation, background and analysis-error
statistics in observation space. QJRMS 131, 3385-3396.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from vardax.covariances.functions import half
from vardax.diagnostics.influence import ObservationInfluence, by_instrument, control_of
from vardax.diagnostics.innovations import Innovations, innovations
from vardax.minimisers.problem import BatchedProblem, ControlSpaceProblem
from vardax.models.method import AbstractAnalysisMethod
from vardax.types import Analysis

__all__ = [
    "ErrorCrossProducts",
    "ErrorScales",
    "ErrorVariances",
    "error_cross_products",
    "error_scales",
    "error_variances",
    "tuned_scales",
]


class ErrorVariances(eqx.Module):
    """Estimated variances in observation space, by instrument (I,): of R, of HBHᵀ, of HPHᵀ, and of d_b as a whole.

    NaN for an instrument without observations. Estimates may be negative where there are few observations.
    """

    observation: Float[Array, "instruments"]
    background: Float[Array, "instruments"]
    analysis: Float[Array, "instruments"]
    innovation: Float[Array, "instruments"]
    count: Float[Array, "instruments"]


class ErrorCrossProducts(eqx.Module):
    """Estimated matrices (M, M) between the entries of *obs, ravelled: of R, HBHᵀ and HPHᵀ, made symmetric.

    `count` says how many pairs of observations made each element; NaN where there were none.
    """

    observation: Float[Array, "M M"]
    background: Float[Array, "M M"]
    analysis: Float[Array, "M M"]
    count: Float[Array, "M M"]


class ErrorScales(eqx.Module):
    """What to multiply R of each instrument (I,) and B with."""

    observation: Float[Array, "instruments"]
    background: Float[Array, ""]


def error_variances(given: Innovations) -> ErrorVariances:
    """The diagonal form of the four relations, averaged over the samples and entries of each instrument."""
    count = given.sum_by_instrument(given.mask)
    mean = lambda a, b: _ratio(given.sum_by_instrument(a * b), count)  # noqa: E731
    before, after = given.background, given.analysis
    increment = given.increment
    return ErrorVariances(
        mean(after, before), mean(increment, before), mean(increment, after), mean(before, before), count
    )


def error_cross_products(given: Innovations) -> ErrorCrossProducts:
    """The matrices, averaged over samples and time entries: for R of up to some thousand entries.

    Each element is the mean over the times at which both of its observations were there.
    """
    flat = lambda a: a.reshape(-1, a[0, 0].size)  # noqa: E731
    mask, before, after = flat(given.mask), flat(given.background), flat(given.analysis)
    product = lambda a, b: jnp.matmul(a.T, b, precision="highest")  # noqa: E731
    count = product(mask, mask)

    def estimate(a: Array, b: Array) -> Array:
        matrix = _ratio(product(a, b), count)
        return 0.5 * (matrix + matrix.T)

    increment = before - after
    return ErrorCrossProducts(estimate(after, before), estimate(increment, before), estimate(increment, after), count)


def error_scales(
    problem: BatchedProblem | ControlSpaceProblem,
    analysis: Analysis | PyTree[Array],
    *,
    n_probes: int = 64,
    key: PRNGKeyArray | None = None,
) -> ErrorScales:
    """The factors of one pass over all samples. `problem` is `method.problem(batch)`.

    tr(HBHᵀR⁻¹) is exact where control or observations have at most 1024 entries, and the mean over `n_probes` draws
    from B beyond.
    """
    if n_probes < 1:
        raise ValueError(f"error_scales: `n_probes` is {n_probes}, expected at least 1.")
    key = jax.random.key(0) if key is None else key
    keys = jax.random.split(key, problem.n_samples) if isinstance(problem, BatchedProblem) else key
    return _scales(problem, control_of(analysis), keys, n_probes)


def tuned_scales(
    method: AbstractAnalysisMethod, batch: Any, *, n_iterations: int = 10, n_probes: int = 64
) -> ErrorScales:
    """The factors after `n_iterations` passes, each with the analyses of those before.

    A batch of many samples gives sharp factors. Where a method has a Q, or a prior of what it estimates jointly, the
    factor of B is also theirs. Use them as `prior_cov_op = scales.background * B` and
    `obs_cov_op = scales.observation[i] * R` of instrument i.
    """
    if n_iterations < 1:
        raise ValueError(f"tuned_scales: `n_iterations` is {n_iterations}, expected at least 1.")
    problem = method.problem(batch)
    one = jnp.ones((), problem.observed.value.dtype)
    scales = ErrorScales(jnp.broadcast_to(one, (problem.observed.n_instruments,)), one)
    keys = jax.random.split(jax.random.key(0), problem.n_samples)
    for _ in range(n_iterations):
        scales = _retuned(method, problem, scales, keys, n_probes)
    return scales


@eqx.filter_jit
def _retuned(
    method: AbstractAnalysisMethod, problem: BatchedProblem, scales: ErrorScales, keys: Array, n_probes: int
) -> ErrorScales:
    """The factors times those that the analyses with them ask for."""
    scaled = _scaled(problem, scales)
    control = scaled.map_samples(lambda sample: method.solve(sample, None).control)
    factors = _scales(scaled, control, keys, n_probes)
    known = jnp.where(jnp.isfinite(factors.observation), factors.observation, 1)  # an instrument that saw nothing
    return ErrorScales(scales.observation * known, scales.background * factors.background)


def _scaled(problem: BatchedProblem, scales: ErrorScales) -> BatchedProblem:
    """The problem with s_B B and, for each instrument, s_R R."""
    observed, covariance = problem.observed, problem.covariance * scales.background
    factor = jnp.sqrt(scales.observation)
    each = factor[0] if observed.instrument is None else factor[observed.instrument]
    own = jnp.ones_like(observed.value) if observed.rescale is None else observed.rescale
    return eqx.tree_at(
        lambda p: (p.observed.rescale, p.covariance, p.half),
        problem,
        (own / each, covariance, half(covariance)),
        is_leaf=lambda x: x is None,
    )


@eqx.filter_jit
def _scales(
    problem: BatchedProblem | ControlSpaceProblem, control: PyTree[Array], keys: Array, n_probes: int
) -> ErrorScales:
    given = innovations(problem, control)
    weighted = given.weighted_background
    count = given.sum_by_instrument(given.mask)
    expected = problem.map_samples(lambda sample, key: _prior_trace(sample, key, n_probes), keys)
    background = jnp.sum(given.sum_by_instrument(given.increment * weighted)) / jnp.sum(expected)
    return ErrorScales(_ratio(given.sum_by_instrument(given.analysis * weighted), count), background)


def _prior_trace(problem: ControlSpaceProblem, key: PRNGKeyArray, n_probes: int) -> Float[Array, "instruments"]:
    """tr(HBHᵀR⁻¹) = tr(GᵀG) by instrument, linearised at the background."""
    influence = ObservationInfluence.at(problem)
    if influence.factor is not None:
        return by_instrument(problem.observed, influence.exact_prior_diagonal())
    flat, _ = ravel_pytree(problem.zero_control())
    draws = jax.random.normal(key, (n_probes, flat.size), flat.dtype)
    return by_instrument(problem.observed, influence.prior_diagonal(draws)) / n_probes


def _ratio(total: Array, count: Array) -> Array:
    return jnp.where(count > 0, total / jnp.where(count > 0, count, 1), jnp.nan)
