"""Weak-constraint 4DVar: the trajectory it returns, its limits, Q in its forms, a state that is a pytree."""

import jax
import jax.numpy as jnp
import numpy as np
import optimistix as optx
import pytest

from vardax.covariances.block_diagonal import BlockDiagonalCovariance
from vardax.covariances.dense import DenseCovariance
from vardax.covariances.diagonal import DiagonalCovariance
from vardax.covariances.repeated import RepeatedCovariance
from vardax.dynamics.discrete import DiscreteForward
from vardax.minimisers.gauss_newton import GaussNewtonKrylov, IncrementalConfig
from vardax.minimisers.transforms import Exp
from vardax.models.strong_fourdvar import StrongFourDVar
from vardax.models.weak_fourdvar import WeakFourDVar
from vardax.obs_operators.callable import CallableObs
from vardax.obs_operators.linear import LinearObs
from vardax.types import Batch1D

pytestmark = pytest.mark.slow  # compiles many programs

X64 = jax.config.jax_enable_x64
CLOSE = {"rtol": 1e-5, "atol": 1e-6} if X64 else {"rtol": 1e-2, "atol": 1e-2}
N, M, ENTRIES = 5, 3, 4


def quadratic(state, dt):
    """dx/dt = 1 - x² roll(x), one Euler step."""
    return state + dt * (1 - state**2 * jnp.roll(state, 1))


def correlated(n, variance, length=1.5):
    distance = np.abs(np.subtract.outer(np.arange(n), np.arange(n)))
    return variance * np.exp(-distance / length)


def batch(entries=ENTRIES, samples=2, seed=0):
    y = np.random.default_rng(seed).normal(size=(samples, entries, M)) * 0.3 + 1.0
    y[0, 1, 2] = np.nan
    return Batch1D.from_observations(y)


def weak(Q=None, *, step=quadratic, **options):
    H = np.random.default_rng(3).normal(size=(M, N)) / 2
    slots = (DiscreteForward(step, 0.1), LinearObs(H), np.full(N, 0.8))
    Q = DenseCovariance(correlated(N, 0.05)) if Q is None else Q
    B, R = DenseCovariance(correlated(N, 0.5)), DenseCovariance(correlated(M, 0.05))
    return WeakFourDVar(*slots, B, R, Q, **options)


def test_the_trajectory_is_the_model_with_the_errors_added_after_each_interval():
    analysis = weak(n_substeps=2).analyse(batch())
    start, errors = analysis.state
    assert start.shape == (2, N)
    assert errors.shape == (2, ENTRIES - 1, N)
    state = start
    for t in range(ENTRIES):
        np.testing.assert_allclose(analysis.trajectory[:, t], state, **CLOSE)
        if t + 1 < ENTRIES:
            state = jax.vmap(lambda x: quadratic(quadratic(x, 0.1), 0.1))(state) + errors[:, t]


def test_the_terms_of_the_cost_are_those_of_the_formula():
    method, data = weak(), batch()
    analysis = method.analyse(data)
    start, errors = (np.asarray(part, float) for part in analysis.state)
    B, Q = np.linalg.inv(correlated(N, 0.5)), np.linalg.inv(correlated(N, 0.05))
    for sample in range(2):
        dx = start[sample] - 0.8
        np.testing.assert_allclose(analysis.cost.last.J_b[sample], 0.5 * dx @ B @ dx, **CLOSE)
        expected = 0.5 * sum(eta @ Q @ eta for eta in errors[sample])
        np.testing.assert_allclose(analysis.cost.last.J_q[sample], expected, **CLOSE)
        assert expected > 1e-3


def test_as_the_model_error_goes_to_zero_it_is_strong_4dvar():
    method, data = weak(DenseCovariance(correlated(N, 1e-10))), batch()
    slots = (method.forward, method.obs_op, method.prior_mean, method.prior_cov_op, method.obs_cov_op)
    strong = StrongFourDVar(*slots).analyse(data)
    analysis = method.analyse(data)
    np.testing.assert_allclose(analysis.state[0], strong.state, rtol=1e-3, atol=1e-3)
    assert np.max(np.abs(analysis.state[1])) < 1e-5


def test_q_may_change_from_interval_to_interval():
    one, data = DenseCovariance(correlated(N, 0.05)), batch()
    expected = weak(one).analyse(data)
    repeated = weak(RepeatedCovariance(one, ENTRIES - 1)).analyse(data)
    stacked = weak(BlockDiagonalCovariance(one, one, one)).analyse(data)
    for other in (repeated, stacked):
        np.testing.assert_allclose(other.state[0], expected.state[0], **CLOSE)
        np.testing.assert_allclose(other.state[1], expected.state[1], **CLOSE)
    tight = DenseCovariance(correlated(N, 1e-12))
    second_is_exact = weak(BlockDiagonalCovariance(one, tight, one)).analyse(data)
    assert np.max(np.abs(second_is_exact.state[1][:, 1])) < 1e-5
    assert np.max(np.abs(second_is_exact.state[1][:, 0])) > 1e-3


def test_outer_loops_and_gauss_newton_find_the_same_minimum():
    data = batch()
    expected = weak().analyse(data)
    for minimiser in (GaussNewtonKrylov(IncrementalConfig(n_outer=60)), optx.LevenbergMarquardt(1e-6, 1e-6)):
        found = weak(minimiser=minimiser).analyse(data)
        assert found.converged.all()
        np.testing.assert_allclose(found.state[0], expected.state[0], rtol=1e-3, atol=1e-3)
        np.testing.assert_allclose(found.state[1], expected.state[1], rtol=1e-3, atol=1e-3)


def test_a_first_guess_is_a_state_or_a_pair():
    method, data = weak(), batch()
    expected = method.analyse(data)
    alone = method.analyse(data, first_guess=expected.state[0])
    pair = method.analyse(data, first_guess=expected.state)
    assert np.all(pair.n_iterations < expected.n_iterations)
    for other in (alone, pair):
        np.testing.assert_allclose(other.state[0], expected.state[0], rtol=1e-3, atol=1e-3)


def test_a_state_may_be_a_pytree_and_positive():
    """Two variables of different shapes; the errors of the model add to the positive state itself."""
    forward = DiscreteForward(lambda s: {"a": 0.9 * s["a"] + 0.1 * s["b"].mean(), "b": s["b"]}, 0.1)
    join = CallableObs(lambda s: jnp.concatenate([s["a"], s["b"].ravel()])[:M])
    cov = lambda v: BlockDiagonalCovariance(  # noqa: E731
        {"a": DenseCovariance(correlated(2, v)), "b": DiagonalCovariance(np.full((2, 1), v))}
    )
    mean = {"a": np.ones(2), "b": np.ones((2, 1))}
    slots = (forward, join, mean, cov(0.3), DiagonalCovariance(np.full(M, 0.05)), cov(0.01))
    data = batch()
    analysis = WeakFourDVar(*slots, control_transform=Exp()).analyse(data)
    assert analysis.converged.all()
    start, errors = analysis.state
    assert errors["b"].shape == (2, ENTRIES - 1, 2, 1)
    assert np.all(start["a"] > 0)
    state = jax.tree.map(lambda a: a[0], start)
    following = forward.step(state, 0.1)
    np.testing.assert_allclose(analysis.trajectory["a"][0, 1], following["a"] + errors["a"][0, 0], **CLOSE)


def test_a_q_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"`model_err_cov_op` acts on shape \(4,\), expected \(5,\) \(one interval\)"):
        weak(DenseCovariance(correlated(4, 0.1))).analyse(batch())
    with pytest.raises(ValueError, match=r"expected \(5,\) \(one interval\) or \(3, 5\) \(all 3 of the window\)"):
        weak(RepeatedCovariance(DenseCovariance(correlated(N, 0.1)), 2)).analyse(batch())
    with pytest.raises(TypeError, match="`model_err_cov_op` is ndarray, expected a covariance"):
        weak(np.eye(N))
