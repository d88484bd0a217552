"""The joint posterior of a window, and of the state at each of its entries, against dense algebra."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vardax.covariances.dense import DenseCovariance
from vardax.dynamics.discrete import DiscreteForward
from vardax.minimisers.gauss_newton import GaussNewtonKrylov, IncrementalConfig
from vardax.minimisers.transforms import Exp
from vardax.models.optimal_interpolation import OptimalInterpolation
from vardax.models.strong_fourdvar import StrongFourDVar
from vardax.models.weak_fourdvar import WeakFourDVar
from vardax.obs_operators.linear import LinearObs
from vardax.posterior.gauss_newton_hessian import GaussNewtonHessian
from vardax.types import Batch1D

X64 = jax.config.jax_enable_x64
TIGHT = {"rtol": 1e-7, "atol": 1e-9} if X64 else {"rtol": 3e-3, "atol": 3e-3}
RNG = np.random.default_rng(31)
N, T, SAMPLES, DRAWS = 3, 2, 2, 4000


def covariance(n, scale):
    root = RNG.normal(size=(n, n))
    return scale * (root @ root.T / n + 0.3 * np.eye(n))


M, B, Q = 0.9 * np.linalg.qr(RNG.normal(size=(N, N)))[0], covariance(N, 1.0), covariance(N, 0.3)
FORWARD = DiscreteForward(lambda x: jnp.asarray(M) @ x, 1.0)


def observed(m):
    """(H, R, y with gaps) of m observations an entry."""
    y = RNG.normal(size=(SAMPLES, T + 1, m))
    y[0, 1, 0] = y[1, 2] = np.nan
    return RNG.normal(size=(m, N)), covariance(m, 0.2), y


def states():
    """The matrices from (x_0, eta_1 .. eta_T) to x_0 .. x_T."""
    rows = [np.eye(N, N * (T + 1))]
    for t in range(1, T + 1):
        rows.append(M @ rows[-1] + np.eye(N * (T + 1))[N * t : N * (t + 1)])
    return np.stack(rows)


def joint_covariance(H, R, y):
    """That of (x_0, eta_1 .. eta_T)."""
    precision = np.linalg.inv(np.kron(np.diag([1.0, 0, 0]), B) + np.kron(np.diag([0, 1.0, 1.0]), Q))
    for at, row in zip(states(), y, strict=True):
        seen = np.isfinite(row)
        G = (H @ at)[seen]
        precision = precision + G.T @ np.linalg.inv(R[np.ix_(seen, seen)]) @ G if seen.any() else precision
    return np.linalg.inv(precision)


@pytest.fixture(scope="module")
def weak():
    """(posterior, dense covariances of the joint control); fewer observations than controls."""
    H, R, y = observed(2)
    slots = (FORWARD, LinearObs(H), RNG.normal(size=N), *map(DenseCovariance, (B, R, Q)))
    minimiser = GaussNewtonKrylov(IncrementalConfig(n_outer=2))
    posterior = WeakFourDVar(*slots, minimiser=minimiser).posterior(Batch1D.from_observations(y))
    return posterior, np.stack([joint_covariance(H, R, row) for row in y])


def flat(pair):
    return np.concatenate([np.asarray(leaf).reshape(SAMPLES, -1) for leaf in pair], axis=1)


def test_the_posterior_of_weak_4dvar_is_joint(weak):
    posterior, dense = weak
    np.testing.assert_allclose(flat(posterior.std()), np.sqrt(np.diagonal(dense, axis1=1, axis2=2)), **TIGHT)
    for column in (0, N + 1):
        unit = np.tile(np.eye(N * (T + 1))[column], (SAMPLES, 1))
        split = (jnp.asarray(unit[:, :N]), jnp.asarray(unit[:, N:].reshape(SAMPLES, T, N)))
        np.testing.assert_allclose(flat(posterior.cov.mv(split)), dense[:, column], **TIGHT)


def test_its_determinant_and_information_gain(weak):
    posterior, dense = weak
    expected = np.linalg.slogdet(dense)[1]
    prior = np.linalg.slogdet(B)[1] + T * np.linalg.slogdet(Q)[1]
    np.testing.assert_allclose(posterior.logdet(), expected, rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(posterior.information_gain(), 0.5 * (prior - expected), rtol=1e-4)


def test_the_state_at_every_entry_of_the_window(weak):
    posterior, dense = weak
    carried = np.einsum("tij,bjk,tlk->btil", states(), dense, states())
    expected = np.sqrt(np.diagonal(carried, axis1=2, axis2=3))
    np.testing.assert_allclose(posterior.trajectory().std(), expected, **TIGHT)
    last = posterior.at(-1)
    np.testing.assert_allclose(last.std(), expected[:, -1], **TIGHT)
    np.testing.assert_allclose(posterior.at(1).std(), expected[:, 1], **TIGHT)
    np.testing.assert_allclose(posterior.at(0).mean, posterior.mean[0], **TIGHT)
    np.testing.assert_allclose(last.mean, posterior.trajectory().mean[:, -1], **TIGHT)
    unit = jnp.asarray(np.tile(np.eye(N)[0], (SAMPLES, 1)))
    np.testing.assert_allclose(last.cov.mv(unit), carried[:, -1, :, 0], **TIGHT)


def test_samples_at_an_entry_have_its_covariance(weak):
    posterior, dense = weak
    draws = np.asarray(posterior.at(T).sample(jax.random.key(2), DRAWS))
    for sample in range(SAMPLES):
        P = states()[T] @ dense[sample] @ states()[T].T
        spread = np.sqrt(np.diag(P))
        assert np.all(np.abs(np.cov(draws[sample].T) - P) < 6 * np.outer(spread, spread) / DRAWS**0.5)


def test_quantiles_of_a_later_entry_are_those_of_the_gaussian(weak):
    last = weak[0].at(T)
    upper = last.quantile(0.975)
    np.testing.assert_allclose(upper, last.mean + 1.959964 * last.std(), **TIGHT)


@pytest.mark.slow
def test_a_transform_stays_at_the_start_of_a_window():
    """x_0 is positive in every quantile and sample; later entries are Gaussian around the trajectory."""
    H, R, y = np.eye(2, N), 0.01 * np.eye(2), np.exp(0.2 * RNG.normal(size=(SAMPLES, T + 1, 2)))
    model = DiscreteForward(lambda x: x * (1 + 0.1 * jnp.roll(x, 1)), 1.0)
    slots = (model, LinearObs(H), np.full(N, 0.3), DenseCovariance(0.2 * B), DenseCovariance(R))
    strong = StrongFourDVar(*slots, control_transform=Exp())
    posterior = strong.posterior(Batch1D.from_observations(y))
    assert np.all(posterior.quantile(1e-6) > 0)
    np.testing.assert_allclose(posterior.quantile(0.5), posterior.mean, rtol=1e-5)
    krylov = strong.posterior(Batch1D.from_observations(y), adapter=GaussNewtonHessian())
    for t in (0, T):
        np.testing.assert_allclose(krylov.at(t).std(), posterior.at(t).std(), rtol=2e-3)
    assert np.all(krylov.trajectory().sample(jax.random.key(0), 20) > 0)


def test_one_time_has_no_window():
    method = OptimalInterpolation(LinearObs(np.eye(N)), np.zeros(N), DenseCovariance(B), DenseCovariance(np.eye(N)))
    posterior = method.posterior(Batch1D.from_observations(np.ones((1, N))))
    with pytest.raises(ValueError, match=r"Posterior.at needs a window; this is the posterior of one time"):
        posterior.at(0)


def test_an_entry_outside_the_window_is_refused(weak):
    posterior, _ = weak
    with pytest.raises(ValueError, match=r"Posterior.at: `t` is 3, expected an entry of the window, 0 to 2"):
        posterior.at(3)
    with pytest.raises(ValueError, match=r"logdet: that of Entry is not known without its matrix"):
        posterior.at(1).logdet()
