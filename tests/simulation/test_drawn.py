"""A twin drawn from a method has the joint distribution of truth and observations that the method assumes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vardax.covariances import DenseCovariance, DiagonalCovariance
from vardax.dynamics import Lorenz96, rollout
from vardax.minimisers import Exp
from vardax.models import OptimalInterpolation, StrongFourDVar, ThreeDVar, WeakFourDVar
from vardax.models.biases import ObservationBias
from vardax.models.digital_filter import DigitalFilter
from vardax.obs_operators import InterpObs, LinearObs, MaskedIdentity, PointObs
from vardax.simulation import draw_twin
from vardax.types import Batch1D, Grid, Observations

RANDOM = np.random.default_rng(3)
DRAWS = 4000
N = 4
MODEL = Lorenz96(N, dt=0.02)
R_ONE = DiagonalCovariance(jnp.full(2, 0.04))


def covariance(n):
    root = RANDOM.normal(size=(n, n))
    return root @ root.T / n + 0.5 * np.eye(n)


def window_method(cls=StrongFourDVar, **options):
    slots = (MODEL, PointObs([0, 2]), jnp.full(N, 2.0), DiagonalCovariance(jnp.full(N, 0.25)), R_ONE)
    errors = (DiagonalCovariance(jnp.array([0.1, 0.2, 0.3, 0.4])),) if cls is WeakFourDVar else ()
    return cls(*slots, *errors, **options)


def window(samples, entries=3):
    return Batch1D.from_observations(jnp.zeros((samples, entries, 2)))


def test_truth_and_observations_have_their_joint_covariance():
    B, R, H, mean = covariance(N), covariance(2), RANDOM.normal(size=(2, N)), RANDOM.normal(size=N)
    method = OptimalInterpolation(LinearObs(H), mean, DenseCovariance(B), DenseCovariance(R))
    twin = draw_twin(jax.random.key(0), method, Batch1D.from_observations(jnp.zeros((DRAWS, 2))))
    found = np.concatenate([twin.truth, twin.batch.input], axis=1)
    assert found.shape == (DRAWS, N + 2)
    joint = np.block([[B, B @ H.T], [H @ B, H @ B @ H.T + R]])
    variances = np.diag(joint)
    assert np.all(np.abs(found.mean(axis=0) - np.r_[mean, H @ mean]) < 5 * np.sqrt(variances / DRAWS))
    error = np.sqrt((np.outer(variances, variances) + joint**2) / DRAWS)
    assert np.all(np.abs(np.cov(found.T) - joint) < 5 * error)
    np.testing.assert_array_equal(twin.background, np.broadcast_to(np.asarray(method.prior_mean), (DRAWS, N)))


def test_gaps_and_standard_deviations_are_those_of_the_layout():
    values = np.zeros((DRAWS, 2))
    values[1::2, 0] = np.nan
    errors = jnp.broadcast_to(jnp.array([3.0, 0.1]), (DRAWS, 2))
    like = Batch1D.from_observations(values, obs_err=errors, target=jnp.ones((DRAWS, 2)))
    exact = DiagonalCovariance(jnp.zeros(2))
    method = OptimalInterpolation(MaskedIdentity(), jnp.ones(2), exact, DiagonalCovariance(jnp.full(2, 7.0)))
    drawn = draw_twin(jax.random.key(1), method, like).batch
    np.testing.assert_array_equal(drawn.mask, like.mask)
    np.testing.assert_array_equal(drawn.input[1::2, 0], np.zeros(DRAWS // 2))
    spread = [np.std(np.asarray(drawn.input)[::2, 0]), np.std(np.asarray(drawn.input)[:, 1])]
    np.testing.assert_allclose(spread, [3.0, 0.1], rtol=5 / np.sqrt(DRAWS))  # and not the deviations of R
    assert drawn.target is None


def test_a_window_is_that_of_its_truth():
    twin = draw_twin(jax.random.key(2), window_method(), window(2))
    for truth, trajectory in zip(twin.truth, twin.trajectory, strict=True):
        np.testing.assert_allclose(trajectory, rollout(MODEL, truth, 2), rtol=1e-5)
    errors = np.asarray(twin.batch.input - twin.trajectory[..., jnp.array([0, 2])])
    assert 0 < np.max(np.abs(errors)) < 5 * 0.2


def test_the_key_fixes_the_twin_and_samples_differ():
    method, like = window_method(), window(2)
    one, again, other = (draw_twin(jax.random.key(k), method, like) for k in (7, 7, 8))
    jax.tree.map(np.testing.assert_array_equal, one, again)
    assert not np.any(np.asarray(one.truth) == np.asarray(other.truth))
    assert not np.any(np.asarray(one.truth[0]) == np.asarray(one.truth[1]))


def test_model_errors_and_biases_are_drawn_with_the_state():
    method = window_method(WeakFourDVar, joint=ObservationBias(jnp.zeros(()), 1e4))
    twin = draw_twin(jax.random.key(3), method, window(2000))
    start, errors, bias = twin.truth
    assert start.shape == twin.background.shape == (2000, N)
    assert errors.shape == (2000, 2, N)
    np.testing.assert_allclose(
        np.var(np.asarray(errors), axis=(0, 1)), [0.1, 0.2, 0.3, 0.4], rtol=5 * np.sqrt(2 / 4000)
    )
    stepped = MODEL.step(twin.trajectory[:, 0], MODEL.dt)
    np.testing.assert_allclose(twin.trajectory[:, 1] - stepped, errors[:, 0], atol=1e-4)
    gap = np.asarray(twin.batch.input - twin.trajectory[..., jnp.array([0, 2])])
    np.testing.assert_allclose(gap, np.broadcast_to(np.asarray(bias)[:, None, None], gap.shape), atol=6 * 0.2)
    np.testing.assert_allclose(np.var(np.asarray(bias)), 1e4, rtol=5 * np.sqrt(2 / 2000))


def test_points_keep_their_places_and_a_transformed_truth_is_positive():
    grid = Grid([jnp.arange(8.0)])
    points = [
        Observations(value=np.zeros(p), error=np.full(p, 1e-4), time=np.zeros(p), coords=np.linspace(1, 5, p)[:, None])
        for p in (3, 5)
    ]
    B = DiagonalCovariance(jnp.ones(8))
    twin = draw_twin(
        jax.random.key(6), ThreeDVar(InterpObs(grid), jnp.full(8, 2.0), B, None, control_transform=Exp()), points
    )
    truth = np.asarray(twin.truth)
    assert [o.value.shape for o in twin.batch] == [(3,), (5,)]
    np.testing.assert_allclose(twin.batch[0].value, truth[0, [1, 3, 5]], atol=1e-3)
    np.testing.assert_allclose(twin.batch[1].value, truth[1, 1:6], atol=1e-3)
    assert np.all(truth > 0)
    assert 0.5 < np.std(np.log(truth / 2)) < 1.7


def test_what_is_no_generative_model_is_refused():
    key, like = jax.random.key(0), window(1, 4)
    with pytest.raises(ValueError, match=r"`parallel=True` has parts without a prior.*with_\(parallel=False\)"):
        draw_twin(key, window_method(WeakFourDVar, parallel=True), like)
    filtered = window_method(terms=(DigitalFilter(cutoff=4.0),))
    with pytest.raises(ValueError, match=r"further terms of its cost.*with_\(terms=\(\)\)"):
        draw_twin(key, filtered, window(1, 5))
    with pytest.raises(TypeError, match=r"draw_twin: `like` is .*expected Batch1D"):
        draw_twin(key, window_method(), jnp.zeros((1, 3, 2)))
    with pytest.raises(TypeError, match="draw_twin: `method` is Lorenz96, expected a method"):
        draw_twin(key, MODEL, like)
