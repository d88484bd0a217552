"""One step of training, and one of evaluation.

    loss, g  = d loss(model, batch) / d (what of the model is trained)
    updates  = optimizer(g)
    model    = model + updates,   unless the loss, g or the updates have an entry that is not finite

The gradient of a learned solver flows through its inner iteration in the way that its `solver_adjoint` says. Gradient
clipping, schedules, weight decay and averages are those of optax, such as
`optax.chain(optax.clip_by_global_norm(1.0), optax.adam(optax.cosine_decay_schedule(1e-3, 10_000)))`.

**A step that is not finite is skipped**: parameters and the optimiser's state stay what they were, bit for bit, and the
loss that comes back is NaN, which it is for no other reason. So counting skipped steps is counting NaNs. Where a count
should travel with the state, wrap the optimiser in `optax.apply_if_finite(optimizer, n)`: its `total_notfinite` counts
on, and steps are skipped also after the n in a row at which optax alone would give in.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, PRNGKeyArray, PyTree

from vardax.training.losses import train_loss_fn
from vardax.training.optimiser_state import put_back, take_out
from vardax.training.trainable import learned_leaves

__all__ = ["eval_step", "train_step"]


def train_step(
    model: Any,
    batch: Any,
    optimizer: Any,
    opt_state: PyTree,
    *,
    loss_fn: Callable[..., Array] = train_loss_fn,
    trainable: Callable[[Any], Any] | None = None,
    key: PRNGKeyArray | None = None,
) -> tuple[Any, PyTree, Float[Array, ""]]:
    """One step: `(model, opt_state, loss)`, jitted, also under a jit of your own.

    `opt_state` is `optimizer.init(eqx.filter(model, eqx.is_array))`, or made with `eqx.is_inexact_array`, or with
    `vardax.training.learned(model, trainable)`: whatever it holds beyond the trained arrays stays as it is.

    `loss_fn(model, batch)` returns a scalar; with a `key` it is called with `key=key`. `trainable` selects the parts to
    train where these are not the learned ones (see `vardax.training.learned`).
    """
    return _train_step(model, batch, optimizer, opt_state, loss_fn, trainable, key)


def eval_step(
    model: Any, batch: Any, *, loss_fn: Callable[..., Array] = train_loss_fn, key: PRNGKeyArray | None = None
) -> Float[Array, ""]:
    """The loss on a batch, jitted, without a gradient."""
    return _eval_step(model, batch, loss_fn, key)


@eqx.filter_jit
def _train_step(
    model: Any,
    batch: Any,
    optimizer: Any,
    opt_state: PyTree,
    loss_fn: Callable[..., Array],
    trainable: Callable[[Any], Any] | None,
    key: PRNGKeyArray | None,
) -> tuple[Any, PyTree, Float[Array, ""]]:
    parameters, rest = eqx.partition(model, learned_leaves(model, trainable))

    def loss_of(arrays: PyTree) -> Array:
        return _scalar(_loss(loss_fn, eqx.combine(arrays, rest), batch, key))

    loss, gradient = jax.value_and_grad(loss_of)(parameters)
    gradient = jax.tree.map(jnp.conj, gradient)  # of complex weights JAX gives the conjugate of the steepest ascent
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):  # optax's own arithmetic
        state = take_out(optimizer, opt_state, parameters)
        descend = optax.with_extra_args_support(optimizer).update
        updates, new_state = descend(gradient, state, parameters, value=loss, grad=gradient, value_fn=loss_of)
        proposed = optax.apply_updates(parameters, updates)
    finite = _all_finite((loss, gradient, updates))
    parameters = _choose(finite, proposed, parameters)
    state = _choose(finite, new_state, _skipped(state, new_state))
    return eqx.combine(parameters, rest), put_back(opt_state, state), jnp.where(finite, loss, jnp.nan)


@eqx.filter_jit
def _eval_step(model: Any, batch: Any, loss_fn: Callable[..., Array], key: PRNGKeyArray | None) -> Float[Array, ""]:
    return _scalar(_loss(loss_fn, model, batch, key))


def _loss(loss_fn: Callable[..., Array], model: Any, batch: Any, key: PRNGKeyArray | None) -> Array:
    return loss_fn(model, batch) if key is None else loss_fn(model, batch, key=key)


def _scalar(loss: Any) -> Array:
    if jnp.shape(loss) != ():
        raise ValueError(
            f"train_step: `loss_fn` returns the shape {jax.tree.map(jnp.shape, loss)}, expected one number, ()."
        )
    return loss


def _all_finite(tree: PyTree[Array]) -> Bool[Array, ""]:
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)]))


def _choose(condition: Array, new: PyTree, old: PyTree) -> PyTree:
    """`new` where the condition holds, in the dtypes of `old`."""
    return jax.tree.map(lambda n, o: jnp.where(condition, n.astype(o.dtype), o), new, old)


def _skipped(old: PyTree, new: PyTree) -> PyTree:
    """The optimiser's state after a skipped step: the old one, with the counts of `optax.apply_if_finite`."""
    counts = lambda node: isinstance(node, optax.ApplyIfFiniteState)  # noqa: E731
    after = lambda o, n: n._replace(inner_state=o.inner_state) if counts(o) else o  # noqa: E731
    return jax.tree.map(after, old, new, is_leaf=counts)
