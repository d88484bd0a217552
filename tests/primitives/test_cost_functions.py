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
from vardax.models.weak_fourdvar import WeakFourDVar
from vardax.obs_operators.callable import CallableObs
from vardax.obs_operators.interp import InterpObs
from vardax.obs_operators.linear import LinearObs
from vardax.primitives.cost_functions import (
    BLUECost,
    IncrementalCost,
    StrongConstraintCost,
    ThreeDVarCost,
    WeakConstraintCost,
)
from vardax.protocols import CostFunction
from vardax.types import Batch1D, Observations

N, M, SAMPLES = 5, 3, 2
RNG = np.random.default_rng(0)
ROOT = RNG.normal(size=(N, N))
B, R = DenseCovariance(ROOT @ ROOT.T + np.eye(N)), DenseCovariance(0.3 * np.eye(M) + 0.1)
MEAN, X = jnp.asarray(RNG.normal(size=N)), jnp.asarray(RNG.normal(size=(SAMPLES, N)))
Q, ERRORS = DenseCovariance(0.2 * np.eye(N) + 0.1), jnp.asarray(RNG.normal(size=(SAMPLES, 2, N)))
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
WEAK = {"forward": FORWARD, "model_err_cov_op": Q}
CASES = {
    "BLUE": (OptimalInterpolation, BLUECost, {}, LinearObs(RNG.normal(size=(M, N))), Y[:, 0]),
    "3D-Var": (ThreeDVar, ThreeDVarCost, {}, CallableObs(lambda x: jnp.sin(x[:M])), Y[:, 0]),
    "4D-Var": (StrongFourDVar, StrongConstraintCost, {"forward": FORWARD}, LinearObs(RNG.normal(size=(M, N))), Y),
    "weak 4D-Var": (WeakFourDVar, WeakConstraintCost, WEAK, LinearObs(RNG.normal(size=(M, N))), Y),
    "weak 4D-Var, Q of the window": (
        WeakFourDVar,
        WeakConstraintCost,
        WEAK | {"model_err_cov_op": DenseCovariance(np.kron(np.diag([0.2, 0.4]), np.eye(N)), shape=(2, N))},
        LinearObs(RNG.normal(size=(M, N))),
        Y,
    ),
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
    x = (X, ERRORS) if method is WeakFourDVar else X
    control = jax.jit(lambda x: problem.map_samples(lambda sample, x: sample.control_of(x), x))(x)
    total = jax.jit(lambda c: jnp.sum(problem.cost(c)))(control)
    np.testing.assert_allclose(jax.jit(lambda x: evaluated(x, batch))(x), total, rtol=RTOL)


BENDING = {
    "forward": DiscreteForward(lambda x, dt: x + dt * jnp.sin(jnp.roll(x, 1)), 0.5),
    "obs_op": CallableObs(lambda x: x[:M] ** 2),
    "prior_mean": MEAN,
    "prior_cov_op": B,
}


@pytest.mark.parametrize("batch", [Batch1D.from_observations(Y), days()], ids=["entries", "points"])
@pytest.mark.parametrize("x_ref", [None, X], ids=["background", "iterates"])
def test_an_incremental_cost_touches_the_cost_of_strong_4dvar_at_its_reference(batch, x_ref):
    """Equal value and gradient at dx = 0, and no third derivative: with the Gauss-Newton Hessian that is J(dx)."""
    slots = BENDING | {"obs_cov_op": R}
    if isinstance(batch, list):
        slots |= {"obs_op": InterpObs([np.arange(float(N))]), "obs_cov_op": None, "n_steps": 2}
    reference = jnp.broadcast_to(MEAN, X.shape) if x_ref is None else x_ref
    full = jax.jit(jax.value_and_grad(lambda x: StrongConstraintCost(**slots)(x, batch)))
    cost = jax.jit(jax.value_and_grad(lambda dx: IncrementalCost(**slots, x_ref=x_ref)(dx, batch)))
    zero, dx = jnp.zeros_like(X), jnp.asarray(np.random.default_rng(1).normal(size=X.shape))
    (value, slope), (expected, gradient) = cost(zero), full(reference)
    np.testing.assert_allclose(value, expected, rtol=RTOL)
    np.testing.assert_allclose(slope, gradient, rtol=RTOL, atol=100 * RTOL)
    problem = StrongFourDVar(**slots).problem(batch)

    @jax.jit
    def curvature():
        control, change = (problem.map_samples(lambda s, x: s.control_of(x), x) for x in (reference, MEAN[None] + dx))
        return jnp.sum(change * problem.hessian_product(control, change))

    np.testing.assert_allclose(cost(dx)[0], value + jnp.sum(slope * dx) + 0.5 * curvature(), rtol=RTOL)


def test_a_blue_cost_wants_an_affine_operator():
    with pytest.raises(ValueError, match="BLUECost: `obs_op` is not linear; use ThreeDVarCost"):
        BLUECost(CallableObs(jnp.sin), MEAN, B, R)
