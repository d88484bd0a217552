"""A twin of parts: the truth is kept, and what is known of it has errors of the given covariances."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vardax.covariances import DiagonalCovariance
from vardax.dynamics import Lorenz96, rollout
from vardax.models import StrongFourDVar
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
    truth = jnp.broadcast_to(jnp.arange(1.0, N + 1), (3000, N))
    twin = simulate_twin(jax.random.key(0), truth, **PARTS)
    assert twin.trajectory is twin.truth
    background = np.asarray(twin.background - truth) / B_SD
    observations = np.asarray(twin.batch.input[:, 0] - truth[:, jnp.array([0, 3])]) / R_SD
    errors = np.concatenate([background, observations], axis=1)
    assert np.all(np.abs(errors.mean(axis=0)) < 5 / np.sqrt(3000))
    assert np.all(np.abs(np.cov(errors.T) - np.eye(N + 2)) < 5 * np.sqrt(2 / 3000))


def test_a_window_follows_the_model_and_has_its_gaps():
    truth, seen = jnp.ones((2, N)).at[:, 0].set(3.0), np.array([0, 1, 0, 1])
    exact = PARTS | {"obs_cov_op": DiagonalCovariance(jnp.zeros(2))}
    twin = simulate_twin(jax.random.key(0), truth, forward=MODEL, n_steps=3, mask=seen, **exact)
    run = rollout(MODEL, truth[0], 3)
    np.testing.assert_array_equal(twin.trajectory[1], run)
    np.testing.assert_array_equal(twin.batch.mask, np.broadcast_to(seen[None, :, None], (2, 4, 2)))
    np.testing.assert_array_equal(twin.batch.input[0], np.where(seen[:, None], np.asarray(run)[:, [0, 3]], 0))


def test_model_errors_make_the_samples_differ():
    Q = DiagonalCovariance(jnp.full(N, 0.01))
    twin = simulate_twin(jax.random.key(0), jnp.ones((2, N)), forward=MODEL, n_steps=2, model_err_cov_op=Q, **PARTS)
    np.testing.assert_array_equal(twin.trajectory[0, 0], twin.trajectory[1, 0])
    assert np.all(np.asarray(twin.trajectory[0, 1:]) != np.asarray(twin.trajectory[1, 1:]))


def test_the_same_key_gives_the_same_twin_also_under_jit():
    make = lambda key: simulate_twin(key, jnp.zeros((2, N)), **PARTS)  # noqa: E731
    one, again = make(jax.random.key(5)), jax.jit(make)(jax.random.key(5))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), one, again)
    np.testing.assert_array_equal(one.background, make(jax.random.key(5)).background)
    assert not np.array_equal(one.background, make(jax.random.key(6)).background)
    many = jax.vmap(make)(jax.random.split(jax.random.key(7), 3))
    assert many.background.shape == (3, 2, N)


def test_a_method_takes_it_as_it_is():
    twin = simulate_twin(jax.random.key(0), jnp.full((2, N), 2.0), forward=MODEL, n_steps=2, **PARTS)
    method = StrongFourDVar(MODEL, PARTS["obs_op"], jnp.zeros(N), PARTS["prior_cov_op"], PARTS["obs_cov_op"])
    analysis = method.analyse(twin.batch, background=twin.background)
    assert analysis.state.shape == (2, N)
    assert np.all(np.asarray(analysis.converged))


def test_the_batch_has_the_axes_of_the_observations():
    B = DiagonalCovariance(jnp.ones((2, 3)))
    twin = simulate_twin(jax.random.key(0), jnp.zeros((4, 2, 3)), obs_op=MaskedIdentity(), prior_cov_op=B, obs_cov_op=B)
    assert isinstance(twin.batch, Batch2D)
    assert twin.batch.input.shape == (4, 1, 2, 3)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="`n_steps` and `model_err_cov_op` are those of a model, and `forward` is"):
        simulate_twin(jax.random.key(0), jnp.zeros((1, N)), n_steps=2, **PARTS)
    sums = PARTS | {"obs_op": lambda x: jnp.sum(x), "obs_cov_op": DiagonalCovariance(jnp.ones(()))}
    with pytest.raises(ValueError, match=r"`obs_op` gives observations of shape \(\), expected one to three axes"):
        simulate_twin(jax.random.key(0), jnp.zeros((1, N)), **sums)
