"""The terms of the variational cost as pure functions.

    J_b = ½‖x - x_b‖²_{B⁻¹}        J_o = ½ Σ_t ‖m_t (y_t - H(x_t))‖²_{R⁻¹}        J_q = ½ Σ_{t>=1} ‖eta_t‖²_{Q⁻¹}

Sums, never means, unless R is not given. A missing entry contributes nothing, in values and in gradients. Inverses are
passed as operators (`B_inv_op`, `R_inv_op`, `Q_inv_op`): these functions are for reading, for teaching and for costs of
one's own; the methods work in control space and apply no inverse of B.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array, ArrayLike, Float, PyTree

from vardax.types import AbstractBatch, observed_entries

__all__ = ["model_error_cost", "obs_cost", "prior_cost", "quadratic_form", "threedvar_cost", "variational_cost"]


def quadratic_form(v: PyTree[Array], inverse: lx.AbstractLinearOperator) -> Float[Array, ""]:
    """½ vᵀ A^{-1} v, with A^{-1} as an operator on the structure of v."""
    products = jax.tree.map(lambda a, b: jnp.sum(a * b), v, inverse.mv(v))
    return 0.5 * jax.tree.reduce(jnp.add, products)


def obs_cost(
    x: PyTree[Array],
    y_obs: Float[Array, "..."],
    mask: ArrayLike,
    obs_operator: Callable | None = None,
    R_inv_op: lx.AbstractLinearOperator | None = None,
) -> Float[Array, ""]:
    """½‖m (y - H(x))‖²_{R⁻¹}. H is the identity unless given; without `R_inv_op`, R⁻¹ = I / |Ω|, the mean square
    over the |Ω| observed entries (0 if nothing is observed).

    >>> obs_cost(jnp.zeros(2), jnp.array([2.0, 7.0]), jnp.array([1.0, 0.0]))
    Array(2., dtype=float32)
    """
    predicted = x if obs_operator is None else obs_operator(x)
    value, observed = observed_entries(y_obs, mask)
    gap = jnp.where(observed.astype(bool), value - predicted, jnp.zeros_like(value))
    if R_inv_op is None:
        return 0.5 * jnp.sum(gap**2) / jnp.maximum(jnp.sum(observed), 1)
    return quadratic_form(gap, R_inv_op)


def prior_cost(
    x: PyTree[Array],
    prior_mean: PyTree[Array] | None = None,
    B_inv_op: lx.AbstractLinearOperator | None = None,
    prior_fn: Callable | None = None,
) -> Float[Array, ""]:
    """The classical ½‖x - x_b‖²_{B⁻¹} (`prior_mean`, `B_inv_op`) or the learned ‖x - phi(x)‖² (`prior_fn`)."""
    classical = (prior_mean is not None, B_inv_op is not None)
    if prior_fn is not None and any(classical):
        raise ValueError("prior_cost: give `prior_mean` and `B_inv_op`, or `prior_fn`; the two forms do not mix.")
    if prior_fn is not None:
        squares = jax.tree.map(lambda a, b: jnp.sum((a - b) ** 2), x, prior_fn(x))
        return jax.tree.reduce(jnp.add, squares)
    if prior_mean is None or B_inv_op is None:
        raise ValueError("prior_cost: the classical form needs both `prior_mean` and `B_inv_op`.")
    return quadratic_form(jax.tree.map(jnp.subtract, x, prior_mean), B_inv_op)


def model_error_cost(eta: PyTree[Array], Q_inv_op: lx.AbstractLinearOperator) -> Float[Array, ""]:
    """J_q = ½ Σ_t ‖eta_t‖²_{Q⁻¹}, with the T model errors stacked on axis 0."""
    return jnp.sum(jax.vmap(lambda one: quadratic_form(one, Q_inv_op))(eta))


def variational_cost(
    x: Float[Array, "..."],
    batch: AbstractBatch,
    prior_fn: Callable,
    obs_operator: Callable | None,
    alpha_obs: float | Array = 1.0,
    alpha_prior: float | Array = 1.0,
) -> Float[Array, ""]:
    """alpha_obs · ½‖m (y - H(x))‖²_{R⁻¹} + alpha_prior · ‖x - phi(x)‖², with R = diag(obs_err²) or I.

    `x` has the batch axis of `batch`; the sum over samples is returned.
    """
    predicted = x if obs_operator is None else obs_operator(x)
    value, observed = observed_entries(batch.input, batch.mask)
    gap = jnp.where(observed.astype(bool), value - predicted, jnp.zeros_like(value))
    scaled = gap if batch.obs_err is None else gap / batch.obs_err
    return alpha_obs * 0.5 * jnp.sum(scaled**2) + alpha_prior * prior_cost(x, prior_fn=prior_fn)


def threedvar_cost(
    x: Float[Array, "B ..."],
    batch: AbstractBatch,
    obs_operator: Callable,
    prior_mean: Any,
    B_inv_op: lx.AbstractLinearOperator,
    R_inv_op: lx.AbstractLinearOperator,
) -> Float[Array, ""]:
    """J_b + J_o at one time, summed over the samples; B, R, H and `prior_mean` are per sample.

    `R_inv_op` is R⁻¹ of complete observations: with gaps and a correlated R, use `ThreeDVar`, which marginalises them.
    """

    def one(state: Array, y: Array, mask: Array) -> Float[Array, ""]:
        observations = obs_cost(state, y, mask, obs_operator, R_inv_op)
        return prior_cost(state, prior_mean, B_inv_op) + observations

    shape = jax.eval_shape(obs_operator, x[0]).shape
    y, mask = (a.reshape(x.shape[0], *shape) for a in (batch.input, batch.mask))
    return jnp.sum(jax.vmap(one)(x, y, mask))
