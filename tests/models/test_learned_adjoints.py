"""How gradients get through the learned solver, on an inner problem whose exact derivative is known.

    x* = (H^T R^-1 H + B^-1 + c I)^-1 (H^T R^-1 y + B^-1 x_b)

is the fixed point of descent with a weight decay c: it is no minimum of J, so that the implicit derivative of ∇J = 0
would be wrong (it knows nothing of c).
"""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optimistix as optx
import pytest

from vardax.adjoints import DirectAdjoint, KStepAdjoint, OneStepAdjoint
from vardax.covariances import DenseCovariance, DiagonalCovariance
from vardax.minimisers import AnnealedStep
from vardax.models import FourDVarNet, SolverConfig
from vardax.obs_operators import LinearObs
from vardax.priors import GaussianPrior
from vardax.types import Batch1D, ConvergenceWarning, Status

N, M, SAMPLES, STEPS = 5, 3, 2, 12
RNG = np.random.default_rng(1)
spread = lambda n: (lambda F: F @ F.T / n + 0.5 * np.eye(n))(RNG.normal(size=(n, n)))  # noqa: E731
B, R, H = spread(N), spread(M), RNG.normal(size=(M, N))
BACKGROUND, Y = RNG.normal(size=N), RNG.normal(size=(SAMPLES, 1, M))
DECAY = 0.3
CURVATURE = H.T @ np.linalg.solve(R, H) + np.linalg.inv(B) + DECAY * np.eye(N)
WIDTH = 1.0 / np.linalg.eigvalsh(CURVATURE)[-1]
RATE = 1 - WIDTH * np.linalg.eigvalsh(CURVATURE)[0]

pytestmark = pytest.mark.x64


class Decaying(eqx.Module):
    """update = -w (g + c x): descent whose fixed point depends on c."""

    decay: jax.Array
    scaled_by_itself = True

    def __call__(self, grad, state, carry):
        return -WIDTH * (grad + self.decay * state), carry


def net(adjoint, n_steps=STEPS, **options):
    prior = GaussianPrior(BACKGROUND, DenseCovariance(B))
    config = SolverConfig(n_steps=n_steps, **options)
    return FourDVarNet(
        prior, LinearObs(H), Decaying(jnp.asarray(DECAY)), config, adjoint, obs_cov_op=DenseCovariance(R)
    )


def loss(inputs, adjoint, n_steps=STEPS):
    """A smooth number made of the reconstruction of observations y by a modulator of decay c."""
    y, decay = inputs
    model = eqx.tree_at(lambda m: m.grad_mod.decay, net(adjoint, n_steps), decay)
    return jnp.sum(jnp.sin(model.analyse(Batch1D(y, np.ones(Y.shape))).state))


def exact_loss(inputs):
    """The same of the fixed point."""
    y, decay = inputs
    curvature = jnp.asarray(CURVATURE) + (decay - DECAY) * jnp.eye(N)
    right = y[:, 0] @ jnp.asarray(np.linalg.solve(R, H)) + jnp.asarray(np.linalg.solve(B, BACKGROUND))[None]
    return jnp.sum(jnp.sin(jnp.linalg.solve(curvature, right.T)))


INPUTS = (jnp.asarray(Y), jnp.asarray(DECAY)) if jax.config.jax_enable_x64 else None


@functools.cache
def value_and_slope(adjoint, n_steps=STEPS):
    value, slope = jax.jit(jax.value_and_grad(lambda inputs: loss(inputs, adjoint, n_steps)))(INPUTS)
    return float(value), np.concatenate([np.ravel(leaf) for leaf in slope])


@functools.cache
def exact_slope():
    return np.concatenate([np.ravel(leaf) for leaf in jax.grad(exact_loss)(INPUTS)])


UNROLLED = [optx.RecursiveCheckpointAdjoint(), optx.RecursiveCheckpointAdjoint(3), DirectAdjoint(), KStepAdjoint(STEPS)]
TRUNCATED = [OneStepAdjoint(), KStepAdjoint(4), optx.ImplicitAdjoint()]


def test_the_analysis_does_not_depend_on_the_adjoint():
    values = [value_and_slope(adjoint)[0] for adjoint in UNROLLED + TRUNCATED]
    np.testing.assert_allclose(values, values[0], rtol=1e-13)


def test_unrolled_gradients_are_those_of_differences_and_of_each_other():
    slopes = [value_and_slope(adjoint)[1] for adjoint in UNROLLED]
    for slope in slopes[1:]:
        np.testing.assert_allclose(slope, slopes[0], rtol=1e-10, atol=1e-14)
    value = jax.jit(lambda inputs: loss(inputs, DirectAdjoint()))
    direction = (jnp.asarray(RNG.normal(size=Y.shape)), jnp.asarray(0.7))
    moved = lambda h: jax.tree.map(lambda a, d: a + h * d, INPUTS, direction)  # noqa: E731
    difference = (value(moved(1e-5)) - value(moved(-1e-5))) / 2e-5
    np.testing.assert_allclose(slopes[0] @ np.append(np.ravel(direction[0]), 0.7), difference, rtol=1e-8)


def test_the_error_of_a_truncated_gradient_falls_at_the_rate_of_the_contraction():
    """At the fixed point the k-step derivative is off by the k-th power of the derivative of a step."""
    n_steps = 400  # converged to rounding
    ks = [1, 4, 16]
    errors = [np.linalg.norm(value_and_slope(KStepAdjoint(k), n_steps)[1] - exact_slope()) for k in ks]
    scale = np.linalg.norm(exact_slope())
    assert errors[0] > 0.05 * scale  # one step alone is far off here
    for k, error in zip(ks, errors, strict=True):
        assert error <= 3 * RATE**k * scale
    measured = (errors[2] / errors[1]) ** (1 / (ks[2] - ks[1]))
    np.testing.assert_allclose(measured, RATE, rtol=0.05)


def test_the_implicit_gradient_is_that_of_the_fixed_point_of_the_step():
    """Exact once converged, in y and in the decay c, which does not enter ∇J; before that, off by what is left."""
    np.testing.assert_allclose(value_and_slope(optx.ImplicitAdjoint(), 400)[1], exact_slope(), rtol=1e-8)
    short = value_and_slope(optx.ImplicitAdjoint())[1]
    off = np.linalg.norm(short - exact_slope()) / np.linalg.norm(exact_slope())
    assert 1e-6 < off < 3 * RATE**STEPS


def test_an_iteration_that_has_not_converged_says_so():
    """For `ImplicitAdjoint`, whose derivative is that of a fixed point; the others make their steps and are done."""
    batch = Batch1D(Y, np.ones(Y.shape))
    model = net(optx.ImplicitAdjoint())
    analysis = model.analyse(batch)
    assert not np.any(analysis.converged)
    assert np.all(np.asarray(analysis.status) == Status.MAX_STEPS)
    assert np.all(np.asarray(analysis.residual) > 1e-4)
    with pytest.warns(ConvergenceWarning, match="FourDVarNet: stopped at max_steps"):
        model(batch)
    done = net(DirectAdjoint()).analyse(batch)
    assert np.all(done.converged)
    assert np.all(np.asarray(done.status) == Status.COMPLETED)
    assert "made all the steps" in done.message()
    np.testing.assert_allclose(done.residual, analysis.residual, rtol=1e-10)


def test_a_tolerance_is_a_rule_for_every_adjoint():
    analysis = net(DirectAdjoint(), 400, tol=1e-6).analyse(Batch1D(Y, np.ones(Y.shape)))
    assert np.all(analysis.converged)
    assert np.all(np.asarray(analysis.status) == Status.CONVERGED)
    assert np.all((np.asarray(analysis.n_iterations) > 1) & (np.asarray(analysis.n_iterations) < 400))
    assert np.all(np.asarray(analysis.residual) <= 1e-6)


def test_steps_that_differ_have_no_fixed_point():
    with pytest.raises(ValueError, match="`solver_adjoint` is ImplicitAdjoint.*AnnealedStep no two steps are alike"):
        net(optx.ImplicitAdjoint(), rule=AnnealedStep(0.1))
    net(OneStepAdjoint(), rule=AnnealedStep(0.1))


def bytes_kept(adjoint, n_steps):
    """What XLA sets aside for the gradient, on a state that is large beside the rest."""
    size = 20_000
    prior = GaussianPrior(jnp.zeros(size), DiagonalCovariance(jnp.ones(size)))
    model = FourDVarNet(prior, Cubed(), Decaying(jnp.asarray(0.1)), SolverConfig(n_steps=n_steps), adjoint)

    def total(y, decay):
        trained = eqx.tree_at(lambda m: m.grad_mod.decay, model, decay)
        return jnp.sum(trained.analyse(Batch1D(y, jnp.ones((1, 1, size)))).state)

    slope = jax.jit(jax.grad(total, argnums=1)).lower(jnp.zeros((1, 1, size)), jnp.asarray(0.1))
    return slope.compile().memory_analysis().temp_size_in_bytes / (8 * size)


class Cubed(eqx.Module):
    """A nonlinear operator: its linearisation has to be kept."""

    def __call__(self, state):
        return state + 0.1 * state**3

    def linearize(self, state):
        return jax.linearize(self, state)[1]


@pytest.mark.slow
@pytest.mark.parametrize("adjoint", [OneStepAdjoint(), optx.ImplicitAdjoint()], ids=["one step", "implicit"])
def test_the_memory_does_not_grow_with_the_number_of_steps(adjoint):
    few, many = bytes_kept(adjoint, 8), bytes_kept(adjoint, 64)
    assert many < few + 2, (few, many)  # in states


@pytest.mark.slow
def test_the_memory_of_unrolled_gradients_grows_and_checkpoints_bound_it():
    """In states: all that the steps computed, the state before each of them, or few states."""
    direct = bytes_kept(DirectAdjoint(), 64)
    each_step = bytes_kept(optx.RecursiveCheckpointAdjoint(), 64)
    few = bytes_kept(optx.RecursiveCheckpointAdjoint(4), 64)
    assert few < 24 < 64 < each_step < direct, (few, each_step, direct)
    assert each_step < 64 + 24, each_step
