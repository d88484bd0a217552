"""States whose prior is a term of the cost: what the learned methods observe and minimise.

    J(x) = prior_weight ‖x - phi(x)‖² + ½ ‖y - H(x)‖²_{R⁻¹}

The control is the state itself, x = x_b + chi with B^{1/2} = I and no ½‖chi‖². `FreeState` maps a state at one time, or
the whole window x = (x_0 ... x_T), to predicted observations. `ReconstructionTerm` and `PriorCostTerm` are priors as
further terms of the cost; they count as J_b.
"""

import math
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array, Float, PyTree

from vardax.covariances.diagonal import DiagonalCovariance
from vardax.minimisers.moments import AbstractTimeInterpolation, LinearInTime
from vardax.minimisers.observed import ObservedEntries, ObservedSamples, place
from vardax.minimisers.solver_config import SolverConfig
from vardax.minimisers.windows import AbstractObserving, Run

__all__ = [
    "FreeState",
    "PosedState",
    "PriorCostTerm",
    "ReconstructionTerm",
    "entry_of",
    "obs_covariance",
    "posed_state",
    "predicted_shape",
    "prior_term",
    "weighted",
]


class PosedState(NamedTuple):
    """The structure of one state, and the number of intervals of its window; None where it is of one time."""

    structure: PyTree[jax.ShapeDtypeStruct]
    n_steps: int | None


def entry_of(state: PosedState) -> PyTree[jax.ShapeDtypeStruct]:
    """The structure of what is observed at one time."""
    if state.n_steps is None:
        return state.structure
    return jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape[1:], s.dtype), state.structure)


def predicted_shape(obs_op: Any, structure: PyTree) -> tuple[int, ...] | None:
    """The shape of what the operator observes of such a state, None where it refuses one."""
    try:
        return eqx.filter_eval_shape(obs_op, structure).shape
    except Exception:  # an operator may refuse another shape in its own way
        return None


def posed_state(structure: PyTree, obs_op: Any, observed: tuple[int, ...] | None) -> PosedState:
    """A state as a window, where `observed` (E, *obs) has as many entries and the operator maps one to one; else of one
    time. `observed` is None where observations have no time axis.

    Where the operator takes an entry and not the whole, it is a window too, whose observations have another shape.
    """
    single = PosedState(structure, None)
    if observed is None or not all(s.shape[:1] == observed[:1] for s in jax.tree.leaves(structure)):
        return single
    window = PosedState(structure, observed[0] - 1)
    of_entry = predicted_shape(obs_op, entry_of(window))
    if of_entry == observed[1:]:
        return window
    return single if of_entry is None or predicted_shape(obs_op, structure) is not None else window


class FreeState(AbstractObserving):
    """x -> H(x) at one time; with `n_steps`, (x_0 ... x_T) -> (H(x_0), ..., H(x_T)), or H at the moments of points.

    `interval` is the time between entries, in the unit of the times of scattered points.
    """

    obs_op: Any
    interval: float | Array = 1.0
    n_steps: int | None = eqx.field(static=True, default=None)
    between: AbstractTimeInterpolation = LinearInTime()

    @property
    def proper(self) -> bool:
        return False

    @property
    def prior_is_a_term(self) -> bool:
        return True

    def prior_part(self, control: PyTree[Array]) -> PyTree[Array]:
        return jax.tree.map(jnp.zeros_like, control)

    def split(self, control: PyTree[Array]) -> tuple[PyTree[Array], PyTree[Array], PyTree[Array]]:
        """No part of the control is measured by ½‖chi‖²."""
        return (), (), ()

    def trajectory(self, state: PyTree[Array]) -> PyTree[Array] | None:
        """The window itself; None where there is one time."""
        return None if self.n_steps is None else state

    def memory(self, state: PyTree[Array]) -> str:
        """No model is run by the window, so nothing is kept."""
        return ""

    def place(self, samples: ObservedSamples) -> ObservedSamples:
        """Scattered points get their place between the entries of the window."""
        if samples.points is None or self.n_steps is None:
            return samples
        return place(samples, self.interval, self.n_steps, self.between)

    def run(self, state: PyTree[Array], observed: ObservedEntries) -> Run:
        """The state, and the predicted observations."""
        operator = observed.bound(self.obs_op)
        predicted = operator(state)[None] if self.n_steps is None else observed.moments(operator, state)
        return Run(state, predicted)


def obs_covariance(
    given: lx.AbstractLinearOperator | None, samples: ObservedSamples
) -> lx.AbstractLinearOperator | None:
    """R: what is given, or I where nothing is known of the errors; None where they come with the observations."""
    if given is not None or samples.obs_err is not None:
        return given
    return DiagonalCovariance(jnp.ones(samples.value.shape[2:], samples.value.dtype))


def weighted(observed: ObservedEntries, config: SolverConfig) -> ObservedEntries:
    """Observations of B samples: J_o times `obs_weight`, over the number of observed entries for a mean."""
    if config.obs_weight == 1.0 and config.obs_norm == "sum":
        return observed
    axes = tuple(range(1, observed.mask.ndim))
    count = jnp.sum(observed.mask, axis=axes, keepdims=True) if config.obs_norm == "mean" else jnp.ones(())
    factor = jnp.sqrt(config.obs_weight / jnp.maximum(count, 1)).astype(observed.value.dtype)
    own = jnp.ones_like(observed.value) if observed.rescale is None else observed.rescale
    return eqx.tree_at(lambda o: o.rescale, observed, own * factor, is_leaf=lambda x: x is None)


def prior_term(prior: Any, config: SolverConfig, *, centred: bool) -> "ReconstructionTerm | PriorCostTerm":
    """`prior_weight` times the cost of a prior: its own `residual` or `cost`, where it has one, else ‖x - phi(x)‖².

    Only the last one is a network, which `compute_dtype` is for.
    """
    if hasattr(prior, "residual"):
        return ReconstructionTerm(prior, config.prior_weight, centred)
    if hasattr(prior, "cost"):
        return PriorCostTerm(prior, config.prior_weight, centred)
    return ReconstructionTerm(config.in_precision(prior), config.prior_weight, centred)


class ReconstructionTerm(eqx.Module):
    """½‖residual‖² = weight · ‖x - phi(x)‖², or weight · ½‖prior.residual(x)‖².

    `centred`: a prior that has a mean (`with_mean`) takes the background of its sample for it.
    """

    prior: Any
    weight: float = eqx.field(static=True)
    centred: bool = eqx.field(static=True, default=False)

    def around(self, background: PyTree[Array]) -> "ReconstructionTerm":
        return eqx.tree_at(lambda term: term.prior, self, _centred(self, background))

    def residual(self, state: PyTree[Array]) -> PyTree[Array]:
        own = getattr(self.prior, "residual", None)
        if own is not None:
            return jax.tree.map(lambda r: math.sqrt(self.weight) * r, own(state))
        root = math.sqrt(2 * self.weight)
        return jax.tree.map(lambda x, phi: root * (x - phi.astype(x.dtype)), state, self.prior(state))


class PriorCostTerm(eqx.Module):
    """weight · prior.cost(x), for a prior that knows its cost only."""

    prior: Any
    weight: float = eqx.field(static=True)
    centred: bool = eqx.field(static=True, default=False)

    def around(self, background: PyTree[Array]) -> "PriorCostTerm":
        return eqx.tree_at(lambda term: term.prior, self, _centred(self, background))

    def __call__(self, state: PyTree[Array], observed: Any) -> Float[Array, ""]:
        return self.weight * self.prior.cost(state)


def _centred(term: Any, background: PyTree[Array]) -> Any:
    move = getattr(term.prior, "with_mean", None)
    return move(background) if term.centred and move is not None else term.prior
