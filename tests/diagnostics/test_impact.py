"""de/dy against finite differences of the analysis and dense algebra; impacts add up to the change of e."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vardax.covariances.dense import DenseCovariance
from vardax.covariances.diagonal import DiagonalCovariance
from vardax.diagnostics.impact import observation_impact, observation_sensitivity
from vardax.dynamics.lorenz63 import Lorenz63
from vardax.dynamics.rollout import rollout
from vardax.models.strong_fourdvar import StrongFourDVar
from vardax.obs_operators.callable import CallableObs
from vardax.types import Batch1D

X64 = jax.config.jax_enable_x64
SOLVED = {"rtol": 1e-6, "atol": 1e-7} if X64 else {"rtol": 1e-2, "atol": 1e-2}


def square(state, truth):
    return 0.5 * jnp.sum((state - truth) ** 2)


@pytest.fixture(scope="module")
def truths(small_case):
    random = np.random.default_rng(8)
    return jnp.asarray(random.normal(size=(2, small_case.B.shape[0])), small_case.batch.input.dtype)


def test_the_sensitivity_is_the_transposed_gain(small_case, truths):
    found = observation_sensitivity(small_case.problem, small_case.analysis, square, truths)
    for number, s in enumerate(small_case.samples):
        gradient = np.asarray(small_case.analysis.state[number] - truths[number], float)
        each = np.asarray(found.per_observation[number]).ravel()
        np.testing.assert_allclose(each[s.seen], s.K.T @ gradient, **SOLVED)
        assert not each[~s.seen].any()
    np.testing.assert_allclose(found.value, jax.vmap(square)(small_case.analysis.state, truths), rtol=1e-6)
    assert np.asarray(found.residual).max() < 1e-4


def test_impacts_of_a_linear_problem_add_up_to_the_change_of_a_quadratic_error(small_case, truths):
    found = observation_impact(small_case.problem, small_case.analysis, square, truths)
    np.testing.assert_allclose(found.total, found.change, **SOLVED)
    np.testing.assert_allclose(np.sum(found.by_instrument, axis=-1), found.total, **SOLVED)
    for number, s in enumerate(small_case.samples):
        d = s.y - s.H @ s.x_b
        x_a = s.x_b + s.K @ d
        mean = 0.5 * (x_a + s.x_b) - np.asarray(truths[number], float)
        each = d * (s.K.T @ mean)
        np.testing.assert_allclose(np.asarray(found.per_observation[number]).ravel()[s.seen], each, **SOLVED)
        sums = [each[s.instrument == i].sum() for i in (0, 1)]
        np.testing.assert_allclose(found.by_instrument[number], sums, **SOLVED)


@pytest.mark.slow
@pytest.mark.x64
def test_the_sensitivity_of_a_nonlinear_window_is_the_derivative_of_its_analysis():
    """Lorenz-63, products of variables observed, correlated R, gaps, and a forecast beyond the window."""
    model = Lorenz63(dt=0.02)
    R = jnp.array([[1.0, 0.4], [0.4, 1.0]])
    method = StrongFourDVar(
        model,
        CallableObs(lambda x: jnp.stack([x[0] * x[1] / 10, x[2]])),
        jnp.array([1.5, -1.5, 25.0]),
        DiagonalCovariance(jnp.array([1.0, 2.0, 3.0])),
        DenseCovariance(R),
        n_substeps=5,
        tol=1e-12,
        max_steps=500,
    )
    y = np.array([[[-0.1, 24.0], [1.0, np.nan], [0.5, 16.0], [3.0, 14.0]]])
    forecast = lambda x: jnp.sin(rollout(model, x, 30)[-1]).sum()  # noqa: E731

    def of(y):
        return method.analyse(Batch1D.from_observations(jnp.asarray(y)))

    batch, analysis = Batch1D.from_observations(jnp.asarray(y)), of(y)
    assert analysis.gradient_norm[0] < 1e-8
    found = observation_sensitivity(method.problem(batch), analysis, forecast)
    assert found.residual[0] < 1e-9
    assert found.per_observation[0, 1, 1] == 0
    value = jax.jit(forecast)
    for entry, channel in ((0, 0), (2, 1), (3, 0)):
        step = 1e-4 * np.eye(8)[2 * entry + channel].reshape(1, 4, 2)
        difference = (value(of(y + step).state[0]) - value(of(y - step).state[0])) / 2e-4
        np.testing.assert_allclose(found.per_observation[0, entry, channel], difference, rtol=2e-5)


def test_of_a_linear_problem_it_does_not_depend_on_where_it_is_taken(small_case, truths):
    early = eqx.tree_at(lambda a: a.control, small_case.analysis, 0.5 * small_case.analysis.control)
    found = observation_sensitivity(small_case.problem, early, lambda x, truth: jnp.sum(x), truths)
    converged = observation_sensitivity(small_case.problem, small_case.analysis, lambda x, truth: jnp.sum(x), truths)
    np.testing.assert_allclose(found.per_observation, converged.per_observation, **SOLVED)


def test_other_values_do_not_compile_again(small_case, truths, count_compilations):
    observation_impact(small_case.problem, small_case.analysis, square, truths)
    with count_compilations() as compiled:
        observation_impact(small_case.problem, small_case.analysis, square, truths + 1)
    assert not any("_impact" in name for name in compiled.names), compiled.names


def test_a_field_is_not_a_scalar(small_case):
    with pytest.raises(ValueError, match=r"`scalar` gives an array of shape \(4,\), expected one number"):
        observation_sensitivity(small_case.problem, small_case.analysis, lambda x: x)
