"""The trainer lowers the loss, keeps the best model, stops in time, and goes on as if never interrupted."""

import io
import json

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vardax.experiments import fit
from vardax.training.losses import train_loss_fn
from vardax.training.minibatches import minibatches
from vardax.training.steps import eval_step, train_step
from vardax.types import Batch1D

OPTIMIZER = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(3e-2))


class Linear(eqx.Module):
    """x = W y, with an array of integers."""

    weight: jax.Array
    order: jax.Array

    def __call__(self, batch):
        return batch.input[..., self.order] @ self.weight.T


def model():
    return Linear(0.1 * jnp.eye(3), jnp.array([2, 0, 1]))


def data(n=10, seed=0, noise=0.0):
    rng = np.random.default_rng(seed)
    y = rng.normal(size=(n, 2, 3))
    target = y @ np.array([[0.0, 1.0, 0.5], [1.0, 0.0, 0.0], [0.0, 0.3, 1.0]])
    return Batch1D(y, np.ones_like(y), target + noise * rng.normal(size=y.shape))


def noisy_loss(model, batch, *, key):
    """A loss whose key matters."""
    return train_loss_fn(model, batch) + 0.01 * jnp.sum(model.weight) * jax.random.normal(key)


HELD_OUT = list(minibatches(data(5, 1), 4))
OPTIONS = {"batch_size": 4, "validation": HELD_OUT, "validate_every": 3, "ema": 0.9, "loss_fn": noisy_loss}


def without_times(history):
    return [{name: value for name, value in record.items() if name != "seconds"} for record in history]


def same(one, other):
    return bool(eqx.tree_equal(one, other))


@pytest.fixture(scope="module")
def uninterrupted():
    return fit(model(), data(), OPTIMIZER, 11, **OPTIONS)


def test_it_is_train_step_again_and_again():
    fitted = fit(model(), data(), OPTIMIZER, 5, batch_size=4, key=jax.random.key(5))
    order_key = jax.random.split(jax.random.key(5))[0]
    by_hand, opt_state, losses = model(), OPTIMIZER.init(eqx.filter(model(), eqx.is_inexact_array)), []
    for step in range(5):
        batch = list(minibatches(data(), 4, jax.random.fold_in(order_key, step // 2)))[step % 2]
        by_hand, opt_state, loss = train_step(by_hand, batch, OPTIMIZER, opt_state)
        losses.append(float(loss))
    assert [record["loss"] for record in fitted.history] == losses
    assert [record["epoch"] for record in fitted.history] == [0, 0, 1, 1, 2]
    assert same(fitted.model, by_hand)
    assert same(fitted.best, by_hand)
    assert same(fitted.opt_state, opt_state)
    assert (fitted.n_steps, fitted.best_step, fitted.n_skipped, fitted.stopped_early) == (5, 5, 0, False)


def test_the_loss_falls_and_the_best_model_is_that_of_the_lowest_validation(uninterrupted):
    validated = {r["step"]: r["validation"] for r in uninterrupted.history if "validation" in r}
    assert list(validated) == [3, 6, 9, 11]
    assert min(validated.values()) == validated[11] < 0.8 * validated[3]
    assert (uninterrupted.best_step, uninterrupted.best_loss) == (11, validated[11])
    assert same(uninterrupted.best, uninterrupted.average)
    assert uninterrupted.model.order.tolist() == [2, 0, 1]


def test_the_average_is_that_of_optax(uninterrupted):
    """After one step it is the model; it then follows with the weights 1 - decay."""
    one = fit(model(), data(), OPTIMIZER, 1, **OPTIONS)
    assert np.allclose(one.average.weight, one.model.weight, rtol=1e-5)
    two = fit(model(), data(), OPTIMIZER, 2, **OPTIONS)
    expected = (0.9 * one.model.weight + two.model.weight) / 1.9
    assert np.allclose(two.average.weight, expected, rtol=1e-5)
    assert two.average.order.tolist() == [2, 0, 1]


class Interrupted(Exception):
    """The power goes."""


def interrupted_after(n):
    """Data of minibatches that end in the middle of step n + 1."""
    served = [0]
    order_key = jax.random.split(jax.random.key(0))[0]

    def batches(epoch):
        for batch in minibatches(data(), 4, jax.random.fold_in(order_key, epoch)):
            if served[0] == n:
                raise Interrupted
            served[0] += 1
            yield batch

    return batches


@pytest.mark.parametrize("n", [3, 8])
def test_after_an_interruption_every_bit_is_the_same(tmp_path, uninterrupted, n):
    options = OPTIONS | {"batch_size": None, "folder": tmp_path, "checkpoint_every": 4}
    with pytest.raises(Interrupted):
        fit(model(), interrupted_after(n), OPTIMIZER, 11, **options)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": ')
    fitted = fit(model(), interrupted_after(100), OPTIMIZER, 11, **options)
    assert without_times(fitted.history) == without_times(uninterrupted.history)
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == fitted.history
    for field in ("best", "model", "average", "opt_state"):
        assert same(getattr(fitted, field), getattr(uninterrupted, field)), field
    again = fit(model(), interrupted_after(0), OPTIMIZER, 11, **options)
    assert same(again.model, fitted.model)
    assert again.history == fitted.history


def test_windows_of_one_batch_go_on_in_their_order(tmp_path):
    options = {"batch_size": 4, "folder": tmp_path, "checkpoint_every": 2}
    fit(model(), data(), OPTIMIZER, 3, **options)
    longer = fit(model(), data(), OPTIMIZER, 6, **options)
    whole = fit(model(), data(), OPTIMIZER, 6, batch_size=4)
    assert without_times(longer.history) == without_times(whole.history)
    assert same(longer.model, whole.model)
    with pytest.raises(ValueError, match=r"`settings\['batch_size'\]` is 4, 5 in `skeleton`"):
        fit(model(), data(), OPTIMIZER, 6, batch_size=5, folder=tmp_path)
    with pytest.raises(ValueError, match="`key` is not the one"):
        fit(model(), data(), OPTIMIZER, 6, batch_size=4, folder=tmp_path, key=jax.random.key(1))


def test_it_stops_when_validation_no_longer_improves(tmp_path):
    """Too large steps on other data than those that count: the first validation stays the lowest."""
    uphill = data(5, 1)
    uphill = Batch1D(uphill.input, uphill.mask, model()(uphill))
    options = {"batch_size": 4, "validation": uphill, "validate_every": 2, "patience": 3, "folder": tmp_path}
    fitted = fit(model(), data(), OPTIMIZER, 100, **options)
    assert (fitted.n_steps, fitted.best_step, fitted.stopped_early) == (8, 2, True)
    assert float(eval_step(fitted.best, uphill)) == pytest.approx(fitted.best_loss, rel=1e-6)
    assert not same(fitted.best, fitted.model)
    again = fit(model(), data(), OPTIMIZER, 100, **options)
    assert (again.n_steps, again.stopped_early) == (8, True)


def test_steps_that_are_not_finite_are_counted_and_change_nothing():
    bad = eqx.tree_at(lambda b: b.input, data(4), jnp.full((4, 2, 3), jnp.nan))
    with pytest.warns(UserWarning, match="2 of 4 steps were not finite and were skipped"):
        fitted = fit(model(), [bad, data(4)], OPTIMIZER, 4)
    good = fit(model(), [data(4)], OPTIMIZER, 2)
    assert [record["skipped"] for record in fitted.history] == [True, False, True, False]
    assert [record["loss"] for record in fitted.history][::2] == [None, None]
    assert fitted.n_skipped == 2
    assert same(fitted.model, good.model)


def test_several_devices_train_as_one(uninterrupted):
    fitted = fit(model(), data(), OPTIMIZER, 11, **OPTIONS, devices=jax.devices()[:2])
    losses = [[record["loss"] for record in result.history] for result in (fitted, uninterrupted)]
    assert np.allclose(*losses, rtol=1e-5)
    assert fitted.best.weight.sharding.device_set == {jax.devices()[0]}
    with pytest.raises(ValueError, match="expected a first axis"):
        fit(model(), data(), OPTIMIZER, 1, batch_size=3, devices=jax.devices()[:2])


def test_progress_shows_on_a_terminal_only(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "tqdm", None)
    monkeypatch.setattr("vardax.experiments.progress.SECONDS_BETWEEN_LINES", 0.0)
    stream = io.StringIO()
    fit(model(), data(), OPTIMIZER, 2, batch_size=4, stream=stream)
    assert stream.getvalue() == ""
    stream.isatty = lambda: True
    fit(model(), data(), OPTIMIZER, 2, batch_size=4, stream=stream)
    assert stream.getvalue().splitlines()[-1] == "fit: 2 of 2 steps"


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"n_steps": 0}, ValueError, "`n_steps` is 0, expected at least 1"),
        ({"patience": 2}, ValueError, "`patience` is given without `validation`"),
        ({"validation": iter([])}, TypeError, "`validation` is .*iterator, expected"),
        ({"batches": Batch1D(data().input, data().mask)}, ValueError, "`batch.target` is None"),
    ],
)
def test_what_cannot_be_done_is_said(change, error, message):
    arguments = {"model": model(), "batches": data(), "optimizer": OPTIMIZER, "n_steps": 1, "batch_size": 4} | change
    with pytest.raises(error, match=message):
        fit(**arguments)
