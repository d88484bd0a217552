"""DiffraxForward: the solver's own steps, derivatives both ways, failures as NaN, refusals by name."""

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optimistix
import pytest

from vardax.covariances.diagonal import DiagonalCovariance
from vardax.dynamics import DiffraxForward, Lorenz63, rollout
from vardax.models.strong_fourdvar import StrongFourDVar
from vardax.obs_operators.identity import MaskedIdentity
from vardax.protocols import ForwardModel
from vardax.types import Batch1D, Status

NEWTON = optimistix.Newton(1e-10, 1e-10)
ADAPTIVE = diffrax.PIDController(rtol=1e-8, atol=1e-8)
START = jnp.array([1.5, -1.5, 25.5])


class Driven(eqx.Module):
    """dx/dt = -rate x + cos t."""

    rate: jax.Array

    def __call__(self, t, x, args):
        return -self.rate * x + jnp.cos(t)


def driven_solution(rate, x0, t0, t1):
    steady = lambda t: (rate * np.cos(t) + np.sin(t)) / (1 + rate**2)  # noqa: E731
    return steady(t1) + (x0 - steady(t0)) * np.exp(-rate * (t1 - t0))


def cost(model, x):
    return jnp.sum(rollout(model, x, 4, t0=0.2) ** 2)


METHODS = {
    "explicit": {},
    "explicit, substeps": {"n_substeps": 3, "solver": diffrax.Dopri5()},
    "euler": {"solver": diffrax.Euler()},
    "implicit": {"solver": diffrax.ImplicitEuler(root_finder=NEWTON)},
    "implicit runge-kutta": {"solver": diffrax.Kvaerno3(root_finder=NEWTON)},
    "adaptive": {"stepsize_controller": ADAPTIVE, "max_steps": 16},
}
SLOW = [pytest.param(name, marks=pytest.mark.slow) if "runge" in name or "adapt" in name else name for name in METHODS]


@pytest.mark.x64
def test_the_exact_solution_of_a_driven_decay_at_the_window_time():
    model = DiffraxForward(Driven(jnp.asarray(0.7)), 0.1)
    assert isinstance(model, ForwardModel)
    states = rollout(model, jnp.asarray(2.0), 5, t0=1.3, n_substeps=2)
    np.testing.assert_allclose(states, driven_solution(0.7, 2.0, 1.3, 1.3 + 0.2 * np.arange(6)), rtol=1e-9)


@pytest.mark.x64
@pytest.mark.parametrize("name", ["explicit", "explicit, substeps", "euler", "implicit"])
def test_constant_steps_are_those_of_diffeqsolve(name):
    model = DiffraxForward(Lorenz63().vector_field, 0.02, **METHODS[name])
    term, h = diffrax.ODETerm(Lorenz63().vector_field), 0.02 / model.n_substeps
    theirs = diffrax.diffeqsolve(term, METHODS[name].get("solver", diffrax.Tsit5()), 0.0, 0.02, h, START)
    np.testing.assert_allclose(model.step(START, 0.02), theirs.ys[0], rtol=1e-13)


@pytest.mark.slow
@pytest.mark.x64
@pytest.mark.parametrize("name", SLOW)
def test_gradient_tangent_and_products_agree_with_central_differences(name):
    model = DiffraxForward(Lorenz63().vector_field, 0.02, **METHODS[name])
    run, dx = jax.jit(lambda x: cost(model, x)), jnp.array([0.3, -1.0, 0.6])
    central = (run(START + 1e-5 * dx) - run(START - 1e-5 * dx)) / 2e-5
    np.testing.assert_allclose(jnp.vdot(jax.grad(run)(START), dx), central, rtol=1e-6)
    np.testing.assert_allclose(jax.jvp(run, (START,), (dx,))[1], central, rtol=1e-6)
    trajectory, tangent = jax.linearize(lambda x: rollout(model, x, 4, t0=0.2), START)
    (back,) = jax.linear_transpose(tangent, START)(trajectory)
    np.testing.assert_allclose(jnp.vdot(tangent(dx), trajectory), jnp.vdot(dx, back), rtol=1e-11)


@pytest.mark.x64
def test_parameters_of_the_field_args_and_dt_are_differentiated():
    def end(rate, scale, dt):
        field = lambda t, x, args: args * Driven(rate)(t, x, None)  # noqa: E731
        return rollout(DiffraxForward(field, dt, args=scale), jnp.asarray(2.0), 4)[-1]

    point = (jnp.asarray(0.7), jnp.asarray(1.2), jnp.asarray(0.1))
    found = jax.grad(end, argnums=(0, 1, 2))(*point)
    for k, gradient in enumerate(found):
        ends = [end(*[p + sign * 1e-5 * (i == k) for i, p in enumerate(point)]) for sign in (1, -1)]
        np.testing.assert_allclose(gradient, (ends[0] - ends[1]) / 2e-5, rtol=1e-7)


def test_an_object_with_a_vector_field_only_is_stepped_by_tsit5():
    class Field:
        dt = 0.1

        def vector_field(self, t, x, args):
            return -x + jnp.cos(t)

    found = rollout(Field(), jnp.asarray(2.0), 3, t0=0.5)
    expected = rollout(DiffraxForward(Driven(jnp.asarray(1.0)), 0.1), jnp.asarray(2.0), 3, t0=0.5)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_a_negative_step_runs_backwards():
    there = DiffraxForward(Lorenz63().vector_field, 0.01)
    back = DiffraxForward(Lorenz63().vector_field, -0.01)
    end = rollout(there, START, 5)[-1]
    np.testing.assert_allclose(rollout(back, end, 5)[-1], START, rtol=2e-5)


def test_a_solver_that_fails_gives_nan_and_no_error_under_differentiation():
    """x' = x³ from 30: no implicit step of 0.5 has a solution."""
    model = DiffraxForward(lambda t, x, args: x**3, 0.5, solver=diffrax.ImplicitEuler(root_finder=NEWTON))
    value, gradient = jax.value_and_grad(lambda x: jnp.sum(rollout(model, x, 2) ** 2))(jnp.array([30.0, 1.0]))
    assert jnp.isnan(value)
    assert jnp.isfinite(gradient).all()


def test_a_failure_inside_the_window_ends_as_a_status():
    fails = DiffraxForward(lambda t, x, args: x**3, 0.5, solver=diffrax.ImplicitEuler(root_finder=NEWTON))
    unit = DiagonalCovariance(jnp.ones(2))
    method = StrongFourDVar(fails, MaskedIdentity(), jnp.array([30.0, 1.0]), unit, unit)
    analysis = method.analyse(Batch1D.from_observations(np.ones((1, 3, 2))))
    assert analysis.status.tolist() == [Status.NON_FINITE.value]
    np.testing.assert_array_equal(analysis.state, [[30.0, 1.0]])


@pytest.mark.slow
def test_adaptive_steps_follow_the_tolerance_and_stop_at_the_limit():
    exact = driven_solution(5.0, 2.0, 0.0, 1.0)
    ends = {}
    for rtol in (1e-3, 1e-5):
        controller = diffrax.PIDController(rtol=rtol, atol=rtol)
        model = DiffraxForward(Driven(jnp.asarray(5.0)), 1.0, stepsize_controller=controller, max_steps=64)
        ends[rtol] = float(jnp.abs(model.step(jnp.asarray(2.0), 1.0) - exact))
    assert ends[1e-5] < 0.1 * ends[1e-3] < 1e-3
    stuck = DiffraxForward(Driven(jnp.asarray(5.0)), 1.0, stepsize_controller=ADAPTIVE, max_steps=2)
    assert jnp.isnan(stuck.step(jnp.asarray(2.0), 1.0))


@pytest.mark.slow
def test_forward_mode_of_adaptive_steps_is_for_jvp_and_refused_where_an_adjoint_is_needed():
    model = DiffraxForward(
        Driven(jnp.asarray(0.7)), 0.1, stepsize_controller=ADAPTIVE, adjoint=diffrax.ForwardMode(), max_steps=16
    )
    _, tangent = jax.jvp(lambda x: rollout(model, x, 2)[-1], (jnp.asarray(2.0),), (jnp.asarray(1.0),))
    np.testing.assert_allclose(tangent, np.exp(-0.7 * 0.2), rtol=1e-5)
    unit = DiagonalCovariance(jnp.ones(()))
    with pytest.raises(ValueError, match=r"adjoint=ForwardMode\(\), which has no adjoint: the gradient of the cost"):
        StrongFourDVar(model, MaskedIdentity(), jnp.asarray(2.0), unit, unit)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"adjoint": diffrax.BacksolveAdjoint()}, ValueError, "`adjoint` is BacksolveAdjoint.*reverse-mode only"),
        (
            {"adjoint": diffrax.RecursiveCheckpointAdjoint()},
            ValueError,
            "`adjoint` is RecursiveCheckpointAdjoint.*Gauss-Newton products and jvp fail.*`forward_adjoint`",
        ),
        ({"adjoint": diffrax.ImplicitAdjoint()}, ValueError, "a steady state, not a trajectory"),
        ({"adjoint": diffrax.DirectAdjoint}, ValueError, "`adjoint` is DirectAdjoint.*it is a class"),
        ({"solver": diffrax.Tsit5}, TypeError, r"`solver` is .*Tsit5.*make an instance: Tsit5\(\)"),
        ({"solver": "rk4"}, TypeError, "`solver` is 'rk4', expected a diffrax solver"),
        ({"solver": diffrax.KenCarp3()}, ValueError, "KenCarp3, which needs a split or stochastic equation"),
        ({"solver": diffrax.Kvaerno5()}, ValueError, r"Kvaerno5\(root_finder=optimistix.Newton\(rtol=1e-8"),
        ({"solver": diffrax.Euler(), "stepsize_controller": ADAPTIVE}, ValueError, "Euler, which estimates no error"),
        ({"stepsize_controller": diffrax.PIDController}, TypeError, "`stepsize_controller` is <class"),
        ({"stepsize_controller": diffrax.StepTo(jnp.arange(3.0))}, ValueError, "StepTo, whose times are fixed"),
        ({"n_substeps": 0}, ValueError, "`n_substeps` is 0, expected an integer of at least 1"),
        ({"max_steps": 0}, ValueError, "`max_steps` is 0"),
        ({"dt": 0.0}, ValueError, "`dt` is 0.0"),
        ({"vector_field": 3}, TypeError, r"`vector_field` is 3, expected a function \(t, x, args\)"),
    ],
)
def test_what_cannot_work_is_refused_by_name(options, error, words):
    arguments = {"vector_field": Driven(jnp.asarray(1.0)), "dt": 0.1, **options}
    with pytest.raises(error, match=words):
        DiffraxForward(arguments.pop("vector_field"), arguments.pop("dt"), **arguments)
