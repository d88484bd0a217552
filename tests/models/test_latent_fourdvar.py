"""Latent 4DVar, with a latent model and with that of the states: their siblings, on Lorenz-96 with 40 variables."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vardax.covariances.dense import DenseCovariance
from vardax.covariances.diagonal import DiagonalCovariance
from vardax.cycle.smoother import VarSmootherCycle
from vardax.dynamics.lorenz96 import Lorenz96
from vardax.dynamics.rollout import rollout
from vardax.latent.eof import EOFBasis
from vardax.latent.forward import EncodedForwardModel
from vardax.latent.lifted import LiftedObservationOperator
from vardax.latent.prior import LatentPrior
from vardax.models.latent_hybrid_fourdvar import LatentHybridFourDVar
from vardax.models.latent_strong_fourdvar import LatentStrongFourDVar
from vardax.models.strong_fourdvar import StrongFourDVar
from vardax.obs_operators.interp import InterpObs
from vardax.obs_operators.point import PointObs
from vardax.primitives.latent import identity_latent_map
from vardax.types import Batch1D, Observations

pytestmark = pytest.mark.x64

N, T = 40, 4
RANDOM = np.random.default_rng(10)
MODEL = Lorenz96(N, dt=0.05)
SEEN = np.arange(0, N, 2)
OBSERVE, R = PointObs(SEEN), DiagonalCovariance(jnp.full(SEEN.size, 0.25))
OPTIONS = {"tol": 1e-12, "max_steps": 3000}


def make_twin():
    """(climate of states, background, batch), all on the attractor."""
    spun = rollout(MODEL, jnp.asarray(8 + 0.1 * RANDOM.normal(size=N)), 1, n_substeps=400)[1]
    climate = np.asarray(rollout(MODEL, spun, 200, n_substeps=2))
    truth = np.asarray(rollout(MODEL, jnp.asarray(climate[-1]), T))
    y = truth[:, SEEN] + 0.5 * RANDOM.normal(size=(T + 1, SEEN.size))
    y[RANDOM.random(y.shape) < 0.2] = np.nan
    return climate, truth[0] + 0.3 * RANDOM.normal(size=N), Batch1D.from_observations(y[None])


CLIMATE, X_B, BATCH = make_twin()
B = 0.09 * np.exp(-np.abs((np.arange(N)[:, None] - np.arange(N) + 20) % N - 20) / 1.5)


@pytest.fixture(scope="module")
def sibling():
    return StrongFourDVar(MODEL, OBSERVE, jnp.asarray(X_B), DenseCovariance(B), R, **OPTIONS).analyse(BATCH)


def latent_methods(latent_map, prior):
    """Both, with a latent model that loses what the map cannot decode."""
    encoded = EncodedForwardModel(latent_map, MODEL)
    yield LatentStrongFourDVar(latent_map, encoded, OBSERVE, prior, R, T, **OPTIONS)
    yield LatentHybridFourDVar(latent_map, MODEL, OBSERVE, prior, R, T, **OPTIONS)


def test_with_the_identity_map_they_are_strong_4dvar(sibling):
    one = identity_latent_map(N)
    for method in latent_methods(one, LatentPrior(one, X_B, DenseCovariance(B))):
        found = method.analyse(BATCH)
        np.testing.assert_allclose(found.state, sibling.state, atol=1e-10)
        np.testing.assert_allclose(found.trajectory, sibling.trajectory, atol=1e-10)
        np.testing.assert_allclose(found.cost.last.total, sibling.cost.last.total, rtol=1e-12)


@pytest.mark.slow
def test_with_all_eofs_and_the_covariance_of_the_sibling_in_their_terms_they_are_it(sibling):
    """B_z = Vᵀ B V: the map is a rotation, and B = V B_z Vᵀ."""
    basis = EOFBasis.from_samples(CLIMATE, N)
    V = np.asarray(basis.modes).T
    prior = LatentPrior(basis, basis.encode(jnp.asarray(X_B)), DenseCovariance(V.T @ B @ V))
    for method in latent_methods(basis, prior):
        np.testing.assert_allclose(method.analyse(BATCH).state, sibling.state, atol=1e-8)


@pytest.mark.slow
def test_with_few_eofs_the_hybrid_is_strong_4dvar_with_the_covariance_of_their_range():
    basis = EOFBasis.from_samples(CLIMATE, 12)
    V, B_z = np.asarray(basis.modes).T, 0.02 * np.asarray(basis.variances)
    prior = LatentPrior(basis, basis.encode(jnp.asarray(X_B)), DiagonalCovariance(B_z))
    found = LatentHybridFourDVar(basis, MODEL, OBSERVE, prior, R, **OPTIONS).analyse(BATCH)
    x_b = basis.decode(prior.z_b)
    expected = StrongFourDVar(MODEL, OBSERVE, x_b, DenseCovariance(V * B_z @ V.T), R, **OPTIONS).analyse(BATCH)
    np.testing.assert_allclose(found.state, expected.state, atol=1e-7)
    np.testing.assert_allclose(found.cost.last.total, expected.cost.last.total, rtol=1e-9)


@pytest.mark.slow
def test_the_strong_one_is_strong_4dvar_of_a_lifted_operator():
    """With a map that loses something: 4DVar of latent vectors with H after the decoder."""
    basis = EOFBasis.from_samples(CLIMATE, 12)
    prior, model = basis.prior(), EncodedForwardModel(basis, MODEL)
    found = LatentStrongFourDVar(basis, model, OBSERVE, prior, R, **OPTIONS).analyse(BATCH)
    lifted = LiftedObservationOperator(basis, OBSERVE)
    expected = StrongFourDVar(model, lifted, prior.z_b, prior.B_z_op, R, **OPTIONS).analyse(BATCH)
    np.testing.assert_allclose(found.latent, expected.state, atol=1e-10)
    np.testing.assert_allclose(found.trajectory[0], jax.vmap(basis.decode)(expected.trajectory[0]), atol=1e-10)


@pytest.mark.slow
def test_scattered_observations_are_read_from_decoded_states():
    one = identity_latent_map(N)
    p = 30
    points = Observations(
        RANDOM.normal(size=p) + 3, np.full(p, 0.5), RANDOM.uniform(0, 0.2, p), RANDOM.uniform(0, N - 1, (p, 1))
    ).window(0.0, 0.2)
    observe = InterpObs([np.arange(float(N))])
    shared = {"n_steps": T, **OPTIONS}
    expected = StrongFourDVar(MODEL, observe, jnp.asarray(X_B), DenseCovariance(B), None, **shared).analyse([points])
    prior, encoded = LatentPrior(one, X_B, DenseCovariance(B)), EncodedForwardModel(one, MODEL)
    method = LatentStrongFourDVar(one, encoded, observe, prior, None, **shared)
    np.testing.assert_allclose(method.analyse([points]).state, expected.state, atol=1e-10)


@pytest.mark.slow
def test_a_cycle_hands_on_decoded_states():
    basis = EOFBasis.from_samples(CLIMATE, N)
    prior = LatentPrior(basis, jnp.zeros(N), DiagonalCovariance(0.02 * basis.variances))
    C = np.cov(CLIMATE.T)
    latent = LatentHybridFourDVar(basis, MODEL, OBSERVE, prior, R, tol=1e-9)
    state = StrongFourDVar(MODEL, OBSERVE, jnp.asarray(X_B), DenseCovariance(0.02 * C), R, tol=1e-9)
    y = jnp.asarray(np.where(np.asarray(BATCH.mask[0]) > 0, BATCH.input[0], np.nan))
    ends = []
    for method in (latent, state):
        cycle = VarSmootherCycle(MODEL, None, method, window=2, obs_source=y, n_steps=3)
        ends.append(cycle(jnp.asarray(X_B))[0])
    np.testing.assert_allclose(*ends, atol=1e-5)


def test_the_number_of_steps_has_to_be_that_of_the_batch():
    one = identity_latent_map(N)
    method = LatentHybridFourDVar(one, MODEL, OBSERVE, LatentPrior(one, X_B, DenseCovariance(B)), R, 3)
    with pytest.raises(ValueError, match="LatentHybridFourDVar: `batch.input` has 5 time entries, expected 4"):
        method.analyse(BATCH)
