"""What the latent methods share: their prior as that of a control z, and the background of a cycle in it.

    z_b = prior.z_b, or E(background);     B_z = prior.B_z_op

A latent method has its prior in one slot, `prior`. The slots `prior_mean` and `prior_cov_op` that its siblings have
replace a part of it: `prior_mean` (and so `background`) is a state, as everywhere, and is encoded; `prior_cov_op` is a
covariance of z, and becomes that of the prior at once, so that a call with another one runs the same program.
"""

from typing import Any

import equinox as eqx
import jax
from jaxtyping import Array, PyTree

from vardax.latent.prior import LatentPrior
from vardax.minimisers.transforms import Identity
from vardax.models.boundary import as_prior_covariance, check_covariance, per_sample
from vardax.models.method import ControlPrior

__all__ = ["as_latent_covariance", "as_latent_prior", "latent_background", "latent_control_prior", "latent_prior"]


def as_latent_prior(prior: Any) -> LatentPrior:
    """The prior as it is, or a `TypeError` that says how to make one."""
    if isinstance(prior, LatentPrior):
        return prior
    raise TypeError(
        f"`prior` is {type(prior).__name__}, expected LatentPrior(latent_map, z_b, B_z_op); a basis makes one with "
        "`.prior()`, samples of states with LatentPrior.from_samples(latent_map, states)."
    )


def as_latent_covariance(operator: Any) -> Any:
    """A covariance of z, or None for that of the prior."""
    return operator if operator is None else as_prior_covariance(operator)


def latent_prior(prior: Any, prior_cov_op: Any) -> LatentPrior:
    """The prior, with another covariance where one is given; shapes are checked where the problem is posed."""
    prior, covariance = as_latent_prior(prior), as_latent_covariance(prior_cov_op)
    if covariance is None:
        return prior
    return eqx.tree_at(lambda p: p.B_z_op, prior, covariance, is_leaf=lambda node: node is prior.B_z_op)


def latent_background(method: Any) -> tuple[PyTree, PyTree[jax.ShapeDtypeStruct]]:
    """The background as a state (its structure, where it is D(z_b)), and what a state is like: what z_b decodes to."""
    owner, z_b = type(method).__name__, method.prior.z_b
    check_covariance(method.prior.B_z_op, "prior_cov_op", owner)
    found, expected = (_shapes(tree) for tree in (method.prior.B_z_op.out_structure(), z_b))
    if found != expected:
        raise ValueError(f"{owner}: `prior_cov_op` acts on shape {found}, expected {expected}, that of `prior.z_b`.")
    try:
        structure = _decoded_structure(method.latent_map, z_b)
    except Exception as error:
        raise ValueError(
            f"{owner}: `latent_map.decode` cannot be applied to a latent vector of shape {expected}, that of "
            f"`prior.z_b`: {error}"
        ) from error
    return (structure if method.prior_mean is None else method.prior_mean), structure


def latent_control_prior(method: Any, samples: Any) -> tuple[ControlPrior, ...]:
    """N(z_b, B_z), with the background of each sample encoded where one is given."""
    mean: PyTree[Array] = method.prior.z_b
    if method.prior_mean is not None:
        _, structure = latent_background(method)
        owner, n_samples = type(method).__name__, samples.value.shape[0]
        states = per_sample(method.prior_mean, structure, n_samples, "prior_mean / background", owner)
        mean = eqx.filter_vmap(method.latent_map.encode)(states)
    return (ControlPrior(mean, method.prior.B_z_op, Identity()),)


@eqx.filter_jit
def _decoded_structure(latent_map: Any, z_b: PyTree[Array]) -> PyTree[jax.ShapeDtypeStruct]:
    """What D(z_b) is like. Every eager call asks, so it is jitted: the decoder is traced once."""
    return eqx.filter_eval_shape(latent_map.decode, z_b)


def _shapes(tree: PyTree) -> PyTree:
    return jax.tree.map(lambda leaf: tuple(leaf.shape), tree)
