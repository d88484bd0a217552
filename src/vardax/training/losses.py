"""What training minimises: losses of a model on a batch whose truth is known.

    loss(model, batch) -> scalar,        train_loss_fn(model, batch) = reconstruction_loss(model(batch), batch.target)

A loss is a function of a model and a batch, and may take a keyword `key`. `train_step` and `eval_step` take any such
function, and the terms of a loss are functions of fields, to be added up at will (`vardax.training.field_loss` does
so). What is missing in the target (NaN) takes no part: neither in the value, nor in the gradient, nor in the number of
entries that the mean is over.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from vardax.types import ArrayData, concrete_values, float_array

__all__ = ["as_external_loss", "known_target", "reconstruction_loss", "takes_key", "train_loss_fn", "weighted_mean"]


def reconstruction_loss(pred: ArrayData, target: ArrayData, weights: ArrayData | None = None) -> Float[Array, ""]:
    """The mean square of `pred - target` over the entries that `target` knows: Σ w (pred - target)² / Σ w.

    `weights` w (default 1) have the shape of `target`, or that of its last axes. Without any known entry there is no
    mean: an error where the values are at hand, NaN under jit, which `train_step` skips.

    >>> float(reconstruction_loss([1.0, 2.0, 3.0], [1.0, 0.0, float("nan")]))
    2.0
    """
    pred, target = float_array(pred), float_array(target)
    _check_shapes(pred, target, "reconstruction_loss")
    values = concrete_values(target)
    if values is not None and not np.any(np.isfinite(values)):
        raise ValueError("reconstruction_loss: no entry of `target` is known (finite), so there is nothing to compare.")
    known = jnp.isfinite(target)
    error = jnp.where(known, pred, 0.0) - jnp.where(known, target, 0.0).astype(pred.dtype)
    return weighted_mean(error**2, known, weights, "reconstruction_loss")


def train_loss_fn(model: Callable[[Any], Any], batch: Any) -> Float[Array, ""]:
    """The reconstruction loss of `model(batch)` against `batch.target`."""
    target = known_target(batch, "train_loss_fn")
    return reconstruction_loss(model(batch), target)


def as_external_loss(fn: Callable[..., Any]) -> Callable[[Any, Any, Any], tuple[Any, Any]]:
    """The loss `fn(model, batch)` as loops of other libraries call it: `loss_fn(model, batch, key) -> (loss, aux)`.

    An `fn` that takes a keyword `key` is given the loop's; the others do without. `aux` is what `fn` returns beside the
    loss as `(loss, aux)`, else an empty dictionary.

    >>> loss_fn = as_external_loss(lambda model, batch: model(batch) ** 2)
    >>> loss_fn(lambda batch: batch + 1.0, 2.0, None)
    (9.0, {})
    """
    with_key = takes_key(fn)

    @functools.wraps(fn)
    def loss_fn(model: Any, batch: Any, key: Any) -> tuple[Any, Any]:
        found = fn(model, batch, key=key) if with_key else fn(model, batch)
        return found if isinstance(found, tuple) else (found, {})

    del loss_fn.__wrapped__  # its signature is its own
    return loss_fn


def takes_key(fn: Callable[..., Any]) -> bool:
    """Whether a loss takes the keyword `key`."""
    return "key" in inspect.signature(fn).parameters


def known_target(batch: Any, owner: str) -> Any:
    """The target of a batch, or an error that says that there is none."""
    target = getattr(batch, "target", None)
    if target is None:
        raise ValueError(
            f"{owner}: `batch.target` is None, and training needs the truth; give it to the batch "
            f"({type(batch).__name__}(input, mask, target))."
        )
    return target


def weighted_mean(values: Array, known: Array, weights: ArrayData | None, owner: str) -> Float[Array, ""]:
    """Σ w v / Σ w over the known entries; NaN without any."""
    weight = known.astype(values.dtype)
    if weights is not None:
        weight = weight * _checked_weights(float_array(weights), values, owner)
    return jnp.sum(weight * values) / jnp.sum(weight)


def _checked_weights(weights: Array, values: Array, owner: str) -> Array:
    if weights.shape != values.shape[values.ndim - weights.ndim :]:
        raise ValueError(
            f"{owner}: `weights` has shape {weights.shape}, expected {values.shape}, that of `target`, or its last "
            "axes."
        )
    concrete = concrete_values(weights)
    if concrete is not None and not (np.all(np.isfinite(concrete)) and np.all(concrete >= 0)):
        raise ValueError(f"{owner}: `weights` has entries that are negative or not finite; 0 leaves an entry out.")
    return jnp.broadcast_to(weights.astype(values.dtype), values.shape)


def _check_shapes(pred: Array, target: Array, owner: str) -> None:
    if pred.shape != target.shape:
        raise ValueError(f"{owner}: `target` has shape {target.shape}, expected {pred.shape}, that of `pred`.")
