"""What `FourDVarNet` makes of its slots: the prior, the shape of a state, where the iteration starts, the weights.

A state x is what the prior acts on: the whole window (T, *entry), whose entries are observed one by one, or a state at
one time. Which one follows from the slots and the batch; see `state_of`.
"""

import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import optimistix as optx
from jaxtyping import Array, PyTree

from vardax.minimisers.free_state import (
    PosedState,
    entry_of,
    obs_covariance,
    posed_state,
    predicted_shape,
    prior_term,
    weighted,
)
from vardax.minimisers.observed import ObservedSamples, locate, read_samples
from vardax.minimisers.problem import BatchedProblem
from vardax.minimisers.solver_config import SolverConfig
from vardax.minimisers.transforms import Identity
from vardax.models.boundary import as_prior_covariance, assemble, check_structure, observation_shape, per_sample
from vardax.models.first_states import AbstractFirstState, Interpolated, Zeros, is_of_the_state
from vardax.obs_operators.linear import LinearObs
from vardax.types import AbstractBatch, float_array

__all__ = [
    "check_learned_slots",
    "pose_learned",
    "posed_prior",
    "started",
    "state_of",
    "with_covariance",
]


def check_learned_slots(method: Any) -> None:
    """What can be said of the slots of a `FourDVarNet` before there is a batch."""
    owner = type(method).__name__
    if isinstance(method.prior, type) or not callable(method.prior):
        raise TypeError(f"{owner}: `prior` is {method.prior!r}, expected a reconstruction, prior(x) -> x.")
    if not isinstance(method.config, SolverConfig):
        raise TypeError(f"{owner}: `config` is {method.config!r}, expected SolverConfig(...).")
    method.config.minimiser(method.grad_mod)
    posed_prior(method)
    if isinstance(method.solver_adjoint, optx.ImplicitAdjoint) and not method.config.rule.steady:
        raise ValueError(
            f"{owner}: `solver_adjoint` is ImplicitAdjoint, which differentiates the fixed point of a step, but with "
            f"{type(method.config.rule).__name__} no two steps are alike; use ConstantStep(), or "
            "RecursiveCheckpointAdjoint()."
        )
    if method.start is not None and not callable(method.start):
        raise TypeError(
            f"{owner}: `start` is {method.start!r}, expected Interpolated(), Observed(), Zeros(), or a function of the "
            "batch; a state is a `first_guess` of the call."
        )


def posed_prior(method: Any) -> Any:
    """The prior with the `forward_adjoint` and the covariance that its method was given."""
    prior, owner = method.prior, type(method).__name__
    if method.forward_adjoint is not None:
        if not hasattr(prior, "with_forward_adjoint"):
            raise TypeError(
                f"{owner}: `forward_adjoint` is given, but the prior, {type(prior).__name__}, runs no model; "
                "DynamicalPrior does."
            )
        prior = prior.with_forward_adjoint(method.forward_adjoint)
    return prior if method.prior_cov_op is None else with_covariance(prior, method.prior_cov_op, owner)


def with_covariance(prior: Any, prior_cov_op: Any, owner: str) -> Any:
    """The prior with another B."""
    if "cov_op" not in getattr(prior, "__dataclass_fields__", {}):
        raise TypeError(
            f"{owner}: `prior_cov_op` is given, but the prior, {type(prior).__name__}, has no covariance; "
            "GaussianPrior has one."
        )
    covariance = as_prior_covariance(prior_cov_op)
    shapes = lambda operator: jax.tree.map(lambda s: tuple(s.shape), operator.out_structure())  # noqa: E731
    found, expected = shapes(covariance), shapes(prior.cov_op)
    if found != expected:
        raise ValueError(f"{owner}: `prior_cov_op` acts on shape {found}, expected {expected}, as the prior's own.")
    return dataclasses.replace(prior, cov_op=covariance)


def _observed_shape(batch: Any) -> tuple[tuple[int, ...], bool, Any] | None:
    """(the shape of a sample's observations, whether it begins with the time axis, dtype); None for points."""
    if isinstance(batch, ObservedSamples):
        return None if batch.points is not None else (batch.value.shape[1:], True, batch.value.dtype)
    if isinstance(batch, AbstractBatch):
        return batch.input.shape[1:], batch.input.ndim == len(batch.axes), batch.input.dtype
    return None


def _operand(obs_op: Any, obs_shape: tuple[int, ...]) -> tuple[int, ...] | None:
    """The shape of the state that a linear operator is for, where it knows."""
    H = getattr(obs_op, "H", None) if isinstance(obs_op, LinearObs) else None
    if isinstance(H, jax.Array):
        return H.shape[len(obs_shape) :] if H.shape[: len(obs_shape)] == obs_shape else None
    if isinstance(H, lx.AbstractLinearOperator) and isinstance(H.in_structure(), jax.ShapeDtypeStruct):
        return H.in_structure().shape
    return None


def state_of(method: Any, prior: Any, batch: Any) -> PosedState:
    """The state of a batch: the first of these that says what it is.

    The slot `state_signature`; that of the prior; a linear operator that knows its operand; the observations, which
    are then of the state itself. It is a window where it has as many entries as the observations and the operator maps
    an entry to an entry; with scattered points, where `n_steps` is given.
    """
    owner, observed = type(method).__name__, _observed_shape(batch)
    known = method.state_signature
    known = getattr(prior, "state_signature", None) if known is None else known
    if observed is None:
        return _state_of_points(known, method, owner)
    shape, has_time, dtype = observed
    if known is None:
        own = _operand(method.obs_op, shape[1:] if has_time else shape)
        single = not has_time or shape[0] == 1
        found = shape if own is None else own if single else (shape[0], *own)
        known = jax.ShapeDtypeStruct(found, dtype)
    known = jax.tree.map(lambda s: jax.ShapeDtypeStruct(tuple(s.shape), _dtype(dtype, method.prior_mean)), known)
    return posed_state(known, method.obs_op, shape if has_time else None)


def _check_entries(state: PosedState, obs_op: Any, batch: Any, owner: str) -> None:
    """Where the operator takes no state: it may take the entries of one, in a window of another length."""
    seen, known = _observed_shape(batch), state.structure
    if state.n_steps is not None or seen is None or not seen[1] or predicted_shape(obs_op, known) is not None:
        return
    observed = seen[0]
    lengths = {s.shape[0] if s.shape else 0 for s in jax.tree.leaves(known)}
    as_long = lambda s: jax.ShapeDtypeStruct((observed[0], *s.shape[1:]), s.dtype)  # noqa: E731
    if len(lengths) == 1 and posed_state(jax.tree.map(as_long, known), obs_op, observed).n_steps is not None:
        shapes = jax.tree.map(lambda s: tuple(s.shape), known)
        raise ValueError(
            f"{owner}: `batch.input` has {observed[0]} time entries, expected {lengths.pop()}, as a state {shapes} has."
        )


def _state_of_points(known: Any, method: Any, owner: str) -> PosedState:
    """The state of scattered points, which have no shape that it could be read from."""
    if known is None and method.prior_mean is not None:
        known = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), method.prior_mean)
    if known is None:
        raise ValueError(
            f"{owner}: scattered Observations do not say what a state is like, and the prior, "
            f"{type(method.prior).__name__}, works on any; give `state_signature=jax.ShapeDtypeStruct(shape, dtype)`."
        )
    n_steps = method.n_steps
    if n_steps is not None and any(s.shape[:1] != (n_steps + 1,) for s in jax.tree.leaves(known)):
        shapes = jax.tree.map(lambda s: tuple(s.shape), known)
        raise ValueError(f"{owner}: `n_steps` is {n_steps}, expected a state of {n_steps + 1} entries, found {shapes}.")
    return PosedState(known, n_steps)


def _dtype(dtype: Any, background: PyTree | None) -> Any:
    return np.result_type(dtype, *(leaf.dtype for leaf in jax.tree.leaves(background)))


def pose_learned(method: Any, batch: Any) -> BatchedProblem:
    """Read the batch and put together the problem of a method whose prior is a term of the cost."""
    owner, prior = type(method).__name__, posed_prior(method)
    state = state_of(method, prior, batch)
    _check_entries(state, method.obs_op, batch, owner)
    entry = entry_of(state)
    shape = observation_shape(method.obs_op, entry, entry, batch, owner)
    samples = locate(read_samples(batch, shape, window=state.n_steps is not None, owner=owner), method.obs_op)
    _check_reconstruction(prior, state.structure, owner)
    observe = method.observe(samples, state.n_steps)
    samples = observe.place(samples)
    problem = assemble(
        samples,
        mean=_background(method, prior, state, batch, samples),
        prior_cov_op=lx.IdentityLinearOperator(state.structure),
        obs_cov_op=obs_covariance(method.obs_cov_op, samples),
        observe=observe,
        transform=Identity(),
        penalties=(prior_term(prior, method.config, centred=True),),
        owner=owner,
    )
    return eqx.tree_at(lambda p: p.observed, problem, weighted(problem.observed, method.config))


def _check_reconstruction(prior: Any, structure: PyTree[jax.ShapeDtypeStruct], owner: str) -> None:
    """A prior that makes no state of a state is named, before its cost is differentiated."""
    if hasattr(prior, "cost") or hasattr(prior, "residual"):
        return
    shapes = lambda tree: jax.tree.map(lambda s: tuple(s.shape), tree)  # noqa: E731
    name, expected = type(prior).__name__, shapes(structure)
    try:
        found = shapes(eqx.filter_eval_shape(prior, structure))
    except Exception as error:
        raise ValueError(
            f"{owner}: `prior` ({name}) cannot be applied to a state of shape {expected}: {error}"
        ) from error
    if found != expected:
        raise ValueError(f"{owner}: `prior` ({name}) makes {found} of a state of shape {expected}, expected the same.")


def _background(method: Any, prior: Any, state: PosedState, batch: Any, samples: ObservedSamples) -> PyTree[Array]:
    """x_b (B, *state): the background, the mean of the prior, or else the first state.

    A background of one time is the same at all entries of a window.
    """
    mean, owner = method.prior_mean, type(method).__name__
    if mean is None and hasattr(prior, "with_mean"):
        mean = prior.mean
    if mean is None:
        return _first_states(method, state.structure, batch, (samples.value, samples.mask))
    check_structure(mean, state.structure, "background", owner)
    n_samples, entry = samples.value.shape[0], entry_of(state)

    def whole(leaf: Array, of_state: jax.ShapeDtypeStruct, of_entry: jax.ShapeDtypeStruct) -> Array:
        leaf = float_array(leaf)
        if leaf.shape in (of_state.shape, (n_samples, *of_state.shape)) or state.n_steps is None:
            return leaf
        if leaf.shape == of_entry.shape or leaf.shape == (n_samples, *of_entry.shape):
            per_entry = jnp.broadcast_to(leaf, (n_samples, *of_entry.shape))[:, None]
            return jnp.broadcast_to(per_entry, (n_samples, *of_state.shape))
        return leaf  # refused with words by `per_sample`

    tree = jax.tree.map(whole, mean, state.structure, entry)
    return per_sample(tree, state.structure, n_samples, "background", owner)


def _first_states(
    method: Any, structure: PyTree[jax.ShapeDtypeStruct], batch: Any, observed: tuple[Array, Array]
) -> PyTree[Array]:
    """What the slot `start` says, (B, *state)."""
    start, owner, n_samples = method.start, type(method).__name__, observed[0].shape[0]
    if start is None:
        start = Interpolated() if is_of_the_state(observed[0].shape[1:], structure) else Zeros()
    if isinstance(start, AbstractFirstState):
        return start(*observed, structure, owner)
    return per_sample(start(batch), structure, n_samples, "start(batch)", owner)


def started(method: Any, problem: BatchedProblem, batch: Any) -> PyTree[Array] | None:
    """The control of the state that an explicit `start` gives; None where the iteration starts at the background."""
    if method.start is None:
        return None
    structure = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), problem.background)
    states = _first_states(method, structure, batch, (problem.observed.value, problem.observed.mask))
    return jax.tree.map(lambda x, b: x.astype(b.dtype) - b, states, problem.background)
