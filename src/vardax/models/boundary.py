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

from vardax.covariances.functions import half
from vardax.minimisers.observed import ObservedSamples, restrict_samples
from vardax.minimisers.problem import BatchedProblem
from vardax.types import AbstractBatch, Observations, concrete_values, float_array, is_traced

__all__ = [
    "as_adjoint",
    "as_minimiser",
    "as_state",
    "assemble",
    "check_background_values",
    "check_batch",
    "check_covariance",
    "check_positions",
    "observation_shape",
    "per_sample",
]


def as_state(state: PyTree) -> PyTree[Array]:
    """Every leaf of a state as a floating-point JAX array."""
    return jax.tree.map(float_array, state)


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
    """An optimistix adjoint: how gradients of the analysis are made."""
    if isinstance(adjoint, optx.AbstractAdjoint):
        return adjoint
    found = f"{type(adjoint).__module__.split('.')[0]}.{type(adjoint).__name__}"
    raise TypeError(
        f"`minimiser_adjoint` is {found}, expected an optimistix adjoint such as optimistix.ImplicitAdjoint() or "
        "optimistix.RecursiveCheckpointAdjoint(); the adjoint of the model run goes in `forward_adjoint`."
    )


def _shapes(tree: PyTree) -> PyTree:
    shapes = jax.tree.map(lambda leaf: tuple(leaf.shape), tree)
    return shapes


def check_covariance(operator: Any, name: str, owner: str) -> None:
    """B and R are square lineax operators."""
    if not isinstance(operator, lx.AbstractLinearOperator):
        raise TypeError(
            f"{owner}: `{name}` is {type(operator).__name__}, expected a covariance (a lineax operator); wrap a matrix "
            "in DenseCovariance, variances in DiagonalCovariance."
        )
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


def check_positions(obs_op: Any, batch: Any, prior_cov_op: Any) -> None:
    """Let an operator that samples space count what lies outside; under tracing it could only answer NaN."""
    if hasattr(obs_op, "check") and isinstance(prior_cov_op, lx.AbstractLinearOperator):
        obs_op.check(prior_cov_op.out_structure())
    points = batch if isinstance(batch, list | tuple) else [batch]
    for one in points:
        if hasattr(obs_op, "at") and isinstance(one, Observations) and not is_traced(one.coords):
            obs_op.at(one)


def check_background_values(mean: PyTree[Array], owner: str) -> None:
    """The background is complete: it has no missing or infinite entry."""
    for leaf in jax.tree.leaves(mean):
        values = concrete_values(leaf)
        if values is not None and not np.all(np.isfinite(values)):
            bad = int(np.sum(~np.isfinite(values)))
            raise ValueError(
                f"{owner}: the background (`prior_mean`) has {bad} non-finite entries; it must be complete."
            )


def per_sample(tree: PyTree[Array], structure: PyTree, n_samples: int, name: str, owner: str) -> PyTree[Array]:
    """A state (or control) as (B, *state), from (*state) or (B, *state)."""
    if jax.tree.structure(tree) != jax.tree.structure(structure):
        raise ValueError(
            f"{owner}: `{name}` has the structure {jax.tree.structure(tree)}, expected {jax.tree.structure(structure)} "
            "(that of `prior_cov_op`)."
        )

    def one(leaf: Array, like: jax.ShapeDtypeStruct) -> Array:
        leaf = float_array(leaf)
        if leaf.shape == tuple(like.shape):
            return jnp.broadcast_to(leaf, (n_samples, *leaf.shape))
        if leaf.shape == (n_samples, *like.shape):
            return leaf
        raise ValueError(
            f"{owner}: `{name}` has shape {leaf.shape}, expected {tuple(like.shape)} or "
            f"{(n_samples, *like.shape)} (`prior_cov_op` acts on {tuple(like.shape)}; there are {n_samples} samples)."
        )

    return jax.tree.map(one, tree, structure)


def observation_shape(obs_op: Any, mean: PyTree[Array], structure: PyTree, batch: Any, owner: str) -> tuple[int, ...]:
    """The shape of H(x) for one state, found without computing it."""
    points = _one_set_of_points(batch)
    state = jax.tree.map(lambda s, m: jax.ShapeDtypeStruct(s.shape, m.dtype), structure, mean)
    operator = obs_op.at(points) if points is not None and hasattr(obs_op, "at") else obs_op
    try:
        predicted = eqx.filter_eval_shape(operator, state)
    except Exception as error:
        raise ValueError(
            f"{owner}: `obs_op` ({type(obs_op).__name__}) cannot be applied to a state of shape {_shapes(structure)}, "
            f"the one that `prior_cov_op` acts on: {error}"
        ) from error
    if not hasattr(predicted, "shape"):
        raise TypeError(
            f"{owner}: `obs_op` gives {type(predicted).__name__}, expected one array; an operator that gives a "
            "dictionary of instruments has `.to_observation_operator()`."
        )
    return tuple(predicted.shape)


def _one_set_of_points(batch: Any) -> Any:
    if isinstance(batch, ObservedSamples):
        return None if batch.points is None else jax.tree.map(lambda a: a[0, 0], batch.points)
    if isinstance(batch, list | tuple) and batch:
        batch = batch[0]
    return batch if hasattr(batch, "coords") and hasattr(batch, "value") else None


def assemble(
    samples: ObservedSamples,
    *,
    mean: PyTree[Array],
    prior_cov_op: lx.AbstractLinearOperator,
    obs_cov_op: lx.AbstractLinearOperator | None,
    observe: Any,
    transform: PyTree,
    owner: str,
) -> BatchedProblem:
    """The control-space problem of these samples: B is halved and R is restricted here, once per analysis.

    The background and the observations take their common dtype, which the analysis has; operators compute in theirs.
    """
    n_samples = samples.value.shape[0]
    background = per_sample(mean, prior_cov_op.out_structure(), n_samples, "prior_mean / background", owner)
    dtype = np.result_type(samples.value.dtype, *(leaf.dtype for leaf in jax.tree.leaves(background)))
    floating = lambda a: a.astype(dtype) if jnp.issubdtype(a.dtype, jnp.inexact) else a  # noqa: E731
    samples = jax.tree.map(floating, samples)
    return BatchedProblem(
        background=jax.tree.map(floating, background),
        observed=restrict_samples(samples, obs_cov_op, owner),
        covariance=prior_cov_op,
        half=half(prior_cov_op),
        observe=observe,
        transform=transform,
    )
