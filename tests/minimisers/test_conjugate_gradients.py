"""Conjugate gradients reach their tolerance for every right side, also one that is mostly zeros."""

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest

from vardax.minimisers.conjugate_gradients import RelativeCG

RANDOM = np.random.default_rng(29)
N = 12
ROOT = RANDOM.normal(size=(N, N))
MATRICES = {
    "full": ROOT @ ROOT.T / N + np.eye(N),
    "diagonal": np.diag(np.linspace(1.0, 30.0, N)),
    "blocks": np.kron(np.eye(N // 2), np.array([[2.0, 1.0], [1.0, 3.0]])),
    "identity": np.eye(N),
}
SIDES = {
    "unit": np.eye(N)[3],
    "dense": RANDOM.normal(size=N),
    "half zero": np.where(np.arange(N) < 6, 0, np.arange(N) - 3.0),
}
RTOL = 1e-10 if jax.config.jax_enable_x64 else 1e-6


def operator(name):
    return lx.MatrixLinearOperator(jnp.asarray(MATRICES[name]), lx.positive_semidefinite_tag)


@pytest.mark.parametrize("scale", [1.0, 1e-12, 1e8])
@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("name", MATRICES)
def test_the_residual_is_small_relative_to_the_right_side(name, side, scale):
    b = scale * SIDES[side]
    x = lx.linear_solve(operator(name), jnp.asarray(b), RelativeCG(RTOL, max_steps=200)).value
    assert np.linalg.norm(b - MATRICES[name] @ np.asarray(x)) <= 5 * RTOL * np.linalg.norm(b)


def test_a_right_side_of_zero_has_solution_zero():
    x = lx.linear_solve(operator("full"), jnp.zeros(N), RelativeCG(RTOL)).value
    np.testing.assert_array_equal(x, np.zeros(N))


def test_pytrees_keep_their_structure():
    tree = {"u": jnp.array([0.0, 4.0]), "c": jnp.array([3.0])}
    twice = lx.FunctionLinearOperator(
        lambda v: jax.tree.map(lambda leaf: 2 * leaf, v), jax.eval_shape(lambda: tree), lx.positive_semidefinite_tag
    )
    x = lx.linear_solve(twice, tree, RelativeCG(RTOL)).value
    np.testing.assert_allclose(x["u"], [0.0, 2.0], rtol=1e-5)
    np.testing.assert_allclose(x["c"], [1.5], rtol=1e-5)


def test_its_derivative_is_that_of_the_inverse():
    def total(b, diagonal):
        matrix = lx.MatrixLinearOperator(jnp.diag(diagonal), lx.positive_semidefinite_tag)
        return jnp.sum(lx.linear_solve(matrix, b, RelativeCG(RTOL)).value)

    b, diagonal = jnp.array([0.0, 2.0, 3.0]), jnp.array([1.0, 2.0, 4.0])
    by_side, by_matrix = jax.grad(total, argnums=(0, 1))(b, diagonal)
    np.testing.assert_allclose(by_side, 1 / diagonal, rtol=1e-5)
    np.testing.assert_allclose(by_matrix, -b / diagonal**2, rtol=1e-5, atol=1e-7)


def test_it_works_under_vmap():
    sides = jnp.asarray(np.stack(list(SIDES.values())))
    solved = jax.vmap(lambda b: lx.linear_solve(operator("blocks"), b, RelativeCG(RTOL)).value)(sides)
    np.testing.assert_allclose(solved, np.linalg.solve(MATRICES["blocks"], np.asarray(sides).T).T, rtol=1e-4, atol=1e-5)
