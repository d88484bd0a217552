"""The costs of latent assimilation as pure functions, and what they need of a latent map.

    J(z) = ½‖z - z_b‖²_{B_z⁻¹} + ½ Σ_t ‖m_t (y_t - H(D(z_t)))‖²_{R⁻¹}

D is the decoder; R and B_z are covariances, not inverses. Missing entries are marginalised, also where R is correlated.
These functions are for reading and for costs of one's own; the latent methods work in control space and apply no
inverse of B_z.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array, ArrayLike, Float, PyTree

from vardax.covariances.functions import inv_mv, restrict
from vardax.latent.identity import IdentityLatentMap
from vardax.latent.prior import checked_latent_map
from vardax.primitives.control import tangent_linear
from vardax.types import observed_entries

__all__ = [
    "decode_jacobian",
    "identity_latent_map",
    "latent_incremental_cost",
    "obs_misfit_latent_seq",
    "variational_cost_latent",
]


def identity_latent_map(dim: int) -> IdentityLatentMap:
    """z = x, for states with `dim` numbers.

    >>> identity_latent_map(2).decode(jnp.ones(2)).tolist()
    [1.0, 1.0]
    """
    return IdentityLatentMap(dim)


def decode_jacobian(latent_map: Any, z: PyTree[Array]) -> lx.AbstractLinearOperator:
    """D'(z), from latent vectors to states; `.T` is its adjoint.

    >>> decode_jacobian(identity_latent_map(2), jnp.ones(2)).mv(jnp.array([1.0, 2.0])).tolist()
    [1.0, 2.0]
    """
    return tangent_linear(checked_latent_map(latent_map, "decode_jacobian").decode, z)


def variational_cost_latent(
    z: PyTree[Array],
    z_b: PyTree[Array],
    B_z_op: lx.AbstractLinearOperator,
    obs_pred: Float[Array, "..."] | Callable[[PyTree[Array]], Array],
    y: Float[Array, "..."],
    mask: ArrayLike,
    R_op: lx.AbstractLinearOperator,
) -> Float[Array, ""]:
    """½‖z - z_b‖²_{B_z⁻¹} + ½‖m (y - obs_pred)‖²_{R⁻¹} at one time.

    `obs_pred` is H(D(z)), or the function that makes it of z: then the gradient with respect to z is that of J.

    >>> from vardax.covariances.diagonal import DiagonalCovariance
    >>> one = DiagonalCovariance(jnp.ones(1))
    >>> variational_cost_latent(jnp.ones(1), jnp.zeros(1), one, lambda z: 2 * z, jnp.zeros(1), jnp.ones(1), one)
    Array(2.5, dtype=float32)
    """
    predicted = obs_pred(z) if callable(obs_pred) else obs_pred
    return _background_cost(jax.tree.map(jnp.subtract, z, z_b), B_z_op) + _misfit(predicted, y, mask, R_op)


def obs_misfit_latent_seq(
    obs_pred: Float[Array, "E ..."], y_seq: Float[Array, "E ..."], mask_seq: ArrayLike, R_op: lx.AbstractLinearOperator
) -> Float[Array, ""]:
    """½ Σ_t ‖m_t (y_t - H(D(z_t)))‖²_{R⁻¹}; `obs_pred`, `y_seq` and `mask_seq` are stacked on axis 0."""
    return jnp.sum(jax.vmap(lambda p, y, m: _misfit(p, y, m, R_op))(obs_pred, y_seq, jnp.asarray(mask_seq)))


def latent_incremental_cost(
    dz: PyTree[Array],
    z_b: PyTree[Array],
    B_z_op: lx.AbstractLinearOperator,
    innovation: Float[Array, "..."],
    R_op: lx.AbstractLinearOperator,
    tangent_H: lx.AbstractLinearOperator | Callable[[PyTree[Array]], Array],
    *,
    z_ref: PyTree[Array] | None = None,
) -> Float[Array, ""]:
    """½‖z_ref + dz - z_b‖²_{B_z⁻¹} + ½‖innovation - H' D' dz‖²_{R⁻¹}, the quadratic of an outer loop.

    `z_ref` is the point of linearisation, z_b unless given; `innovation` = y - H(D(z_ref)), NaN where nothing was
    observed; `tangent_H` = H' D' there (and the model's tangent, where there is one).
    """
    gap = dz if z_ref is None else jax.tree.map(lambda r, d, b: r + d - b, z_ref, dz, z_b)
    seen = tangent_H.mv(dz) if isinstance(tangent_H, lx.AbstractLinearOperator) else tangent_H(dz)
    return _background_cost(gap, B_z_op) + _misfit(seen, innovation, jnp.ones_like(innovation), R_op)


def _background_cost(dz: PyTree[Array], B_z_op: lx.AbstractLinearOperator) -> Float[Array, ""]:
    products = jax.tree.map(lambda a, b: jnp.sum(a * b.astype(a.dtype)), dz, inv_mv(B_z_op, dz))
    return 0.5 * jax.tree.reduce(jnp.add, products)


def _misfit(predicted: Array, y: Array, mask: ArrayLike, R_op: lx.AbstractLinearOperator) -> Float[Array, ""]:
    """½ rᵀ R⁻¹ r on the observed entries, with R restricted to them."""
    value, observed = observed_entries(y, mask)
    gap = jnp.where(observed != 0, value - predicted.astype(value.dtype), jnp.zeros_like(value))
    dtype = R_op.out_structure().dtype
    whitened = restrict(R_op, observed.astype(dtype)).whiten(gap.astype(dtype))
    return (0.5 * jnp.sum(whitened**2)).astype(value.dtype)
