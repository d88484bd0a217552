"""Eight devices give the gradients of one, and each needs an eighth of the memory."""

import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vardax.training.data_parallel import replicate, shard_windows
from vardax.types import Batch1D

PROGRAM = """
import json
import equinox as eqx, jax, jax.numpy as jnp, numpy as np, optax
from vardax.training import replicate, shard_windows, train_step
from vardax.types import Batch2D

jax.config.update("jax_enable_x64", True)


class Smoother(eqx.Module):
    net: eqx.nn.Conv2d

    def __call__(self, batch):
        def one(y):
            def step(x, _):
                return x + 0.1 * jnp.tanh(self.net(x)), None
            return jax.lax.scan(step, y, None, length=10)[0]
        return jax.vmap(one)(batch.input)


model = Smoother(eqx.nn.Conv2d(3, 3, 3, padding=1, key=jax.random.key(0)))
y, t = np.random.default_rng(0).normal(size=(2, 16, 3, 16, 16))
t[:, 0, :5] = np.nan
batch = Batch2D(y, np.ones_like(y), t, times=[0.0, 1.0, 2.0])
optimizer = optax.sgd(1.0)
opt_state = optimizer.init(eqx.filter(model, eqx.is_array))


@eqx.filter_jit
def step(model, batch, opt_state):
    return train_step(model, batch, optimizer, opt_state)


found = {}
for name, devices in (("one", jax.devices()[:1]), ("eight", None)):
    here = replicate((model, opt_state), devices)
    arguments = (here[0], shard_windows(batch, devices), here[1])
    memory = step.lower(*arguments).compile().compiled.memory_analysis()
    after, _, loss = step(*arguments)
    changes = [np.asarray(getattr(after.net, part) - getattr(model.net, part)).tolist() for part in ("weight", "bias")]
    found[name] = {
        "loss": float(loss),
        "changes": changes,
        "memory": memory.temp_size_in_bytes,
        "devices": len(arguments[1].input.sharding.device_set),
    }
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def found():
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_eight_devices_give_the_step_of_one(found):
    one, eight = found["one"], found["eight"]
    assert (one["devices"], eight["devices"]) == (1, 8)
    assert eight["loss"] == pytest.approx(one["loss"], rel=1e-12)
    for a, b in zip(one["changes"], eight["changes"], strict=True):
        assert np.allclose(a, b, rtol=1e-10, atol=1e-14)


def test_a_device_needs_the_memory_of_its_own_windows(found):
    assert found["eight"]["memory"] <= found["one"]["memory"] / 6


def batch():
    return Batch1D(jnp.ones((4, 2, 3)), jnp.ones((4, 2, 3)), times=[0.0, 1.0])


def test_windows_are_shared_and_times_are_everywhere():
    shared = shard_windows(batch(), jax.devices()[:2])
    assert [shard.data.shape for shard in shared.input.addressable_shards] == [(2, 2, 3)] * 2
    assert [shard.data.shape for shard in shared.times.addressable_shards] == [(2,)] * 2
    assert isinstance(shared, Batch1D)


def test_a_model_is_everywhere_whole():
    copied = replicate({"w": jnp.arange(3.0), "f": jax.nn.relu}, jax.devices()[:2])
    assert [shard.data.tolist() for shard in copied["w"].addressable_shards] == [[0.0, 1.0, 2.0]] * 2
    assert copied["f"] is jax.nn.relu


def test_what_is_on_other_devices_is_moved():
    everywhere = replicate(jnp.arange(3.0), jax.devices()[:2])
    assert replicate(everywhere, jax.devices()[:1]).sharding.device_set == {jax.devices()[0]}
    moved = shard_windows(jax.device_put(batch(), jax.devices()[1]), jax.devices()[:2])
    assert moved.input.sharding.device_set == set(jax.devices()[:2])


def test_windows_are_shared_under_jit_too():
    shared = jax.jit(lambda b: shard_windows(b, jax.devices()[:2]))(replicate(batch(), jax.devices()[:2]))
    assert [shard.data.shape for shard in shared.input.addressable_shards] == [(2, 2, 3)] * 2


def test_other_pytrees_are_split_along_their_first_axes():
    shared = shard_windows((jnp.zeros((4, 1)), "name"), jax.devices()[:2])
    assert [shard.data.shape for shard in shared[0].addressable_shards] == [(2, 1)] * 2


def test_windows_that_cannot_be_shared_evenly_are_refused():
    odd = Batch1D(jnp.ones((3, 2, 3)), jnp.ones((3, 2, 3)))
    with pytest.raises(ValueError, match=r"shape \(3, 2, 3\), expected a first axis .* that 2 devices can share"):
        shard_windows(odd, jax.devices()[:2])
