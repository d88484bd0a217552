r"""Whether B and R are as large as the innovations say, without knowing the truth.

At the minimum of a linear-Gaussian cost 2 J(x*) = dᵀ(HBHᵀ + R)⁻¹d with the innovation d = y - H x_b. When B and R are
the true covariances this is a chi-square variable with p degrees of freedom, one per observation, so

    2 J(x*) / p = 1 ± sqrt(2 / p)

over many analyses. Above 1 the covariances are too small for the innovations, below 1 too large. Costs come from
`Analysis.cost.last.total`, or a cycle's history. ADAO calls this MahalanobisConsistency.

Reference: A. F. Bennett, Inverse modeling of the ocean and atmosphere (2002), section 2.3; O. Talagrand, A posteriori
verification of analysis and assimilation algorithms (1999).
"""

import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from vardax.types import float_array

__all__ = ["chi_square", "chi_square_sampling_error"]


def chi_square(analysis_cost_total: ArrayLike, n_observed: ArrayLike) -> Float[Array, "..."]:
    """2 J(x*) / p for the total cost at the analysis and the number p of observed entries; NaN where p = 0.

    >>> chi_square(jnp.array([10.0, 30.0]), jnp.array([20, 20])).tolist()
    [1.0, 3.0]
    """
    cost = float_array(analysis_cost_total)
    count = jnp.broadcast_to(jnp.asarray(n_observed).astype(cost.dtype), cost.shape)
    return jnp.where(count > 0, 2 * cost / jnp.where(count > 0, count, 1), jnp.nan)


def chi_square_sampling_error(n_observed: ArrayLike) -> Float[Array, "..."]:
    """sqrt(2 / p): the standard deviation of 2 J(x*) / p over analyses when B and R are the truth.

    >>> round(float(chi_square_sampling_error(200)), 3)
    0.1
    """
    return jnp.sqrt(2 / float_array(n_observed))
