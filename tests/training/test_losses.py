"""Losses know what is missing, and are what external loops ask for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vardax.training.losses import as_external_loss, reconstruction_loss, train_loss_fn
from vardax.types import Batch1D

NAN = float("nan")


def fields(seed=0, shape=(2, 3, 4)):
    rng = np.random.default_rng(seed)
    pred, target = rng.normal(size=(2, *shape))
    target[rng.random(shape) < 0.4] = NAN
    return pred, target


def test_it_is_the_mean_square_over_what_is_known():
    pred, target = fields()
    assert float(reconstruction_loss(pred, target)) == pytest.approx(np.nanmean((pred - target) ** 2), rel=1e-6)


def test_weights_weigh_the_mean():
    pred, target = fields()
    weights = np.random.default_rng(1).random((3, 4))
    expected = np.nansum(weights * (pred - target) ** 2) / np.sum(np.isfinite(target) * weights)
    assert float(reconstruction_loss(pred, target, weights)) == pytest.approx(expected, rel=1e-6)
    whole = np.broadcast_to(weights, pred.shape)
    assert float(reconstruction_loss(pred, target, whole)) == pytest.approx(expected, rel=1e-6)


def test_missing_entries_are_not_in_the_gradient_either():
    pred, target = fields()
    blown_up = np.where(np.isnan(target), np.inf, pred)
    gradient = np.asarray(jax.grad(reconstruction_loss)(jnp.asarray(blown_up), jnp.asarray(target)))
    error = np.where(np.isnan(target), 0.0, pred - target)
    assert np.allclose(gradient, 2 * error / np.isfinite(target).sum(), rtol=1e-6)


def test_without_any_target_there_is_an_error_or_nan():
    nothing = jnp.full(3, NAN)
    with pytest.raises(ValueError, match="no entry of `target` is known"):
        reconstruction_loss(jnp.zeros(3), nothing)
    assert jnp.isnan(jax.jit(reconstruction_loss)(jnp.zeros(3), nothing))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([1.0, 2.0], [1.0]), r"`target` has shape \(1,\), expected \(2,\)"),
        (([1.0, 2.0], [1.0, 2.0], [1.0, 2.0, 3.0]), r"`weights` has shape \(3,\), expected \(2,\)"),
        (([1.0, 2.0], [1.0, 2.0], [1.0, -2.0]), "`weights` has entries that are negative"),
    ],
)
def test_what_does_not_fit_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        reconstruction_loss(*arguments)


def test_the_training_loss_needs_a_target():
    batch = Batch1D(jnp.ones((2, 1, 3)), jnp.ones((2, 1, 3)), jnp.zeros((2, 1, 3)))
    assert train_loss_fn(lambda b: 2.0 * b.input, batch) == 4.0
    with pytest.raises(ValueError, match=r"`batch.target` is None.*Batch1D\(input, mask, target\)"):
        train_loss_fn(lambda b: b.input, Batch1D(batch.input, batch.mask))


def test_external_loops_get_a_pair_and_may_bring_a_key():
    noisy = as_external_loss(lambda model, batch, *, key: (model * batch + jax.random.normal(key), {"noise": key}))
    plain = as_external_loss(lambda model, batch: model * batch)
    key = jax.random.key(0)
    assert plain(2.0, 3.0, key) == (6.0, {})
    loss, aux = noisy(2.0, 3.0, key)
    assert loss == 6.0 + jax.random.normal(key)
    assert aux == {"noise": key}
    (value, found), gradient = jax.value_and_grad(plain, has_aux=True)(2.0, 3.0, key)
    assert (value, found, gradient) == (6.0, {}, 3.0)
