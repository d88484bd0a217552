r"""Skill: how much better an estimate is than a reference, and whether it knows the pattern.

    skill                 (s - s_ref) / (s_perfect - s_ref)              1 perfect, 0 as good as the reference
    anomaly correlation   ⟨x - c, x_true - c⟩ / (‖x - c‖ ‖x_true - c‖)   about a climatology c

A skill score turns any score (RMSE, mean square error, CRPS) into one without a unit; the reference is climatology,
persistence, or the method to beat. The anomaly correlation is blind to amplitude, which a skill of the mean square
error is not: 1 - MSE / MSE_ref with climatology as the reference is at most the squared correlation (Murphy, A. 1988,
Monthly Weather Review 116, 2417-2424).
"""

from collections.abc import Sequence

import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from vardax.metrics.scores import all_or_axes
from vardax.types import float_array

__all__ = ["anomaly_correlation", "skill_score"]


def skill_score(score: ArrayLike, reference: ArrayLike, perfect: ArrayLike = 0.0) -> Float[Array, "..."]:
    """(s - s_ref) / (s_perfect - s_ref); NaN where the reference is perfect already.

    >>> skill_score(jnp.array([0.0, 0.5, 2.0]), jnp.array(1.0)).tolist()
    [1.0, 0.5, -1.0]
    """
    score = float_array(score)
    reference, perfect = (float_array(a).astype(score.dtype) for a in (reference, perfect))
    best = perfect - reference
    return jnp.where(best != 0, (score - reference) / jnp.where(best != 0, best, 1), jnp.nan)


def anomaly_correlation(
    estimate: ArrayLike, truth: ArrayLike, climatology: ArrayLike, axis: int | Sequence[int] | None = None
) -> Float[Array, "..."]:
    """The correlation over `axis` (all by default) of what departs from `climatology`, which has the shape of `truth`.

    >>> float(anomaly_correlation(jnp.array([2.0, 1.0]), jnp.array([3.0, 1.0]), jnp.array([1.0, 1.0])))
    1.0
    """
    estimate, truth = float_array(estimate), float_array(truth)
    climatology = jnp.broadcast_to(float_array(climatology).astype(truth.dtype), truth.shape)
    a, b = estimate - climatology, truth - climatology
    over = all_or_axes(axis)
    scale = jnp.sqrt(jnp.sum(a**2, axis=over) * jnp.sum(b**2, axis=over))
    return jnp.where(scale > 0, jnp.sum(a * b, axis=over) / jnp.where(scale > 0, scale, 1), jnp.nan)
