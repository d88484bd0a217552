"""A trainer: steps, validation, early stopping, checkpoints and a log around `vardax.training.train_step`.

    fitted = fit(model, data, optax.adam(1e-3), 2000, batch_size=16, validation=held_out, folder="runs/l96")
    fitted.best            the model with the lowest validation loss

With a `folder` the same call goes on where the last checkpoint was, and does bit for bit what it would have done
without the interruption: model, optimiser, average of the weights, place in the data, keys, early stopping and log are
restored. A larger `n_steps` prolongs a training.

It is also an example, for projects that need another loop: all parts are public.
"""

import dataclasses
import os
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import numpy as np
import optax
from jaxtyping import Array, PRNGKeyArray, PyTree

from vardax.experiments.checkpoints import TrainingState, checkpoint, latest
from vardax.experiments.progress import progress
from vardax.experiments.training_data import TrainingData, check_iterable, check_windows, validation_batches
from vardax.experiments.training_log import TrainingLog
from vardax.training.data_parallel import replicate, shard_windows
from vardax.training.losses import takes_key, train_loss_fn
from vardax.training.steps import eval_step, train_step
from vardax.training.trainable import learned
from vardax.types import AbstractBatch

__all__ = ["Fitted", "fit"]


@dataclasses.dataclass(frozen=True)
class Fitted:
    """What a training came to.

    - `best`: the model of the lowest validation loss `best_loss`, at `best_step`; without validation that of the end.
    - `model`: that of the last step, with `opt_state`; `average`: with the averages of its weights (`ema`), or None.
    - `history`: the records of all steps, as in the log.
    - `n_skipped`: steps that were not finite, and changed nothing.
    """

    best: Any
    best_loss: float
    best_step: int
    model: Any
    opt_state: PyTree
    average: Any
    history: list[dict[str, Any]]
    n_steps: int
    n_skipped: int
    stopped_early: bool


def fit(
    model: Any,
    batches: Any,
    optimizer: Any,
    n_steps: int,
    *,
    loss_fn: Callable[..., Array] = train_loss_fn,
    trainable: Callable[[Any], Any] | None = None,
    batch_size: int | None = None,
    validation: Any = None,
    validate_every: int = 100,
    patience: int | None = None,
    ema: float | None = None,
    folder: str | os.PathLike | None = None,
    checkpoint_every: int = 1000,
    devices: Sequence[Any] | None = None,
    key: PRNGKeyArray | None = None,
    stream: Any = None,
) -> Fitted:
    """Train `model` for `n_steps` steps.

    - `batches`: a batch of windows, of which `batch_size` make a minibatch; or batches that can be iterated over in
      every epoch; or a function of the number of the epoch that gives its batches.
    - `optimizer`, `loss_fn`, `trainable`: as in `train_step`. A loss that takes a `key` gets another one at every step,
      and the same at every validation.
    - `validation`: a batch or batches, for the mean loss after every `validate_every` steps and at the end. After
      `patience` validations in a row without a new lowest loss the training stops.
    - `ema`: validate and keep the averages of the weights that `optax.ema` makes with this decay.
    - `folder`: for a checkpoint after every `checkpoint_every` steps and at the end, and for the log `metrics.jsonl`.
    - `devices`: share every batch out among these.
    - `key`: of the order of the windows and of the keys of the loss. Default: `jax.random.key(0)`.
    - `stream`: where progress goes, if that is a terminal. Default: stderr.
    """
    key = jax.random.key(0) if key is None else key
    order_key, loss_key = jax.random.split(key)
    _check_counts(n_steps=n_steps, validate_every=validate_every, patience=patience, checkpoint_every=checkpoint_every)
    _check_validation(validation, patience)
    data = TrainingData(batches, batch_size, order_key)
    loop = _Loop(optimizer, loss_fn, trainable, validation, batch_size, ema, devices, loss_key)
    start = loop.start(model, key, batches)
    state = loop.placed(start if folder is None else latest(folder, start))
    log = TrainingLog(folder, int(state.step))
    with progress(n_steps, "fit", "steps", stream) as advance:
        advance(int(state.step))
        place = int(state.epoch), int(state.position)
        for epoch, position, batch in () if _is_over(state, n_steps, patience) else data.since(*place):
            begin = time.perf_counter()
            state, loss = loop.step(state, batch, epoch, position)
            record = {"step": int(state.step), "epoch": epoch, "loss": loss, "skipped": bool(np.isnan(loss))}
            if validation is not None and (state.step % validate_every == 0 or state.step == n_steps):
                state, record["validation"] = loop.validate(state)
            log.add(**record, seconds=time.perf_counter() - begin)
            advance(1)
            over = _is_over(state, n_steps, patience)
            if folder is not None and (over or state.step % checkpoint_every == 0):
                log.flush()
                checkpoint(folder, state)
            if over:
                break
    if state.n_skipped:
        warnings.warn(f"fit: {state.n_skipped} of {state.step} steps were not finite and were skipped.", stacklevel=2)
    return loop.fitted(state, log, stopped_early=bool(state.step < n_steps))


@dataclasses.dataclass(frozen=True)
class _Loop:
    """What stays the same during a training, and what is done in it."""

    optimizer: Any
    loss_fn: Callable[..., Array]
    trainable: Callable[[Any], Any] | None
    validation: Any
    batch_size: int | None
    ema: float | None
    devices: Sequence[Any] | None
    loss_key: PRNGKeyArray

    def start(self, model: Any, key: PRNGKeyArray, batches: Any) -> TrainingState:
        """The state before the first step."""
        weights = learned(model, self.trainable)
        with jax.numpy_dtype_promotion("standard"):  # optax's own arithmetic, here and below
            opt_state = self.optimizer.init(weights)
            average = None if self.ema is None else optax.ema(self.ema).init(weights)
        n_windows = batches.n_samples if isinstance(batches, AbstractBatch) else None
        settings = {"batch_size": self.batch_size, "ema": self.ema, "windows": n_windows}
        return TrainingState(settings, key, model, opt_state, average, model)

    def placed(self, state: TrainingState) -> TrainingState:
        """The state with what is trained on all devices."""
        if self.devices is None:
            return state
        model, opt_state, average = replicate((state.model, state.opt_state, state.average), self.devices)
        return dataclasses.replace(state, model=model, opt_state=opt_state, average=average)

    def step(self, state: TrainingState, batch: Any, epoch: int, position: int) -> tuple[TrainingState, float]:
        batch = batch if self.devices is None else shard_windows(batch, self.devices)
        options = {"loss_fn": self.loss_fn, "trainable": self.trainable, "key": self._key(int(state.step))}
        model, opt_state, loss = train_step(state.model, batch, self.optimizer, state.opt_state, **options)
        average = state.average if self.ema is None else _averaged(self.ema, model, state.average, self.trainable)
        loss = float(loss)
        after = dataclasses.replace(
            state,
            model=model,
            opt_state=opt_state,
            average=average,
            step=state.step + 1,
            epoch=np.int64(epoch),
            position=np.int64(position + 1),
            n_skipped=state.n_skipped + np.int64(np.isnan(loss)),
        )
        return after, loss

    def validate(self, state: TrainingState) -> tuple[TrainingState, float]:
        """The mean loss over the validation data; the model is kept if there was none as low."""
        model, total, count = self._judged(state), 0.0, 0
        for batch in validation_batches(self.validation, self.batch_size):
            n = batch.n_samples if isinstance(batch, AbstractBatch) else 1
            if self.devices is not None:
                batch = (replicate if n % len(self.devices) else shard_windows)(batch, self.devices)
            total += n * float(eval_step(model, batch, loss_fn=self.loss_fn, key=self._key(-1)))
            count += n
        loss = total / count
        if loss < state.best_loss:
            best = {"best": model, "best_loss": np.float64(loss), "best_step": state.step, "waited": np.int64(0)}
            return dataclasses.replace(state, **best), loss
        return dataclasses.replace(state, waited=state.waited + 1), loss

    def fitted(self, state: TrainingState, log: TrainingLog, *, stopped_early: bool) -> Fitted:
        """The results, on one device."""
        if self.validation is None:
            state = dataclasses.replace(state, best=self._judged(state), best_step=state.step)
        average = None if self.ema is None else self._judged(state)
        found = (state.best, state.model, state.opt_state, average)
        if self.devices is not None:
            found = replicate(found, self.devices[:1])
        best, model, opt_state, average = found
        counts = {"n_steps": int(state.step), "n_skipped": int(state.n_skipped), "stopped_early": stopped_early}
        kept = {"model": model, "opt_state": opt_state, "average": average, "history": log.records}
        return Fitted(best, float(state.best_loss), int(state.best_step), **kept, **counts)

    def _judged(self, state: TrainingState) -> Any:
        """The model that is validated: with the averages of its weights, where these are made."""
        if self.ema is None or state.step == 0:
            return state.model
        with jax.numpy_dtype_promotion("standard"):
            weights = optax.tree.bias_correction(state.average.ema, self.ema, state.average.count)
        return eqx.combine(weights, state.model)

    def _key(self, step: int) -> PRNGKeyArray | None:
        """The key of a step, if the loss takes one; -1 for validation."""
        return jax.random.fold_in(self.loss_key, step + 1) if takes_key(self.loss_fn) else None


@eqx.filter_jit
def _averaged(decay: float, model: Any, average: PyTree, trainable: Callable[[Any], Any] | None) -> PyTree:
    """The averages with the weights of one more step."""
    with jax.numpy_dtype_promotion("standard"):
        return optax.ema(decay).update(learned(model, trainable), average)[1]


def _is_over(state: TrainingState, n_steps: int, patience: int | None) -> bool:
    return bool(state.step >= n_steps or (patience is not None and state.waited >= patience))


def _check_counts(**counts: int | None) -> None:
    for name, count in counts.items():
        if count is not None and count < 1:
            raise ValueError(f"fit: `{name}` is {count}, expected at least 1.")


def _check_validation(validation: Any, patience: int | None) -> None:
    if isinstance(validation, AbstractBatch):
        check_windows(validation, "validation")
    elif validation is not None:
        check_iterable(validation, "validation")
    elif patience is not None:
        raise ValueError("fit: `patience` is given without `validation`, whose losses it counts.")
