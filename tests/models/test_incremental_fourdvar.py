"""Incremental 4DVar: the costs of OOPS after each outer loop, globalisation, preconditioning, simplified increments."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optimistix as optx
import pytest

from vardax.covariances.dense import DenseCovariance
from vardax.covariances.diagonal import DiagonalCovariance
from vardax.dynamics.discrete import DiscreteForward
from vardax.dynamics.lorenz96 import Lorenz96
from vardax.dynamics.rollout import rollout
from vardax.minimisers.gauss_newton import (
    Backtracking,
    DualCG,
    GaussNewtonKrylov,
    IncrementalConfig,
    LanczosCG,
    Simplification,
)
from vardax.models.incremental_fourdvar import IncrementalFourDVar
from vardax.models.strong_fourdvar import StrongFourDVar
from vardax.models.threedvar import ThreeDVar
from vardax.obs_operators.callable import CallableObs
from vardax.obs_operators.linear import LinearObs
from vardax.obs_operators.point import PointObs
from vardax.types import Batch1D, Status

pytestmark = pytest.mark.slow  # compiles many programs

X64 = jax.config.jax_enable_x64
J_OOPS = [123.85634722309169, 2.92687876281948, 2.66660224862960]
J_STAR = 2.66511061499638
OOPS = {"n_outer": 2, "n_inner": 10, "cg_rtol": 0.0, "cg_atol": 0.0}


def six_digits(values):
    """Rounded as the observation files of OOPS are."""
    return np.array([float(f"{value:.6g}") for value in np.ravel(values)]).reshape(np.shape(values))


def oops_case(config, tiles=1, **options):
    """The 4D-Var case of OOPS (JCSDA/oops, l95/test), tiled: every second cell at every second of 16 steps."""
    n, model = 40 * tiles, Lorenz96(40, dt=0.0125)
    starts = [jnp.full(40, 8.0).at[cell].set(value) for cell, value in ((9, 9.0), (19, 7.0))]
    truth, background = (np.asarray(rollout(model, start, 18)) for start in starts)
    y = np.full((1, 9, n // 2), np.nan)
    y[0, 1:] = np.tile(six_digits(truth[4:19:2, ::2]), (1, tiles))
    distance = np.minimum(np.arange(n), n - np.arange(n))
    row = 0.36 * np.exp(-0.5 * distance.astype(float) ** 2)
    method = IncrementalFourDVar(
        Lorenz96(n, dt=0.0125),
        PointObs(np.arange(0, n, 2)),
        np.tile(background[2], tiles),
        DenseCovariance(np.stack([np.roll(row, shift) for shift in range(n)])),
        DiagonalCovariance(np.full(n // 2, float(np.float32(0.4)) ** 2)),
        config,
        n_substeps=2,
        **options,
    )
    return method, Batch1D.from_observations(y)


FORMS = {
    "Lanczos": {"inner_solver": LanczosCG()},
    "dual": {"inner_solver": DualCG()},
    "pairs": {"cvt": False},
}


@pytest.mark.x64
@pytest.mark.parametrize(("form", "tiles"), [("Lanczos", 1), ("dual", 1), ("pairs", 1), ("Lanczos", 2)])
def test_the_costs_of_oops_after_each_outer_loop(form, tiles):
    """Two outer loops of ten inner steps; the three forms take the same steps, so they agree far closer than 1e-9."""
    method, batch = oops_case(IncrementalConfig(**OOPS, **FORMS[form]), tiles)
    analysis = method.analyse(batch)
    np.testing.assert_allclose(analysis.history.total[0, :3], tiles * np.array(J_OOPS), rtol=1e-9)
    np.testing.assert_allclose(analysis.cost.last.total[0], tiles * J_OOPS[2], rtol=1e-9)
    assert not analysis.converged.any()
    assert Status(int(analysis.status[0])) is Status.MAX_STEPS


@pytest.mark.x64
def test_primal_and_restricted_dual_iterates_are_the_same():
    primal, batch = oops_case(IncrementalConfig(**OOPS))
    dual = primal.with_(config=IncrementalConfig(**OOPS, inner_solver=DualCG()))
    pairs = primal.with_(config=IncrementalConfig(**OOPS, cvt=False))
    expected = primal.analyse(batch)
    for other in (dual, pairs):
        np.testing.assert_allclose(other.analyse(batch).control, expected.control, rtol=0, atol=1e-10)


def test_the_costs_in_single_precision():
    method, batch = oops_case(IncrementalConfig(**OOPS))
    single = lambda tree: jax.tree.map(  # noqa: E731
        lambda a: a.astype(jnp.float32) if eqx.is_inexact_array(a) else a, tree
    )
    analysis = single(method).analyse(single(batch))
    assert analysis.state.dtype == jnp.float32
    np.testing.assert_allclose(analysis.history.total[0, :3], J_OOPS, rtol=2e-4)


@pytest.mark.x64
def test_it_converges_to_the_minimum_also_preconditioned():
    for precondition in (False, True):
        config = IncrementalConfig(n_outer=8, n_inner=40, precondition_from_previous=precondition)
        method, batch = oops_case(config, tol=1e-9)
        analysis = method.analyse(batch)
        assert analysis.converged.all()
        np.testing.assert_allclose(analysis.cost.last.total[0], J_STAR, rtol=1e-9)


# -- a small nonlinear window ----------------------------------------------------------------------------------------


N, ENTRIES = 6, 4


def quadratic(state, dt):
    """dx/dt = -x² roll(x) + 1, one Euler step."""
    return state + dt * (1 - state**2 * jnp.roll(state, 1))


def observations(samples=2, seed=0):
    y = np.random.default_rng(seed).normal(size=(samples, ENTRIES, 4)) * 0.3 + 1.0
    y[0, 1, 2] = np.nan
    return Batch1D.from_observations(y)


CONVERGING = IncrementalConfig(n_outer=15)


def incremental(config=CONVERGING, *, step=quadratic, obs_op=None, mean=0.8, **options):
    distance = np.abs(np.subtract.outer(np.arange(N), np.arange(N)))
    H = np.random.default_rng(3).normal(size=(4, N)) / 2
    return IncrementalFourDVar(
        DiscreteForward(step, 0.1),
        LinearObs(H) if obs_op is None else obs_op,
        np.full(N, mean),
        DenseCovariance(0.5 * np.exp(-distance / 2.0)),
        DenseCovariance(0.05 * np.eye(4) + 0.02),
        config,
        **options,
    )


def strong_of(method, **options):
    slots = (method.forward, method.obs_op, method.prior_mean, method.prior_cov_op, method.obs_cov_op)
    return StrongFourDVar(*slots, n_substeps=method.n_substeps, **options)


def test_its_minimum_is_that_of_strong_4dvar():
    batch, method = observations(), incremental()
    found, expected = method.analyse(batch), strong_of(method).analyse(batch)
    assert found.converged.all()
    slack = 1e-6 if X64 else 1e-4
    assert np.all(found.cost.last.total <= expected.cost.last.total * (1 + slack))
    np.testing.assert_allclose(found.state, expected.state, atol=1e-4 if X64 else 1e-2)


def test_the_record_is_the_hessian_on_its_krylov_space():
    """VᵀV = I and Vᵀ(I + GᵀG)V = T, with G linearised where the last inner loop was."""
    batch = observations(samples=1)
    method = incremental(IncrementalConfig(n_outer=1, n_inner=4, cg_rtol=0.0, cg_atol=0.0))
    record = jax.tree.map(lambda a: a[0], method.analyse(batch).krylov)
    problem = method.problem(batch)
    zero = problem.zero_control()
    A = np.stack([problem.hessian_product(zero, jnp.asarray(e)[None])[0] for e in np.eye(N, dtype=zero.dtype)])
    V = np.asarray(record.vectors[:4])
    off = np.asarray(record.off[:3])
    T = np.diag(record.diagonal[:4]) + np.diag(off, 1) + np.diag(off, -1)
    close = 1e-9 if X64 else 1e-3
    np.testing.assert_allclose(V @ V.T, np.eye(4), atol=close)
    np.testing.assert_allclose(V @ A @ V.T, T, atol=close * np.max(T))


def test_a_step_that_raises_the_cost_is_shortened():
    """From 0.2, Gauss-Newton on y = x³ overshoots to 8 at first; J must fall at every accepted step all the same."""
    cubic = CallableObs(lambda x: x[:4] ** 3)
    method = incremental(IncrementalConfig(n_outer=25), step=lambda x, dt: x, obs_op=cubic, mean=0.2)
    analysis = method.analyse(observations())
    total = np.asarray(analysis.history.total)
    assert np.all(analysis.n_iterations > 5)
    assert np.any(np.diff(total[:, :8]) == 0)  # a row that repeats the cost: a trial was rejected
    for row in total:
        steps = row[np.isfinite(row)]
        assert np.all(np.diff(steps) <= 1e-6 * np.abs(steps[:-1]))
    assert analysis.converged.all()


def test_a_trial_that_blows_up_is_not_taken():
    """A model that overflows for states above 1.5 in size."""

    def fragile(state, dt):
        return state + jnp.where(jnp.abs(state) > 1.5, jnp.inf, dt * (1 - state))

    y = np.full((1, ENTRIES, 4), 4.0)
    analysis = incremental(step=fragile).analyse(Batch1D.from_observations(y))
    assert np.isfinite(analysis.state).all()
    assert np.all(analysis.cost.last.total < analysis.cost.first.total)
    assert np.isfinite(analysis.gradient_norm).all()


def test_without_a_shorter_step_that_helps_it_stalls_with_the_best_iterate():
    config = IncrementalConfig(n_outer=10, globalisation=Backtracking(max_trials=0))
    cubic = CallableObs(lambda x: x[:4] ** 3)
    analysis = incremental(config, step=lambda x, dt: x, obs_op=cubic, mean=0.2).analyse(observations())
    assert {Status(int(s)) for s in analysis.status} == {Status.STALLED}
    np.testing.assert_array_equal(analysis.cost.last.total, analysis.cost.first.total)


def test_ritz_pairs_of_the_first_loop_speed_up_the_second():
    """On a linear problem truncated at few inner steps, the preconditioned second loop ends far lower."""
    rng = np.random.default_rng(5)
    batch = Batch1D.from_observations(rng.normal(size=(1, 1, 30)))
    H = (
        np.diag(np.concatenate([np.logspace(2.5, 1.5, 6), np.linspace(1.5, 0.1, 24)]))
        @ np.linalg.qr(rng.normal(size=(30, 30)))[0]
    )
    slots = (DiscreteForward(lambda x: x, 1.0), LinearObs(H), np.zeros(30))
    slots += (DiagonalCovariance(np.ones(30)), DiagonalCovariance(np.ones(30)))
    excess = {}
    exact = IncrementalFourDVar(*slots, IncrementalConfig(n_outer=3, n_inner=30)).analyse(batch).cost.last.total[0]
    for precondition in (False, True):
        config = IncrementalConfig(n_outer=2, n_inner=8, precondition_from_previous=precondition)
        excess[precondition] = IncrementalFourDVar(*slots, config).analyse(batch).cost.last.total[0] - exact
    assert excess[True] < 0.1 * excess[False]


def dense_step(method, batch, sample, jacobian):
    """The increment of one exact outer loop from the background: B Gᵀ (G B Gᵀ + R)⁻¹ d, d of the full model."""
    H, B, R = (np.asarray(op.as_matrix()) for op in (method.obs_op.linearize(method.prior_mean), *covariances(method)))
    trajectory = np.asarray(rollout(method.forward, method.prior_mean, ENTRIES - 1))
    seen = np.asarray(batch.mask[sample]).ravel() == 1
    d = (np.asarray(batch.input[sample]) - trajectory @ H.T).ravel()[seen]
    G = np.concatenate([H @ J for J in jacobian])[seen]
    R = np.kron(np.eye(ENTRIES), R)[np.ix_(seen, seen)]
    return B @ G.T @ np.linalg.solve(G @ B @ G.T + R, d)


def covariances(method):
    return method.prior_cov_op, method.obs_cov_op


COARSE = np.kron(np.eye(3), np.full((1, 2), 0.5))  # means of pairs of cells
INNER = {
    "identity (3D-FGAT)": (DiscreteForward(lambda x: x, 0.1), None, lambda t: np.eye(N)),
    "linear": (DiscreteForward(lambda x: 0.9 * x, 0.1), None, lambda t: 0.9**t * np.eye(N)),
    "coarse": (
        DiscreteForward(lambda z: 0.9 * z, 0.1),
        Simplification(lambda x: x.reshape(3, 2).mean(axis=1), lambda z: jnp.repeat(z, 2)),
        lambda t: 0.9**t * np.kron(np.eye(3), np.ones((2, 1))) @ COARSE,
    ),
}


@pytest.mark.parametrize("name", INNER)
def test_increments_are_those_of_the_inner_model(name):
    """Departures from the full model; tangent-linear and adjoint of the simpler one."""
    inner, maps, jacobian = INNER[name]
    config = IncrementalConfig(n_outer=1, n_inner=30, inner_forward=inner, simplification=maps)
    method, batch = incremental(config), observations()
    found = np.asarray(method.analyse(batch).state)
    for sample in range(2):
        step = dense_step(method, batch, sample, [jacobian(t) for t in range(ENTRIES)])
        np.testing.assert_allclose(found[sample], method.prior_mean + step, atol=1e-6 if X64 else 1e-3)


@pytest.mark.parametrize("inner_solver", [LanczosCG(), DualCG()])
def test_outer_loops_with_a_cheaper_model_end_near_the_minimum(inner_solver):
    inner, _, _ = INNER["linear"]
    config = IncrementalConfig(n_outer=6, inner_forward=inner, inner_solver=inner_solver)
    batch = observations()
    found, exact = incremental(config).analyse(batch), incremental().analyse(batch)
    gained = found.cost.first.total - found.cost.last.total
    assert np.all(gained > 0.95 * (exact.cost.first.total - exact.cost.last.total))
    assert not found.converged.any()  # the gradient is that of the full problem


def test_it_is_iterated_from_the_host_and_resumed():
    batch, method = observations(), incremental(IncrementalConfig(n_outer=2, n_inner=3))
    seen = list(method.iterate(batch))
    np.testing.assert_allclose(seen[-1].state, method.analyse(batch).state, rtol=1e-5)
    totals = [float(a.cost.last.total[0]) for a in seen]
    assert totals == sorted(totals, reverse=True)
    resumed = method.analyse(batch, warm_start=seen[-1])
    assert np.all(resumed.cost.last.total <= seen[-1].cost.last.total * (1 + 1e-6))
    assert np.all(resumed.gradient_norm < seen[-1].gradient_norm)


# -- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"n_outer": 0}, "`n_outer` is 0, expected at least 1"),
        ({"n_inner": 0}, "`n_inner` is 0, expected at least 1"),
        ({"cg_rtol": -1.0}, "`cg_rtol` is -1.0, expected 0 or more"),
        ({"inner_solver": DualCG(), "cvt": False}, "`cvt=False` does not apply"),
        ({"inner_solver": DualCG(), "precondition_from_previous": True}, "needs the Lanczos vectors in control space"),
        ({"simplification": Simplification(lambda x: x, lambda x: x)}, "`inner_forward`, which is missing"),
    ],
)
def test_a_configuration_that_cannot_work_is_refused(options, words):
    with pytest.raises(ValueError, match=words):
        IncrementalConfig(**options)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"inner_solver": "lanczos"}, "expected LanczosCG\\(\\) or DualCG\\(\\)"),
        ({"globalisation": None}, "expected Backtracking\\(\\)"),
    ],
)
def test_slots_of_the_configuration_take_types(options, words):
    with pytest.raises(TypeError, match=words):
        IncrementalConfig(**options)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"factor": 1.0}, "`factor` is 1.0, expected a number between 0 and 1"),
        ({"decrease": 0.7}, "`decrease` is 0.7"),
        ({"max_trials": -1}, "`max_trials` is -1, expected 0 or more"),
    ],
)
def test_backtracking_checks_its_numbers(options, words):
    with pytest.raises(ValueError, match=words):
        Backtracking(**options)


def test_an_inner_model_needs_a_window_without_model_errors():
    slots = (LinearObs(np.eye(N)[:4]), np.zeros(N), DiagonalCovariance(np.ones(N)), DiagonalCovariance(np.ones(4)))
    inner = IncrementalConfig(inner_forward=DiscreteForward(lambda x: x, 0.1))
    with pytest.raises(TypeError, match="`inner_forward` replaces the model of a window"):
        ThreeDVar(*slots, GaussNewtonKrylov(inner)).analyse(Batch1D.from_observations(np.ones((1, 4))))


def test_the_config_slot_takes_a_config():
    with pytest.raises(TypeError, match="expected IncrementalConfig"):
        incremental(optx.BFGS(1e-6, 1e-6))
