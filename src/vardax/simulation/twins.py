"""A twin from parts: a truth is given, and everything that an analysis may know of it is simulated.

    x_t = M_t(x_{t-1}) + η_t,  η_t ~ N(0, Q)        the trajectory from the given truth x_0
    y_t = H(x_t) + ε_t,        ε_t ~ N(0, R)        the batch
    x_b = T(T⁻¹(x_0) + ε_b),   ε_b ~ N(0, B)        the background

The truth is fixed and the background scatters about it: what is wanted to score analyses of a known state. Where the
truth itself is to be drawn from a prior, as the posterior has it, see `draw_twin`.
"""

from typing import Any, SupportsIndex

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, PRNGKeyArray, PyTree

from vardax.dynamics.rollout import rollout
from vardax.minimisers.transforms import Identity
from vardax.simulation.observations import observe
from vardax.simulation.states import perturb, simulate_trajectory
from vardax.types import ArrayData, Batch1D, Batch2D, Batch3D, float_array

__all__ = ["Twin", "simulate_twin"]

_BATCHES = {1: Batch1D, 2: Batch2D, 3: Batch3D}


class Twin(eqx.Module):
    """A truth, and what is known of it, with a sample axis in front as everywhere.

    - `truth`: at the control time, (B, *state), or the tuple of it and of what a method estimates besides.
    - `trajectory`: (B, entries, *state), or for one time the state itself.
    - `batch`: the observations, as a method takes them.
    - `background`: (B, *state), for `analyse(batch, background=...)`.
    """

    truth: PyTree[Array]
    trajectory: PyTree[Array]
    batch: Any
    background: PyTree[Array]


def simulate_twin(
    key: PRNGKeyArray,
    truth: PyTree[ArrayLike],
    *,
    obs_op: Any,
    prior_cov_op: Any,
    obs_cov_op: Any,
    forward: Any = None,
    n_steps: SupportsIndex = 0,
    n_substeps: SupportsIndex = 1,
    model_err_cov_op: Any = None,
    control_transform: PyTree = Identity(),  # noqa: B008  (an immutable value)
    mask: ArrayData | None = None,
) -> Twin:
    """Trajectories, observations and backgrounds of the truths (B, *state), each with its own part of `key`.

    With `forward` a window of `n_steps` intervals, from the truth at its start on; without, the truth alone. The names
    are those of the methods' slots. `mask` is that of `observe`, one for all samples.

    >>> from vardax.covariances.diagonal import DiagonalCovariance
    >>> from vardax.obs_operators.point import PointObs
    >>> B, R = DiagonalCovariance(jnp.ones(3)), DiagonalCovariance([0.1])
    >>> twin = simulate_twin(jax.random.key(0), jnp.zeros((5, 3)), obs_op=PointObs([1]), prior_cov_op=B, obs_cov_op=R)
    >>> twin.background.shape, twin.batch.input.shape
    ((5, 3), (5, 1, 1))
    """
    if forward is None and (model_err_cov_op is not None or int(n_steps)):
        raise ValueError(
            "simulate_twin: `n_steps` and `model_err_cov_op` are those of a model, and `forward` is missing; give it, "
            "or leave them out for one time."
        )
    truth = jax.tree.map(float_array, truth)
    mask = None if mask is None else jnp.asarray(mask)
    run = (forward, int(n_steps), int(n_substeps), model_err_cov_op)
    trajectory, y, background = _simulate(key, truth, run, obs_op, obs_cov_op, mask, prior_cov_op, control_transform)
    return Twin(truth, truth if forward is None else trajectory, _as_batch(y), background)


@eqx.filter_jit
def _simulate(
    key: PRNGKeyArray, truth: PyTree[Array], run: tuple, obs_op: Any, R: Any, mask: Any, B: Any, transform: PyTree
) -> tuple[PyTree[Array], Array, PyTree[Array]]:
    """(trajectories, observations, backgrounds) of all samples."""

    def one(k: PRNGKeyArray, x: PyTree[Array]) -> tuple[PyTree[Array], Array, PyTree[Array]]:
        for_model, for_observations, for_background = jax.random.split(k, 3)
        trajectory = _trajectory(for_model, x, *run)
        y = observe(for_observations, trajectory, obs_op, R, mask=mask)
        return trajectory, y, perturb(for_background, x, B, control_transform=transform)

    n_samples = jax.tree.leaves(truth)[0].shape[0]
    return jax.vmap(one)(jax.random.split(key, n_samples), truth)


def _trajectory(
    key: PRNGKeyArray, x: PyTree[Array], forward: Any, n_steps: int, n_substeps: int, Q: Any
) -> PyTree[Array]:
    """The states at all entries: one without a model."""
    if forward is None:
        return jax.tree.map(lambda leaf: leaf[None], x)
    if Q is None:
        return rollout(forward, x, n_steps, n_substeps=n_substeps)
    return simulate_trajectory(key, forward, x, n_steps, Q, n_substeps=n_substeps)


def _as_batch(y: Array) -> Any:
    """The batch for observations with this many axes."""
    axes = y.ndim - 2
    if axes not in _BATCHES:
        raise ValueError(
            f"simulate_twin: `obs_op` gives observations of shape {y.shape[2:]}, expected one to three axes, which a "
            "batch has; ravel them."
        )
    return _BATCHES[axes].from_observations(y)
