"""Twins drawn from what a method believes: its prior, its model, its observation errors.

    χ ~ N(0, I)   ->   x = T(T⁻¹(x_b) + B^{1/2} χ)   ->   y = H(M(x)) + ε,   ε ~ N(0, R)

with χ the whole control of the method's problem: model errors and joint parameters are drawn with the state. The
method's posterior is then, by definition, right on average over such twins, which is what simulation-based calibration
tests. The layout of the observations (gaps, standard deviations, times, positions) is that of a given batch.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray, PyTree

from vardax.covariances.diagonal import DiagonalCovariance
from vardax.covariances.factors import white_noise
from vardax.minimisers.observed import ObservedEntries
from vardax.minimisers.point_counts import as_points
from vardax.minimisers.problem import BatchedProblem, ControlSpaceProblem
from vardax.simulation.observations import observation_errors
from vardax.simulation.twins import Twin
from vardax.types import AbstractBatch

__all__ = ["draw_twin"]


def draw_twin(key: PRNGKeyArray, method: Any, like: Any) -> Twin:
    """A truth from the prior of `method`, its trajectory, observations like `like`, and the prior mean as background.

    `like` is a batch or a list of `Observations`: its values do not matter, its gaps, errors, times and positions do.
    Each of its samples is drawn independently of the others; `jax.vmap` over keys makes more. `truth` has the structure
    of `Analysis.state`.

    >>> from vardax.covariances.diagonal import DiagonalCovariance
    >>> from vardax.models.optimal_interpolation import OptimalInterpolation
    >>> from vardax.obs_operators.identity import MaskedIdentity
    >>> from vardax.types import Batch1D
    >>> one = DiagonalCovariance(jnp.ones(4))
    >>> like = Batch1D.from_observations(jnp.zeros((3, 4)))
    >>> draw_twin(jax.random.key(0), OptimalInterpolation(MaskedIdentity(), jnp.zeros(4), one, one), like).truth.shape
    (3, 4)
    """
    if not hasattr(method, "problem"):
        raise TypeError(
            f"draw_twin: `method` is {type(method).__name__}, expected a method such as StrongFourDVar(...)."
        )
    points = as_points(like)
    if points is None and not isinstance(like, AbstractBatch):
        raise TypeError(
            f"draw_twin: `like` is {type(like).__name__}, expected Batch1D, Batch2D, Batch2DMultivar, Batch3D, or a "
            "list of Observations."
        )
    problem = method.problem(like if points is None else points)
    _require_generative(problem, type(method).__name__)
    truth, trajectory, values, background = _draw(key, problem, method.obs_cov_op)
    alone = jax.tree.structure(background) == jax.tree.structure(method.state_background()[1])
    return Twin(truth, trajectory, _with_values(like, points, values), background if alone else background[0])


def _require_generative(problem: BatchedProblem, owner: str) -> None:
    """Every part of the control has a prior, and nothing but the prior and the observations weighs on it."""
    if problem.penalties:
        raise ValueError(
            f"draw_twin: {owner} has further terms of its cost (`terms`), which say how likely a trajectory is and not "
            "how to draw one; draw from the method without them: `method.with_(terms=())`."
        )
    if not problem.observe.proper:
        raise ValueError(
            f"draw_twin: the control of {owner} with `parallel=True` has parts without a prior; the same truths are "
            "drawn by `method.with_(parallel=False)`."
        )


@eqx.filter_jit
def _draw(
    key: PRNGKeyArray, problem: BatchedProblem, R: Any
) -> tuple[PyTree[Array], PyTree[Array], Array, PyTree[Array]]:
    """(truth, trajectory, values of the observations, background) of each sample."""

    def one(sample: ControlSpaceProblem, k: PRNGKeyArray) -> tuple[PyTree[Array], PyTree[Array], Array, PyTree[Array]]:
        for_state, for_observations = jax.random.split(k)
        chi = jax.tree.map(lambda draws: draws[0], white_noise(for_state, sample.half.in_structure(), 1))
        state = sample.window_state(chi)
        run = sample.observe.run(state, sample.observed)
        values = _observed(for_observations, run.predicted, sample.observed, R)
        return sample.observe.result(state), run.trajectory, values, sample.observe.result(sample.background)

    return problem.map_samples(one, jax.random.split(key, problem.n_samples))


def _observed(key: PRNGKeyArray, predicted: Array, observed: ObservedEntries, R: Any) -> Array:
    """Predictions with errors, zero where nothing is observed. Standard deviations of observations go before R's."""
    seen, shape, dtype = observed.mask != 0, observed.value.shape, observed.value.dtype
    R = DiagonalCovariance(jnp.ones(shape[1:], dtype)) if R is None else R
    errors = observation_errors(key, shape, R).astype(dtype)
    if observed.rescale is not None:
        errors = errors / jnp.where(seen, observed.rescale, jnp.ones_like(observed.rescale))
    return jnp.where(seen, predicted.astype(dtype) + errors, jnp.zeros_like(errors))


def _with_values(like: Any, points: Any, values: Array) -> Any:
    """The observations of `like` with other values."""
    if points is None:
        replaced = (values.reshape(like.input.shape), None)
        return eqx.tree_at(lambda b: (b.input, b.target), like, replaced, is_leaf=lambda x: x is None)
    counted = [value[0, : o.value.shape[0]] for value, o in zip(values, points, strict=True)]
    return [eqx.tree_at(lambda o: o.value, o, value) for o, value in zip(points, counted, strict=True)]
