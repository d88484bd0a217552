"""States and trajectories with errors of a given covariance.

    perturb               x' = T(T⁻¹(x) + B^{1/2} ξ),         ξ ~ N(0, I)
    simulate_trajectory   x_t = M_t(x_{t-1}) + Q^{1/2} ξ_t,   t = 1 .. T

Only square roots are applied, so a singular or low-rank covariance will do.
"""

from typing import Any, SupportsIndex

import jax
from jaxtyping import Array, ArrayLike, PRNGKeyArray, PyTree

from vardax.covariances.functions import as_covariance, sample
from vardax.covariances.repeated import RepeatedCovariance
from vardax.dynamics.rollout import rollout
from vardax.minimisers.transforms import Identity, from_control, to_control
from vardax.types import float_array

__all__ = ["perturb", "simulate_trajectory"]


def perturb(
    key: PRNGKeyArray,
    state: PyTree[ArrayLike],
    covariance: Any,
    *,
    control_transform: PyTree = Identity(),  # noqa: B008  (an immutable value)
) -> PyTree[Array]:
    """A draw of T(T⁻¹(x) + B^{1/2} ξ) around `state` x: (*state), in its dtypes.

    Around a truth this is a background whose errors have the covariance B; around a background it is a truth from the
    prior. Without a `control_transform` the two are the same. With `Exp()` or `Softplus()` B is that of the
    transformed state, as in the methods, and a positive state stays positive.

    >>> import jax.numpy as jnp
    >>> from vardax.covariances.diagonal import DiagonalCovariance
    >>> perturb(jax.random.key(0), jnp.array([5.0, 5.0]), DiagonalCovariance([1.0, 0.0]))[1]
    Array(5., dtype=float32)
    """
    covariance = as_covariance("perturb", covariance, "covariance")
    state = jax.tree.map(float_array, state)
    _require_shapes("perturb", "state", state, covariance.out_structure())
    increment = jax.tree.map(lambda draws: draws[0], sample(covariance, key, 1))
    z = jax.tree.map(lambda z, dz: z + dz.astype(z.dtype), to_control(control_transform, state), increment)
    return from_control(control_transform, z)


def simulate_trajectory(
    key: PRNGKeyArray,
    forward: Any,
    x0: PyTree[ArrayLike],
    n_steps: SupportsIndex,
    model_err_cov_op: Any,
    *,
    n_substeps: SupportsIndex = 1,
    t0: ArrayLike = 0.0,
) -> PyTree[Array]:
    """x_0 .. x_T of a model that errs: (n_steps + 1, *state), an error of covariance Q at the end of each interval.

    `model_err_cov_op` is Q of one interval, or of all, on fields (n_steps, *state): what `WeakFourDVar` assumes. A
    model without errors needs no key: `vardax.dynamics.rollout`.

    >>> import jax.numpy as jnp
    >>> from vardax.covariances.diagonal import DiagonalCovariance
    >>> from vardax.dynamics.lorenz63 import Lorenz63
    >>> simulate_trajectory(jax.random.key(0), Lorenz63(), jnp.ones(3), 5, DiagonalCovariance([0.1] * 3)).shape
    (6, 3)
    """
    Q, x0 = as_covariance("simulate_trajectory", model_err_cov_op, "model_err_cov_op"), jax.tree.map(float_array, x0)
    errors = _of_all_intervals(Q, x0, int(n_steps))
    drawn = jax.tree.map(lambda e, x: e[0].astype(x.dtype), sample(errors, key, 1), x0)
    return rollout(forward, x0, n_steps, t0=t0, n_substeps=n_substeps, increments=drawn)


def _of_all_intervals(Q: Any, x0: PyTree[Array], n_steps: int) -> Any:
    """Q of the errors of all intervals."""
    shapes, one = _shapes(Q.out_structure()), _shapes(x0)
    every = jax.tree.map(lambda leaf: (n_steps, *leaf.shape), x0)
    if shapes == one:
        return RepeatedCovariance(Q, n_steps)
    if shapes == every:
        return Q
    raise ValueError(
        f"simulate_trajectory: `model_err_cov_op` acts on shape {shapes}, expected {one} (one interval) or {every} "
        f"(all {n_steps})."
    )


def _require_shapes(owner: str, name: str, found: PyTree[Array], expected: PyTree[Any]) -> None:
    if _shapes(found) != _shapes(expected):
        raise ValueError(
            f"{owner}: `{name}` has shape {_shapes(found)}, expected {_shapes(expected)}, on which the covariance "
            "acts; use `jax.vmap` over keys and states for several."
        )


def _shapes(tree: PyTree[Any]) -> PyTree[Any]:
    return jax.tree.map(lambda leaf: tuple(leaf.shape), tree)
