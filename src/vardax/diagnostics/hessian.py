r"""The Hessian of an analysis: its spectrum and its condition number.

    A = I + GᵀG,      κ = λ_max / λ_min

in control space, with G the derivative of the whitened prediction: the matrix that every inner iteration solves with
and whose inverse is the posterior covariance. Eigenvalues are at least 1; those that stand above 1 are what the
observations see, and λ - 1 is a signal-to-noise ratio. Conjugate gradients need about √κ ln(1/ε) / 2 steps at most.

Exact where the smaller of control and observations has at most 1024 entries: if that is the observations, the other
eigenvalues of A are 1. Beyond, `n_pairs` Lanczos steps from a random start give Ritz values, whose extremes converge
first; an eigenvalue of A lies within `residual_bounds` of each. The values that have not converged lie inside the
spectrum, so the condition number is never overestimated by more than their bounds say.

Golub, G. and Van Loan, C. (2013). Matrix Computations, 4th ed., section 10.1. Haben, S., Lawless, A. and Nichols, N.
(2011). Conditioning of incremental variational data assimilation. Tellus A 63, 782-792.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from vardax.diagnostics.influence import control_at, control_of
from vardax.minimisers.closed_form import factorise, in_control_space, is_dense_case
from vardax.minimisers.lanczos import KrylovRecord
from vardax.minimisers.last_hessian import extended
from vardax.minimisers.problem import BatchedProblem, ControlSpaceProblem
from vardax.types import Analysis

__all__ = ["HessianSpectrum", "hessian_spectrum"]


class HessianSpectrum(eqx.Module):
    """Eigenvalues of A = I + GᵀG of each sample, largest first: `values` (B, k), NaN where there are fewer.

    Where `exact`, they are all but those that equal 1. `condition_number` is λ_max / λ_min of what was found, and
    `condition_number_bound` the largest ratio that the residual bounds allow for these two.
    """

    values: Float[Array, "... k"]
    residual_bounds: Float[Array, "... k"]
    condition_number: Float[Array, "..."]
    condition_number_bound: Float[Array, "..."]
    exact: bool = eqx.field(static=True)


def hessian_spectrum(
    problem: BatchedProblem | ControlSpaceProblem,
    analysis: Analysis | PyTree[Array] | None = None,
    *,
    n_pairs: int = 50,
    key: PRNGKeyArray | None = None,
) -> HessianSpectrum:
    """The spectrum of the Gauss-Newton Hessian at the analysis (or its control), by default at the background.

    `problem` is `method.problem(batch)`; `n_pairs` Lanczos steps from a random start by `key` are taken only where
    neither side is small enough to be exact.
    """
    if n_pairs < 2:
        raise ValueError(f"hessian_spectrum: `n_pairs` is {n_pairs}, expected at least 2, for both ends.")
    key = jax.random.key(0) if key is None else key
    keys = jax.random.split(key, problem.n_samples) if isinstance(problem, BatchedProblem) else key
    return _hessian_spectrum(problem, control_of(analysis), keys, n_pairs)


@eqx.filter_jit
def _hessian_spectrum(
    problem: BatchedProblem | ControlSpaceProblem, control: PyTree[Array] | None, keys: Array, n_pairs: int
) -> HessianSpectrum:
    def one(sample: ControlSpaceProblem, chi: PyTree[Array] | None, key: PRNGKeyArray) -> HessianSpectrum:
        if is_dense_case(sample):
            return _exact(sample, control_at(sample, chi))
        return _by_lanczos(sample, control_at(sample, chi), key, n_pairs)

    return problem.map_samples(one, control, keys)


def _exact(problem: ControlSpaceProblem, control: PyTree[Array]) -> HessianSpectrum:
    _, G, GT = problem.linearise(control)
    cholesky = factorise(problem, G, GT).cholesky
    values = jnp.linalg.svd(cholesky, compute_uv=False) ** 2
    least = values[-1] if in_control_space(problem) else jnp.ones_like(values[-1])
    ratio = values[0] / least
    return HessianSpectrum(values, jnp.zeros_like(values), ratio, ratio, exact=True)


def _by_lanczos(
    problem: ControlSpaceProblem, control: PyTree[Array], key: PRNGKeyArray, n_pairs: int
) -> HessianSpectrum:
    if not problem.observe.proper:
        raise ValueError(
            "hessian_spectrum: part of the control has no prior, so the Hessian is not the identity where G sees "
            "nothing; take sub-windows one after another, `parallel=False`."
        )
    _, G, GT = problem.linearise(control)
    flat, unravel = ravel_pytree(control)
    start = unravel(jax.random.normal(key, flat.shape, flat.dtype))
    record = extended(None, lambda v: GT(G(v)), start, min(n_pairs, flat.size))
    values, bounds = _ritz_values(record)
    n_observations = sum(leaf.size for leaf in jax.tree.leaves(problem.residual_structure()))
    largest, least = values[0], jnp.nanmin(values)
    below = jnp.maximum(least - bounds[jnp.nanargmin(values)], 1)
    if n_observations < flat.size:  # G has a null space, where A is the identity
        least = below = jnp.ones_like(least)
    return HessianSpectrum(values, bounds, largest / least, (largest + bounds[0]) / below, exact=False)


def _ritz_values(record: KrylovRecord) -> tuple[Float[Array, "k"], Float[Array, "k"]]:
    """The Ritz values, largest first, and |off_n s_n|, the residual of each; NaN beyond what Lanczos found."""
    index = jnp.arange(record.diagonal.shape[0])
    inner = jnp.where(index[:-1] + 1 < record.n, record.off[:-1], 0.0)
    used = jnp.where(index < record.n, record.diagonal, 0.0)  # A >= I, so a value of 0 is none of A's
    values, S = jnp.linalg.eigh(jnp.diag(used) + jnp.diag(inner, 1) + jnp.diag(inner, -1))
    last = jnp.maximum(record.n - 1, 0)
    bounds = jnp.abs(record.off[last] * S[last])
    found = values > 0.5
    return jnp.where(found, values, jnp.nan)[::-1], jnp.where(found, bounds, jnp.nan)[::-1]
