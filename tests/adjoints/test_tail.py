"""The steps that made a solver's last updates are found, whatever was rejected between them."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import optimistix as optx
import pytest
from hypothesis import given
from hypothesis import strategies as st

import vardax.adjoints.k_step as k_step_module
from vardax.adjoints.k_step import KStepAdjoint
from vardax.adjoints.tail import advance, run_to_the_end

LENGTH = 12


def square(y, a):
    return jnp.sum((y - a) ** 2) + 0.1 * jnp.sum(y**4)


def residual(y, a):
    return y - a + 0.1 * y**3


RTOL = {"rtol": 1e-3, "atol": 1e-3}
SOLVERS = {
    "FixedPointIteration": (optx.fixed_point, lambda y, a: 0.5 * jnp.cos(y) + a, optx.FixedPointIteration(**RTOL), 0),
    "Newton": (optx.root_find, residual, optx.Newton(**RTOL), 0),
    "Chord": (optx.root_find, residual, optx.Chord(**RTOL), 0),
    "OptaxMinimiser": (optx.minimise, square, optx.OptaxMinimiser(optax.sgd(0.1), **RTOL), 0),
    "GradientDescent": (optx.minimise, square, optx.GradientDescent(0.1, **RTOL), 1),
    "BFGS": (optx.minimise, square, optx.BFGS(**RTOL), 1),
    "LBFGS": (optx.minimise, square, optx.LBFGS(**RTOL), 1),
    "GaussNewton": (optx.least_squares, residual, optx.GaussNewton(**RTOL), 1),
    "Dogleg": (optx.least_squares, residual, optx.Dogleg(**RTOL), 1),
    "BestSoFarMinimiser": (optx.minimise, square, optx.BestSoFarMinimiser(optx.GradientDescent(0.1, **RTOL)), 2),
    "NelderMead": (optx.minimise, square, optx.NelderMead(**RTOL), 0),  # does not depend on its problem at all
}


@pytest.mark.parametrize("name", SOLVERS)
def test_the_delay_of_a_solver_is_seen_in_its_trace(name, monkeypatch):
    solve, fn, solver, expected = SOLVERS[name]
    found, delay = [], k_step_module.delay
    monkeypatch.setattr(k_step_module, "delay", lambda *args: found.append(delay(*args)) or found[-1])
    jax.eval_shape(
        lambda a: solve(fn, solver, jnp.zeros(2), a, adjoint=KStepAdjoint(1), throw=False).value, jnp.ones(2)
    )
    assert found == [expected]


# -- a run whose moves are known ---------------------------------------------------------------------------------------


def walk(moves, better, length, n_moves, searches):
    """A run of `length` steps, of which those with `moves` change the iterate and those with `better` the solution."""

    def step(carry):
        y, best, i = carry
        y = y + moves[i]
        return y, jnp.where(better[i], y + i, best), i + 1

    look = (lambda carry: (carry[1], carry[0])) if searches else None
    init = (jnp.asarray(0), jnp.asarray(-1), jnp.asarray(0))
    tail = run_to_the_end(lambda carry: carry[2] < length, step, init, n_moves=n_moves, look=look, max_steps=LENGTH)
    return tail.steps, tail.at, tail.before[2], tail.final[2]


walk = jax.jit(walk, static_argnames=("n_moves", "searches"))


def expected_steps(moves, better, length, n_moves):
    """The last moves up to the last new solution, each but the first with the step before."""
    renewed = [i for i in range(length) if better[i]]
    if length <= n_moves or not renewed:
        return list(range(max(0, length - n_moves), length))
    moved = [i for i in range(renewed[-1] + 1) if moves[i] or better[i] or i == 0][-n_moves:]
    return sorted({*moved, *(i - 1 for i in moved[1:])})


flags = st.lists(st.booleans(), min_size=LENGTH, max_size=LENGTH)


@pytest.mark.parametrize("n_moves", [2, 3])
@given(moves=flags, better=flags, length=st.integers(0, LENGTH))
def test_the_last_updates_of_a_search_are_its_moves_and_the_trials_before_them(n_moves, moves, better, length):
    arrays = jnp.asarray(moves).astype(int), jnp.asarray(better)
    steps, at, before, final = walk(*arrays, length, n_moves=n_moves, searches=True)
    assert [int(i) for i in steps if i >= 0] == expected_steps(moves, better, length, n_moves)
    assert list(steps) == sorted(steps)
    assert int(at) == int(before) <= min([int(i) for i in steps if i >= 0], default=length)
    assert int(final) == length


@pytest.mark.parametrize("n_moves", [1, 4])
@pytest.mark.parametrize("length", [0, 1, 3, 4, 5, 11])
def test_without_a_search_the_last_updates_are_the_last_steps(n_moves, length):
    nothing = jnp.zeros(LENGTH, int), jnp.zeros(LENGTH, bool)
    steps, at, before, final = walk(*nothing, length, n_moves=n_moves, searches=False)
    assert [int(i) for i in steps if i >= 0] == list(range(max(0, length - n_moves), length))
    first = max(0, length - n_moves)
    assert int(at) == int(before)
    assert first - n_moves < int(at) <= first or first == int(at) == 0
    assert int(final) == length


def test_advancing_goes_exactly_as_far_as_asked():
    carry = advance(lambda c: {"x": c["x"] * 2, "name": c["name"]}, {"x": jnp.asarray(1), "name": "a"}, 3, 7)
    assert int(carry["x"]) == 16
    assert carry["name"] == "a"


def test_a_loop_that_is_finished_before_it_begins_takes_no_step():
    class Done(optx.AbstractFixedPointSolver):
        """A solver that is content with what it is given."""

        rtol: float = 0.0
        atol: float = 0.0
        norm: object = eqx.field(static=True, default=optx.max_norm)

        def init(self, fn, y, args, options, f_struct, aux_struct, tags):
            return jnp.asarray(0.0)

        def step(self, fn, y, args, options, state, tags):
            return fn(y, args)[0], state, None

        def terminate(self, fn, y, args, options, state, tags):
            return jnp.asarray(True), optx.RESULTS.successful

        def postprocess(self, fn, y, aux, args, options, state, tags, result):
            return y, aux, {}

    def run(y, a):
        return optx.fixed_point(lambda y, a: 0.5 * y + a, Done(), y, a, adjoint=KStepAdjoint(2)).value

    np.testing.assert_array_equal(jax.jacrev(run, argnums=(0, 1))(1.0, 2.0), (1.0, 0.0))
