r"""Losses of fields: of their gradients, and of how plausible the prior finds them.

    field_loss(model, batch) = 50 mean (x - t)² + 1000 mean (|∇x| - |∇t|)² + mean (x - phi(x))²

with x = model(batch), t the target and |∇·| the magnitude of the Sobel gradient: the loss of the published programs for
maps of the sea surface, with their weights. Each term is a function of its own, for sums of other kinds.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vardax.training.losses import known_target, reconstruction_loss, weighted_mean
from vardax.types import ArrayData, float_array

__all__ = ["field_loss", "gradient_loss", "prior_loss"]

SMALLEST_SQUARE = 1e-6
"""Added to |∇x|² under the root, which has no derivative at zero."""


def field_loss(
    model: Any,
    batch: Any,
    *,
    error: float = 50.0,
    gradient: float = 1000.0,
    prior: float = 1.0,
    weights: ArrayData | None = None,
) -> Float[Array, ""]:
    """The sum of three terms, each with its factor: errors, errors of gradients, and the cost of `model.prior`.

    A term with the factor 0 is not computed. `functools.partial(field_loss, gradient=100.0)` is a loss with other
    factors. `weights` are those of the entries in the first two.
    """
    target, states = known_target(batch, "field_loss"), model(batch)
    total = jnp.zeros((), states.dtype)
    if error:
        total += error * reconstruction_loss(states, target, weights)
    if gradient:
        total += gradient * gradient_loss(states, target, weights, n_space=_space_axes(batch))
    if prior:
        total += prior * prior_loss(model.prior, states)
    return total


def gradient_loss(
    pred: ArrayData, target: ArrayData, weights: ArrayData | None = None, *, n_space: int = 2
) -> Float[Array, ""]:
    """The mean square of |∇pred| - |∇target| over the entries whose neighbours are all known.

    The last `n_space` axes are space. Along each the gradient is half the difference of the neighbours, smoothed by
    (1, 2, 1)/4 along the others (Sobel); the field goes on constant beyond its edges.
    """
    pred, target = float_array(pred), float_array(target)
    if pred.shape != target.shape or not 0 < n_space <= pred.ndim:
        raise ValueError(
            f"gradient_loss: `target` has shape {target.shape}, expected {pred.shape}, that of `pred`, with at least "
            f"`n_space` = {n_space} axes."
        )
    known = jnp.isfinite(target)
    filled = jnp.where(known, target, 0.0).astype(pred.dtype)
    axes = range(pred.ndim - n_space, pred.ndim)
    difference = _magnitude(jnp.where(known, pred, 0.0), axes) - _magnitude(filled, axes)
    inside = known
    for axis in axes:
        before, after = _neighbours(inside, axis)
        inside = before & inside & after
    return weighted_mean(jnp.where(inside, difference, 0.0) ** 2, inside, weights, "gradient_loss")


def prior_loss(prior: Any, states: Array) -> Float[Array, ""]:
    """What a prior makes of states (B, *state), per entry: the mean of (x - phi(x))², or of its own `cost`."""
    if hasattr(prior, "cost"):
        return jnp.sum(jax.vmap(prior.cost)(states)) / states.size
    return jnp.mean((states - jax.vmap(prior)(states)) ** 2)


def _magnitude(field: Array, axes: range) -> Array:
    """|∇field|."""
    square = jnp.full_like(field, SMALLEST_SQUARE)
    for along in axes:
        part = field
        for axis in axes:
            before, after = _neighbours(part, axis)
            part = 0.5 * (after - before) if axis == along else 0.25 * (before + 2.0 * part + after)
        square += part**2
    return jnp.sqrt(square)


def _neighbours(field: Array, axis: int) -> tuple[Array, Array]:
    """The values one place before and after along an axis."""
    n = field.shape[axis]
    first, last = (jax.lax.slice_in_dim(field, i, i + 1, axis=axis) for i in (0, n - 1))
    before = jnp.concatenate([first, jax.lax.slice_in_dim(field, 0, n - 1, axis=axis)], axis)
    return before, jnp.concatenate([jax.lax.slice_in_dim(field, 1, n, axis=axis), last], axis)


def _space_axes(batch: Any) -> int:
    """How many axes of a batch are space."""
    return len([axis for axis in batch.axes if axis not in ("B", "T", "C")])
