"""A checkpoint is the whole state, bit for bit, and there is one at a time."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vardax.experiments.checkpoints import TrainingState, checkpoint, latest

OPTIMIZER = optax.chain(optax.clip_by_global_norm(1.0), optax.apply_if_finite(optax.adam(1e-3), 2))


def state(seed=0, size=2, **fields):
    net = eqx.nn.MLP(2, 2, size, 1, activation=lambda x: x**2, key=jax.random.key(seed))
    opt_state = OPTIMIZER.init(eqx.filter(net, eqx.is_inexact_array))
    start = TrainingState({"batch_size": 3}, jax.random.key(7), net, opt_state, None, net)
    return dataclasses.replace(start, **fields)


def test_a_state_comes_back_bit_for_bit_into_one_that_is_made_again(tmp_path):
    opt_state = jax.tree.map(lambda leaf: leaf + jnp.ones_like(leaf), state().opt_state)
    written = state(opt_state=opt_state, step=np.int64(12), best_loss=np.float64(0.1))
    checkpoint(tmp_path, written)
    read = latest(tmp_path, state(1))
    for field in ("model", "best"):
        arrays = [eqx.filter(getattr(s, field), eqx.is_array) for s in (read, written)]
        assert eqx.tree_equal(*arrays)
    assert eqx.tree_equal(read.opt_state, written.opt_state)
    assert jax.tree.structure(read.opt_state) == jax.tree.structure(written.opt_state)
    assert (read.step, read.best_loss, read.settings) == (12, 0.1, {"batch_size": 3})
    assert isinstance(read.step, np.int64)
    x = jnp.array([1.0, 2.0])
    assert np.array_equal(read.model(x), written.model(x))


def test_only_the_latest_is_kept(tmp_path):
    for step in (1, 2, 3):
        checkpoint(tmp_path, state(step=np.int64(step)))
    assert latest(tmp_path, state()).step == 3
    assert len(list((tmp_path / "checkpoints" / "objects").iterdir())) == 1


def test_without_one_the_start_is_what_there_is(tmp_path):
    start = state()
    assert latest(tmp_path / "none", start) is start


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (state(size=3), r"`model.layers\[0\].out_features` is 2, 3 in `skeleton`"),
        (state(settings={"batch_size": 4}), r"`settings\['batch_size'\]` is 3, 4 in `skeleton`"),
        (state(opt_state=()), "`opt_state` is"),
        (state(key=jax.random.key(8)), "`key` is not the one with which the training in .* began"),
    ],
)
def test_a_checkpoint_of_another_training_is_refused(tmp_path, other, message):
    checkpoint(tmp_path, state())
    with pytest.raises(ValueError, match=message):
        latest(tmp_path, other)


@pytest.mark.parametrize("name", ["weights.safetensors", "manifest.json"])
def test_damage_is_found(tmp_path, name):
    checkpoint(tmp_path, state())
    damaged = next((tmp_path / "checkpoints" / "objects").iterdir()) / name
    damaged.write_bytes(damaged.read_bytes()[:-1])
    with pytest.raises(ValueError, match="not of this training, or damaged; give another `folder`.*truncated"):
        latest(tmp_path, state())
