"""A smoother cycle is the loop over windows written out, for every overlap of the windows."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vardax.covariances.dense import DenseCovariance
from vardax.covariances.diagonal import DiagonalCovariance
from vardax.cycle.filter import VarDACycle
from vardax.cycle.smoother import SmootherCycle, VarSmootherCycle
from vardax.cycle.state import DAState
from vardax.dynamics.discrete import DiscreteForward
from vardax.models.strong_fourdvar import StrongFourDVar
from vardax.models.threedvar import ThreeDVar
from vardax.obs_operators.linear import LinearObs

N, M, ENTRIES = 3, 2, 12
RANDOM = np.random.default_rng(11)
MODEL = np.linalg.qr(RANDOM.normal(size=(N, N)))[0] * 0.95
H = RANDOM.normal(size=(M, N))
B = np.array([[1.0, 0.5, 0.2], [0.5, 1.5, 0.3], [0.2, 0.3, 0.8]])
R = np.diag([0.5, 0.2])
Y = RANDOM.normal(size=(ENTRIES, M))
START = RANDOM.normal(size=N)
DT = 0.5
POWER = [np.linalg.matrix_power(MODEL, k) for k in range(ENTRIES)]


class Times(eqx.Module):
    """x -> M x."""

    matrix: jax.Array

    def __call__(self, state):
        return self.matrix @ state


def forward():
    return DiscreteForward(Times(jnp.asarray(MODEL)), dt=DT)


def method(**options):
    return StrongFourDVar(
        forward(),
        LinearObs(jnp.asarray(H)),
        jnp.full(N, 50.0),
        DenseCovariance(jnp.asarray(B)),
        DiagonalCovariance(jnp.diagonal(jnp.asarray(R))),
        **options,
    )


def window_analysis(background, observations, used):
    """x_0* of one window: Kalman gain of all entries that are not used up, with B at the window's start."""
    chosen = range(used, len(observations))
    G = np.concatenate([H @ POWER[j] for j in chosen]) if chosen else np.zeros((0, N))
    y = np.concatenate([observations[j] for j in chosen]) if chosen else np.zeros(0)
    gain = B @ G.T @ np.linalg.inv(G @ B @ G.T + np.kron(np.eye(len(chosen)), R))
    return background + gain @ (y - G @ background)


def numpy_loop(window, stride, n_steps, reuse=False):
    """(forecasts, analyses) at the windows' last entries."""
    background, forecasts, analyses = START, [], []
    for i in range(n_steps):
        used = 0 if reuse or i == 0 else max(window - stride, 0)
        start = window_analysis(background, Y[i * stride : i * stride + window], used)
        forecasts.append(POWER[window - 1] @ background)
        analyses.append(POWER[window - 1] @ start)
        background = POWER[stride] @ start
    return np.array(forecasts), np.array(analyses)


OVERLAPS = {
    "lag 1": (2, 1),
    "lag 3": (4, 1),
    "two by two": (5, 2),
    "adjoining": (4, 3),
    "apart": (2, 3),
    "single": (1, 1),
}


CASES = [(overlap, False) for overlap in OVERLAPS] + [("two by two", True)]


@pytest.mark.parametrize(
    ("overlap", "reuse"), CASES, ids=lambda value: {True: "reuse", False: "once"}.get(value, value)
)
def test_a_smoother_is_the_loop_written_out(overlap, reuse):
    window, stride = OVERLAPS[overlap]
    cycle = VarSmootherCycle(
        forward(), None, method(), window=window, stride=stride, obs_source=Y, n_steps=3, reuse=reuse
    )
    state, da_state = cycle(START, DAState(t=1.0))
    forecasts, analyses = numpy_loop(window, stride, 3, reuse)
    history = da_state.extras["history"]
    np.testing.assert_allclose(history.forecast, forecasts, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(history.analysis, analyses, rtol=1e-3, atol=1e-3)
    np.testing.assert_array_equal(state, history.analysis[-1])
    np.testing.assert_allclose(history.time, 1.0 + DT * (window - 1 + stride * np.arange(3)), rtol=1e-6)
    assert (da_state.t, da_state.cycle_count) == (pytest.approx(1.0 + 3 * stride * DT), 3)
    fresh = window if reuse else min(window, stride)
    np.testing.assert_array_equal(history.n_observed, [window * M, fresh * M, fresh * M])
    assert np.all(history.report.converged)


@pytest.mark.parametrize("source", [lambda: lambda k: Y[k], lambda: iter(Y)], ids=["callable", "iterator"])
@pytest.mark.parametrize("overlap", ["lag 3", "adjoining", "apart"])
def test_a_host_source_gives_the_same_and_a_cycle_can_be_resumed(overlap, source):
    window, stride = OVERLAPS[overlap]
    cycle = VarSmootherCycle(forward(), None, method(), window=window, stride=stride, obs_source=source(), n_steps=1)
    state, da_state = START, DAState()
    for _ in range(3):
        state, da_state = cycle(state, da_state)
    np.testing.assert_allclose(state, numpy_loop(window, stride, 3)[1][-1], rtol=1e-3, atol=1e-3)


def test_a_window_without_lag_is_a_filter():
    """Entries 1, 2, ... with window 2 and H at the end only: the filter with B propagated over one step."""
    observations = np.concatenate([np.full((1, M), np.nan), Y[:5]])
    smoother = VarSmootherCycle(forward(), None, method(), window=2, obs_source=observations, n_steps=5)
    propagated = DenseCovariance(jnp.asarray(MODEL @ B @ MODEL.T))
    variational = ThreeDVar(
        LinearObs(jnp.asarray(H)), jnp.zeros(N), propagated, DiagonalCovariance(jnp.diagonal(jnp.asarray(R)))
    )
    cycle = VarDACycle(forward(), None, variational, obs_source=Y[:5], n_steps=5)
    np.testing.assert_allclose(smoother(START)[0], cycle(START)[0], rtol=1e-3, atol=1e-3)


def last_entry(forecast, obs, *, obs_op, obs_err_cov):
    """A step without `analyse`: the mean of the entries, as the state at the window's end."""
    return forecast * 0 + sum(jnp.sum(entry) for entry in obs)


def test_a_plain_step_gets_a_list_and_gives_the_window_end():
    cycle = SmootherCycle(forward(), None, last_entry, window=3, stride=2, obs_source=Y, n_steps=1)
    state, da_state = cycle(START)
    np.testing.assert_allclose(state, np.full(N, Y[:3].sum()), rtol=1e-5)
    assert da_state.extras["history"].report is None


def test_windows_inside_each_other_need_a_trajectory():
    with pytest.raises(ValueError, match="`stride` is 1, expected at least window - 1 = 2"):
        SmootherCycle(forward(), None, last_entry, window=3, stride=1)


def test_resuming_needs_the_state_that_was_left():
    cycle = VarSmootherCycle(forward(), None, method(), window=4, stride=1, obs_source=Y)
    with pytest.raises(ValueError, match=r"cycle_count 2 but no extras\['background'\]"):
        cycle(START, DAState(cycle_count=2))


def test_without_a_source_the_model_runs_free():
    cycle = VarSmootherCycle(forward(), None, method(), window=3, stride=1, n_steps=2)
    state, da_state = cycle(START)
    np.testing.assert_allclose(state, POWER[3] @ START, rtol=1e-5)
    np.testing.assert_allclose(da_state.extras["background"], POWER[2] @ START, rtol=1e-5)


def test_a_too_short_array_is_refused():
    cycle = VarSmootherCycle(forward(), None, method(), window=4, stride=2, obs_source=Y, n_steps=6)
    with pytest.raises(ValueError, match="has 12 entries, expected at least 14 for cycles 0 to 5"):
        cycle(START)


@pytest.mark.parametrize("option", ["window", "stride"])
def test_counts_are_whole_and_positive(option):
    with pytest.raises(ValueError, match=f"`{option}` is 0, expected a whole number of at least 1"):
        VarSmootherCycle(forward(), None, method(), **{"window": 2, "stride": 1, option: 0})


def test_new_values_do_not_compile_again(count_compilations):
    def run(shift):
        options = {"window": 3, "stride": 1, "obs_source": jnp.asarray(Y + shift), "n_steps": 2}
        cycle = VarSmootherCycle(forward(), None, method(), **options)
        cycle(*cycle(START + shift))

    run(0.0)
    with count_compilations() as compiled:
        run(1.0)
    assert compiled.n == 0, compiled.names
