"""Observations of a trajectory.

    y_t = H(x_t) + R^{1/2} ξ_t where observed, NaN elsewhere

R may be that of one entry, and the errors are then independent from one entry to the next, or that of the whole window,
with errors that are correlated in time.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, PRNGKeyArray, PyTree

from vardax.covariances.functions import as_covariance, sample
from vardax.types import ArrayData, float_array

__all__ = ["observation_errors", "observe"]


def observe(
    key: PRNGKeyArray, trajectory: PyTree[ArrayLike], obs_op: Any, obs_cov_op: Any, *, mask: ArrayData | None = None
) -> Float[Array, "entries *obs"]:
    """Observations of every state of `trajectory` (entries, *state); where `mask` is 0 nothing was observed: NaN.

    - `obs_op`: anything that maps a state to one array.
    - `obs_cov_op`: R of one entry, on (*obs), or of the window, on (entries, *obs).
    - `mask`: for entries as a whole, (entries,), or for each observation, (entries, *obs).

    What comes out goes into `Batch1D.from_observations`, which takes NaN for missing. Errors of entries that were
    observed do not depend on the mask.

    >>> from vardax.covariances.diagonal import DiagonalCovariance
    >>> run = jnp.arange(6.0).reshape(3, 2)
    >>> observe(jax.random.key(0), run, lambda x: x[:1], DiagonalCovariance([0.0]), mask=[1, 0, 1]).tolist()
    [[0.0], [nan], [4.0]]
    """
    exact = jax.vmap(obs_op)(jax.tree.map(float_array, trajectory))
    if not isinstance(exact, jax.Array):
        raise TypeError(
            f"observe: `obs_op` gives {type(exact).__name__}, expected one array; an operator that gives a dictionary "
            "of instruments has `.to_observation_operator()`."
        )
    observed = exact + observation_errors(key, exact.shape, obs_cov_op).astype(exact.dtype)
    return observed if mask is None else jnp.where(_seen(mask, exact.shape), observed, jnp.nan)


def observation_errors(key: PRNGKeyArray, shape: tuple[int, ...], obs_cov_op: Any) -> Float[Array, "entries *obs"]:
    """A draw of R^{1/2} ξ for observations of `shape`, (entries, *obs)."""
    R = as_covariance("observe", obs_cov_op, "obs_cov_op")
    found = R.out_structure()
    if not isinstance(found, jax.ShapeDtypeStruct):
        raise TypeError(
            f"observe: `obs_cov_op` acts on a pytree, {found}, expected R on the array of observations; join its "
            "blocks with `BlockDiagonalCovariance(R_1, R_2, joined_along=0)`."
        )
    if found.shape == shape[1:]:
        return sample(R, key, shape[0])
    if found.shape == shape:
        return sample(R, key, 1)[0]
    raise ValueError(
        f"observe: `obs_cov_op` acts on shape {found.shape}, expected {shape[1:]} (one time entry) or {shape} (the "
        "whole window)."
    )


def _seen(mask: ArrayData, shape: tuple[int, ...]) -> Array:
    """The mask with the shape of the observations."""
    seen = jnp.asarray(mask).astype(bool)
    if seen.shape not in (shape, shape[:1]):
        raise ValueError(f"observe: `mask` has shape {seen.shape}, expected {shape[:1]} or {shape}.")
    return jnp.broadcast_to(seen.reshape(*seen.shape, *(1,) * (len(shape) - seen.ndim)), shape)
