"""The next batch is the same whether a training came to its place or began there."""

from itertools import islice

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vardax.experiments.training_data import TrainingData, validation_batches
from vardax.types import Batch1D

N = 5


def numbered():
    values = jnp.broadcast_to(jnp.arange(1.0, N + 1)[:, None, None], (N, 1, 2))
    return Batch1D(values, jnp.ones_like(values), values)


def taken(data, n, epoch=0, position=0):
    """(epoch, position, what is in the batch) of the next n batches."""
    content = lambda batch: np.asarray(batch.input[:, 0, 0]).tolist() if isinstance(batch, Batch1D) else batch  # noqa: E731
    return [(e, p, content(batch)) for e, p, batch in islice(data.since(epoch, position), n)]


@pytest.mark.parametrize(
    ("batches", "size"), [(numbered(), 2), (["a", "b"], None), (lambda epoch: iter([f"{epoch}a", f"{epoch}b"]), None)]
)
def test_a_training_can_begin_anywhere(batches, size):
    data = TrainingData(batches, size, jax.random.key(0))
    whole = taken(data, 7)
    assert [(epoch, position) for epoch, position, _ in whole] == [(n // 2, n % 2) for n in range(7)]
    for n in range(5):
        assert taken(data, 2, *whole[n][:2]) == whole[n : n + 2]
        assert taken(data, 2, whole[n][0], whole[n][1] + 1) == whole[n + 1 : n + 3]


def test_epochs_have_orders_of_their_own_and_keys_too():
    first, second = (taken(TrainingData(numbered(), 2, jax.random.key(seed)), 12) for seed in (0, 1))
    assert first != second
    epochs = {str([content for epoch, _, content in first if epoch == number]) for number in range(6)}
    assert len(epochs) == 6


def test_validation_data_come_whole():
    assert [batch.n_samples for batch in validation_batches(numbered(), 2)] == [2, 2, 1]
    assert [batch.n_samples for batch in validation_batches(numbered(), None)] == [N]
    assert [batch.n_samples for batch in validation_batches(numbered(), 9)] == [N]
    assert list(validation_batches(["a", "b"], 2)) == ["a", "b"]


@pytest.mark.parametrize(
    ("batches", "size", "error", "message"),
    [
        (numbered(), None, ValueError, "`batch_size` is missing; `batches` is one Batch1D of 5 windows"),
        (numbered(), 6, ValueError, "`size` is 6, expected 1 to 5, the number of windows"),
        (["a"], 2, ValueError, "`batch_size` is given, but `batches` is not one batch of windows"),
        (iter(["a"]), None, TypeError, "a function of the number of the epoch instead of a generator"),
        (3, None, TypeError, "`batches` is int, expected a batch of windows"),
    ],
)
def test_data_that_cannot_be_trained_on_are_refused(batches, size, error, message):
    with pytest.raises(error, match=message):
        TrainingData(batches, size, jax.random.key(0))


def test_windows_that_are_empty_are_named():
    values = np.ones((4, 1, 2))
    mask, target = np.ones_like(values), np.ones_like(values)
    mask[1], target[3] = 0, np.nan
    with pytest.raises(ValueError, match=r"in 2 windows of `batches` \(1, 3\) nothing is observed.*take_windows"):
        TrainingData(Batch1D(values, mask, target), 2, jax.random.key(0))


def test_an_epoch_without_batches_is_an_error():
    with pytest.raises(ValueError, match="`batches` gave no batch in epoch 1"):
        taken(TrainingData(lambda epoch: [] if epoch else ["a"], None, jax.random.key(0)), 3)
