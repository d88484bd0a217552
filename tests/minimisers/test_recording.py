"""A recorded solver keeps the best iterate, writes each step, and stops by the gradient."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import optimistix as optx
import pytest

from vardax.minimisers.recording import IDLE_STEPS, RecordingSolver, least_squares_residual, scalar_cost
from vardax.types import CostTerms

FLOAT = jnp.result_type(float)


class Sketch(eqx.Module):
    """The least a problem must offer: a residual and its terms. J = ½‖chi‖² + ½‖d - a chi‖²."""

    d: jax.Array
    a: float = 1.0

    def residual_and_terms(self, control):
        residual = self.d - self.a * control
        background = 0.5 * jnp.sum(control**2)
        return (control, residual), CostTerms(background, 0.5 * jnp.sum(residual**2)[None], jnp.zeros_like(background))

    def terms(self, control):
        return self.residual_and_terms(control)[1]


PROBLEM = Sketch(jnp.array([2.0, -4.0, 1.0]))
MINIMUM = PROBLEM.d / 2


def solve(solver, *, tol=1e-4, max_steps=50, own_rule=True, reference=None, problem=PROBLEM):
    recording = RecordingSolver(solver, own_rule=own_rule, tol=tol, max_steps=max_steps)
    start = jnp.zeros(3)
    solution = optx.minimise(
        scalar_cost, recording, start, (problem, reference), has_aux=True, max_steps=max_steps, throw=False
    )
    return solution.value, solution.stats["record"], recording


def test_the_scalar_cost_and_the_residual_are_the_same_cost():
    chi = jnp.array([1.0, 2.0, -1.0])
    value, terms = scalar_cost(chi, (PROBLEM, None))
    (background, residual), same = least_squares_residual(chi, (PROBLEM, None))
    np.testing.assert_allclose(value, 0.5 * (jnp.sum(background**2) + jnp.sum(residual**2)), rtol=1e-6)
    np.testing.assert_allclose(terms.total, same.total)


@pytest.mark.parametrize(
    "solver",
    [optx.BFGS(1e-6, 1e-6), optx.GaussNewton(1e-6, 1e-6), optx.OptaxMinimiser(optax.sgd(0.2), 1e-6, 1e-6)],
    ids=lambda s: type(s).__name__,
)
def test_the_minimum_is_found_and_recorded(solver):
    value, record, recording = solve(solver, max_steps=200)
    np.testing.assert_allclose(value, MINIMUM, atol=1e-3)
    steps = int(record.n_steps)
    totals = record.history.total
    assert jnp.isfinite(totals[:steps]).all()
    assert jnp.isnan(totals[steps:]).all()
    np.testing.assert_allclose(record.best.total, jnp.min(totals[:steps]), rtol=1e-6)
    np.testing.assert_allclose(record.first.total, 10.5, rtol=1e-6)
    assert bool(recording.converged(record)) == bool(record.gradient_norm <= 1e-4 * max(1.0, float(record.reference)))


def test_a_cost_that_rises_is_not_what_comes_back():
    """Gradient descent with too long a step diverges; the start is the best iterate, and is what comes back."""
    value, record, _ = solve(optx.GradientDescent(1.5, 1e-6, 1e-6), max_steps=12)
    costs = record.history.total[: int(record.n_steps)]
    assert record.best.total <= costs[0]
    np.testing.assert_allclose(PROBLEM.terms(value).total, record.best.total, rtol=1e-6)


def test_the_reference_is_the_gradient_at_the_background():
    _, record, _ = solve(optx.BFGS(1e-6, 1e-6))
    np.testing.assert_allclose(record.reference, jnp.linalg.norm(PROBLEM.d), rtol=1e-6)
    _, given, _ = solve(optx.BFGS(1e-6, 1e-6), reference=jnp.asarray(123.0, FLOAT))
    np.testing.assert_allclose(given.reference, 123.0)


def test_a_loose_tolerance_stops_early_and_the_rule_of_the_solver_may_hold_it():
    loose = solve(optx.GradientDescent(0.1, 1e-8, 1e-8), tol=0.5, own_rule=False)[1]
    held = solve(optx.GradientDescent(0.1, 1e-8, 1e-8), tol=0.5, own_rule=True)[1]
    assert int(loose.n_steps) < int(held.n_steps)


def test_it_stops_when_nothing_improves():
    class Flat(eqx.Module):
        """A cost whose gradient points where it does not decrease."""

        def terms(self, control):
            value = jax.lax.stop_gradient(jnp.asarray(1.0, FLOAT)) + 0.0 * jnp.sum(control)
            slope = jnp.sum(control) - jax.lax.stop_gradient(jnp.sum(control))
            return CostTerms(value + slope, jnp.zeros(1, FLOAT), jnp.zeros((), FLOAT))

    _, record, recording = solve(optx.BFGS(1e-6, 1e-6), problem=Flat(), max_steps=500)
    assert int(record.n_steps) <= IDLE_STEPS + 2
    assert not recording.converged(record)


def test_it_stops_at_the_first_cost_that_is_not_finite():
    _, record, _ = solve(optx.GradientDescent(1e200 if jnp.float64 == FLOAT else 1e30, 1e-6, 1e-6), max_steps=50)
    assert bool(record.non_finite)
    assert int(record.n_steps) < 10
    assert jnp.isfinite(record.best_control).all()
