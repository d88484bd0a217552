"""A window that theta changes: what is inside, scattered points with their positions, a state that is a tuple."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vardax.covariances.block_diagonal import BlockDiagonalCovariance
from vardax.covariances.diagonal import DiagonalCovariance
from vardax.dynamics.discrete import DiscreteForward
from vardax.minimisers.gauss_newton import IncrementalConfig
from vardax.models.biases import ObservationBias
from vardax.models.incremental_fourdvar import IncrementalFourDVar
from vardax.models.joint_control import JointControl
from vardax.models.strong_fourdvar import StrongFourDVar
from vardax.obs_operators.callable import CallableObs
from vardax.obs_operators.interp import InterpObs
from vardax.types import Batch1D, Grid, Observations

X64 = jax.config.jax_enable_x64
CLOSE = {"rtol": 1e-6, "atol": 1e-7} if X64 else {"rtol": 5e-3, "atol": 5e-3}


@pytest.mark.slow
def test_scattered_points_keep_their_positions():
    """Two cells of a persistent field, seen at times between the entries through a gain and with a bias."""
    grid = Grid([np.arange(4.0)])
    points = Observations(np.array([2.0, 1.0, 4.0]), 0.1, np.array([0.3, 1.0, 1.7]), np.array([[0.5], [1.0], [3.0]]))
    gain = JointControl(1.0, 0.04, obs_op=lambda operator, g: CallableObs(lambda x: g * operator(x)))
    joint = {"gain": gain, "bias": ObservationBias(0.0, 0.5)}
    slots = (DiscreteForward(lambda x: x, 1.0), InterpObs(grid), np.ones(4), DiagonalCovariance(np.ones(4)), None)
    method = StrongFourDVar(*slots, n_steps=2, joint=joint, tol=1e-9 if X64 else 1e-5)
    analysis = method.analyse([points])
    assert analysis.converged.all()
    weights = np.array([[0.5, 0.5, 0, 0], [0, 1.0, 0, 0], [0, 0, 0, 1.0]])

    def cost(chi):
        x, g, b = 1 + chi[:4], 1 + 0.2 * chi[4], np.sqrt(0.5) * chi[5]
        gap = (jnp.asarray(points.value) - g * (jnp.asarray(weights) @ x) - b) / 0.1
        return 0.5 * jnp.sum(chi**2) + 0.5 * jnp.sum(gap**2)

    theta = analysis.state[1]
    chi = jnp.concatenate([analysis.state[0][0] - 1, (theta["gain"] - 1) / 0.2, theta["bias"] / np.sqrt(0.5)])
    np.testing.assert_allclose(cost(chi), analysis.cost.last.total[0], rtol=1e-5)
    np.testing.assert_allclose(jax.grad(cost)(chi), 0.0, atol=1e-6 if X64 else 5e-2)


@pytest.mark.slow
def test_a_state_may_be_a_tuple_itself():
    forward = DiscreteForward(lambda s: (0.9 * s[0] + s[1], s[1]), 1.0)
    B = BlockDiagonalCovariance((DiagonalCovariance(np.ones(3)), DiagonalCovariance(np.ones(3))))
    slots = (forward, CallableObs(lambda s: s[0]), (np.zeros(3), np.ones(3)), B, DiagonalCovariance(np.full(3, 0.1)))
    batch = Batch1D.from_observations(np.random.default_rng(0).normal(size=(2, 3, 3)))
    config = IncrementalConfig(cg_rtol=1e-12)
    method = IncrementalFourDVar(*slots, config, joint=ObservationBias(np.zeros(3), 0.5))
    analysis = method.analyse(batch)
    (a, b), bias = analysis.state
    assert a.shape == b.shape == bias.shape == (2, 3)
    np.testing.assert_allclose(analysis.trajectory[0][:, 1], 0.9 * a + b, **CLOSE)
    found = method.analyse(batch, first_guess=(a, b))
    np.testing.assert_allclose(found.state[1], bias, **CLOSE)
