"""The digital filter: Dolph-Chebyshev weights against scipy and their own response, J_c against dense algebra."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.polynomial.chebyshev import Chebyshev
from scipy.signal.windows import chebwin

from vardax.covariances.dense import DenseCovariance
from vardax.covariances.diagonal import DiagonalCovariance
from vardax.dynamics.discrete import DiscreteForward
from vardax.dynamics.lorenz96 import Lorenz96
from vardax.minimisers.closed_form import closed_form_analysis
from vardax.minimisers.gauss_newton import DualCG, IncrementalConfig, LanczosCG
from vardax.models.digital_filter import DigitalFilter, dolph_chebyshev_weights
from vardax.models.incremental_fourdvar import IncrementalFourDVar
from vardax.models.strong_fourdvar import StrongFourDVar
from vardax.obs_operators.linear import LinearObs
from vardax.obs_operators.point import PointObs
from vardax.types import Batch1D
from vardax.validation.gradient import gradient_test

X64 = jax.config.jax_enable_x64
CLOSE = {"rtol": 1e-6, "atol": 1e-7} if X64 else {"rtol": 5e-3, "atol": 5e-3}
TOL = 1e-9 if X64 else 1e-5
WINDOWS = [(13, 6.0), (21, 6.0), (25, 5.0), (41, 12.0)]


def edge_and_ripple(n_entries, cutoff):
    """x_0 and r of the closed form, the polynomial evaluated by numpy."""
    edge = 1 / np.cos(np.pi / cutoff)
    return edge, 1 / Chebyshev.basis(n_entries - 1)(edge)


@pytest.mark.parametrize(("n_entries", "cutoff"), WINDOWS)
def test_the_weights_have_the_response_of_the_closed_form(n_entries, cutoff):
    """Σ w_n exp(inθ) = T_{2M}(x_0 cos(θ/2)) / T_{2M}(x_0): 1 for what is constant, at most r in the stop band."""
    weights, (edge, ripple) = dolph_chebyshev_weights(n_entries, cutoff), edge_and_ripple(n_entries, cutoff)
    angles = np.linspace(0, np.pi, 301)
    response = np.exp(1j * np.outer(angles, np.arange(n_entries) - n_entries // 2)) @ weights
    expected = Chebyshev.basis(n_entries - 1)(edge * np.cos(angles / 2)) * ripple
    np.testing.assert_allclose(response, expected, atol=1e-9)
    np.testing.assert_allclose(np.sum(weights), 1.0)
    np.testing.assert_allclose(weights, weights[::-1])
    assert np.max(np.abs(response[angles >= 2 * np.pi / cutoff])) <= ripple * (1 + 1e-9)


@pytest.mark.parametrize(("n_entries", "cutoff"), WINDOWS)
def test_the_weights_are_those_of_scipy(n_entries, cutoff):
    _, ripple = edge_and_ripple(n_entries, cutoff)
    weights = dolph_chebyshev_weights(n_entries, cutoff)
    np.testing.assert_allclose(weights / weights.max(), chebwin(n_entries, at=-20 * np.log10(ripple)), atol=1e-9)


def test_a_trend_costs_nothing_and_an_oscillation_its_amplitude():
    times, term = np.arange(-6.0, 7.0), DigitalFilter(6.0, weight=4.0, std=0.5)
    trend = jnp.asarray(3.0 + 2.0 * times[:, None] * np.ones(2))
    np.testing.assert_allclose(term.residual(trend), 0.0, atol=1e-5)
    wave = jnp.asarray(np.cos(2 * np.pi * times / 3.0)[:, None])
    np.testing.assert_allclose(term.residual(wave), 2.0 / 0.5, rtol=0.01)  # √γ / s, up to what the filter lets pass


def test_a_pytree_has_a_scale_for_each_variable():
    trajectory = {"u": jnp.zeros((5, 2)).at[2].set(1.0), "h": jnp.zeros((5,)).at[2].set(1.0)}
    middle = 1 - dolph_chebyshev_weights(5, 4.0)[2]
    found = DigitalFilter(4.0, std={"u": np.array([1.0, 2.0]), "h": np.inf}).residual(trajectory)
    np.testing.assert_allclose(found["u"], [middle, middle / 2], rtol=1e-6)
    np.testing.assert_array_equal(found["h"], 0.0)


# -- a slow and a fast oscillator, both seen in what is observed -----------------------------------------------------

N, ENTRIES, GAMMA = 4, 9, 30.0


def turn(period):
    angle = 2 * np.pi / period
    return np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])


A = np.block([[turn(40.0), np.zeros((2, 2))], [np.zeros((2, 2)), turn(3.0)]])
H = np.array([[1.0, 0.0, 1.0, 0.0], [0.0, 1.0, 0.0, 1.0]])
B, X_B = np.eye(N) + 0.3, np.array([1.0, 0.0, 0.5, -0.5])
R = np.array([[0.5, 0.2], [0.2, 0.5]])
Y = np.random.default_rng(2).normal(size=(1, ENTRIES, 2))
Y[0, 3, 0] = np.nan
BATCH = Batch1D.from_observations(Y)


def build(method=StrongFourDVar, *options, terms=None, **slots):
    terms = DigitalFilter(4.0, GAMMA) if terms is None else terms
    forward = DiscreteForward(lambda x: jnp.asarray(A, x.dtype) @ x, 1.0)
    required = (forward, LinearObs(H), X_B, DenseCovariance(B), DenseCovariance(R))
    return method(*required, *options, terms=terms, tol=TOL, **slots)


def dense(weight=GAMMA):
    """(x_0, posterior covariance, J_c): the filter is N more observations of the value zero."""
    powers = [np.linalg.matrix_power(A, t) for t in range(ENTRIES)]
    weights = dolph_chebyshev_weights(ENTRIES, 4.0)
    filtered = np.sqrt(weight) * (powers[ENTRIES // 2] - np.tensordot(weights, powers, axes=1))
    seen = np.isfinite(Y.ravel())
    G, error = np.concatenate([H @ power for power in powers])[seen], np.kron(np.eye(ENTRIES), R)[np.ix_(seen, seen)]
    G, y = np.concatenate([G, filtered]), np.concatenate([Y.ravel()[seen], np.zeros(N)])
    error = np.block([[error, np.zeros((len(error), N))], [np.zeros((N, len(error))), np.eye(N)]])
    gain = B @ G.T @ np.linalg.inv(G @ B @ G.T + error)
    x = X_B + gain @ (y - G @ X_B)
    return x, B - gain @ G @ B, 0.5 * np.sum((filtered @ x) ** 2)


def test_the_analysis_is_that_of_the_dense_formula():
    analysis = build().analyse(BATCH)
    expected, _, J_c = dense()
    np.testing.assert_allclose(analysis.state[0], expected, **CLOSE)
    np.testing.assert_allclose(analysis.cost.last.J_c[0], J_c, rtol=1e-4 if X64 else 0.1)
    assert J_c > 1e-3
    last, history = analysis.cost.last, analysis.history
    np.testing.assert_allclose(history.J_c[0, 0], analysis.cost.first.J_c[0], rtol=1e-5)
    np.testing.assert_allclose(last.total, last.J_b + last.J_o + last.J_c, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"inner_solver": DualCG()}, {"cvt": False}], ids=["Lanczos", "dual", "pairs"])
def test_the_forms_of_the_incremental_method_agree(options):
    assert LanczosCG() == IncrementalConfig().inner_solver
    method = build(IncrementalFourDVar, IncrementalConfig(cg_rtol=1e-12, **options))
    np.testing.assert_allclose(method.analyse(BATCH).state[0], dense()[0], **CLOSE)


@pytest.mark.slow
def test_the_posterior_knows_the_filter():
    posterior, expected = build().posterior(BATCH), dense()[1]
    np.testing.assert_allclose(posterior.std()[0], np.sqrt(np.diag(expected)), **CLOSE)
    draws = np.asarray(posterior.sample(jax.random.key(0), 4000)[0]) - np.asarray(posterior.mean[0])
    np.testing.assert_allclose(draws.T @ draws / 4000, expected, atol=0.1 * np.max(expected))


def test_the_closed_form_may_work_on_either_side():
    """One entry that is observed by two numbers, and N of the filter: either side may be the smaller one."""
    solve = eqx.filter_jit(lambda problem: problem.map_samples(lambda one: closed_form_analysis(one, TOL)))
    np.testing.assert_allclose(solve(build().problem(BATCH)).state[0], dense()[0], **CLOSE)
    wide = DiagonalCovariance(np.ones(40))
    forward = DiscreteForward(lambda x: 0.9 * x, 1.0)
    term = SumTerm()
    slots = (forward, PointObs(np.arange(3)), np.zeros(40), wide, DiagonalCovariance(np.ones(3)))
    y = np.full((1, 2, 3), np.nan)
    y[0, 0] = 1.0
    found = solve(StrongFourDVar(*slots, terms=term).problem(Batch1D.from_observations(y))).state[0]
    G = np.concatenate([np.eye(40)[:3], np.full((1, 40), 0.9)])
    expected = G.T @ np.linalg.solve(G @ G.T + np.eye(4), np.array([1.0, 1.0, 1.0, 2.0]))
    np.testing.assert_allclose(found, expected, **CLOSE)


class SumTerm(eqx.Module):
    """½ (Σ x_T - 2)²."""

    def residual(self, trajectory):
        return jnp.sum(trajectory[-1])[None] - 2.0


def test_a_fast_oscillation_of_the_analysis_is_filtered():
    """What the observations excite of the fast oscillator is gone, the slow one stays."""
    amplitudes = {}
    for weight in (1e-6, 1e4):
        state = build(terms=DigitalFilter(4.0, weight)).analyse(BATCH).state[0]
        amplitudes[weight] = np.hypot(state[::2], state[1::2])
    assert amplitudes[1e4][1] < 0.05 * amplitudes[1e-6][1]
    assert amplitudes[1e4][0] > 0.5 * amplitudes[1e-6][0]


@pytest.mark.slow
@pytest.mark.x64
def test_the_gradient_is_that_of_the_cost_on_a_nonlinear_model():
    slots = (Lorenz96(8, dt=0.05), PointObs(np.arange(0, 8, 2)), np.linspace(0, 8, 8), DiagonalCovariance(np.ones(8)))
    method = StrongFourDVar(*slots, DiagonalCovariance(np.ones(4)), terms=DigitalFilter(4.0, 2.0))
    batch = Batch1D.from_observations(np.random.default_rng(0).normal(size=(2, 5, 4)))
    report = gradient_test(method, batch=batch)
    assert report.passed, report


@pytest.mark.slow
@pytest.mark.x64
def test_the_analysis_is_differentiable_with_respect_to_the_weight():
    @jax.jit
    @functools.partial(jax.jacobian)
    def sensitivity(weight):
        return build(terms=DigitalFilter(4.0, weight)).analyse(BATCH).state[0]

    expected = (dense(GAMMA + 0.01)[0] - dense(GAMMA - 0.01)[0]) / 0.02
    np.testing.assert_allclose(sensitivity(jnp.asarray(GAMMA)), expected, rtol=1e-4, atol=1e-9)


def test_another_weight_does_not_compile_again(count_compilations):
    method = build()
    method.analyse(BATCH)
    with count_compilations() as compiled:
        method.with_(terms=DigitalFilter(4.0, 7.0)).analyse(BATCH)
    assert compiled.n == 0, compiled.names


# -- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((2.0,), "`cutoff` is 2, expected a period of more than 2 intervals"),
        ((np.inf,), "`cutoff` is inf"),
        ((6.0, -1.0), "`weight` must be positive; found -1"),
        ((6.0, 1.0, np.array([1.0, 0.0])), "`std` must be positive; found 0"),
    ],
)
def test_a_filter_that_cannot_be_is_refused(arguments, words):
    with pytest.raises(ValueError, match=words):
        DigitalFilter(*arguments)


def test_a_window_without_a_middle_is_refused():
    with pytest.raises(ValueError, match="the window has 4 entries, expected an odd number of at least 3"):
        build().analyse(Batch1D.from_observations(Y[:, :4]))
