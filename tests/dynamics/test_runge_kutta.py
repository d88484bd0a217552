"""Explicit Runge-Kutta steps: the schemes that they are named for, and no stage too many."""

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vardax.dynamics.runge_kutta import LIMIT_IMAGINARY, LIMIT_REAL, explicit_step, rk4, rk4_looped

SOLVERS = [diffrax.Tsit5(), diffrax.Dopri5(), diffrax.Bosh3(), diffrax.Heun(), diffrax.Ralston(), diffrax.Midpoint()]


def pendulum(state):
    return {"x": state["v"], "v": -jnp.sin(state["x"])}


def amplification(z):
    return 1 + z + z**2 / 2 + z**3 / 6 + z**4 / 24


@pytest.mark.x64
@pytest.mark.parametrize("scheme", [rk4, rk4_looped])
def test_a_linear_mode_grows_by_the_polynomial_of_the_scheme(scheme):
    """Two real numbers as one complex mode: x' = λ x."""
    rate = -0.3 + 1.1j
    matrix = jnp.array([[rate.real, -rate.imag], [rate.imag, rate.real]])
    after = scheme(lambda x: matrix @ x, jnp.array([1.0, 0.0]), 0.7)
    expected = amplification(0.7 * rate)
    np.testing.assert_allclose(after, [expected.real, expected.imag], rtol=1e-14)


def test_the_loop_is_the_written_out_step_on_trees():
    state = {"x": jnp.array([0.3, -1.0]), "v": jnp.array([1.0, 0.2])}
    looped, plain = (scheme(pendulum, state, 0.2) for scheme in (rk4_looped, rk4))
    for name in state:
        np.testing.assert_allclose(looped[name], plain[name], rtol=1e-6)
        assert looped[name].dtype == state[name].dtype


def test_the_loop_takes_complex_states_and_traced_steps():
    state = jnp.array([1.0 + 0.5j])
    run = jax.jit(lambda dt: rk4_looped(lambda z: -z, state, dt))
    np.testing.assert_allclose(run(jnp.asarray(0.1)), state * amplification(-0.1), rtol=1e-6)


def test_the_limits_are_where_the_stability_region_ends():
    for limit, direction in ((LIMIT_REAL, -1.0), (LIMIT_IMAGINARY, 1.0j)):
        assert abs(amplification(0.999 * limit * direction)) <= 1.0
        assert abs(amplification(1.001 * limit * direction)) > 1.0


@pytest.mark.x64
@pytest.mark.parametrize("solver", SOLVERS, ids=lambda solver: type(solver).__name__)
def test_a_step_from_a_tableau_is_that_of_diffrax(solver):
    def field(t, x, args=None):
        return jnp.stack([x[1], -jnp.sin(x[0]) + jnp.cos(t)])

    start, tableau = jnp.array([0.4, -0.2]), solver.tableau
    ours = explicit_step(field, 0.3, start, 0.1, a_lower=tableau.a_lower, b=tableau.b_sol, c=tableau.c)
    term = diffrax.ODETerm(field)
    theirs = diffrax.diffeqsolve(term, solver, 0.3, 0.4, 0.1, start, stepsize_controller=diffrax.ConstantStepSize())
    np.testing.assert_allclose(ours, theirs.ys[0], rtol=1e-14)


def test_stages_that_only_estimate_the_error_are_not_computed():
    tableau = diffrax.Tsit5().tableau
    step = lambda x: explicit_step(  # noqa: E731
        lambda t, x: -x, 0.0, x, 0.1, a_lower=tableau.a_lower, b=tableau.b_sol, c=tableau.c
    )
    scans = [equation for equation in jax.make_jaxpr(step)(jnp.ones(2)).eqns if equation.primitive.name == "scan"]
    assert [equation.params["length"] for equation in scans] == [6]
