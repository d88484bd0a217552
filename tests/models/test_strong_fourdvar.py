"""Strong-constraint 4DVar: the reference minimum of OOPS, substeps, time, gaps in time, memory, derivatives."""

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
from vardax.models.strong_fourdvar import StrongFourDVar
from vardax.obs_operators.identity import MaskedIdentity
from vardax.obs_operators.linear import LinearObs
from vardax.obs_operators.point import PointObs
from vardax.types import Batch1D, Status

pytestmark = pytest.mark.slow  # compiles many programs

X64 = jax.config.jax_enable_x64
TIGHT = {"rtol": 1e-6, "atol": 1e-6} if X64 else {"rtol": 5e-3, "atol": 5e-3}
RANDOM = np.random.default_rng(8)
J_STAR, J_B_STAR, J_O_STAR, J_FIRST = 2.66511061499638, 2.14535824917, 0.519752365831, 123.85634722309169


def six_digits(values):
    """Rounded as the observation files of OOPS are."""
    return np.array([float(f"{value:.6g}") for value in np.ravel(values)]).reshape(np.shape(values))


def oops_case(tiles=1, **options):
    """(method, batch) of the 4D-Var case of OOPS: every second cell at every second of 16 steps, window from step 2.

    Tiled to 40 · `tiles` cells every cost is `tiles` times that of one tile. Two steps make one entry of the batch.
    """
    n, model = 40 * tiles, Lorenz96(40, dt=0.0125)
    starts = [jnp.full(40, 8.0).at[cell].set(value) for cell, value in ((9, 9.0), (19, 7.0))]
    truth, background = (
        np.asarray(rollout(model, start, 18, forward_adjoint=optx.RecursiveCheckpointAdjoint())) for start in starts
    )
    y = np.full((1, 9, n // 2), np.nan)
    y[0, 1:] = np.tile(six_digits(truth[4:19:2, ::2]), (1, tiles))
    distance = np.minimum(np.arange(n), n - np.arange(n))
    row = 0.36 * np.exp(-0.5 * distance.astype(float) ** 2)
    method = StrongFourDVar(
        Lorenz96(n, dt=0.0125),
        PointObs(np.arange(0, n, 2)),
        np.tile(background[2], tiles),
        DenseCovariance(np.stack([np.roll(row, shift) for shift in range(n)])),
        DiagonalCovariance(np.full(n // 2, float(np.float32(0.4)) ** 2)),
        n_substeps=2,
        **options,
    )
    return method, Batch1D.from_observations(y)


@pytest.mark.x64
@pytest.mark.parametrize("tiles", [1, 2])
def test_the_reference_minimum_of_oops(tiles):
    """JCSDA/oops, l95/test, 4dvar: J 123.85634722309169 at the background, 2.66511061499638 at the minimum."""
    method, batch = oops_case(tiles, tol=1e-9, max_steps=1000)
    analysis = method.analyse(batch)
    np.testing.assert_allclose(analysis.cost.first.total[0], tiles * J_FIRST, rtol=1e-9)
    np.testing.assert_allclose(analysis.cost.last.total[0], tiles * J_STAR, rtol=1e-9)
    np.testing.assert_allclose(analysis.cost.last.J_b[0], tiles * J_B_STAR, rtol=1e-7)
    np.testing.assert_allclose(analysis.cost.last.J_o[0], tiles * J_O_STAR, rtol=1e-7)
    assert analysis.converged.all()


@pytest.mark.x64
def test_a_least_squares_solver_finds_the_same_minimum():
    method, batch = oops_case(minimiser=optx.GaussNewton(1e-10, 1e-10), tol=1e-9, max_steps=50)
    np.testing.assert_allclose(method.analyse(batch).cost.last.total[0], J_STAR, rtol=1e-9)


def test_the_reference_minimum_in_single_precision():
    method, batch = oops_case()
    single = lambda tree: jax.tree.map(  # noqa: E731
        lambda a: a.astype(jnp.float32) if eqx.is_inexact_array(a) else a, tree
    )
    analysis = single(method).analyse(single(batch))
    assert analysis.state.dtype == jnp.float32
    np.testing.assert_allclose(analysis.cost.last.total[0], J_STAR, rtol=2e-4)


# -- windows ---------------------------------------------------------------------------------------------------------


def quadratic(state, dt):
    """A small nonlinear model: dx/dt = -x² roll(x), one Euler step."""
    return state - dt * state**2 * jnp.roll(state, 1)


def window(entries=4, n=3, samples=2, seed=0):
    return np.random.default_rng(seed).normal(size=(samples, entries, n)) * 0.3 + 1.0


def strong(step=quadratic, n=3, *, dt=0.1, obs_op=None, R=None, **options):
    prior = DenseCovariance(0.5 * np.eye(n) + 0.1)
    obs_op = MaskedIdentity() if obs_op is None else obs_op
    R = DiagonalCovariance(np.full(n, 0.2)) if R is None else R
    return StrongFourDVar(DiscreteForward(step, dt), obs_op, np.full(n, 0.8), prior, R, **options)


def test_substeps_are_steps_between_the_entries():
    y = window()
    sparse = np.full((2, 10, 3), np.nan)
    sparse[:, ::3] = y
    together = strong(n_substeps=3).analyse(Batch1D.from_observations(y))
    apart = strong().analyse(Batch1D.from_observations(sparse))
    np.testing.assert_allclose(together.state, apart.state, **TIGHT)
    np.testing.assert_allclose(together.cost.last.total, apart.cost.last.total, **TIGHT)
    np.testing.assert_allclose(together.trajectory, apart.trajectory[:, ::3], **TIGHT)


def test_a_window_of_one_entry_is_3dvar():
    from vardax.models.threedvar import ThreeDVar

    batch, model = Batch1D.from_observations(window(1)), strong()
    single = ThreeDVar(model.obs_op, model.prior_mean, model.prior_cov_op, model.obs_cov_op)
    np.testing.assert_allclose(model(batch), single(batch), **TIGHT)
    assert model.analyse(batch).trajectory.shape == (2, 1, 3)


def test_entry_zero_observes_the_control_itself():
    y = np.full((1, 4, 3), np.nan)
    y[:, 0] = 2.0
    tight = DiagonalCovariance(np.full(3, 1e-6))
    np.testing.assert_allclose(strong(R=tight)(Batch1D.from_observations(y)), np.full((1, 3), 2.0), atol=1e-3)


def test_the_last_entry_observes_the_state_after_the_last_interval():
    start = jnp.array([1.2, 0.7, 0.9])
    states = rollout(DiscreteForward(quadratic, 0.1), start, 3, forward_adjoint=optx.RecursiveCheckpointAdjoint())
    y = np.full((1, 4, 3), np.nan)
    y[:, 3] = states[3]
    analysis = strong(R=DiagonalCovariance(np.full(3, 1e-6))).analyse(Batch1D.from_observations(y))
    np.testing.assert_allclose(analysis.trajectory[0, 3], states[3], atol=1e-3)
    np.testing.assert_allclose(analysis.state[0], start, atol=1e-2)


def test_entries_without_observations_do_not_matter():
    y = window(5)
    y[:, 2] = np.nan
    hidden = y.copy()
    hidden[:, 2] = 1e30
    mask = np.isfinite(y)
    np.testing.assert_array_equal(strong()(Batch1D.from_observations(y)), strong()(Batch1D(hidden, mask)))


class Forced(eqx.Module):
    """dx/dt = cos(t): the state depends on the time of the window."""

    def __call__(self, state, dt, *, t0):
        return state + dt * jnp.cos(t0)


@pytest.mark.parametrize("n_substeps", [1, 2])
@pytest.mark.parametrize("start", [0.0, 3.0])
def test_a_model_that_depends_on_time_gets_that_of_the_window(start, n_substeps):
    y = window()
    times = start + 0.1 * n_substeps * np.arange(4)
    analysis = strong(Forced(), n_substeps=n_substeps).analyse(Batch1D.from_observations(y, times=times))
    trajectory, t = [np.asarray(analysis.state)], start
    for _ in range(3):
        state = trajectory[-1]
        for _ in range(n_substeps):
            state, t = state + 0.1 * np.cos(t), t + 0.1
        trajectory.append(state)
    np.testing.assert_allclose(analysis.trajectory, np.stack(trajectory, axis=1), **TIGHT)
    offsets = (np.stack(trajectory, axis=1) - trajectory[0][:, None])[0]
    B, R = 0.5 * np.eye(3) + 0.1, 0.2
    precision = np.linalg.inv(B)
    for sample in range(2):
        right = precision @ np.full(3, 0.8) + (y[sample] - offsets).sum(axis=0) / R
        np.testing.assert_allclose(
            analysis.state[sample], np.linalg.solve(precision + 4 / R * np.eye(3), right), **TIGHT
        )


def test_new_times_do_not_compile(count_compilations):
    y, model = window(), strong(Forced())
    first, later = (Batch1D.from_observations(y, times=start + 0.1 * np.arange(4)) for start in (0.0, 5.0))
    before = model(first)
    with count_compilations() as compiled:
        after = model(later)
    assert compiled.n == 0, compiled.names
    assert not np.allclose(before, after)


def test_times_that_do_not_fit_the_steps_are_refused():
    """Entries are one interval apart; other times would be run as if they were."""
    batch = Batch1D.from_observations(window(), times=[0.0, 0.1, 0.2, 0.5])
    with pytest.raises(ValueError, match=r"`times` of the batch are not evenly spaced.*one model interval apart.*NaN"):
        strong(Forced())(batch)


def test_errors_may_be_correlated_over_the_whole_window():
    root = RANDOM.normal(size=(12, 12))
    R = 0.1 * root @ root.T + 0.1 * np.eye(12)
    y = window()
    y[0, 1, 2] = np.nan
    model = strong(lambda x: x, R=DenseCovariance(R, shape=(4, 3)))
    analysis = model.analyse(Batch1D.from_observations(y))
    B, H = 0.5 * np.eye(3) + 0.1, np.tile(np.eye(3), (4, 1))
    for sample in range(2):
        seen = np.isfinite(y[sample].ravel())
        G, S = H[seen], H[seen] @ B @ H[seen].T + R[np.ix_(seen, seen)]
        expected = 0.8 + B @ G.T @ np.linalg.solve(S, y[sample].ravel()[seen] - 0.8)
        np.testing.assert_allclose(analysis.state[sample], expected, **TIGHT)


def test_a_state_may_be_a_pytree_that_the_model_moves():
    import lineax as lx

    from vardax.obs_operators.callable import CallableObs

    prior = lx.DiagonalLinearOperator({"x": jnp.ones(2), "v": jnp.ones(2)})
    step = lambda state, dt: {"x": state["x"] + dt * state["v"], "v": state["v"]}  # noqa: E731
    model = StrongFourDVar(
        DiscreteForward(step, 0.5),
        CallableObs(lambda state: state["x"]),
        {"x": jnp.zeros(2), "v": jnp.zeros(2)},
        prior,
        DiagonalCovariance(np.full(2, 0.5)),
    )
    y = window(3, 2, 1)
    analysis = model.analyse(Batch1D.from_observations(y))
    G = np.array([[1.0, 0.0], [1.0, 0.5], [1.0, 1.0]])
    expected = np.linalg.solve(np.eye(2) + G.T @ G / 0.5, G.T @ y[0] / 0.5)
    np.testing.assert_allclose(analysis.state["x"][0], expected[0], **TIGHT)
    np.testing.assert_allclose(analysis.state["v"][0], expected[1], **TIGHT)
    assert analysis.trajectory["x"].shape == (1, 3, 2)


# -- memory and blow-ups ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "adjoint",
    [optx.RecursiveCheckpointAdjoint(), optx.RecursiveCheckpointAdjoint(checkpoints=2)],
    ids=["everything", "two checkpoints"],
)
def test_the_memory_of_the_model_run_changes_nothing_and_is_said(adjoint):
    batch = Batch1D.from_observations(window(6))
    analysis, reference = strong(forward_adjoint=adjoint).analyse(batch), strong().analyse(batch)
    np.testing.assert_allclose(analysis.state, reference.state, **TIGHT)
    assert ("rematerialises" in analysis.memory) == (adjoint.checkpoints is not None)
    assert analysis.memory


def test_an_adjoint_that_cannot_serve_is_refused_at_construction():
    import diffrax

    with pytest.raises(ValueError, match=r"`forward_adjoint`"):
        strong(forward_adjoint=diffrax.BacksolveAdjoint())


def test_a_model_that_blows_up_on_the_way_returns_a_finite_analysis():
    """x' = x² is infinite in finite time for a start that is a little larger."""
    growth = strong(lambda x, dt: x + dt * jnp.exp(3 * x) * x**2, dt=0.5, max_steps=100)
    batch = Batch1D.from_observations(np.full((1, 6, 3), 50.0))
    model = growth.with_(prior_mean=jnp.full(3, -0.5))
    analysis, posed = model.analyse(batch), model.problem(batch)
    assert jnp.isfinite(analysis.state).all()
    assert jnp.isfinite(analysis.cost.last.total).all()
    assert (analysis.cost.last.total <= posed.cost(posed.zero_control())).all()


def test_a_model_that_blows_up_at_once_returns_the_background_with_a_status():
    model = strong(lambda x: x / 0.0)
    analysis = model.analyse(Batch1D.from_observations(window()))
    np.testing.assert_allclose(analysis.state, 0.8)
    assert (analysis.status == Status.NON_FINITE).all()
    with pytest.warns(UserWarning, match="non-finite"):
        model(Batch1D.from_observations(window()))


# -- derivatives -----------------------------------------------------------------------------------------------------


@pytest.mark.x64
@pytest.mark.parametrize(
    ("adjoint", "checkpoints"),
    [(optx.ImplicitAdjoint(), None), (optx.RecursiveCheckpointAdjoint(), 2)],
    ids=["implicit", "checkpoints of checkpoints"],
)
def test_gradients_with_respect_to_the_model_are_the_limits_of_differences(adjoint, checkpoints):
    batch = Batch1D.from_observations(window())

    class Decay(eqx.Module):
        rate: jax.Array

        def __call__(self, state, dt):
            return state - dt * self.rate * state**2

    @jax.jit
    def score(rate):
        model = strong(
            Decay(rate),
            minimiser=optx.GaussNewton(1e-12, 1e-12),
            minimiser_adjoint=adjoint,
            forward_adjoint=optx.RecursiveCheckpointAdjoint(checkpoints=checkpoints),
            tol=1e-11,
            max_steps=60,
        )
        return jnp.sum(jnp.sin(model(batch)) * jnp.arange(1.0, 4.0)[None])

    rate, step = jnp.array([0.5, 1.0, 1.5]), 1e-5
    difference = jnp.stack([(score(rate + step * e) - score(rate - step * e)) / (2 * step) for e in jnp.eye(3)])
    np.testing.assert_allclose(jax.grad(score)(rate), difference, rtol=1e-5, atol=1e-8)


def test_a_rectangular_operator_sees_part_of_the_state():
    H = RANDOM.normal(size=(2, 3))
    y = window(4, 2)
    model = strong(lambda x: x, obs_op=LinearObs(H), R=DiagonalCovariance(np.full(2, 0.2)))
    B = 0.5 * np.eye(3) + 0.1
    state = model(Batch1D.from_observations(y))
    for sample in range(2):
        right = np.linalg.solve(B, np.full(3, 0.8)) + H.T @ y[sample].sum(axis=0) / 0.2
        np.testing.assert_allclose(state[sample], np.linalg.solve(np.linalg.inv(B) + 4 * H.T @ H / 0.2, right), **TIGHT)
