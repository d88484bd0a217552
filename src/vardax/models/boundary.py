"""The public boundary of the methods: what is checked before anything is compiled, and how a problem is put together.

Every message names the argument, what was found and what was expected. Shapes, dtypes and structures are always
checked; values only when they are concrete and few enough to look at.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import optimistix as optx
from jaxtyping import Array, PyTree

from vardax.adjoints.mapping import to_optimistix_adjoint
from vardax.covariances.functions import half
from vardax.minimisers.moments import intervals_since, required_steps, within_window
from vardax.minimisers.observed import ObservedSamples, restrict_samples
from vardax.minimisers.point_counts import as_points
from vardax.minimisers.problem import BatchedProblem
from vardax.minimisers.transforms import Identity, to_control
from vardax.types import AbstractBatch, Observations, concrete_values, float_array, is_traced

__all__ = [
    "as_adjoint",
    "as_minimiser",
    "as_model_error_covariance",
    "as_obs_covariance",
    "as_prior_covariance",
    "as_state",
    "assemble",
    "cast_like_state",
    "check_background_values",
    "check_batch",
    "check_covariance",
    "check_joint_values",
    "check_model_error_covariance",
    "check_moments",
    "check_options",
    "check_positions",
    "check_structure",
    "check_times",
    "observation_shape",
    "per_sample",
]


def as_state(state: PyTree) -> PyTree[Array]:
    """Every leaf of a state as a floating-point JAX array."""
    return jax.tree.map(float_array, state)


def as_prior_covariance(operator: Any) -> Any:
    """B as it is, or a `TypeError` that says how to make one."""
    return _as_covariance(operator, "prior_cov_op")


def as_obs_covariance(operator: Any) -> Any:
    """R as it is, or None; or a `TypeError` that says how to make one."""
    return operator if operator is None else _as_covariance(operator, "obs_cov_op")


def as_model_error_covariance(operator: Any) -> Any:
    """Q as it is, or a `TypeError` that says how to make one."""
    return _as_covariance(operator, "model_err_cov_op")


def check_model_error_covariance(operator: Any, structure: PyTree, n_steps: int, owner: str) -> Any:
    """Q acts on states, or on the model errors of all intervals."""
    check_covariance(operator, "model_err_cov_op", owner)
    stacked = jax.tree.map(lambda s: (n_steps, *s.shape), structure)
    shape = _shapes(operator.out_structure())
    if shape not in (_shapes(structure), stacked):
        raise ValueError(
            f"{owner}: `model_err_cov_op` acts on shape {shape}, expected {_shapes(structure)} (one interval) or "
            f"{stacked} (all {n_steps} of the window)."
        )
    return operator


def _as_covariance(operator: Any, name: str) -> Any:
    if isinstance(operator, lx.AbstractLinearOperator):
        return operator
    raise TypeError(
        f"`{name}` is {type(operator).__name__}, expected a covariance (a lineax operator); wrap a matrix in "
        "DenseCovariance, variances in DiagonalCovariance."
    )


def as_minimiser(minimiser: Any) -> Any:
    """Any optimistix minimiser or least-squares solver; None is the default L-BFGS."""
    accepted = optx.AbstractMinimiser | optx.AbstractLeastSquaresSolver
    if minimiser is None or isinstance(minimiser, accepted):
        return minimiser
    hint = " (the class; make an instance of it)" if isinstance(minimiser, type) else ""
    raise TypeError(
        f"`minimiser` is {getattr(minimiser, '__name__', type(minimiser).__name__)}{hint}, expected an optimistix "
        "minimiser such as optimistix.BFGS(rtol=1e-6, atol=1e-6), or a least-squares solver such as "
        "optimistix.GaussNewton(rtol=1e-6, atol=1e-6)."
    )


def as_adjoint(adjoint: Any) -> optx.AbstractAdjoint:
    """How gradients of the analysis are made: any adjoint or specification that `to_optimistix_adjoint` recognises."""
    return to_optimistix_adjoint(adjoint)


def _shapes(tree: PyTree) -> PyTree:
    shapes = jax.tree.map(lambda leaf: tuple(leaf.shape), tree)
    return shapes


def check_covariance(operator: Any, name: str, owner: str) -> None:
    """B and R are square."""
    if operator.in_structure() != operator.out_structure():
        found = (_shapes(operator.in_structure()), _shapes(operator.out_structure()))
        raise ValueError(f"{owner}: `{name}` maps shape {found[0]} to {found[1]}, expected a square operator.")


def check_batch(batch: Any, owner: str) -> None:
    """A batch, a list of Observations, or samples that were read before."""
    points = batch if isinstance(batch, list | tuple) and batch else [batch]
    if isinstance(batch, AbstractBatch | ObservedSamples) or all(isinstance(p, Observations) for p in points):
        return
    found = "a list of " + type(points[0]).__name__ if points is batch else type(batch).__name__
    raise TypeError(
        f"{owner}: `batch` is {found}, expected Batch1D, Batch2D, Batch2DMultivar, Batch3D, or a list of Observations. "
        "Batch1D.from_observations(y) makes one from an array with NaN gaps."
    )


def _not_applicable(owner: str, obs_op: Any, structure: PyTree, error: Exception) -> str:
    return (
        f"{owner}: `obs_op` ({type(obs_op).__name__}) cannot be applied to a state of shape {_shapes(structure)}, "
        f"the one that the prior (`prior_cov_op`) is of: {error}"
    )


def check_positions(obs_op: Any, batch: Any, structure: PyTree, owner: str) -> None:
    """Let an operator that samples space count what lies outside; under tracing it could only answer NaN."""
    if hasattr(type(obs_op), "check"):
        try:
            obs_op.check(structure)
        except ValueError as error:
            raise ValueError(_not_applicable(owner, obs_op, structure, error)) from error
    for one in as_points(batch) or []:
        if hasattr(obs_op, "at") and not is_traced(one.coords):
            obs_op.at(one)


def check_background_values(
    mean: PyTree[Array], transform: PyTree, owner: str, name: str = "the background (`prior_mean`)"
) -> None:
    """The background is complete: it has no missing or infinite entry, and lies in the range of the transform."""
    if bad := _count_non_finite(mean):
        raise ValueError(f"{owner}: {name} has {bad} non-finite entries; it must be complete.")
    if isinstance(transform, Identity) or any(concrete_values(leaf) is None for leaf in jax.tree.leaves(mean)):
        return
    if bad := _count_non_finite(to_control(transform, mean)):
        raise ValueError(
            f"{owner}: {bad} entries of {name} are outside the range of `control_transform`; "
            "Exp and Softplus need a positive background."
        )


def check_joint_values(joint: Any, owner: str) -> None:
    """The prior mean of what is estimated jointly is complete too, and in the range of its transform."""
    check_background_values(joint.mean, joint.control_transform, owner, "the `mean` of `joint`")


def cast_like_state(theta: PyTree[Array], state: PyTree[Array]) -> PyTree[Array]:
    """What is estimated jointly in the dtype of the state, so that it does not decide that of the analysis."""
    dtype = jnp.result_type(*(leaf.dtype for leaf in jax.tree.leaves(state)))
    return jax.tree.map(lambda leaf: leaf.astype(dtype), theta)


def _count_non_finite(tree: PyTree[Array]) -> int:
    """How many entries are not finite, of those that can be looked at."""
    leaves = [concrete_values(leaf) for leaf in jax.tree.leaves(tree)]
    return sum(int(np.sum(~np.isfinite(values))) for values in leaves if values is not None)


def check_options(tol: float | None, max_steps: int, owner: str) -> None:
    """The options that every method has."""
    if tol is not None and not tol >= 0:
        raise ValueError(f"{owner}: `tol` is {tol}, expected None (the default) or a number that is not negative.")
    if max_steps < 1:
        raise ValueError(f"{owner}: `max_steps` is {max_steps}, expected at least 1.")


def check_times(batch: Any, owner: str) -> None:
    """The entries of a window are one interval apart: a gap in time is an entry without observations."""
    times = None if getattr(batch, "times", None) is None else concrete_values(batch.times)
    if times is None or times.size < 3:
        return
    steps = np.diff(times)
    if np.max(np.abs(steps - steps.mean())) > 1e-3 * abs(steps.mean()):
        raise ValueError(
            f"{owner}: `times` of the batch are not evenly spaced (steps from {steps.min():.6g} to {steps.max():.6g}); "
            "entries are one model interval apart. Fill the gaps with entries that are all NaN."
        )


def check_moments(batch: Any, given: int | None, step: Any, n_substeps: int, owner: str) -> None:
    """Scattered points were made within the window of `given` intervals, each of `n_substeps` steps.

    While tracing those outside it are masked.
    """
    for one in as_points(batch) or []:
        n_steps = required_steps(given, owner)
        time, start, valid, size = (concrete_values(x) for x in (one.time, one.start, one.valid, step))
        if time is None or start is None or valid is None or size is None:
            continue
        interval = float(size) * n_substeps
        outside = ~within_window(intervals_since(time, start, interval), n_steps) & (valid != 0)
        if outside.any():
            first = int(np.argmax(outside))
            raise ValueError(
                f"{owner}: {int(outside.sum())} of {int((valid != 0).sum())} observations were made outside the window "
                f"[{float(start):g}, {float(start + n_steps * interval):g}], the first is number {first} at time "
                f"{float(time[first]):g}; `observations.window(t0, t1)` chooses those inside and says when it starts."
            )


def check_structure(tree: PyTree, structure: PyTree, name: str, owner: str) -> None:
    """A state is one array, or the pytree of arrays that B acts on."""
    if jax.tree.structure(tree) != jax.tree.structure(structure):
        raise ValueError(
            f"{owner}: `{name}` has the structure {jax.tree.structure(tree)}, expected {jax.tree.structure(structure)} "
            "(that of the prior)."
        )


def per_sample(tree: PyTree[Array], structure: PyTree, n_samples: int, name: str, owner: str) -> PyTree[Array]:
    """A state (or control) as (B, *state), from (*state) or (B, *state)."""
    check_structure(tree, structure, name, owner)

    def one(leaf: Array, like: jax.ShapeDtypeStruct) -> Array:
        leaf = float_array(leaf)
        if leaf.shape == tuple(like.shape):
            return jnp.broadcast_to(leaf, (n_samples, *leaf.shape))
        if leaf.shape == (n_samples, *like.shape):
            return leaf
        raise ValueError(
            f"{owner}: `{name}` has shape {leaf.shape}, expected {tuple(like.shape)} or "
            f"{(n_samples, *like.shape)} (the prior is of shape {tuple(like.shape)}; there are {n_samples} samples)."
        )

    return jax.tree.map(one, tree, structure)


def observation_shape(obs_op: Any, mean: PyTree, structure: PyTree, batch: Any, owner: str) -> tuple[int, ...]:
    """The shape of H(x) for one state, found without computing it."""
    check_structure(mean, structure, "prior_mean / background", owner)
    points = _one_set_of_points(batch)
    state = jax.tree.map(lambda s, m: jax.ShapeDtypeStruct(s.shape, m.dtype), structure, mean)
    operator = obs_op.at(points) if points is not None and hasattr(obs_op, "at") else obs_op
    try:
        predicted = eqx.filter_eval_shape(operator, state)
    except Exception as error:
        raise ValueError(_not_applicable(owner, obs_op, structure, error)) from error
    if not hasattr(predicted, "shape"):
        raise TypeError(
            f"{owner}: `obs_op` gives {type(predicted).__name__}, expected one array; an operator that gives a "
            "dictionary of instruments has `.to_observation_operator()`."
        )
    return tuple(predicted.shape)


def _one_set_of_points(batch: Any) -> Any:
    if isinstance(batch, ObservedSamples):
        return None if batch.points is None else jax.tree.map(lambda a: a[0, 0], batch.points)
    points = as_points(batch)
    return None if points is None else points[0]


def assemble(
    samples: ObservedSamples,
    *,
    mean: PyTree[Array],
    prior_cov_op: lx.AbstractLinearOperator,
    obs_cov_op: lx.AbstractLinearOperator | None,
    observe: Any,
    transform: PyTree,
    penalties: tuple,
    owner: str,
) -> BatchedProblem:
    """The control-space problem of these samples: B is halved and R is restricted here, once per analysis.

    The background and the observations take their common dtype, which the analysis has; operators compute in theirs.
    """
    n_samples = samples.value.shape[0]
    background = per_sample(mean, prior_cov_op.out_structure(), n_samples, "prior_mean / background", owner)
    dtype = np.result_type(samples.value.dtype, *(leaf.dtype for leaf in jax.tree.leaves(background)))
    floating = lambda a: a.astype(dtype) if eqx.is_inexact_array(a) else a  # noqa: E731
    samples = jax.tree.map(floating, samples)
    return BatchedProblem(
        background=jax.tree.map(floating, background),
        observed=restrict_samples(samples, obs_cov_op, owner),
        covariance=prior_cov_op,
        half=half(prior_cov_op),
        observe=observe,
        transform=transform,
        penalties=penalties,
    )
