"""Every solver of optimistix, stopped and recorded alike: the known answer, never worse than the background, no NaN."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import optimistix as optx
import pytest

from vardax.covariances.diagonal import DiagonalCovariance
from vardax.minimisers.recording import default_tolerance
from vardax.models.threedvar import ThreeDVar
from vardax.obs_operators.callable import CallableObs
from vardax.types import Batch1D, Status

pytestmark = pytest.mark.slow  # every method or solver compiles its own programs

X64 = jax.config.jax_enable_x64
TIGHT = 1e-9 if X64 else 1e-5
SECOND_ORDER = {
    "default": None,
    "BFGS": optx.BFGS(TIGHT, TIGHT),
    "DFP": optx.DFP(TIGHT, TIGHT),
    "LBFGS": optx.LBFGS(TIGHT, TIGHT),
    "GaussNewton": optx.GaussNewton(TIGHT, TIGHT),
    "LevenbergMarquardt": optx.LevenbergMarquardt(TIGHT, TIGHT),
    "IndirectLevenbergMarquardt": optx.IndirectLevenbergMarquardt(TIGHT, TIGHT),
    "Dogleg": optx.Dogleg(TIGHT, TIGHT),
}
FIRST_ORDER = {
    "NonlinearCG": optx.NonlinearCG(TIGHT, TIGHT),
    "GradientDescent": optx.GradientDescent(0.05, TIGHT, TIGHT),
    "NelderMead": optx.NelderMead(TIGHT, TIGHT),
    "optax": optx.OptaxMinimiser(optax.sgd(0.05, momentum=0.5), TIGHT, TIGHT),
}
SOLVERS = SECOND_ORDER | FIRST_ORDER
each_solver = pytest.mark.parametrize("name", SOLVERS)
CAPPED, TRUNCATED = 300, 2
SLOW = ("GradientDescent", "optax")
FINDERS = [name for name in SOLVERS if name != "NelderMead"]
"""optimistix 0.1's Nelder-Mead stops at points that are no minima, (1, -3/4, -3/4) for ½|x|² + ½|x - (2, -4, 1)|²."""

NAN = float("nan")
TOL = default_tolerance(jnp.result_type(float))


def curved(x):
    """Observations that are nonlinear enough for the solvers to differ."""
    return jnp.stack([x[0] ** 2 - x[1], jnp.sin(x[1]) + x[2], x[2] * x[0], x[3] + 0.1 * x[3] ** 3])


def exploding(x):
    """Finite at x = 1, infinite as soon as a step goes beyond 3."""
    return jnp.where(x > 3.0, jnp.inf, 1.0) * jnp.exp(x)


class Scene(eqx.Module):
    """The identity, `curved` or `exploding` by a traced number, so that all scenes share one compilation a solver."""

    number: jax.Array

    def __call__(self, state):
        return jax.lax.switch(self.number, [lambda x: x, curved, exploding], state)


BRIEF = ["default", "GaussNewton", "Dogleg", "NelderMead", "optax"]
RUNS = [(name, CAPPED) for name in SOLVERS] + [(name, TRUNCATED) for name in BRIEF]

IDENTITY, CURVED, EXPLODING = (CallableObs(Scene(jnp.asarray(number))) for number in range(3))
CURVED_ROWS = [[2.0, -1.0, 0.5, 1.5], [3.0, 1.0, NAN, 0.5], [NAN, NAN, NAN, NAN]]


@functools.cache
def method(name="default", max_steps=CAPPED):
    cov = DiagonalCovariance(jnp.ones(4))
    return ThreeDVar(CURVED, jnp.ones(4), cov, cov, SOLVERS[name], max_steps=max_steps)


def batch(rows=CURVED_ROWS):
    return Batch1D.from_observations(jnp.asarray(rows))


def run(name="default", rows=CURVED_ROWS, *, max_steps=CAPPED, obs_op=CURVED, background=1.0, first_guess=None):
    """(analysis, problem) of three samples; always called alike, so that a solver is compiled once per `max_steps`."""
    background = jnp.full((3, 4), background, float)
    first_guess = background if first_guess is None else jnp.broadcast_to(first_guess, (3, 4)).astype(float)
    model = method(name, max_steps).with_(obs_op=obs_op, prior_mean=background)
    analysis = model.analyse(batch(rows), first_guess=first_guess)
    return jax.tree.map(np.asarray, analysis), Compiled(model.problem(batch(rows)))


@eqx.filter_jit
def _member(posed, name, *controls):
    return getattr(posed, name)(*controls)


class Compiled:
    """A problem whose members are compiled once for all tests, and give numpy arrays."""

    def __init__(self, posed):
        self.posed = posed

    def __getattr__(self, name):
        return lambda *controls: jax.tree.map(np.asarray, _member(self.posed, name, *controls))


def norms(gradient):
    return np.linalg.norm(gradient, axis=-1)


def no_worse(posed, control):
    background = posed.cost(posed.zero_control())
    return (posed.cost(control) <= background + 1e-6 * np.abs(background)).all()


# -- the known answer ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FINDERS)
def test_the_simplified_case_of_oops(name):
    """JCSDA/oops, `simplified`: J 114 -> 57, J_b = J_o = 28.5, analysis of mean 1.25, minimum -3, maximum 5."""
    analysis, posed = run(name, [[5.0, 7.0, -9.0, -5.0]] * 3, obs_op=IDENTITY, background=3.0)
    tolerance = 1e-9 if X64 and name not in SLOW else 2e-4
    np.testing.assert_allclose(posed.cost(posed.zero_control()), 114.0, rtol=tolerance)
    np.testing.assert_allclose(analysis.cost.first.total, 114.0, rtol=tolerance)
    np.testing.assert_allclose(analysis.cost.last.total, 57.0, rtol=tolerance)
    np.testing.assert_allclose(analysis.cost.last.J_b, 28.5, rtol=max(tolerance, TIGHT))
    np.testing.assert_allclose(analysis.cost.last.J_o, 28.5, rtol=max(tolerance, TIGHT))
    for statistic, expected in ((np.mean, 1.25), (np.min, -3.0), (np.max, 5.0)):
        np.testing.assert_allclose(
            statistic(analysis.state[0]), expected, rtol=max(tolerance, TIGHT), atol=2 * tolerance
        )


@pytest.mark.parametrize("name", FINDERS)
def test_every_solver_finds_the_minimum(name):
    analysis, reference = run(name)[0], run("BFGS")[0]
    np.testing.assert_allclose(analysis.cost.last.total, reference.cost.last.total, rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(analysis.state, reference.state, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("name", SECOND_ORDER)
def test_the_better_solvers_converge(name):
    assert run(name)[0].converged.all()


# -- status, history, cost -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "max_steps"), RUNS)
def test_converged_means_that_the_gradient_is_small(name, max_steps):
    analysis, posed = run(name, max_steps=max_steps)
    reference = norms(posed.gradient(posed.zero_control()))
    small = norms(posed.gradient(analysis.control)) <= TOL * np.maximum(1, reference)
    np.testing.assert_array_equal(analysis.converged, small)
    np.testing.assert_array_equal(analysis.status == Status.CONVERGED, small)
    assert (analysis.n_iterations <= max_steps).all()
    assert (analysis.n_iterations[~analysis.converged & (analysis.status == Status.MAX_STEPS)] == max_steps).all()
    np.testing.assert_allclose(
        analysis.gradient_norm, norms(posed.gradient(analysis.control)), rtol=0.05, atol=10 * TIGHT
    )


@pytest.mark.parametrize(("name", "max_steps"), RUNS)
def test_the_cost_of_an_analysis_is_that_of_its_control(name, max_steps):
    analysis, posed = run(name, max_steps=max_steps)
    terms = posed.terms(analysis.control)
    np.testing.assert_allclose(terms.J_b, analysis.cost.last.J_b, rtol=1e-5, atol=1e-9)
    np.testing.assert_allclose(terms.J_o_by_instrument, analysis.cost.last.J_o_by_instrument, rtol=1e-5, atol=1e-9)
    np.testing.assert_allclose(posed.control_to_state(analysis.control), analysis.state, rtol=1e-5)
    np.testing.assert_allclose(posed.cost(posed.zero_control()), analysis.cost.first.total, rtol=1e-5)


@pytest.mark.parametrize("name", BRIEF)
def test_a_truncated_analysis_is_not_worse_than_the_background(name):
    analysis, posed = run(name, max_steps=TRUNCATED)
    assert no_worse(posed, analysis.control)


@pytest.mark.parametrize("name", ["default", "GaussNewton", "NelderMead", "optax"])
def test_neither_is_one_that_starts_at_the_background_by_itself(name):
    model, data = method(name, 1), batch()
    if name == "optax":
        model = model.with_(minimiser=optx.OptaxMinimiser(optax.sgd(1e3), TIGHT, TIGHT))
    analysis, posed = model.analyse(data), Compiled(model.problem(data))
    assert no_worse(posed, analysis.control)
    np.testing.assert_allclose(analysis.cost.first.total, posed.cost(posed.zero_control()), rtol=1e-5)
    np.testing.assert_allclose(analysis.history.total[:, 0], analysis.cost.first.total, rtol=1e-5)


@pytest.mark.parametrize("name", BRIEF)
def test_a_bad_first_guess_does_not_make_the_analysis_worse_than_the_background(name):
    analysis, posed = run(name, max_steps=TRUNCATED, first_guess=jnp.array([40.0, -30.0, 20.0, 60.0]))
    assert no_worse(posed, analysis.control)
    np.testing.assert_allclose(analysis.cost.last.total, posed.cost(analysis.control), rtol=1e-5)


@pytest.mark.parametrize(("name", "max_steps"), RUNS)
def test_the_history_goes_from_the_first_cost_to_the_last_and_is_nan_after_it(name, max_steps):
    analysis, _ = run(name, max_steps=max_steps)
    assert analysis.history.J_b.shape == analysis.history.gradient_norm.shape == (3, max_steps)
    assert analysis.history.J_o.shape == (3, max_steps, 1)
    for sample in range(3):
        steps = int(analysis.n_iterations[sample])
        total, norm = np.asarray(analysis.history.total)[sample], analysis.history.gradient_norm[sample]
        assert np.isfinite(total[:steps]).all()
        assert np.isnan(total[steps:]).all()
        assert np.isnan(norm[steps:]).all()
        np.testing.assert_allclose(total[0], analysis.cost.first.total[sample], rtol=1e-6)
        np.testing.assert_allclose(np.min(total[:steps]), analysis.cost.last.total[sample], rtol=1e-5, atol=1e-9)
        assert np.min(np.abs(norm[:steps] - analysis.gradient_norm[sample])) <= 1e-6 * analysis.gradient_norm[sample]


@each_solver
def test_a_perfect_background_stays(name):
    perfect = curved(jnp.ones(4))
    analysis, _ = run(name, [perfect.tolist()] * 3)
    np.testing.assert_allclose(analysis.state, jnp.ones((3, 4)), atol=1e-3)
    np.testing.assert_allclose(analysis.cost.last.total, 0.0, atol=1e-6)


@each_solver
def test_without_observations_the_background_is_the_analysis(name):
    analysis, _ = run(name)
    np.testing.assert_allclose(analysis.state[2], jnp.ones(4), atol=1e-3)
    np.testing.assert_allclose(analysis.cost.last.total[2], 0.0, atol=1e-6)
    assert analysis.converged[2]


# -- what blows up ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "max_steps"), RUNS)
def test_what_blows_up_comes_back_finite_and_not_worse_than_the_background(name, max_steps):
    rows = [[15.0, 12.0, 10.0, 5.0], [60.0, 50.0, 40.0, 30.0], [3.0, 2.0, 2.5, 3.5]]
    analysis, posed = run(name, rows, obs_op=EXPLODING, max_steps=max_steps)
    for leaf in (analysis.state, analysis.control, analysis.cost.last.total, analysis.gradient_norm):
        assert np.isfinite(leaf).all()
    assert no_worse(posed, analysis.control)


@pytest.mark.parametrize("name", sorted(set(SECOND_ORDER) - {"GaussNewton"}))  # which has no line search
def test_a_step_that_blows_up_is_recovered_from(name):
    """log(15) and log(10) can be reached, but the first step of the solvers goes far beyond 3."""
    analysis, posed = run(name, [[15.0, 12.0, 10.0, 5.0]] * 3, obs_op=EXPLODING)
    assert (posed.cost(analysis.control) < 0.1 * posed.cost(posed.zero_control())).all()


@pytest.mark.parametrize("name", [n for n in SOLVERS if n != "IndirectLevenbergMarquardt"])  # its linear solver raises
def test_a_background_that_blows_up_comes_back_with_the_status(name):
    analysis, _ = run(name, [[15.0, 12.0, 10.0, 5.0]] * 3, obs_op=EXPLODING, background=5.0)
    np.testing.assert_allclose(analysis.state, 5.0)
    assert (analysis.status == Status.NON_FINITE).all()
    assert not analysis.converged.any()


@each_solver
def test_a_first_guess_that_blows_up_comes_back_as_the_background_or_better(name):
    analysis, posed = run(name, [[15.0, 12.0, 10.0, 5.0]] * 3, obs_op=EXPLODING, first_guess=jnp.asarray(5.0))
    assert jnp.isfinite(analysis.state).all()
    assert no_worse(posed, analysis.control)


# -- driven from the host --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["default", "LevenbergMarquardt", "optax"])
def test_iterating_ends_where_analyse_ends(name):
    model, data = method(name, 25), batch()
    analyses, whole = list(model.iterate(data)), model.analyse(data)
    np.testing.assert_allclose(analyses[-1].state, whole.state, rtol=1e-6)
    np.testing.assert_allclose(analyses[-1].cost.last.total, whole.cost.last.total, rtol=1e-6, atol=1e-12)
    np.testing.assert_array_equal(analyses[-1].n_iterations, whole.n_iterations)
    np.testing.assert_array_equal(analyses[-1].status, whole.status)
    np.testing.assert_array_equal(analyses[-1].converged, whole.converged)
    assert len(analyses) == int(jnp.max(whole.n_iterations))
    costs = np.array([a.cost.last.total for a in analyses])
    assert (np.diff(costs, axis=0) <= 1e-6 * np.abs(costs[:-1])).all()


def test_iterating_from_a_bad_first_guess_is_never_worse_than_the_background():
    model, data = method(max_steps=TRUNCATED), batch()
    posed = Compiled(model.problem(data))
    start = jnp.array([40.0, -30.0, 20.0, 60.0])
    analyses = list(model.iterate(data, first_guess=start))
    for analysis in analyses:
        assert no_worse(posed, analysis.control)
        np.testing.assert_allclose(posed.cost(analysis.control), analysis.cost.last.total, rtol=1e-5, atol=1e-9)
    np.testing.assert_allclose(analyses[-1].state, model.analyse(data, first_guess=start).state, rtol=1e-6)


def test_a_stopped_iteration_is_resumed():
    model, data = method(), batch()
    stopped = next(a for a in model.iterate(data) if int(jnp.max(a.n_iterations)) == 4)
    resumed = list(model.iterate(data, warm_start=stopped))
    assert (resumed[0].cost.last.total <= stopped.cost.last.total * (1 + 1e-6)).all()
    assert resumed[-1].converged.all()
    np.testing.assert_allclose(resumed[-1].state, model.analyse(data).state, rtol=1e-3, atol=1e-3)


def test_a_second_iteration_does_not_compile(count_compilations):
    model = method(max_steps=25)
    list(model.iterate(batch()))
    other = batch([[2.5, -1.5, 0.7, 0.1], [2.0, NAN, 1.0, 0.2], [NAN, 1.0, 1.0, 0.3]])
    with count_compilations() as compiled:
        list(model.iterate(other))
    assert compiled.n == 0, compiled.names


def test_a_warm_start_at_the_analysis_is_finished_at_once():
    model, data = method(), batch()
    analysis = model.analyse(data)
    again = model.analyse(data, warm_start=analysis)
    assert (again.n_iterations <= 2).all()
    assert again.converged.all()
    np.testing.assert_allclose(again.state, analysis.state, rtol=1e-4)


def test_equal_calls_give_equal_bits():
    one, other = (run()[0] for _ in range(2))
    assert eqx.tree_equal((one.state, one.control, one.cost), (other.state, other.control, other.cost))


def test_default_tolerances():
    assert default_tolerance(jnp.float64) == 1e-6
    assert default_tolerance(jnp.float32) == 1e-4
