"""The costs as objects: what a method reports, in state space, on batches and on scattered points."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vardax.covariances.dense import DenseCovariance
from vardax.dynamics.discrete import DiscreteForward
from vardax.models.optimal_interpolation import OptimalInterpolation
from vardax.models.strong_fourdvar import StrongFourDVar
from vardax.models.threedvar import ThreeDVar
from vardax.obs_operators.callable import CallableObs
from vardax.obs_operators.interp import InterpObs
from vardax.obs_operators.linear import LinearObs
from vardax.primitives.cost_functions import BLUECost, StrongConstraintCost, ThreeDVarCost
from vardax.protocols import CostFunction
from vardax.types import Batch1D, Observations

N, M, SAMPLES = 5, 3, 2
RNG = np.random.default_rng(0)
ROOT = RNG.normal(size=(N, N))
B, R = DenseCovariance(ROOT @ ROOT.T + np.eye(N)), DenseCovariance(0.3 * np.eye(M) + 0.1)
MEAN, X = jnp.asarray(RNG.normal(size=N)), jnp.asarray(RNG.normal(size=(SAMPLES, N)))
Y = RNG.normal(size=(SAMPLES, 3, M))
Y[0, 1, 2] = np.nan
RTOL = 1e-9 if jax.config.jax_enable_x64 else 1e-3


def forced(state, dt, *, t0):
    """A model that depends on time."""
    return state + dt * jnp.cos(t0) * jnp.roll(state, 1)


def days():
    """Two samples with other counts, positions, times and starts."""
    made = []
    for p, start in ((4, 2.0), (6, 5.0)):
        time, where = start + RNG.uniform(0, 1, p), RNG.uniform(0, N - 1, (p, 1))
        made.append(Observations(RNG.normal(size=p), 0.4, time, where, start=start))
    return made


FORWARD = DiscreteForward(forced, 0.5)
CASES = {
    "BLUE": (OptimalInterpolation, BLUECost, {}, LinearObs(RNG.normal(size=(M, N))), Y[:, 0]),
    "3D-Var": (ThreeDVar, ThreeDVarCost, {}, CallableObs(lambda x: jnp.sin(x[:M])), Y[:, 0]),
    "4D-Var": (StrongFourDVar, StrongConstraintCost, {"forward": FORWARD}, LinearObs(RNG.normal(size=(M, N))), Y),
    "3D-Var, points": (ThreeDVar, ThreeDVarCost, {}, InterpObs([np.arange(float(N))]), None),
    "4D-Var, points": (
        StrongFourDVar,
        StrongConstraintCost,
        {"forward": FORWARD, "n_steps": 2},
        InterpObs([np.arange(float(N))]),
        None,
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_cost_is_that_of_the_problem_of_its_method(case):
    method, cost, slots, obs_op, y = CASES[case]
    slots = slots | {"obs_op": obs_op, "prior_mean": MEAN, "prior_cov_op": B, "obs_cov_op": None if y is None else R}
    batch = days() if y is None else Batch1D.from_observations(y)
    problem, evaluated = method(**slots).problem(batch), cost(**slots)
    assert isinstance(evaluated, CostFunction)
    control = problem.map_samples(lambda sample, x: sample.control_of(x), X)
    np.testing.assert_allclose(evaluated(X, batch), jnp.sum(problem.cost(control)), rtol=RTOL)


def test_a_blue_cost_wants_an_affine_operator():
    with pytest.raises(ValueError, match="BLUECost: `obs_op` is not linear; use ThreeDVarCost"):
        BLUECost(CallableObs(jnp.sin), MEAN, B, R)
