"""The default minimiser goes on by the gradient where the cost is exhausted by rounding."""

import jax
import jax.numpy as jnp
import numpy as np
import optimistix as optx
import pytest

from vardax.adjoints.direct import DirectAdjoint
from vardax.minimisers.lbfgs import ROUNDING, LimitedMemoryBFGS, RoundingArmijo

EPS = float(jnp.finfo(jnp.result_type(float)).eps)
X64 = jax.config.jax_enable_x64


class Quadratic:
    """What a search asks of a function: its value, and its gradient along a step."""

    def __init__(self, value, slope):
        self.value, self.slope = value, slope

    def as_min(self):
        return self.value

    def compute_grad_dot(self, step):
        return self.slope


def accepted(before, after, slope, *, first=False):
    search = RoundingArmijo(EPS, first=0.5)
    old, new = Quadratic(jnp.asarray(before), jnp.asarray(slope)), Quadratic(jnp.asarray(after), None)
    return search.step(jnp.asarray(first), jnp.zeros(1), jnp.ones(1), old, new, search.init(jnp.zeros(1), None))


@pytest.mark.parametrize(
    ("after", "slope", "expected"),
    [
        (0.5, -1.0, True),  # enough of a decrease
        (1.0 - 0.05, -1.0, False),  # too little of one
        (1.0 + 0.5 * ROUNDING * EPS, -1e-30, True),  # an increase within rounding
        (1.0 + 4 * ROUNDING * EPS, -1e-30, False),  # an increase beyond it
        (0.5, 1.0, False),  # not a descent direction
        (float("nan"), -1.0, False),
        (float("inf"), -1.0, False),
    ],
)
def test_a_step_is_accepted_for_its_decrease_up_to_rounding(after, slope, expected):
    _, accept, result, _ = accepted(1.0, after, slope)
    assert bool(accept) is expected
    assert result == optx.RESULTS.successful


def test_a_rejected_step_is_halved_and_an_accepted_one_starts_again_at_one():
    step, *_ = accepted(1.0, 2.0, -1.0)
    assert float(step) == 0.25
    step, *_ = accepted(1.0, 0.2, -1.0)
    assert float(step) == 1.0


def test_the_very_first_evaluation_sets_the_first_step():
    step, accept, *_ = accepted(1.0, 1.0, 0.0, first=True)
    assert bool(accept)
    assert float(step) == 0.5


@pytest.mark.parametrize("condition", [1.0, 1e2, 1e4])
def test_the_gradient_is_driven_below_what_the_cost_can_show(condition):
    """At the minimum J = 1, a gradient of 1e-8 changes J by 1e-16: the search must not stop the iteration before."""
    scales = jnp.logspace(0, np.log10(condition), 12)
    target = jnp.arange(1.0, 13.0) / 5
    cost = lambda x, _: (1.0 + 0.5 * jnp.sum(scales * (x - target) ** 2)) / EPS  # noqa: E731
    solution = optx.minimise(cost, LimitedMemoryBFGS(EPS, 1 / EPS), jnp.zeros(12), max_steps=200, throw=False)
    error = jnp.linalg.norm(scales * (solution.value - target))
    assert error <= (1e-10 if X64 else 1e-3) * jnp.linalg.norm(scales * target)


def test_it_says_nothing(capsys):
    optx.minimise(lambda x, _: jnp.sum(x**2), LimitedMemoryBFGS(EPS, 1.0), jnp.ones(2), max_steps=5, throw=False)
    assert capsys.readouterr().out == ""


@pytest.mark.x64
def test_the_unrolled_derivative_of_an_unfinished_minimisation_is_near_that_of_the_minimum():
    """With the derivatives of what the solver remembers it would be wrong by a factor of more than a hundred."""
    n, curvature = 30, jnp.logspace(0, 3, 30)

    def cost(y, b):
        return (0.5 * jnp.sum(curvature * y**2) - jnp.sum(b * y) + 0.1 * jnp.sum(y**4)) / EPS

    def run(b):
        solver = LimitedMemoryBFGS(EPS, 1 / EPS)
        return optx.minimise(cost, solver, jnp.zeros(n), b, adjoint=DirectAdjoint(), max_steps=100, throw=False).value

    b = jnp.full(n, 3.0)
    minimum, gradient = jax.jit(lambda b: (run(b), jax.grad(lambda b: jnp.sum(run(b)))(b)))(b)
    assert jnp.linalg.norm(jax.grad(cost)(minimum, b)) * EPS > 1e-6  # not at its end
    exact = 1 / (curvature + 1.2 * minimum**2)
    assert jnp.linalg.norm(gradient - exact) < 0.1 * jnp.linalg.norm(exact)
