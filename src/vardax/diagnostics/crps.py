r"""The continuous ranked probability score of an ensemble, or of a Gaussian, against a truth.

    CRPS(F, y) = ∫ (F(x) - 1[x ≥ y])² dx = E|X - y| - ½ E|X - X'|

In the unit of the state, smaller is better, and the absolute error for one member. It rewards sharpness and calibration
together: a forecaster who says what he believes minimises it. `crps_ensemble` is the score of the ensemble's own
step function, which smaller ensembles pay for; `fair_crps_ensemble` is unbiased for the distribution that the members
were drawn from, so ensembles of different sizes compare. `crps_gaussian` is the closed form for N(mean, std²), with
which an analysis and its spread are scored.

Gneiting, T. and Raftery, A. (2007), JASA 102, 359-378; Ferro, C. (2014), QJRMS 140, 1917-1923 (the fair score).
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from vardax.diagnostics.rank_histogram import members_and_truth
from vardax.types import float_array

__all__ = ["crps_ensemble", "crps_gaussian", "fair_crps_ensemble"]


def crps_ensemble(members: ArrayLike, truth: ArrayLike) -> Float[Array, "..."]:
    """The score of each entry: `members` (n, ...), `truth` (...).

    >>> crps_ensemble(jnp.array([0.0, 2.0]), jnp.array(1.0)).tolist()
    0.5
    """
    return _crps(*members_and_truth(members, truth, "crps_ensemble"), 0)


def fair_crps_ensemble(members: ArrayLike, truth: ArrayLike) -> Float[Array, "..."]:
    """The same with E|X - X'| estimated over pairs of different members: at least two are needed.

    >>> fair_crps_ensemble(jnp.array([0.0, 2.0]), jnp.array(1.0)).tolist()
    0.0
    """
    ensemble, verification = members_and_truth(members, truth, "fair_crps_ensemble")
    if ensemble.shape[0] < 2:
        raise ValueError("fair_crps_ensemble: `members` has 1 member, expected at least 2; use `crps_ensemble`.")
    return _crps(ensemble, verification, 1)


def crps_gaussian(mean: ArrayLike, std: ArrayLike, truth: ArrayLike) -> Float[Array, "..."]:
    """σ [z (2 Φ(z) - 1) + 2 φ(z) - 1 / √π] with z = (y - mean) / σ; |y - mean| where σ is 0.

    >>> round(float(crps_gaussian(0.0, 1.0, 0.0)), 4)
    0.2337
    """
    return _crps_gaussian(*jnp.broadcast_arrays(*(float_array(a) for a in (mean, std, truth))))


@jax.jit
def _crps_gaussian(mean: Float[Array, "..."], std: Float[Array, "..."], truth: Float[Array, "..."]) -> Array:
    gap, positive = truth - mean, std > 0
    z = gap / jnp.where(positive, std, 1)
    score = z * (2 * jax.scipy.stats.norm.cdf(z) - 1) + 2 * jax.scipy.stats.norm.pdf(z) - jnp.pi**-0.5
    return jnp.where(positive, std * score, jnp.abs(gap))


@functools.partial(jax.jit, static_argnums=2)
def _crps(members: Float[Array, "n ..."], truth: Float[Array, "..."], excluded: int) -> Float[Array, "..."]:
    """Mean |x_i - y| less Σ_i (2 i - n - 1) x_(i) / (n (n - excluded)), the members sorted: O(n log n)."""
    n = members.shape[0]
    distance = jnp.mean(jnp.abs(members - truth[None]), axis=0)
    weights = (2 * jnp.arange(1, n + 1) - n - 1).astype(members.dtype)
    spread = jnp.tensordot(weights, jnp.sort(members, axis=0), axes=1, precision="highest") / (n * (n - excluded))
    return distance - spread
