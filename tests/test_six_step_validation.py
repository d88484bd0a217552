"""The inference cycle as a chain of gates: each step is held against the one before it, the costlier one.

    1 physics      a model whose adjoint is right
    2 MAP, MCMC    a 40-variable 4DVar with its Laplace posterior, against samples by NUTS in its whitened control space
    3 emulator     4DVar with a cheaper model, against 4DVar with the physics
    4 faster       incremental 4DVar against 4DVar, and implicit gradients against those through every iteration
    5 amortised    a posterior that was learnt from twins, against the closed form, and by simulation-based calibration
    6 improve      what failed a gate is improved until it passes

Every gate also fails a seeded fault, so that passing means something.
"""

import blackjax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optimistix as optx
import pytest

from vardax.adjoints import DirectAdjoint, ImplicitAdjoint
from vardax.covariances import DenseCovariance, DiagonalCovariance
from vardax.dynamics import rollout
from vardax.dynamics.lorenz96 import advection
from vardax.models import (
    IncrementalConfig,
    IncrementalFourDVar,
    OptimalInterpolation,
    StrongFourDVar,
    ThreeDVar,
)
from vardax.obs_operators import CallableObs, PointObs
from vardax.posterior import Posterior
from vardax.simulation import draw_twin
from vardax.types import Batch1D
from vardax.validation import (
    ValidationError,
    adjoint_test,
    assert_adjoint_calibrated,
    assert_posterior_agreement,
    simulation_based_calibration,
)

pytestmark = [pytest.mark.slow, pytest.mark.x64]  # one 4DVar and one sampler are compiled for the whole file

N, ENTRIES, SIGMA_B, SIGMA_O = 40, 4, 0.3, 0.3
OBSERVED = np.arange(0, N, 2)
CHAINS, WARM_UP, DRAWS = 4, 100, 800


class Physics(eqx.Module):
    """Lorenz-96 whose nonlinear term counts `nonlinearity` times; the rest of it is a linear wave."""

    nonlinearity: jax.Array
    dt: float = 0.05

    def tendency(self, x):
        wave = 2.0 * (jnp.roll(x, 1) - jnp.roll(x, -1))
        return self.nonlinearity * advection(x) + (1 - self.nonlinearity) * wave - x + 8.0

    def step(self, state, dt):
        k1 = self.tendency(state)
        k2 = self.tendency(state + dt / 2 * k1)
        k3 = self.tendency(state + dt / 2 * k2)
        return state + dt / 6 * (k1 + 2 * k2 + 2 * k3 + self.tendency(state + dt * k3))


def physics(nonlinearity=1.0):
    return Physics(jnp.asarray(nonlinearity))


def background_covariance():
    d = np.abs(np.subtract.outer(np.arange(N), np.arange(N)))
    return SIGMA_B**2 * (np.exp(-(np.minimum(d, N - d) ** 2) / 8) + 1e-3 * np.eye(N))


@pytest.fixture(scope="module")
def slots():
    start = jnp.asarray(8 + np.random.default_rng(0).normal(size=N))
    return {
        "forward": physics(),
        "obs_op": PointObs(OBSERVED),
        "prior_mean": rollout(physics(), start, 1, n_substeps=200)[-1],
        "prior_cov_op": DenseCovariance(background_covariance()),
        "obs_cov_op": DiagonalCovariance(np.full(OBSERVED.size, SIGMA_O**2)),
    }


@pytest.fixture(scope="module")
def method(slots):
    return StrongFourDVar(**slots)


def observations(method):
    like = Batch1D.from_observations(jnp.zeros((1, ENTRIES, OBSERVED.size)))
    return draw_twin(jax.random.key(1), method, like).batch


@pytest.fixture(scope="module")
def batch(method):
    return observations(method)


@eqx.filter_jit
def chains(problem, key):
    """(chains, draws, N): p(chi | y) is proportional to exp(-J(chi)), and the prior of chi is white."""

    def log_density(chi):
        return -problem.cost(chi[None])[0]

    def chain(key):
        for_start, for_draws = jax.random.split(key)
        kernel = blackjax.nuts(log_density, step_size=0.3, inverse_mass_matrix=jnp.ones(N))

        def step(state, key):
            state, _ = kernel.step(key, state)
            return state, state.position

        start = kernel.init(0.1 * jax.random.normal(for_start, (N,)))
        return jax.lax.scan(step, start, jax.random.split(for_draws, WARM_UP + DRAWS))[1][WARM_UP:]

    return jax.lax.map(chain, jax.random.split(key, CHAINS))


effective_sample_size = jax.jit(blackjax.diagnostics.effective_sample_size)


def nuts(method, batch):
    """The posterior by sampling, and how many independent draws it is worth for means and for variances."""
    problem = method.problem(batch)
    draws = chains(problem, jax.random.key(0))
    squares = (draws - jnp.mean(draws, axis=(0, 1), keepdims=True)) ** 2
    worth = [float(jnp.min(effective_sample_size(x))) for x in (draws, squares)]
    states = jax.vmap(lambda chi: problem.control_to_state(chi[None])[0])(draws.reshape(-1, N))
    return Posterior(jnp.mean(states, axis=0), samples=states), min(worth)


@pytest.fixture(scope="module")
def oracle(method, batch):
    return nuts(method, batch)


# -- 1: physics ------------------------------------------------------------------------------------------------------


def test_step_1_the_adjoint_of_the_model_is_right(slots):
    assert adjoint_test(physics(), slots["prior_mean"]).raise_if_failed()


# -- 2: MAP and spread against NUTS ----------------------------------------------------------------------------------


def test_step_2_the_laplace_posterior_agrees_with_nuts(method, batch, oracle):
    sampled, worth = oracle
    assert worth > 1000
    posterior = method.posterior(batch)
    assert float(jnp.mean(posterior.std())) < 0.5 * SIGMA_B  # there is something to agree on
    assert_posterior_agreement(posterior, sampled, mean=0.03, spread=0.03, covariance=0.05, n_effective=worth)


def test_step_2_seeded_faults_are_seen(method, batch, oracle):
    sampled, worth = oracle
    wrong_errors = method.with_(obs_cov_op=DiagonalCovariance(np.full(OBSERVED.size, 1.5 * SIGMA_O**2)))
    with pytest.raises(ValidationError, match=r"spread +\S+ +<= \S+ +FAILED"):
        assert_posterior_agreement(wrong_errors.posterior(batch), sampled, n_effective=worth)
    posterior = method.posterior(batch)
    biased = Posterior(posterior.mean + 0.3 * posterior.std(), posterior.cov)
    with pytest.raises(ValidationError, match="FAILED: 1 of 3 checks: mean"):
        assert_posterior_agreement(biased, sampled, n_effective=worth)


def test_step_2_is_exact_where_all_is_linear(method):
    """The dense formula to rounding, and NUTS within nothing but its own sampling error."""
    linear = method.with_(forward=physics(0.0))
    batch = observations(linear)
    predicted = lambda x: rollout(linear.forward, x, ENTRIES - 1)[:, OBSERVED].ravel()  # noqa: E731
    G, B = np.asarray(jax.jacobian(predicted)(linear.prior_mean)), background_covariance()
    innovation = np.asarray(batch.input).ravel() - np.asarray(predicted(linear.prior_mean))
    gain = B @ G.T @ np.linalg.inv(G @ B @ G.T + SIGMA_O**2 * np.eye(G.shape[0]))
    exact = Posterior(linear.prior_mean + gain @ innovation, DenseCovariance(B - gain @ G @ B))
    posterior = linear.posterior(batch)
    assert_posterior_agreement(posterior, exact, mean=1e-4, spread=1e-6, covariance=1e-6)
    sampled, worth = nuts(linear, batch)
    assert_posterior_agreement(posterior, sampled, mean=0, spread=0, covariance=0, n_effective=worth)


# -- 3 and 6: an emulator against the physics, improved until it passes ------------------------------------------------


def test_step_3_an_emulator_fails_until_it_is_improved(method, batch):
    by_physics = method.posterior(batch)
    with pytest.raises(ValidationError, match="the mean is off"):
        assert_posterior_agreement(method.with_(forward=physics(0.97)).posterior(batch), by_physics)
    assert_posterior_agreement(method.with_(forward=physics(0.999)).posterior(batch), by_physics)


# -- 4: faster inference ---------------------------------------------------------------------------------------------


def test_step_4_incremental_4dvar_agrees_with_4dvar(slots, method, batch):
    faster, reference = (
        IncrementalFourDVar(**slots, config=IncrementalConfig(n_outer=6), tol=1e-4),
        method.posterior(batch),
    )
    assert_posterior_agreement(faster.posterior(batch), reference, mean=1e-3, spread=1e-3, covariance=1e-3)
    wrong_errors = faster.with_(obs_cov_op=DiagonalCovariance(np.full(OBSERVED.size, SIGMA_O**2 / 1.5)))
    with pytest.raises(ValidationError):
        assert_posterior_agreement(wrong_errors.posterior(batch), reference)


def test_step_4_implicit_gradients_agree_with_those_through_every_iteration():
    """d/dx_b and d/dy of a scalar of the analysis of a nonlinear 3DVar."""
    B = background_covariance()[:6, :6]
    operator = CallableObs(lambda x: x[::2] + 0.3 * x[1::2] ** 2)
    R = DiagonalCovariance(np.full(3, SIGMA_O**2))
    weights = jnp.asarray(np.random.default_rng(1).normal(size=6))
    solver = optx.BFGS(rtol=1e-10, atol=1e-10)

    def gradient(adjoint):
        def loss(background, y):
            method = ThreeDVar(operator, background, DenseCovariance(B), R, solver, adjoint, max_steps=40)
            return jnp.sum(weights * method(Batch1D.from_observations(y))[0])

        return jax.jit(jax.grad(loss, argnums=(0, 1)))(jnp.full(6, 1.0), jnp.array([[1.2, 1.6, 1.1]]))

    exact, implicit = gradient(DirectAdjoint()), gradient(ImplicitAdjoint())
    assert_adjoint_calibrated(implicit, exact, cosine=0.9999, norm=1e-3)
    with pytest.raises(ValidationError, match="is too long: 1.1 times"):
        assert_adjoint_calibrated(jax.tree.map(lambda g: 1.1 * g, implicit), exact)


# -- 5: an amortised posterior ---------------------------------------------------------------------------------------


class Regression(eqx.Module):
    """x | y ~ N(a + K y, S): what a linear amortised posterior learns from pairs (x, y)."""

    offset: jax.Array
    gain: jax.Array
    covariance: DenseCovariance

    @classmethod
    def fitted(cls, x, y, inflation=1.0):
        design = np.concatenate([np.ones((len(y), 1)), y], axis=1)
        coefficients, *_ = np.linalg.lstsq(design, x, rcond=None)
        residual = x - design @ coefficients
        S = inflation * residual.T @ residual / (len(x) - design.shape[1])
        return cls(jnp.asarray(coefficients[0]), jnp.asarray(coefficients[1:].T), DenseCovariance(S))

    def posterior_of(self, y):
        return Posterior(self.offset + self.gain @ y, self.covariance)

    def __call__(self, key, batch, n):
        keys = jax.random.split(key, batch.input.shape[0])
        return jax.vmap(lambda k, y: self.posterior_of(y).sample(k, n))(keys, batch.input)


def test_step_5_a_posterior_learnt_from_twins_passes_both_gates():
    B, seen, y = background_covariance()[:6, :6], [0, 2, 5], np.array([1.3, 0.8, 1.1])
    R = SIGMA_O**2 * np.eye(3)
    method = OptimalInterpolation(PointObs(seen), jnp.ones(6), DenseCovariance(B), DenseCovariance(R))
    gain = B[:, seen] @ np.linalg.inv(B[np.ix_(seen, seen)] + R)
    closed_form = Posterior(jnp.asarray(1 + gain @ (y - 1)), DenseCovariance(B - gain @ B[seen]))
    training = draw_twin(jax.random.key(3), method, Batch1D.from_observations(jnp.zeros((5000, 3))))
    pairs = np.asarray(training.truth), np.asarray(training.batch.input)
    right, narrow = Regression.fitted(*pairs), Regression.fitted(*pairs, inflation=1 / 1.5)
    assert_posterior_agreement(right.posterior_of(jnp.asarray(y)), closed_form, mean=0.1, spread=0.05)
    like = Batch1D.from_observations(jnp.zeros((100, 3)))
    report = simulation_based_calibration(right, like, generator=method)
    assert report, str(report)
    with pytest.raises(ValidationError, match="the posterior is too narrow"):
        assert_posterior_agreement(narrow.posterior_of(jnp.asarray(y)), closed_form)
    assert "the posterior is too narrow" in simulation_based_calibration(narrow, like, generator=method).verdict
