"""The contracts between the parts: what a model, an operator, a prior or a method must offer to be used here.

All are structural and checkable at run time: any object with these members is accepted, whichever package it comes
from. None needs to be inherited.
"""

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

__all__ = [
    "AnalysisStep",
    "CostFunction",
    "ForwardModel",
    "GradModulator",
    "LatentForwardModel",
    "LatentMap",
    "Minimiser",
    "ObservationOperator",
    "PosteriorAdapter",
    "Prior",
    "ReducedBasis",
    "TemporalPrior",
]


@runtime_checkable
class ForwardModel(Protocol):
    """Moves a state by one interval: x(t + dt) = step(x(t), dt).

    A `step` that also takes keyword `t0` (or `t`) gets the model time of the window.
    `state_signature` describes the state and may be None.
    """

    dt: float
    state_signature: Any

    def step(self, state: Any, dt: Any) -> Any: ...


@runtime_checkable
class ObservationOperator(Protocol):
    """Maps a state to what would be observed, y = H(x), and gives the linear operator H'(x).

    `linearize` may return a matrix, a callable or a lineax operator.
    """

    def __call__(self, state: Any) -> Any: ...

    def linearize(self, state: Any) -> Any: ...


@runtime_checkable
class AnalysisStep(Protocol):
    """One update of a cycle: forecast and observations in, analysis out."""

    def __call__(self, forecast: Any, obs: Any, *, obs_op: Any, obs_err_cov: Any) -> Any: ...


@runtime_checkable
class LatentMap(Protocol):
    """Between states and latent vectors. `latent_dim` and `state_signature` are used when present."""

    def encode(self, state: Any) -> Any: ...

    def decode(self, latent: Any) -> Any: ...


@runtime_checkable
class LatentForwardModel(Protocol):
    """Moves a latent vector by one interval."""

    dt: float
    latent_signature: Any

    def step(self, latent: Any, dt: Any) -> Any: ...


@runtime_checkable
class Prior(Protocol):
    """A reconstruction x -> phi(x) that is close to x where x is plausible."""

    def __call__(self, x: Any) -> Any: ...


@runtime_checkable
class TemporalPrior(Protocol):
    """A prior over trajectories, with the loss that trains it."""

    def __call__(self, x: Any, ts: Any) -> Any: ...

    def loss(self, x: Any, ts: Any, x_gt: Any = None, params: Any = None) -> Any: ...


@runtime_checkable
class GradModulator(Protocol):
    """Turns a gradient into an update, carrying a memory. `init_carry(state)` starts that memory when it exists."""

    def __call__(self, grad: Any, state: Any, carry: Any) -> tuple[Any, Any]: ...


@runtime_checkable
class CostFunction(Protocol):
    """A scalar cost of a state, given the observations."""

    def __call__(self, x: Any, batch: Any, **kw: Any) -> Any: ...


@runtime_checkable
class Minimiser(Protocol):
    """Finds a state of small cost from a start."""

    def __call__(self, cost_fn: Callable, x0: Any, batch: Any) -> Any: ...


@runtime_checkable
class PosteriorAdapter(Protocol):
    """Makes a posterior from an analysis, the method that gave it, and the observations."""

    def __call__(self, analysis: Any, model: Any, batch: Any) -> Any: ...


@runtime_checkable
class ReducedBasis(Protocol):
    """A basis of few functions: evaluation, and the inverse of its prior variances."""

    nbasis: int

    def operg(self, t: Any, X: Any, state: Any = None) -> Any: ...

    def prior_inv(self, X: Any) -> Any: ...
