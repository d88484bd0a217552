"""Every solver of optimistix, stopped and recorded alike: the known answer, never worse than the background, no NaN."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import optimistix as optx
import pytest

from vardax.covariances.diagonal import DiagonalCovariance
from vardax.minimisers.minimise import default_tolerance
from vardax.models.threedvar import ThreeDVar
from vardax.obs_operators.callable import CallableObs
from vardax.obs_operators.identity import MaskedIdentity
from vardax.types import Batch1D, Status

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
    "GradientDescent": optx.GradientDescent(0.3, TIGHT, TIGHT),
    "NelderMead": optx.NelderMead(TIGHT, TIGHT),
    "adam": optx.OptaxMinimiser(optax.adam(0.1), TIGHT, TIGHT),
}
SOLVERS = SECOND_ORDER | FIRST_ORDER
each_solver = pytest.mark.parametrize("name", SOLVERS)
NAN = float("nan")


def curved(x):
    """Observations that are nonlinear enough for the solvers to differ."""
    return jnp.stack([x[0] ** 2 - x[1], jnp.sin(x[1]) + x[2], x[2] * x[0]])


def method(name="default", *, obs_op=None, size=3, **options):
    cov = DiagonalCovariance(jnp.ones(size))
    obs_op = CallableObs(curved) if obs_op is None else obs_op
    return ThreeDVar(obs_op, jnp.ones(size), cov, cov, SOLVERS[name], **options)


def batch(*rows):
    return Batch1D.from_observations(jnp.asarray(rows or [[2.0, -1.0, 0.5], [3.0, 1.0, NAN]]))


def gradient_norms(posed, control):
    return jnp.linalg.norm(posed.gradient(control), axis=-1)


# -- the known answer ------------------------------------------------------------------------------------------------


@each_solver
def test_the_simplified_case_of_oops(name):
    """JCSDA/oops, `simplified`: J 114 -> 57, J_b = J_o = 28.5, analysis of mean 1.25, minimum -3, maximum 5."""
    loose = name in FIRST_ORDER
    model = method(name, obs_op=MaskedIdentity(), size=4, max_steps=4000 if loose else 500)
    model = model.with_(prior_mean=jnp.full(4, 3.0))
    analysis = model.analyse(batch([5.0, 7.0, -9.0, -5.0]))
    tolerance = 1e-5 if loose or not X64 else 1e-9
    np.testing.assert_allclose(analysis.state[0], [4.0, 5.0, -3.0, -1.0], rtol=100 * tolerance)
    np.testing.assert_allclose(analysis.cost.last.total, 57.0, rtol=tolerance)
    np.testing.assert_allclose(analysis.cost.last.J_b, 28.5, rtol=100 * tolerance)
    np.testing.assert_allclose(analysis.cost.last.J_o, 28.5, rtol=100 * tolerance)
    if name not in ("NelderMead", "adam"):  # these do not evaluate their start
        np.testing.assert_allclose(analysis.cost.first.total, 114.0, rtol=1e-6)
    np.testing.assert_allclose(jnp.mean(analysis.state), 1.25, rtol=100 * tolerance)


@pytest.fixture(scope="module")
def reference():
    """The minimum of the curved problem."""
    return method("BFGS").analyse(batch())


@each_solver
def test_every_solver_finds_the_minimum(name, reference):
    analysis = method(name, max_steps=5000 if name in FIRST_ORDER else 500).analyse(batch())
    np.testing.assert_allclose(analysis.cost.last.total, reference.cost.last.total, rtol=1e-4)
    np.testing.assert_allclose(analysis.state, reference.state, rtol=2e-3, atol=2e-3)
    assert analysis.state.dtype == jnp.result_type(float)


# -- status, history, cost -------------------------------------------------------------------------------------------


@each_solver
@pytest.mark.parametrize("max_steps", [1, 3, 500])
def test_converged_means_that_the_gradient_is_small(name, max_steps):
    model, data = method(name, max_steps=max_steps), batch()
    analysis, posed = model.analyse(data), model.problem(data)
    reference = gradient_norms(posed, posed.zero_control())
    small = gradient_norms(posed, analysis.control) <= default_tolerance(jnp.result_type(float)) * jnp.maximum(1, reference)
    np.testing.assert_array_equal(analysis.converged, small)
    np.testing.assert_array_equal(analysis.status == Status.CONVERGED, small)
    if max_steps == 1:
        assert (analysis.n_iterations == 1).all()
        assert (analysis.status == Status.MAX_STEPS).all()


@each_solver
@pytest.mark.parametrize("max_steps", [1, 2, 5])
def test_a_truncated_analysis_is_not_worse_than_the_background(name, max_steps):
    model, data = method(name, max_steps=max_steps), batch()
    posed = model.problem(data)
    analysis = model.analyse(data)
    background = posed.cost(posed.zero_control())
    assert (posed.cost(analysis.control) <= background * (1 + 1e-6)).all()
    assert (analysis.cost.last.total <= background * (1 + 1e-6)).all()


@each_solver
def test_a_bad_first_guess_does_not_make_the_analysis_worse_than_the_background(name):
    model, data = method(name, max_steps=2), batch()
    posed = model.problem(data)
    analysis = model.analyse(data, first_guess=jnp.array([40.0, -30.0, 20.0]))
    background = posed.cost(posed.zero_control())
    assert (posed.cost(analysis.control) <= background * (1 + 1e-6)).all()
    np.testing.assert_allclose(analysis.cost.last.total, posed.cost(analysis.control), rtol=1e-5)


@each_solver
def test_the_history_ends_at_the_cost_and_is_nan_after_it(name):
    model, data = method(name, max_steps=60), batch()
    analysis, posed = model.analyse(data), model.problem(data)
    assert analysis.history.J_b.shape == (2, 60)
    assert analysis.history.J_o.shape == (2, 60, 1)
    assert analysis.history.gradient_norm.shape == (2, 60)
    for sample in range(2):
        steps = int(analysis.n_iterations[sample])
        total, norm = analysis.history.total[sample], analysis.history.gradient_norm[sample]
        assert jnp.isfinite(total[:steps]).all()
        assert jnp.isnan(total[steps:]).all()
        assert jnp.isnan(norm[steps:]).all()
        np.testing.assert_allclose(total[0], analysis.cost.first.total[sample], rtol=1e-6)
        np.testing.assert_allclose(jnp.min(total[:steps]), analysis.cost.last.total[sample], rtol=1e-5)
        last = int(jnp.argmin(jnp.abs(norm[:steps] - analysis.gradient_norm[sample])))
        np.testing.assert_allclose(norm[last], analysis.gradient_norm[sample], rtol=1e-6)
    np.testing.assert_allclose(analysis.gradient_norm, gradient_norms(posed, analysis.control), rtol=1e-2, atol=TIGHT)


@each_solver
def test_the_cost_of_an_analysis_is_that_of_its_control(name):
    model, data = method(name, max_steps=10), batch()
    analysis, posed = model.analyse(data), model.problem(data)
    np.testing.assert_allclose(posed.cost(analysis.control), analysis.cost.last.total, rtol=1e-5)
    np.testing.assert_allclose(posed.control_to_state(analysis.control), analysis.state, rtol=1e-5)
    np.testing.assert_allclose(posed.terms(posed.zero_control()).J_b, 0.0)


@pytest.mark.parametrize("name", ["default", *FIRST_ORDER, "GaussNewton", "LevenbergMarquardt", "Dogleg"])
def test_the_first_cost_is_that_of_the_background(name):
    model, data = method(name, max_steps=4), batch()
    posed = model.problem(data)
    np.testing.assert_allclose(model.analyse(data).cost.first.total, posed.cost(posed.zero_control()), rtol=1e-6)


@each_solver
def test_a_perfect_background_stays(name):
    model = method(name)
    data = Batch1D.from_observations(curved(jnp.ones(3))[None])
    analysis = model.analyse(data)
    np.testing.assert_allclose(analysis.state, jnp.ones((1, 3)), atol=1e-4)
    np.testing.assert_allclose(analysis.cost.last.total, 0.0, atol=1e-6)


@each_solver
def test_without_observations_the_background_is_the_analysis(name):
    analysis = method(name).analyse(batch([NAN, NAN, NAN]))
    np.testing.assert_allclose(analysis.state, jnp.ones((1, 3)), atol=1e-5)
    np.testing.assert_allclose(analysis.cost.last.total, 0.0, atol=1e-9)


# -- what blows up ---------------------------------------------------------------------------------------------------


def exploding(x):
    """Finite at the background (x = 1), infinite or NaN as soon as a step goes beyond 3."""
    return jnp.where(x > 3.0, jnp.inf, 1.0) * jnp.exp(x)


@each_solver
def test_a_step_that_blows_up_gives_no_nan(name):
    model = method(name, obs_op=CallableObs(exploding), max_steps=200)
    data = batch([60.0, 50.0, 40.0], [3.0, 2.0, 2.5])
    analysis, posed = model.analyse(data), model.problem(data)
    for leaf in (analysis.state, analysis.control, analysis.cost.last.total, analysis.gradient_norm):
        assert jnp.isfinite(leaf).all()
    background = posed.cost(posed.zero_control())
    assert (posed.cost(analysis.control) <= background * (1 + 1e-6)).all()
    assert not jnp.any(analysis.converged & (analysis.status != Status.CONVERGED))


@each_solver
def test_a_cost_that_is_never_finite_returns_the_background_and_says_so(name):
    model = method(name, obs_op=CallableObs(lambda x: x / 0.0), max_steps=20)
    analysis = model.analyse(batch())
    np.testing.assert_allclose(analysis.state, jnp.ones((2, 3)))
    assert (analysis.status == Status.NON_FINITE).all()
    assert not analysis.converged.any()


@pytest.mark.parametrize("name", SECOND_ORDER)
def test_gradients_of_an_analysis_whose_first_step_blew_up_are_finite(name):
    model = method(name, obs_op=CallableObs(exploding))

    def total(y):
        return jnp.sum(model.analyse(Batch1D.from_observations(y)).state)

    gradient = jax.grad(total)(jnp.array([[18.0, 19.0, 15.0]]))
    assert jnp.isfinite(gradient).all()
    assert (jnp.abs(gradient) > 0).all()


# -- driven from the host --------------------------------------------------------------------------------------------


@each_solver
def test_iterating_ends_where_analyse_ends(name):
    model, data = method(name, max_steps=25), batch()
    analyses, whole = list(model.iterate(data)), model.analyse(data)
    np.testing.assert_allclose(analyses[-1].state, whole.state, rtol=1e-6)
    np.testing.assert_allclose(analyses[-1].cost.last.total, whole.cost.last.total, rtol=1e-6)
    np.testing.assert_array_equal(analyses[-1].n_iterations, whole.n_iterations)
    np.testing.assert_array_equal(analyses[-1].status, whole.status)
    np.testing.assert_array_equal(analyses[-1].converged, whole.converged)
    assert len(analyses) == int(jnp.max(whole.n_iterations))
    costs = np.array([a.cost.last.total for a in analyses])
    assert (np.diff(costs, axis=0) <= 1e-6 * np.abs(costs[:-1])).all()


def test_iterating_from_a_bad_first_guess_is_never_worse_than_the_background():
    model, data = method(max_steps=3), batch()
    posed = model.problem(data)
    background = posed.cost(posed.zero_control())
    start = jnp.array([40.0, -30.0, 20.0])
    analyses = list(model.iterate(data, first_guess=start))
    whole = model.analyse(data, first_guess=start)
    for analysis in analyses:
        assert (analysis.cost.last.total <= background * (1 + 1e-6)).all()
    np.testing.assert_allclose(analyses[-1].state, whole.state, rtol=1e-6)


def test_a_stopped_iteration_is_resumed():
    model, data = method(), batch()
    stopped = next(a for a in model.iterate(data) if int(jnp.max(a.n_iterations)) == 4)
    resumed = list(model.iterate(data, warm_start=stopped))
    assert (resumed[0].cost.last.total <= stopped.cost.last.total * (1 + 1e-6)).all()
    assert resumed[-1].converged.all()
    np.testing.assert_allclose(resumed[-1].state, model.analyse(data).state, rtol=1e-4, atol=1e-5)


def test_a_second_iteration_does_not_compile(count_compilations):
    model = method(max_steps=6)
    list(model.iterate(batch()))
    other = batch([2.5, -1.5, 0.7], [2.0, NAN, 1.0])
    with count_compilations() as compiled:
        list(model.iterate(other))
    assert compiled.n == 0, compiled.names


def test_a_warm_start_at_the_analysis_is_finished_at_once():
    model, data = method(), batch()
    analysis = model.analyse(data)
    again = model.analyse(data, warm_start=analysis)
    assert (again.n_iterations <= 2).all()
    assert again.converged.all()
    np.testing.assert_allclose(again.state, analysis.state, rtol=1e-5)


def test_equal_calls_give_equal_bits():
    model, data = method(), batch()
    assert eqx.tree_equal(model.analyse(data).state, model.analyse(data).state)


def test_default_tolerances():
    assert default_tolerance(jnp.float64) == 1e-6
    assert default_tolerance(jnp.float32) == 1e-4
