"""A guarded cost is the cost, with derivatives that stay numbers where it blew up."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optimistix as optx
import pytest

from vardax.adjoints.direct import DirectAdjoint
from vardax.adjoints.k_step import KStepAdjoint
from vardax.minimisers.blow_up import GuardedProblem, guarded_for
from vardax.minimisers.lbfgs import LimitedMemoryBFGS
from vardax.minimisers.recording import RecordingSolver, scalar_cost
from vardax.types import CostTerms

FLOAT = jnp.result_type(float)
X64 = jnp.float64 == FLOAT
EPS = float(jnp.finfo(FLOAT).eps)
TOL = 1e-10 if X64 else 1e-4


class Explosive(eqx.Module):
    """J = ½‖chi‖² + ½‖r‖², r = w (d - M(chi)), M twelve steps of chi + a chi³: inf a little further out."""

    d: jax.Array
    a: jax.Array
    weight: jax.Array

    def residual_and_terms(self, control):
        state, _ = jax.lax.scan(lambda x, _: (x + self.a * x**3, None), control, length=12)
        residual = self.weight * (self.d - state)
        background = 0.5 * jnp.sum(control**2)
        return (control, residual), CostTerms(background, 0.5 * jnp.sum(residual**2)[None], jnp.zeros_like(background))

    def terms(self, control):
        return self.residual_and_terms(control)[1]


PROBLEM = Explosive(jnp.array([1.0, -0.7], FLOAT), jnp.asarray(0.05, FLOAT), jnp.asarray(10.0, FLOAT))
NEAR, FAR = jnp.array([0.4, -0.2], FLOAT), jnp.array([60.0, 0.1], FLOAT)


def cost(problem, control):
    return problem.terms(control).total


def test_the_far_point_is_one_that_blows_up():
    assert jnp.isinf(cost(PROBLEM, FAR))
    assert not jnp.isfinite(jax.grad(cost, argnums=1)(PROBLEM, FAR)).all()


def test_a_tame_point_keeps_its_value_and_all_derivatives():
    guarded = GuardedProblem(PROBLEM)
    for derivative in (lambda f: f, jax.grad, jax.hessian):
        plain, safe = (derivative(lambda c, p=p: cost(p, c))(NEAR) for p in (PROBLEM, guarded))
        np.testing.assert_allclose(safe, plain, rtol=1e-6)
    np.testing.assert_allclose(guarded.residual_and_terms(NEAR)[0], PROBLEM.residual_and_terms(NEAR)[0], rtol=1e-6)


def test_a_point_that_blew_up_keeps_its_value_and_has_zero_derivatives():
    guarded = GuardedProblem(PROBLEM)
    np.testing.assert_array_equal(cost(guarded, FAR), jnp.inf)
    second = jax.grad(lambda p, c: jnp.sum(jax.grad(cost, argnums=1)(p, c) ** 2), argnums=(0, 1))(guarded, FAR)
    for leaf in jax.tree.leaves((jax.grad(cost, argnums=1)(guarded, FAR), second)):
        np.testing.assert_array_equal(leaf, jnp.zeros_like(leaf))


def test_only_adjoints_that_go_through_the_steps_are_guarded():
    assert guarded_for(optx.ImplicitAdjoint(), PROBLEM) is PROBLEM
    for adjoint in (optx.RecursiveCheckpointAdjoint(), DirectAdjoint(), KStepAdjoint(2)):
        assert isinstance(guarded_for(adjoint, PROBLEM), GuardedProblem)


def minimum(d, adjoint, *, guard=True):
    """The minimum, and the costs of each step; the first trial of the default solver is far out."""
    solver = RecordingSolver(LimitedMemoryBFGS(EPS, 1 / EPS), own_rule=False, tol=TOL, max_steps=40, scale=1 / EPS)
    problem = eqx.tree_at(lambda p: p.d, PROBLEM, d)
    problem = GuardedProblem(problem) if guard else problem
    start = jnp.zeros(2, FLOAT)
    solution = optx.minimise(
        scalar_cost, solver, start, (problem, None), has_aux=True, max_steps=40, adjoint=adjoint, throw=False
    )
    return solution.value, solution.stats["record"].n_steps


def scored(adjoint, *, guard=True):
    return jax.jit(jax.value_and_grad(lambda d: jnp.sum(minimum(d, adjoint, guard=guard)[0] * jnp.array([1.0, 2.0]))))


def exact_gradient():
    """By the implicit function theorem, from the Hessian of the cost at the minimum."""
    chi, _ = minimum(PROBLEM.d, optx.ImplicitAdjoint())
    hessian = jax.hessian(lambda c: cost(PROBLEM, c))(chi)
    mixed = jax.jacfwd(lambda d: jax.grad(lambda c: cost(eqx.tree_at(lambda p: p.d, PROBLEM, d), c))(chi))(PROBLEM.d)
    return -mixed.T @ jnp.linalg.solve(hessian, jnp.array([1.0, 2.0], FLOAT))


def test_the_unguarded_gradient_of_a_run_with_a_trial_that_blew_up_is_nan():
    """What the guard is for: the value is right and the gradient is lost."""
    value, gradient = scored(DirectAdjoint(), guard=False)(PROBLEM.d)
    assert jnp.isfinite(value)
    assert jnp.isnan(gradient).any()


@pytest.mark.parametrize(
    "adjoint",
    [
        DirectAdjoint(),
        pytest.param(optx.RecursiveCheckpointAdjoint(), marks=pytest.mark.slow),
        pytest.param(KStepAdjoint(40), marks=pytest.mark.slow),
    ],
    ids=lambda a: type(a).__name__,
)
def test_the_guarded_gradient_is_right(adjoint):
    _, gradient = scored(adjoint)(PROBLEM.d)
    np.testing.assert_allclose(gradient, exact_gradient(), rtol=1e-5 if X64 else 5e-2)
