"""A model of the dynamics as a prior: a trajectory is plausible where each entry follows from the one before.

    phi(x)_0 = x_0,   phi(x)_t = M^n(x_{t-1}),        ‖x - phi(x)‖² = Σ_{t>=1} ‖x_t - M^n(x_{t-1})‖²

The sum is the model-error term of weak-constraint 4D-Var, with Q = I/2: what is learned around it, the modulator of the
gradients, works on the cost of `WeakFourDVar`. The trajectory x (T, *state) is one array, or a pytree of arrays.
"""

import dataclasses
from typing import Any, SupportsIndex

import equinox as eqx
import optimistix as optx
from jaxtyping import Array, ArrayLike, PyTree

from vardax.dynamics.adjoint_memory import forward_memory
from vardax.dynamics.rollout import as_forward
from vardax.dynamics.stepping import checked_count
from vardax.priors.intervals import Intervals
from vardax.types import float_array

__all__ = ["AbstractDynamicalPrior", "DynamicalPrior", "checked_intervals"]


class AbstractDynamicalPrior(eqx.Module):
    """A prior that runs a model across the intervals of a trajectory: the slots that all of them have."""

    intervals: eqx.AbstractVar[Intervals]

    @property
    def forward(self) -> Any:
        """The model; its arrays are parameters, to be trained or replaced (`eqx.tree_at`)."""
        return self.intervals.forward

    @property
    def n_steps(self) -> int:
        """Steps of the model from one entry to the next."""
        return self.intervals.n_steps

    @property
    def forward_adjoint(self) -> Any:
        return self.intervals.forward_adjoint

    @property
    def state_signature(self) -> None:
        """Trajectories of any length."""
        return None

    def with_forward_adjoint(self, forward_adjoint: Any) -> Any:
        """The same prior, with another choice of what the adjoint of its model keeps."""
        forward_memory(forward_adjoint, self.forward)
        intervals = dataclasses.replace(self.intervals, forward_adjoint=forward_adjoint)
        return eqx.tree_at(lambda prior: prior.intervals, self, intervals)


class DynamicalPrior(AbstractDynamicalPrior):
    """The `Prior` of any `ForwardModel`.

    - `forward`: a model with `step(state, dt)` and `dt`, of any package; a step that takes `t0` or `t` gets the model
      time, `t0` at the first entry. A vector field with `dt` is stepped by Tsit5.
    - `n_steps`: n, the steps of `forward.dt` from one entry to the next.
    - `forward_adjoint`: what the adjoint of an interval keeps (`vardax.dynamics.rollout`).

    >>> import jax.numpy as jnp
    >>> from vardax.dynamics.discrete import DiscreteForward
    >>> prior = DynamicalPrior(DiscreteForward(lambda x: 2 * x, dt=1.0), n_steps=1)
    >>> prior(jnp.array([[1.0], [3.0], [5.0]])).ravel().tolist()
    [1.0, 2.0, 6.0]
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
        self.intervals = checked_intervals(forward, n_steps, forward_adjoint, t0, "DynamicalPrior")

    def __call__(self, x: PyTree[Array]) -> PyTree[Array]:
        return self.intervals.entry_by_entry(x)


def checked_intervals(forward: Any, n_steps: Any, forward_adjoint: Any, t0: Any, owner: str) -> Intervals:
    """The intervals of a prior, its arguments checked."""
    forward, t0 = as_forward(forward), float_array(t0)
    n_steps = checked_count(n_steps, "n_steps", owner, least=1, meaning=" from one entry to the next")
    if t0.shape != ():
        raise ValueError(f"{owner}: `t0` has shape {t0.shape}, expected a number, the model time of the first entry.")
    forward_memory(forward_adjoint, forward)
    return Intervals(forward, n_steps, forward_adjoint, t0)
