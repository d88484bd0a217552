"""Truncated derivatives: the rate of their error, their memory, their limits, every kind of solver."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optimistix as optx
import pytest

from vardax.adjoints.direct import DirectAdjoint
from vardax.adjoints.k_step import KStepAdjoint
from vardax.adjoints.one_step import OneStepAdjoint

FLOAT = jnp.result_type(float)
X64 = jnp.float64 == FLOAT
TIGHT = {"rtol": 1e-12, "atol": 1e-13} if X64 else {"rtol": 1e-4, "atol": 1e-6}
LOOSE = {"rtol": 1e-6, "atol": 1e-7} if X64 else {"rtol": 2e-2, "atol": 1e-3}

# A quadratic ½ yᵀ A y - bᵀ y with curvatures 1 and 3. Gradient descent of rate 0.3 contracts by 0.7 and 0.1.
A, B, RATE, RHO = jnp.array([[2.0, 1.0], [1.0, 2.0]]), jnp.array([1.0, -2.0]), 0.3, 0.7


def descend(y, b):
    return y - RATE * (A @ y - b)


def quadratic(y, b):
    return 0.5 * y @ A @ y - b @ y


def curved(y, b):
    return quadratic(y, b) + 0.1 * jnp.sum(y**4)


def slope(y, b):
    return A @ y - b + 0.4 * y**3


TOL = {"rtol": 1e-9, "atol": 1e-9} if X64 else {"rtol": 1e-4, "atol": 1e-4}
NEVER = {"rtol": 0.0, "atol": 0.0}
SOLVERS = {
    "FixedPointIteration": (optx.fixed_point, descend, optx.FixedPointIteration(**TOL)),
    "Newton": (optx.root_find, slope, optx.Newton(**TOL)),
    "GradientDescent": (optx.minimise, curved, optx.GradientDescent(0.2, **TOL)),
    "BFGS": (optx.minimise, curved, optx.BFGS(**TOL)),
    "NonlinearCG": (optx.minimise, curved, optx.NonlinearCG(**TOL)),
    "LevenbergMarquardt": (optx.least_squares, slope, optx.LevenbergMarquardt(**TOL)),
}


SLOW = pytest.mark.slow
each_solver = pytest.mark.parametrize(
    "name", [name if name in ("FixedPointIteration", "BFGS") else pytest.param(name, marks=SLOW) for name in SOLVERS]
)


def solution(name, adjoint, *, y0=None):
    solve, fn, solver = SOLVERS[name]
    y0 = jnp.full(2, 2.0) if y0 is None else y0
    return lambda b: solve(fn, solver, y0, b, adjoint=adjoint, max_steps=100, throw=False)


def value(name, adjoint, **options):
    run = solution(name, adjoint, **options)
    return lambda b: run(b).value


def jacobian(name, adjoint, **options):
    return jax.jit(jax.jacrev(value(name, adjoint, **options)))(B)


def exact_jacobian(name):
    """Of the solution, by the implicit function theorem: the inverse of the second derivative."""
    y = np.asarray(value(name, optx.ImplicitAdjoint())(B))
    return np.linalg.inv(np.asarray(A) + np.diag(0.0 * y if name == "FixedPointIteration" else 1.2 * y**2))


def test_the_problem_contracts_at_the_rate_that_it_should():
    np.testing.assert_allclose(np.max(np.abs(np.linalg.eigvals(np.eye(2) - RATE * np.asarray(A)))), RHO, rtol=1e-6)


# -- the rate of the error ---------------------------------------------------------------------------------------------


@pytest.mark.x64
@pytest.mark.parametrize("name", ["FixedPointIteration", "GradientDescent"])
@pytest.mark.parametrize("k", [1, 3, 12])
def test_the_error_of_the_jacobian_falls_as_the_contraction_to_the_k(name, k):
    """Bolte, Pauwels and Vaiter (2023), on a quadratic: the Jacobian is A⁻¹, that of k steps A⁻¹ - (I - rA)^k A⁻¹.

    Gradient descent makes the same steps; it evaluates each point one step after it proposed it.
    """
    solvers = {
        "FixedPointIteration": (optx.fixed_point, descend, optx.FixedPointIteration(**TOL)),
        "GradientDescent": (optx.minimise, quadratic, optx.GradientDescent(RATE, **TOL)),
    }
    solve, fn, solver = solvers[name]
    run = lambda b: solve(fn, solver, jnp.zeros(2), b, adjoint=KStepAdjoint(k)).value  # noqa: E731
    exact = np.linalg.inv(A)
    truncated = np.linalg.matrix_power(np.eye(2) - RATE * np.asarray(A), k) @ exact
    error = exact - jax.jit(jax.jacrev(run))(B)
    np.testing.assert_allclose(error, truncated, rtol=1e-9, atol=1e-12)
    assert np.linalg.norm(error, 2) <= RHO**k * np.linalg.norm(exact, 2) * (1 + 1e-9)


@pytest.mark.x64
@pytest.mark.parametrize("name", ["Newton", pytest.param("LevenbergMarquardt", marks=SLOW)])
def test_one_step_of_a_newton_like_solver_is_exact_at_the_solution(name):
    np.testing.assert_allclose(jacobian(name, OneStepAdjoint()), exact_jacobian(name), rtol=1e-3)


# -- every solver ------------------------------------------------------------------------------------------------------


@each_solver
def test_all_steps_are_the_unrolled_derivative_in_both_modes(name):
    """BFGS and nonlinear conjugate gradients reject trials here; what the adjoint passes over has no derivative."""
    unrolled, many = jacobian(name, DirectAdjoint()), value(name, KStepAdjoint(1000))
    reverse, forward = jax.jit(lambda b: (jax.jacrev(many)(b), jax.jacfwd(many)(b)))(B)
    np.testing.assert_allclose(reverse, unrolled, **TIGHT)
    np.testing.assert_allclose(forward, unrolled, **TIGHT)


@pytest.mark.parametrize(
    "name", ["BFGS", *(pytest.param(name, marks=SLOW) for name in ("GradientDescent", "NonlinearCG"))]
)
def test_a_few_updates_of_a_search_are_near_the_exact_derivative(name):
    """Also where the last steps before the end were rejected trials, which move nothing."""
    exact = exact_jacobian(name)
    errors = [np.max(np.abs(jacobian(name, KStepAdjoint(k)) - exact)) for k in (1, 8)]
    assert errors[0] < np.max(np.abs(exact))
    assert errors[1] < 0.2 * np.max(np.abs(exact))


@pytest.mark.parametrize(
    "name", ["FixedPointIteration", *(pytest.param(name, marks=SLOW) for name in list(SOLVERS)[1:])]
)
def test_the_value_does_not_depend_on_the_adjoint(name):
    def result(adjoint):
        found = solution(name, adjoint)(B)
        return found.value, found.stats["num_steps"]

    def differentiated(b):
        found, _ = jax.vjp(value(name, KStepAdjoint(4)), b)
        return found

    expected, n_steps = result(optx.ImplicitAdjoint())
    np.testing.assert_allclose(result(KStepAdjoint(4))[0], expected, **TIGHT)
    np.testing.assert_allclose(differentiated(B), expected, **TIGHT)
    assert result(KStepAdjoint(4))[1] == n_steps


@pytest.mark.parametrize("name", ["FixedPointIteration", pytest.param("BFGS", marks=SLOW)])
def test_members_of_a_batch_stop_by_themselves(name):
    starts = jnp.array([[0.0, 0.0], [5.0, -3.0], [40.0, 1e-3]])
    for adjoint in (KStepAdjoint(3), KStepAdjoint(1000)):
        of_start = jax.jit(lambda y0, adjoint=adjoint: jax.jacrev(value(name, adjoint, y0=y0))(B))
        together = jax.jit(jax.vmap(of_start))(starts)
        np.testing.assert_allclose(together, [of_start(y0) for y0 in starts], **LOOSE)


@SLOW
def test_second_derivatives_of_a_converged_solve_agree_with_the_implicit_ones():
    hessians = [
        jax.jit(jax.hessian(lambda b, adjoint=adjoint: jnp.sum(value("Newton", adjoint)(b) ** 2)))(B)
        for adjoint in (KStepAdjoint(3), optx.ImplicitAdjoint())
    ]
    np.testing.assert_allclose(*hessians, **LOOSE)


def test_an_unbounded_solve_of_a_pytree_is_differentiated():
    def halve(y, args):
        return {"u": 0.5 * y["u"] + args["a"], "v": (0.2 * y["v"][0] + y["u"],)}

    y0, args = {"u": jnp.zeros(2), "v": (jnp.ones(2),)}, {"a": jnp.array([1.0, 2.0]), "name": "a"}

    def run(a):
        solver, given = optx.FixedPointIteration(**TOL), args | {"a": a}
        return optx.fixed_point(halve, solver, y0, given, adjoint=KStepAdjoint(30), max_steps=None).value["v"][0]

    np.testing.assert_allclose(jax.jacrev(run)(args["a"]), 2.5 * np.eye(2), **LOOSE)


def test_more_steps_than_were_taken_include_the_start():
    """Nothing is dropped, so the derivative reaches the first iterate; with fewer steps it does not."""

    def run(y0, k):
        solver = optx.FixedPointIteration(**NEVER)
        return optx.fixed_point(descend, solver, y0, B, adjoint=KStepAdjoint(k), max_steps=4, throw=False).value

    start = jnp.array([3.0, 1.0])
    power = np.linalg.matrix_power(np.eye(2) - RATE * np.asarray(A), 4)
    np.testing.assert_allclose(jax.jacrev(run)(start, 4), power, **TIGHT)
    np.testing.assert_allclose(jax.jacrev(run)(start, 7), power, **TIGHT)
    np.testing.assert_array_equal(jax.jacrev(run)(start, 3), np.zeros((2, 2)))


# -- memory and work ---------------------------------------------------------------------------------------------------

WIDE = 20_000


def temporary_bytes(adjoint, n_steps):
    """XLA's own account of the compiled gradient of a solve of exactly `n_steps` steps on a wide state."""

    def loss(a):
        solver = optx.FixedPointIteration(**NEVER)
        shrink = lambda y, a: 0.5 * jnp.cos(y) * a  # noqa: E731
        y0 = jnp.ones(WIDE, FLOAT)
        found = optx.fixed_point(shrink, solver, y0, a, adjoint=adjoint, max_steps=n_steps, throw=False)
        return jnp.sum(found.value**2)

    analysis = jax.jit(jax.grad(loss)).lower(jnp.ones(WIDE, FLOAT)).compile().memory_analysis()
    return analysis.temp_size_in_bytes


def test_the_memory_of_the_gradient_does_not_grow_with_the_warm_up():
    state = WIDE * FLOAT.itemsize
    for adjoint in (OneStepAdjoint(), KStepAdjoint(3)):
        few, many = temporary_bytes(adjoint, 10), temporary_bytes(adjoint, 1000)
        assert many <= few + 0.1 * state
    assert temporary_bytes(DirectAdjoint(), 1000) > 900 * state


def test_the_memory_of_the_gradient_is_that_of_the_live_steps():
    state = WIDE * FLOAT.itemsize
    one, ten = temporary_bytes(KStepAdjoint(2), 100), temporary_bytes(KStepAdjoint(10), 100)
    assert 7 * state < ten - one < 30 * state


def counted(count):
    """y -> a cos y, which adds one to `count` whenever it is evaluated."""

    def tick(_):
        count.append(1)
        return np.zeros((), FLOAT)

    @jax.custom_jvp
    def look(y):
        return y + jax.pure_callback(tick, jax.ShapeDtypeStruct((), FLOAT), y)

    look.defjvp(lambda primals, tangents: (look(*primals), tangents[0]))
    return lambda y, a: a * jnp.cos(look(y))


@pytest.mark.parametrize("k", [1, 4])
def test_the_work_is_one_run_and_fewer_than_two_times_k_steps_more(k):
    count = []
    fn, solver = counted(count), optx.FixedPointIteration(**NEVER)

    def run(a):
        return optx.fixed_point(
            fn, solver, jnp.asarray(1.0, FLOAT), a, adjoint=KStepAdjoint(k), max_steps=23, throw=False
        ).value

    gradient = jax.jit(jax.grad(run)).lower(jnp.asarray(0.1, FLOAT)).compile()
    alone = jax.jit(run).lower(jnp.asarray(0.1, FLOAT)).compile()
    count.clear()
    jax.block_until_ready(alone(jnp.asarray(0.1, FLOAT)))
    assert len(count) == 23
    count.clear()
    jax.block_until_ready(gradient(jnp.asarray(0.1, FLOAT)))
    assert 23 + k <= len(count) < 23 + 2 * k + (k == 1)


# -- the option --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [0, -3])
def test_at_least_one_step_is_live(k):
    with pytest.raises(ValueError, match=r"k >= 1"):
        KStepAdjoint(k)


@pytest.mark.parametrize("k", [1.0, True, "2", None])
def test_k_is_an_integer(k):
    with pytest.raises(TypeError, match=r"k is .*expected an integer"):
        KStepAdjoint(k)


def test_an_adjoint_is_a_value():
    assert KStepAdjoint(np.int64(3)) == KStepAdjoint(k=3)
    assert isinstance(KStepAdjoint(3), optx.AbstractAdjoint)
    assert jax.tree.leaves(eqx.filter(KStepAdjoint(3), eqx.is_array)) == []
