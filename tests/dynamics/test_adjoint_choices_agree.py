"""The gradient of the 4DVar cost is the same for every `forward_adjoint`, and is the limit of differences.

Three systems: Lorenz-63, Lorenz-96, and shallow water, whose state is a tree. And a first trial step that blows up
spoils neither the analysis nor its gradient.
"""

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import optimistix
import pytest

from vardax.covariances.diagonal import DiagonalCovariance
from vardax.dynamics import Lorenz63, Lorenz96, ShallowWater2D
from vardax.models.strong_fourdvar import StrongFourDVar
from vardax.obs_operators.callable import CallableObs
from vardax.obs_operators.identity import MaskedIdentity
from vardax.obs_operators.point import PointObs
from vardax.types import Batch1D, Batch2D

ADJOINTS = {
    "direct": diffrax.DirectAdjoint(),
    "automatic": diffrax.RecursiveCheckpointAdjoint(),
    "checkpoints": optimistix.RecursiveCheckpointAdjoint(checkpoints=2),
    "forward mode": diffrax.ForwardMode(),
    "backsolve": diffrax.BacksolveAdjoint(),
}
REACH = {"backsolve": 2e-5}
"""The continuous adjoint is exact up to the error of the steps."""


def diagonal_like(state, variances):
    return lx.DiagonalLinearOperator(jax.tree.map(jnp.full_like, state, variances))


def lorenz63(adjoint, dt=0.005):
    random = np.random.default_rng(1)
    y = random.normal(size=(1, 7, 2))
    background, unit = jnp.array([1.5, -1.5, 25.5]), DiagonalCovariance(jnp.ones(2))
    variances = DiagonalCovariance(jnp.full(3, 2.0))
    method = StrongFourDVar(
        Lorenz63(dt=dt),
        PointObs([0, 2]),
        background,
        variances,
        unit,
        forward_adjoint=adjoint,
        n_substeps=round(0.01 / dt),
    )
    return method, Batch1D.from_observations(y)


def lorenz96(adjoint):
    random = np.random.default_rng(2)
    y = random.normal(size=(1, 7, 12))
    background, unit = jnp.asarray(2.0 + random.normal(size=12)), DiagonalCovariance(jnp.ones(12))
    method = StrongFourDVar(Lorenz96(12, dt=0.01), MaskedIdentity(), background, unit, unit, forward_adjoint=adjoint)
    return method, Batch1D.from_observations(y)


def shallow_water(adjoint):
    """Only the elevation is observed; the flow follows from it."""
    random = np.random.default_rng(3)
    model = ShallowWater2D((4, 6), spacing=1.0, depth=1.0, gravity=1.0, coriolis=0.5, dt=0.05)
    background = {name: jnp.asarray(0.1 * random.normal(size=(4, 6))) for name in ("h", "u", "v")}
    method = StrongFourDVar(
        model,
        CallableObs(lambda state: state["h"]),
        background,
        diagonal_like(background, {"h": 0.02, "u": 0.01, "v": 0.01}),
        DiagonalCovariance(jnp.full((4, 6), 0.01)),
        forward_adjoint=adjoint,
        n_substeps=2,
    )
    return method, Batch2D.from_observations(0.1 * random.normal(size=(1, 5, 4, 6)))


SYSTEMS = {"lorenz63": lorenz63, "lorenz96": lorenz96, "shallow water": shallow_water}


def moved(tree, step, direction):
    return jax.tree.map(lambda a, d: a + step * d, tree, direction)


def dot(a, b):
    return sum(float(jnp.vdot(u, v)) for u, v in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


@pytest.fixture(scope="module", params=SYSTEMS)
def differences(request):
    """(system, control, directions, central differences of J along them)."""
    random = np.random.default_rng(4)
    method, batch = SYSTEMS[request.param](ADJOINTS["direct"])
    posed = method.problem(batch)
    control = jax.tree.map(lambda c: jnp.asarray(0.5 * random.normal(size=c.shape)), posed.zero_control())
    directions = [jax.tree.map(lambda c: jnp.asarray(random.normal(size=c.shape)), control) for _ in range(2)]
    cost = lambda control: eqx.filter_jit(lambda problem, c: problem.cost(c))(posed, control)  # noqa: E731
    slopes = [float((cost(moved(control, 1e-5, d)) - cost(moved(control, -1e-5, d)))[0]) / 2e-5 for d in directions]
    return request.param, control, directions, slopes


@pytest.mark.slow
@pytest.mark.x64
@pytest.mark.parametrize("adjoint", ADJOINTS)
def test_adjoint_choices_agree(differences, adjoint):
    system, control, directions, slopes = differences
    method, batch = SYSTEMS[system](ADJOINTS[adjoint])
    gradient = eqx.filter_jit(lambda problem, c: problem.gradient(c))(method.problem(batch), control)
    for direction, slope in zip(directions, slopes, strict=True):
        np.testing.assert_allclose(dot(gradient, direction), slope, rtol=REACH.get(adjoint, 1e-7))


# -- a first step that blows up --------------------------------------------------------------------------------------


def far_off(system, forward_adjoint, **options):
    """(method, batch) whose steepest-descent step is so long that the model overflows from there."""
    method, batch = SYSTEMS[system](forward_adjoint)
    tight = jax.tree.map(lambda v: 1e-8 * v, method.obs_cov_op)
    wide = jax.tree.map(lambda v: 1e2 * v, method.prior_cov_op)
    return method.with_(obs_cov_op=tight, prior_cov_op=wide, **options), batch


@pytest.mark.slow
@pytest.mark.parametrize("system", SYSTEMS)
def test_a_first_step_that_blows_up_is_survived(system):
    method, batch = far_off(system, ADJOINTS["direct"])
    posed = method.problem(batch)
    zero, cost = posed.zero_control(), eqx.filter_jit(lambda problem, control: problem.cost(control))
    downhill = jax.tree.map(jnp.negative, posed.gradient(zero))
    assert not jnp.isfinite(cost(posed, downhill)).any()
    analysis = method.analyse(batch, warm_start=downhill)
    for a in (method.analyse(batch), analysis):
        assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves((a.state, a.cost.last.total)))
        assert (a.cost.last.total < cost(posed, zero)).all()


@pytest.mark.slow
@pytest.mark.x64
@pytest.mark.parametrize(
    ("forward_adjoint", "minimiser_adjoint"),
    [
        ("direct", optimistix.ImplicitAdjoint()),
        ("direct", optimistix.RecursiveCheckpointAdjoint()),
        ("backsolve", optimistix.ImplicitAdjoint()),
    ],
)
def test_the_gradient_of_an_analysis_after_a_bad_first_step_is_the_limit_of_differences(
    forward_adjoint, minimiser_adjoint
):
    """BFGS tries the full steepest-descent step first, from which Lorenz-63 overflows, and backtracks.

    The steps are short: with a continuous adjoint the analysis is where an inexact gradient vanishes.
    """
    method, batch = lorenz63(ADJOINTS[forward_adjoint], dt=0.0025)
    direction = np.random.default_rng(5).normal(size=batch.input.shape)

    @jax.jit
    def score(shift):
        y = batch.input + shift * jnp.asarray(direction)
        moved_batch = eqx.tree_at(lambda b: b.input, batch, y)
        return jnp.sum(jnp.sin(tuned.analyse(moved_batch).state) * jnp.arange(1.0, 4.0)[None])

    tuned = method.with_(
        minimiser=optimistix.BFGS(1e-12, 1e-12),
        minimiser_adjoint=minimiser_adjoint,
        prior_cov_op=DiagonalCovariance(jnp.full(3, 1e3)),
        obs_cov_op=DiagonalCovariance(jnp.full(2, 1e-2)),
        tol=1e-10,
        max_steps=200,
    )
    posed = tuned.problem(batch)
    first_trial = jax.tree.map(jnp.negative, posed.gradient(posed.zero_control()))
    assert not jnp.isfinite(posed.cost(first_trial)).any()
    gradient = jax.grad(score)(0.0)
    difference = (score(1e-3) - score(-1e-3)) / 2e-3
    np.testing.assert_allclose(gradient, difference, rtol=1e-4 if forward_adjoint == "backsolve" else 1e-5)
