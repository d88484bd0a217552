"""A step follows the gradient of the loss, leaves alone what is not trained, and is skipped when it is not finite."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vardax.training.losses import train_loss_fn
from vardax.training.steps import eval_step, train_step
from vardax.training.trainable import learned
from vardax.types import Batch1D


class Shift(eqx.Module):
    """x = W y + b, with an array of integers and a function among its leaves."""

    weight: jax.Array
    bias: jax.Array
    order: jax.Array
    activation: object = jnp.tanh

    def __call__(self, batch):
        return self.activation(batch.input[..., self.order] @ self.weight.T + self.bias[None, None])


def model():
    weight, bias = np.random.default_rng(0).normal(size=(4, 3)) / 2, np.zeros(4)
    return Shift(jnp.asarray(weight[:3]), jnp.asarray(bias[:3]), jnp.array([2, 0, 1]))


def data(seed=1):
    y, t = np.random.default_rng(seed).normal(size=(2, 8, 2, 3))
    t[:, 1, 0] = np.nan
    return Batch1D(y, np.ones_like(y), np.tanh(t))


ADAM = optax.adam(1e-2)
filters = pytest.mark.parametrize("is_trained", [eqx.is_array, eqx.is_inexact_array, None])


def started(optimizer, is_trained=eqx.is_array, start=None):
    start = model() if start is None else start
    return optimizer.init(learned(start) if is_trained is None else eqx.filter(start, is_trained))


def identical(one, other):
    return bool(eqx.tree_equal(one, other))


@pytest.mark.x64
def test_the_gradient_is_that_of_finite_differences():
    """A step of plain descent with the rate 1 is minus the gradient."""
    optimizer, start, batch = optax.sgd(1.0), model(), data()
    after, _, loss = train_step(start, batch, optimizer, started(optimizer))
    assert float(loss) == float(eval_step(start, batch)) == pytest.approx(float(train_loss_fn(start, batch)))
    gradient = start.weight - after.weight
    for place in np.ndindex(3, 3):
        moved = [eqx.tree_at(lambda m: m.weight, start, start.weight.at[place].add(h)) for h in (1e-5, -1e-5)]
        slope = (eval_step(moved[0], batch) - eval_step(moved[1], batch)) / 2e-5
        assert float(gradient[place]) == pytest.approx(float(slope), rel=1e-6, abs=1e-9)


@filters
def test_integers_break_no_optimiser_and_stay(is_trained):
    start, batch = model(), data()
    after, opt_state, first = train_step(start, batch, ADAM, started(ADAM, is_trained))
    for _ in range(20):
        after, opt_state, loss = train_step(after, batch, ADAM, opt_state)
    assert loss < 0.9 * first
    assert after.order.tolist() == start.order.tolist()
    assert after.order.dtype == start.order.dtype
    assert jax.tree.structure(opt_state) == jax.tree.structure(started(ADAM, is_trained))
    reference, state = start, started(ADAM, None)
    for _ in range(21):
        reference, state, _ = train_step(reference, batch, ADAM, state)
    assert identical(reference, after)


MANY = {
    "chain": optax.chain(optax.clip_by_global_norm(0.5), optax.adamw(optax.cosine_decay_schedule(1e-2, 100))),
    "hyperparameters": optax.inject_hyperparams(optax.sgd)(learning_rate=0.1),
    "several steps": optax.MultiSteps(optax.sgd(0.1), 2),
    "of the loss": optax.polyak_sgd(max_learning_rate=0.1),
}


@pytest.mark.parametrize("name", MANY)
def test_optimisers_of_optax_work_as_they_come(name, count_compilations):
    optimizer, batch = MANY[name], data()
    with jax.numpy_dtype_promotion("standard"):  # of integers and floats, in one that asks for the dtype of all
        opt_state = optimizer.init(eqx.filter(model(), eqx.is_array))
    after, opt_state, first = train_step(model(), batch, optimizer, opt_state)
    after, opt_state, _ = train_step(after, batch, optimizer, opt_state)
    with count_compilations() as compiled:
        after, opt_state, loss = train_step(after, data(2), optimizer, opt_state)
    assert compiled.n == 0
    assert eval_step(after, batch) < first


def test_the_step_works_under_a_jit_of_ones_own():
    @eqx.filter_jit
    def step(model, opt_state, batch):
        model, opt_state, loss = train_step(model, batch, ADAM, opt_state)
        return model, opt_state, loss

    eager, opt_state, loss = train_step(model(), data(), ADAM, started(ADAM))
    jitted, other_state, other_loss = step(model(), started(ADAM), data())
    same = lambda one, other: one is other or np.allclose(one, other, rtol=1e-5)  # noqa: E731
    assert all(jax.tree.leaves(jax.tree.map(same, (eager, opt_state, loss), (jitted, other_state, other_loss))))


def spoilt(batch, how):
    """A batch whose loss, or the gradient of whose loss alone, is not finite."""
    if how == "loss":
        return eqx.tree_at(lambda b: b.input, batch, batch.input.at[0, 0, 0].set(jnp.nan))
    if how == "infinite":
        return eqx.tree_at(lambda b: b.target, batch, jnp.full_like(batch.target, 1e30 if X32 else 1e300))
    if how == "target":
        return eqx.tree_at(lambda b: b.target, batch, jnp.full_like(batch.target, jnp.nan))
    return batch


X32 = jnp.result_type(float) == jnp.float32


def root_loss(model, batch):
    """Finite at zero, where its gradient is not."""
    return jnp.sqrt(jnp.sum(0.0 * model.weight**2)) + train_loss_fn(model, batch)


@pytest.mark.parametrize("how", ["loss", "infinite", "target", "gradient"])
def test_a_step_that_is_not_finite_is_skipped(how):
    start, opt_state, _ = train_step(model(), data(), ADAM, started(ADAM))
    loss_fn = root_loss if how == "gradient" else train_loss_fn
    after, state_after, loss = train_step(start, spoilt(data(), how), ADAM, opt_state, loss_fn=loss_fn)
    assert jnp.isnan(loss)
    assert identical(after, start)
    assert identical(state_after, opt_state)


def test_skipped_steps_are_counted_in_the_state_that_has_a_count():
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.apply_if_finite(optax.adam(1e-2), 1))
    start = model()
    opt_state = started(optimizer)
    for n in range(1, 4):
        after, state_after, _ = train_step(start, spoilt(data(), "loss"), optimizer, opt_state)
        assert identical(after, start)
        assert identical(state_after[1].inner_state, opt_state[1].inner_state)
        assert state_after[1].total_notfinite == n
        opt_state = state_after
    after, opt_state, loss = train_step(start, data(), optimizer, opt_state)
    assert jnp.isfinite(loss)
    assert (opt_state[1].total_notfinite, opt_state[1].notfinite_count) == (3, 0)
    assert not identical(after, start)


def test_only_the_parts_that_are_asked_for_are_trained():
    start = model()
    after, opt_state, _ = train_step(start, data(), ADAM, started(ADAM), trainable=weight_of)
    assert identical(after.bias, start.bias)
    assert not identical(after.weight, start.weight)
    assert identical(opt_state[0].mu.bias, jnp.zeros_like(start.bias))


def weight_of(model):
    return model.weight


def test_a_loss_that_takes_a_key_gets_it():
    noisy = lambda model, batch, *, key: train_loss_fn(model, batch) + jax.random.uniform(key)  # noqa: E731
    key, start = jax.random.key(3), model()
    _, _, loss = train_step(start, data(), ADAM, started(ADAM), loss_fn=noisy, key=key)
    expected = train_loss_fn(start, data()) + jax.random.uniform(key)
    assert float(loss) == pytest.approx(float(expected), rel=1e-6)
    assert float(eval_step(start, data(), loss_fn=noisy, key=key)) == pytest.approx(float(expected), rel=1e-6)


def test_complex_weights_descend():
    loss_fn = lambda model, batch: jnp.sum(jnp.abs(model["w"] - (1.0 + 2.0j)) ** 2)  # noqa: E731
    optimizer, start = optax.sgd(0.25), {"w": jnp.zeros(2, jnp.result_type(complex))}
    after, _, _ = train_step(start, None, optimizer, optimizer.init(start), loss_fn=loss_fn)
    assert np.allclose(after["w"], 0.5 + 1.0j)


def test_the_dtype_of_the_weights_is_kept():
    start = jax.tree.map(lambda a: a.astype(jnp.bfloat16) if eqx.is_inexact_array(a) else a, model())
    loss_fn = lambda model, batch: jnp.sum((model.weight.astype(jnp.float32) - 1.0) ** 2)  # noqa: E731
    after, opt_state, loss = train_step(start, None, ADAM, started(ADAM, start=start), loss_fn=loss_fn)
    assert (after.weight.dtype, loss.dtype) == (jnp.bfloat16, jnp.float32)
    assert not identical(after.weight, start.weight)


def test_errors_say_what_to_do():
    batch = data()
    with pytest.raises(ValueError, match=r"train_loss_fn: `batch.target` is None"):
        train_step(model(), Batch1D(batch.input, batch.mask), ADAM, started(ADAM))
    with pytest.raises(ValueError, match=r"`opt_state` has nothing at .*, expected .*: optimizer.init\(eqx.filter"):
        train_step(model(), batch, ADAM, started(optax.sgd(0.1)))
    smaller = eqx.tree_at(lambda m: m.bias, model(), jnp.zeros(2))
    with pytest.raises(ValueError, match=r"has the shape \(2,\) at .*bias, expected an array of shape \(3,\)"):
        train_step(model(), batch, ADAM, started(ADAM, start=smaller))
    with pytest.raises(ValueError, match=r"`loss_fn` returns the shape \(8, 2, 3\), expected one number"):
        train_step(model(), batch, ADAM, started(ADAM), loss_fn=lambda model, batch: model(batch))
