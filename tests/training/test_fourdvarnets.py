"""4DVarNet trains: on windows of Lorenz-63, with an integer leaf, resumed bit for bit, and in and out as bytes."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vardax.adjoints import DirectAdjoint
from vardax.dynamics import Lorenz63, rollout
from vardax.experiments import fit
from vardax.models import FourDVarNet1D
from vardax.obs_operators import PointObs
from vardax.persist import SavedModel
from vardax.training import eval_step, learned, train_step
from vardax.types import Batch1D

pytestmark = pytest.mark.slow

T = 6
OPTIMIZER = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-2))


def model(seed=0):
    """It sees the first and the third component: the operator's indices are integers."""
    sizes = {"state_dim": 3, "n_time": T, "latent_dim": 6, "hidden_dim": 6, "n_solver_steps": 3}
    slots = {"obs_op": PointObs(jnp.array([0, 2])), "solver_adjoint": DirectAdjoint()}
    return FourDVarNet1D(**sizes, **slots, key=jax.random.key(seed))


@pytest.fixture(scope="module")
def data():
    starts = jnp.array([[1.0, 1.0, 20.0]]) + 5 * jax.random.normal(jax.random.key(1), (24, 3))
    run = jax.vmap(lambda x: rollout(Lorenz63(dt=0.03), x, 50 + T - 1)[50:])
    truth = (jax.jit(run)(starts) - jnp.array([[[0.0, 0.0, 23.5]]])) / 8
    seen = np.where((np.arange(T) % 2 == 0)[:, None], np.asarray(truth)[..., [0, 2]], np.nan)
    return Batch1D.from_observations(seen, truth)


def steps(data, n):
    """Steps by hand, and their losses."""
    trained, losses = model(), []
    opt_state = OPTIMIZER.init(learned(trained))
    for _ in range(n):
        trained, opt_state, loss = train_step(trained, data, OPTIMIZER, opt_state)
        losses.append(float(loss))
    return trained, losses


def test_the_loss_falls_and_only_the_networks_change(data):
    trained, losses = steps(data, 150)
    assert losses[-1] < 0.5 * losses[0]
    assert float(eval_step(trained, data)) < losses[0]
    assert trained.obs_op.indices.tolist() == [0, 2]
    assert jnp.issubdtype(trained.obs_op.indices.dtype, jnp.integer)
    before = model()
    same = jax.tree.map(np.array_equal, eqx.filter(before, eqx.is_array), eqx.filter(trained, eqx.is_array))
    assert not any(jax.tree.leaves((same.prior, same.grad_mod)))
    assert same.obs_op.indices
    assert jax.tree.structure(learned(trained)) == jax.tree.structure(learned(before))


def test_a_training_that_was_interrupted_goes_on_bit_for_bit(data, tmp_path):
    options = {"folder": tmp_path, "checkpoint_every": 2}
    fit(model(), [data], OPTIMIZER, 2, **options)
    resumed = fit(model(), [data], OPTIMIZER, 5, **options)
    trained, losses = steps(data, 5)
    assert [record["loss"] for record in resumed.history] == losses
    assert eqx.tree_equal(resumed.model, trained)


def test_weights_go_out_and_in_as_bytes(data):
    trained, _ = steps(data, 2)
    received = SavedModel(model(1)).with_weights(SavedModel(trained).serialize_weights())
    assert eqx.tree_equal(received.model, trained)
    assert np.array_equal(received(data), trained(data))
