"""A twin of parts: the truth is kept, and what is known of it has errors of the given covariances."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vardax.covariances import DiagonalCovariance
from vardax.dynamics import Lorenz96, rollout
from vardax.obs_operators import MaskedIdentity, PointObs
from vardax.simulation import simulate_twin
from vardax.types import Batch2D

N, B_SD, R_SD = 6, 0.5, 0.2
PARTS = {
    "obs_op": PointObs([0, 3]),
    "prior_cov_op": DiagonalCovariance(jnp.full(N, B_SD**2)),
    "obs_cov_op": DiagonalCovariance(jnp.full(2, R_SD**2)),
}
MODEL = Lorenz96(N, dt=0.02)


def test_all_errors_are_as_large_as_they_are_said_to_be_and_independent():
    """Of the background, of the model over one interval, and of the observations at both its ends."""
    n, q_sd = 3000, 0.1
    truth, Q = jnp.broadcast_to(jnp.arange(1.0, N + 1), (n, N)), DiagonalCovariance(jnp.full(N, q_sd**2))
    twin = simulate_twin(jax.random.key(0), truth, forward=MODEL, n_steps=1, model_err_cov_op=Q, **PARTS)
    start, end = twin.trajectory[:, 0], twin.trajectory[:, 1]
    background = np.asarray(twin.background - truth) / B_SD
    model = np.asarray(end - MODEL.step(start, MODEL.dt)) / q_sd
    observations = np.asarray(twin.batch.input - twin.trajectory[..., jnp.array([0, 3])]).reshape(n, 4) / R_SD
    errors = np.concatenate([background, model, observations], axis=1)
    assert np.all(np.abs(errors.mean(axis=0)) < 5 / np.sqrt(n))
    assert np.all(np.abs(np.cov(errors.T) - np.eye(2 * N + 4)) < 5 * np.sqrt(2 / n))
    np.testing.assert_array_equal(start, truth)


def test_a_window_follows_the_model_and_has_its_gaps():
    truth, seen = jnp.ones((2, N)).at[:, 0].set(3.0), np.array([0, 1, 0, 1])
    exact = PARTS | {"obs_cov_op": DiagonalCovariance(jnp.zeros(2))}
    twin = simulate_twin(jax.random.key(0), truth, forward=MODEL, n_steps=3, mask=seen, **exact)
    run = rollout(MODEL, truth[0], 3)
    np.testing.assert_array_equal(twin.trajectory[1], run)
    np.testing.assert_array_equal(twin.batch.mask, np.broadcast_to(seen[None, :, None], (2, 4, 2)))
    np.testing.assert_array_equal(twin.batch.input[0], np.where(seen[:, None], np.asarray(run)[:, [0, 3]], 0))


def test_the_key_fixes_the_twin():
    make = lambda key: simulate_twin(jax.random.key(key), jnp.zeros((2, N)), **PARTS)  # noqa: E731
    one, again, other = make(5), make(5), make(6)
    assert one.trajectory is one.truth
    jax.tree.map(np.testing.assert_array_equal, one, again)
    assert not np.array_equal(one.background, other.background)
    assert not np.array_equal(one.background[0], one.background[1])


def test_the_batch_has_the_axes_of_the_observations():
    B = DiagonalCovariance(jnp.ones((2, 3)))
    parts = {"obs_op": MaskedIdentity(), "prior_cov_op": B, "obs_cov_op": B}
    twin = jax.eval_shape(lambda key: simulate_twin(key, jnp.zeros((4, 2, 3)), **parts), jax.random.key(0))
    assert isinstance(twin.batch, Batch2D)
    assert twin.batch.input.shape == (4, 1, 2, 3)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="`n_steps` and `model_err_cov_op` are those of a model, and `forward` is"):
        simulate_twin(jax.random.key(0), jnp.zeros((1, N)), n_steps=2, **PARTS)
    sums = PARTS | {"obs_op": lambda x: jnp.sum(x), "obs_cov_op": DiagonalCovariance(jnp.ones(()))}
    with pytest.raises(ValueError, match=r"`obs_op` gives observations of shape \(\), expected one to three axes"):
        jax.eval_shape(lambda key: simulate_twin(key, jnp.zeros((1, N)), **sums), jax.random.key(0))
