"""A filter cycle is the textbook loop: forecast, analysis of the forecast, next forecast."""

from types import SimpleNamespace

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vardax.covariances.dense import DenseCovariance
from vardax.covariances.diagonal import DiagonalCovariance
from vardax.cycle.filter import DACycle, VarDACycle, positive_count
from vardax.cycle.state import DAState
from vardax.dynamics.discrete import DiscreteForward
from vardax.models.optimal_interpolation import OptimalInterpolation
from vardax.models.threedvar import ThreeDVar
from vardax.obs_operators.interp import InterpObs
from vardax.obs_operators.linear import LinearObs
from vardax.types import ConvergenceError, ConvergenceWarning, Observations

N, M, CYCLES = 3, 2, 6
RANDOM = np.random.default_rng(7)
MODEL = np.linalg.qr(RANDOM.normal(size=(N, N)))[0] * 0.95
H = RANDOM.normal(size=(M, N))
B = np.array([[1.0, 0.5, 0.2], [0.5, 1.5, 0.3], [0.2, 0.3, 0.8]])
R = np.diag([0.5, 0.2])
Y = RANDOM.normal(size=(CYCLES, M))
START = RANDOM.normal(size=N)
GAIN = B @ H.T @ np.linalg.inv(H @ B @ H.T + R)
DT = 0.25


class GainStep(eqx.Module):
    """x_a = x_f + K (y - H x_f), missing entries ignored: the smallest analysis step, without `analyse`."""

    gain: jax.Array

    def __call__(self, forecast, obs, *, obs_op, obs_err_cov):
        innovation = obs - obs_op(forecast)
        return forecast + self.gain @ jnp.where(jnp.isfinite(innovation), innovation, 0)


class Times(eqx.Module):
    """x -> M x."""

    matrix: jax.Array

    def __call__(self, state):
        return self.matrix @ state


def forward():
    return DiscreteForward(Times(jnp.asarray(MODEL)), dt=DT)


def gain_cycle(**options):
    return DACycle(forward(), LinearObs(jnp.asarray(H)), GainStep(jnp.asarray(GAIN)), **options)


def numpy_loop(start=START, observations=Y):
    """The same cycle written out: forecasts and analyses."""
    state, forecasts, analyses = start, [], []
    for y in observations:
        forecast = MODEL @ state
        state = forecast + GAIN @ (y - H @ forecast)
        forecasts.append(forecast)
        analyses.append(state)
    return np.array(forecasts), np.array(analyses)


SOURCES = {
    "array": lambda: jnp.asarray(Y),
    "numpy": lambda: Y,
    "list": lambda: list(Y),
    "callable": lambda: lambda i: Y[i],
    "iterator": lambda: iter(Y),
}


@pytest.mark.parametrize("source", SOURCES)
def test_a_cycle_is_the_loop_written_out(source):
    state, da_state = gain_cycle(obs_source=SOURCES[source](), n_steps=CYCLES)(START)
    forecasts, analyses = numpy_loop()
    history = da_state.extras["history"]
    np.testing.assert_allclose(state, analyses[-1], rtol=1e-5)
    np.testing.assert_allclose(history.forecast, forecasts, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(history.analysis, analyses, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(history.time, DT * np.arange(1, CYCLES + 1), rtol=1e-6)
    np.testing.assert_array_equal(history.n_observed, M)
    assert history.report is None
    assert da_state.t == pytest.approx(CYCLES * DT)
    assert da_state.cycle_count == CYCLES


@pytest.mark.parametrize("method", [OptimalInterpolation, ThreeDVar])
def test_the_forecast_is_the_background_of_a_method(method):
    """Forecast-aware: a method cycled with its own far-off `prior_mean` gives the Kalman-gain loop all the same."""
    model = method(
        LinearObs(jnp.asarray(H)), jnp.full(N, 100.0), DenseCovariance(jnp.asarray(B)), DiagonalCovariance(np.diag(R))
    )
    cycle = VarDACycle(forward(), None, model, obs_source=jnp.asarray(Y), n_steps=CYCLES)
    state, da_state = cycle(START, DAState())
    forecasts, analyses = numpy_loop()
    history = da_state.extras["history"]
    np.testing.assert_allclose(state, analyses[-1], rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(history.analysis, analyses, rtol=1e-3, atol=1e-3)

    increments = analyses - forecasts
    misfits = Y - analyses @ H.T
    J_b = 0.5 * np.einsum("ki,ij,kj->k", increments, np.linalg.inv(B), increments)
    J_o = 0.5 * np.einsum("ki,ij,kj->k", misfits, np.linalg.inv(R), misfits)
    innovations = Y - forecasts @ H.T
    at_background = 0.5 * np.einsum("ki,ij,kj->k", innovations, np.linalg.inv(R), innovations)
    report = history.report
    np.testing.assert_allclose(report.J_b, J_b, rtol=2e-3, atol=1e-4)
    np.testing.assert_allclose(report.J_o, J_o, rtol=2e-3, atol=1e-4)
    np.testing.assert_allclose(report.cost, J_b + J_o, rtol=2e-3, atol=1e-4)
    np.testing.assert_allclose(report.cost_background, at_background, rtol=2e-3, atol=1e-4)
    assert np.all(report.converged)
    assert np.all(report.status == 0)


@pytest.mark.parametrize("source", ["list", "callable", "iterator"])
def test_scattered_points_may_be_others_in_each_cycle(source, count_compilations):
    """New positions and counts every time, against the loop written out."""
    rng, days = np.random.default_rng(1), []
    for count in (1, 4, 2, 3, 2, 5):
        where, value = rng.uniform(0, N - 1, (count, 1)), rng.normal(size=count)
        days.append(Observations(value, 0.5, 0.0, where))
    model = OptimalInterpolation(InterpObs([np.arange(float(N))]), np.zeros(N), DenseCovariance(B), None)
    given = {"list": days, "callable": days.__getitem__, "iterator": iter(days)}[source]
    cycle = VarDACycle(forward(), None, model, obs_source=given, n_steps=CYCLES)
    with count_compilations() as compiled:
        state, da_state = cycle(START, DAState())
    expected = START
    for day in days:
        forecast, rows = MODEL @ expected, np.asarray(day.coords[:, 0], float)
        G = np.stack([np.interp(rows, np.arange(N), unit) for unit in np.eye(N)], axis=1)
        gain = B @ G.T @ np.linalg.inv(G @ B @ G.T + 0.25 * np.eye(rows.size))
        expected = forecast + gain @ (np.asarray(day.value) - G @ forecast)
    np.testing.assert_allclose(state, expected, rtol=1e-4, atol=1e-5)
    assert da_state.extras["history"].n_observed.tolist() == [1, 4, 2, 3, 2, 5]
    assert sum("_one" in name for name in compiled.names) <= 1, compiled.names


def test_a_cycle_can_be_resumed():
    cycle = gain_cycle(obs_source=Y, n_steps=CYCLES // 2)
    state, da_state = cycle(START, DAState(t=10.0))
    state, da_state = cycle(state, da_state)
    np.testing.assert_allclose(state, numpy_loop()[1][-1], rtol=1e-5)
    assert (da_state.t, da_state.cycle_count) == (pytest.approx(10.0 + CYCLES * DT), CYCLES)
    np.testing.assert_allclose(
        da_state.extras["history"].analysis, numpy_loop()[1][CYCLES // 2 :], rtol=1e-4, atol=1e-6
    )


def test_an_iterator_goes_on_where_it_was():
    cycle = gain_cycle(obs_source=iter(Y), n_steps=CYCLES // 2)
    state, da_state = cycle(*cycle(START, DAState()))
    np.testing.assert_allclose(state, numpy_loop()[1][-1], rtol=1e-5)


@pytest.mark.parametrize("source", [lambda y: jnp.asarray(y), lambda y: lambda i: y[i]], ids=["array", "callable"])
def test_new_values_do_not_compile_again(source, count_compilations):
    gain_cycle(obs_source=source(Y), n_steps=CYCLES)(START, DAState())
    with count_compilations() as compiled:
        gain_cycle(obs_source=source(Y + 1), n_steps=CYCLES)(START + 1, DAState(t=3.0))
    assert compiled.n == 0, compiled.names


def test_an_array_is_one_compiled_loop():
    """The analysis step is traced as often for 300 cycles as for 3: there is no Python loop over time."""
    calls = []

    def step(forecast, obs, *, obs_op, obs_err_cov):
        calls.append(obs)
        return forecast

    counts = []
    for n_steps in (3, 300):
        calls.clear()
        DACycle(forward(), None, step, obs_source=np.zeros((n_steps, M)), n_steps=n_steps)(START, DAState())
        counts.append(len(calls))
    assert counts[0] == counts[1] <= 2


def test_missing_observations_are_nan():
    source = np.array(Y)
    source[2] = np.nan
    source[3, 0] = np.nan
    _, da_state = gain_cycle(obs_source=source, n_steps=CYCLES)(START)
    history = da_state.extras["history"]
    np.testing.assert_array_equal(history.n_observed, [2, 2, 0, 1, 2, 2])
    np.testing.assert_array_equal(history.analysis[2], history.forecast[2])


def test_without_a_source_the_model_runs_free():
    state, da_state = gain_cycle(n_steps=4)(START)
    np.testing.assert_allclose(state, np.linalg.matrix_power(MODEL, 4) @ START, rtol=1e-5)
    np.testing.assert_array_equal(da_state.extras["history"].n_observed, 0)


def test_the_error_covariance_of_the_cycle_reaches_the_step():
    seen = []

    def step(forecast, obs, *, obs_op, obs_err_cov):
        seen.append((obs_op, obs_err_cov is not None))
        return forecast

    cycle = DACycle(forward(), None, step, obs_source=Y)
    cycle(START, DAState(obs_err_cov=DiagonalCovariance(np.ones(M))))
    cycle(START, DAState())
    assert seen == [(None, True), (None, False)]


def test_extras_of_the_user_stay_and_history_can_be_left_out():
    _, da_state = gain_cycle(obs_source=Y)(START, DAState(extras={"mine": "label"}))
    assert set(da_state.extras) == {"mine", "history"}
    _, da_state = gain_cycle(obs_source=Y, save_history=False)(START, DAState())
    assert da_state.extras is None


def test_a_model_is_told_the_time():
    clock = DiscreteForward(lambda x, *, t: x * 0 + t, dt=DT)
    cycle = DACycle(clock, None, lambda forecast, obs, **_: forecast, obs_source=Y, n_steps=3)
    _, da_state = cycle(jnp.zeros(1), DAState(t=5.0))
    np.testing.assert_allclose(da_state.extras["history"].forecast[:, 0], [5.0, 5.0 + DT, 5.0 + 2 * DT])


def test_a_state_may_be_a_pytree():
    halve = SimpleNamespace(step=lambda s, dt: {k: 0.5 * v for k, v in s.items()}, dt=1, state_signature=None)
    add = lambda forecast, obs, **_: {k: v + obs for k, v in forecast.items()}  # noqa: E731
    cycle = DACycle(halve, None, add, obs_source=jnp.ones((2, 3)), n_steps=2)
    state, _ = cycle({"u": jnp.zeros(3), "v": jnp.ones((2, 3))[0]}, DAState())
    np.testing.assert_allclose(state["u"], 1.5)
    np.testing.assert_allclose(state["v"], 1.75)


def test_a_cycle_works_under_jit_and_grad():
    cycle = gain_cycle(obs_source=jnp.asarray(Y), n_steps=CYCLES)
    plain, _ = cycle(START, DAState())
    jitted, da_state = eqx.filter_jit(lambda x: cycle(x, DAState()))(jnp.asarray(START))
    np.testing.assert_allclose(jitted, plain, rtol=1e-5)
    jacobian = jax.jacobian(lambda x: cycle(x, DAState())[0])(jnp.asarray(START))
    one = (np.eye(N) - GAIN @ H) @ MODEL
    np.testing.assert_allclose(jacobian, np.linalg.matrix_power(one, CYCLES), rtol=1e-3, atol=1e-5)


def test_single_precision_stays():
    cycle = DACycle(
        DiscreteForward(lambda x: 0.5 * x, dt=0.1),
        None,
        lambda forecast, obs, **_: forecast + obs,
        obs_source=jnp.ones((3, 2), jnp.float32),
        n_steps=3,
    )
    state, _ = cycle(jnp.ones(2, jnp.float32), DAState())
    assert state.dtype == jnp.float32


def test_a_callable_cannot_be_asked_under_jit():
    cycle = gain_cycle(obs_source=lambda i: Y[i])
    with pytest.raises(ValueError, match="cannot be asked under jit"):
        jax.jit(lambda x: cycle(x, DAState())[0])(START)


def unconverged(strict):
    model = ThreeDVar(
        LinearObs(jnp.asarray(H)),
        jnp.zeros(N),
        DenseCovariance(jnp.asarray(B)),
        DiagonalCovariance(np.diag(R)),
        max_steps=1,
        strict=strict,
    )
    return VarDACycle(forward(), None, model, obs_source=Y, n_steps=2)


def test_not_converged_is_said():
    with pytest.warns(ConvergenceWarning, match="2 of 2 analyses of a cycle did not converge"):
        _, da_state = unconverged(strict=False)(START)
    assert not np.any(da_state.extras["history"].report.converged)


def test_not_converged_raises_when_the_method_is_strict():
    with pytest.raises(ConvergenceError, match="2 of 2 analyses"):
        unconverged(strict=True)(START)


def wrong_shape(forecast, obs, **_):
    return forecast[:-1]


BAD = {
    "too few entries": (lambda: gain_cycle(obs_source=Y, n_steps=7)(START), "has 6 entries, expected at least 7"),
    "resumed beyond the end": (
        lambda: gain_cycle(obs_source=Y, n_steps=2)(START, DAState(cycle_count=5)),
        "at least 7 for cycles 5 to 6",
    ),
    "a single value": (lambda: gain_cycle(obs_source=1.0), "`obs_source` is the single value"),
    "an iterator that ends": (
        lambda: gain_cycle(obs_source=iter(Y[:1]), n_steps=2)(START),
        "ended before entry 1",
    ),
    "no cycles": (lambda: gain_cycle(n_steps=0), "`n_steps` is 0, expected a whole number of at least 1"),
    "half a cycle": (lambda: positive_count("n_steps", 1.5), "`n_steps` is 1.5"),
    "an analysis of another shape": (
        lambda: DACycle(forward(), None, wrong_shape, obs_source=Y)(START),
        r"the analysis is float\d+\[2\], expected float\d+\[3\]",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_values_are_refused(case):
    call, words = BAD[case]
    with pytest.raises(ValueError, match=words):
        call()


def test_what_is_no_model_step_or_method_is_refused():
    with pytest.raises(TypeError, match="`forward_model` is a function without step and dt.*DiscreteForward"):
        DACycle(lambda x: x, None, lambda *a, **k: None)
    with pytest.raises(TypeError, match="`analysis_step` is a int, expected a callable"):
        DACycle(forward(), None, 3)
    with pytest.raises(TypeError, match="`method` is a GainStep without `as_analysis_step`"):
        VarDACycle(forward(), None, GainStep(jnp.asarray(GAIN)))
