"""The unrolled derivative is that of the steps, forward and backward, and steps not taken leave no trace in it."""

import jax
import jax.numpy as jnp
import numpy as np
import optimistix as optx
import pytest

from vardax.adjoints.direct import DirectAdjoint, arrays_of, made_again, scan_steps, stop_gradient
from vardax.networks.correlation import correlate

FLOAT = jnp.result_type(float)
TIGHT = {"rtol": 1e-12, "atol": 1e-12} if jnp.float64 == FLOAT else {"rtol": 1e-5, "atol": 1e-5}
SOLVER = optx.FixedPointIteration(rtol=1e-3, atol=1e-3)


def contraction(y, a):
    return 0.4 * jnp.cos(y) + a


def solve(a, y0, *, adjoint=None, max_steps=40):
    adjoint = DirectAdjoint() if adjoint is None else adjoint
    return optx.fixed_point(contraction, SOLVER, y0, a, adjoint=adjoint, max_steps=max_steps)


def unrolled(a, y0, n_steps):
    y = y0
    for _ in range(n_steps):
        y = contraction(y, a)
    return y


A, START = jnp.array([0.3, -0.2]), jnp.array([1.0, 4.0])


@pytest.mark.parametrize("mode", [jax.jacrev, jax.jacfwd], ids=["reverse", "forward"])
def test_the_derivative_is_that_of_the_steps_taken(mode):
    steps = int(solve(A, START).stats["num_steps"])
    found = mode(lambda a, y0: solve(a, y0).value, argnums=(0, 1))(A, START)
    expected = jax.jit(jax.jacrev(lambda a, y0: unrolled(a, y0, steps), argnums=(0, 1)))(A, START)
    np.testing.assert_allclose(found, expected, **TIGHT)


def test_second_derivatives_are_those_of_the_steps():
    steps = int(solve(A, START).stats["num_steps"])
    found, expected = (
        jax.jit(jax.hessian(lambda a, run=run: jnp.sum(run(a))))(A)
        for run in (lambda a: solve(a, START).value, lambda a: unrolled(a, START, steps))
    )
    np.testing.assert_allclose(found, expected, **TIGHT)


def test_the_value_is_that_of_any_other_adjoint():
    direct, implicit = solve(A, START), solve(A, START, adjoint=optx.ImplicitAdjoint())
    np.testing.assert_allclose(direct.value, implicit.value, **TIGHT)
    assert direct.stats["num_steps"] == implicit.stats["num_steps"] < 40


def test_members_of_a_batch_stop_by_themselves():
    starts = jnp.array([[0.4, 0.2], [50.0, -7.0], [1e3, 1e-3]])
    gradient = jax.jit(jax.grad(lambda a, y0: jnp.sum(solve(a, y0).value ** 2)))
    together = jax.vmap(gradient, in_axes=(None, 0))(A, starts)
    np.testing.assert_allclose(together, [gradient(A, y0) for y0 in starts], **TIGHT)


def test_a_truncated_solve_is_differentiated_as_it_is():
    def run(a):
        return optx.fixed_point(contraction, SOLVER, START, a, adjoint=DirectAdjoint(), max_steps=2, throw=False).value

    found = jax.jacrev(run)(A)
    np.testing.assert_allclose(found, jax.jacrev(lambda a: unrolled(a, START, 2))(A), **TIGHT)


def test_the_number_of_steps_must_be_bounded():
    with pytest.raises(ValueError, match=r"DirectAdjoint.*`max_steps` is None, expected an integer"):
        solve(A, START, max_steps=None)


# -- the scan ----------------------------------------------------------------------------------------------------------


def count_down(limit):
    """x -> sqrt(limit - x) is taken while x < limit; beyond, its derivative is infinite, then NaN."""
    take = lambda i, x: jnp.sqrt(limit - x) + x  # noqa: E731
    return lambda x: scan_steps(lambda i, x: x < limit, take, x, jnp.arange(6))


def test_a_step_that_is_not_taken_leaves_no_nan():
    run = count_down(jnp.asarray(2.0, FLOAT))
    x = jnp.array([0.0, 1.0, 1.9], FLOAT)
    together = jax.vmap(jax.grad(run))(x)
    assert jnp.isfinite(together).all()
    np.testing.assert_allclose(together, [jax.grad(run)(member) for member in x], **TIGHT)


def test_steps_not_taken_by_any_member_are_not_computed():
    """The branch survives `vmap`: the condition of the `cond` is not batched, so it is not turned into a select."""
    run = count_down(jnp.asarray(2.0, FLOAT))
    text = str(jax.make_jaxpr(jax.vmap(run))(jnp.zeros(3, FLOAT)))
    assert "cond[" in text


def test_helpers_know_arrays_from_the_rest():
    tree = {"x": jnp.ones(2), "n": jnp.arange(2), "name": "a"}
    assert arrays_of({"x": 1.0, "n": 2, "name": "b"}, like=tree)["name"] is None
    gradient = jax.grad(lambda x: jnp.sum(stop_gradient({"x": x, "name": "a"})["x"] ** 2))(jnp.ones(2))
    np.testing.assert_array_equal(gradient, jnp.zeros(2))


def test_only_what_is_worth_keeping_is_not_made_again():
    """Forward, and for the derivative with respect to x: a convolution each way, and the tanh twice."""
    x, w = jnp.ones((1, 6, 2)), jnp.ones((3, 2, 2))

    def loss(x):
        return jnp.sum(jnp.tanh(correlate(x, w, ((1, 1),))))

    def made(step):
        jaxpr = str(jax.make_jaxpr(jax.grad(step))(x))
        return jaxpr.count("vardax_correlate["), jaxpr.count(" tanh ")

    assert made(made_again(loss)) == (2, 2)
    assert made(jax.checkpoint(loss)) == (3, 2)
    np.testing.assert_allclose(jax.grad(made_again(loss))(x), jax.grad(loss)(x), rtol=1e-5)
