"""Models as priors of trajectories at given times, with the loss that trains them.

    DynIncrements   phi(x)_t = M(x_{t-1}; ts_{t-1}, ts_t)       each entry from the one before: weak constraint
    DynTrajectory   phi(x)_t = M(x_0; ts_0, ts_t)               all entries from the first: strong constraint

    loss(x, ts, x_gt) = ‖x_gt - phi(x)‖²,     x_gt = x if it is not given: the cost of the prior

The interval between two entries is crossed by `n_steps` steps of equal length, whatever the times are. Without `ts` the
steps have the model's own length, so both are also a `Prior`.
"""

from typing import Any, SupportsIndex

import equinox as eqx
import jax
import jax.numpy as jnp
import optimistix as optx
from jaxtyping import Array, ArrayLike, Float, PyTree

from vardax.priors.dynamical import AbstractDynamicalPrior, checked_intervals
from vardax.priors.intervals import Intervals
from vardax.types import ArrayData

__all__ = ["DynIncrements", "DynTrajectory", "trajectory_loss"]


class DynIncrements(AbstractDynamicalPrior):
    """A `TemporalPrior`: each entry is predicted from the one before. Arguments as for `DynamicalPrior`.

    >>> from vardax.dynamics.discrete import DiscreteForward
    >>> prior = DynIncrements(DiscreteForward(lambda x, dt: x + dt, dt=1.0))
    >>> prior(jnp.array([0.0, 5.0, 5.0]), jnp.array([0.0, 1.0, 4.0])).tolist()
    [0.0, 1.0, 8.0]
    """

    intervals: Intervals

    def __init__(
        self,
        forward: Any,
        n_steps: SupportsIndex = 1,
        forward_adjoint: Any = optx.RecursiveCheckpointAdjoint(),  # noqa: B008  (an immutable value)
        *,
        t0: ArrayLike = 0.0,
    ):
        self.intervals = checked_intervals(forward, n_steps, forward_adjoint, t0, "DynIncrements")

    def __call__(self, x: PyTree[Array], ts: ArrayData | None = None) -> PyTree[Array]:
        return self.intervals.entry_by_entry(x, self.intervals.checked_times(x, ts))

    def loss(
        self, x: PyTree[Array], ts: ArrayData | None = None, x_gt: PyTree[Array] | None = None, params: Any = None
    ) -> Float[Array, ""]:
        """‖x_gt - phi(x)‖²; `params`, such as `eqx.filter(prior, eqx.is_inexact_array)`, replace those of the prior."""
        return trajectory_loss(self, x, ts, x_gt, params)


class DynTrajectory(AbstractDynamicalPrior):
    """A `TemporalPrior`: the trajectory of the model from the first entry. Arguments as for `DynamicalPrior`.

    >>> from vardax.dynamics.discrete import DiscreteForward
    >>> prior = DynTrajectory(DiscreteForward(lambda x, dt: x + dt, dt=1.0))
    >>> prior(jnp.array([0.0, 5.0, 5.0]), jnp.array([0.0, 1.0, 4.0])).tolist()
    [0.0, 1.0, 4.0]
    """

    intervals: Intervals

    def __init__(
        self,
        forward: Any,
        n_steps: SupportsIndex = 1,
        forward_adjoint: Any = optx.RecursiveCheckpointAdjoint(),  # noqa: B008  (an immutable value)
        *,
        t0: ArrayLike = 0.0,
    ):
        self.intervals = checked_intervals(forward, n_steps, forward_adjoint, t0, "DynTrajectory")

    def __call__(self, x: PyTree[Array], ts: ArrayData | None = None) -> PyTree[Array]:
        return self.intervals.free_running(x, self.intervals.checked_times(x, ts))

    def loss(
        self, x: PyTree[Array], ts: ArrayData | None = None, x_gt: PyTree[Array] | None = None, params: Any = None
    ) -> Float[Array, ""]:
        """‖x_gt - phi(x)‖²; `params`, such as `eqx.filter(prior, eqx.is_inexact_array)`, replace those of the prior."""
        return trajectory_loss(self, x, ts, x_gt, params)


def trajectory_loss(prior: Any, x: PyTree[Array], ts: Any, x_gt: PyTree[Array] | None, params: Any) -> Float[Array, ""]:
    """‖x_gt - phi(x)‖² of a temporal prior."""
    prior = prior if params is None else eqx.combine(params, prior)
    truth = x if x_gt is None else x_gt
    found, expected = (jax.tree.map(jnp.shape, tree) for tree in (truth, x))
    if found != expected:
        raise ValueError(f"{type(prior).__name__}.loss: `x_gt` has shape {found}, expected {expected}, that of `x`.")
    squares = jax.tree.map(lambda a, b: jnp.sum((a - b) ** 2), truth, prior(x, ts))
    return jax.tree.reduce(jnp.add, squares)
