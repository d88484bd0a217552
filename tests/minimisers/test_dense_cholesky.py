"""A small Hessian is factorised block by block, whatever it is made of, and the solve can be differentiated."""

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest

from vardax.minimisers.closed_form import COLUMN_BLOCK
from vardax.minimisers.dense_cholesky import MappedCholesky

FLOAT = jnp.result_type(float)
EXACT = {"rtol": 1e-10, "atol": 1e-12} if jnp.float64 == FLOAT else {"rtol": 1e-4, "atol": 1e-5}


def smoothed(n):
    """x -> x + F⁻¹ w F x, a convolution by Fourier transforms, and its matrix."""
    w = jnp.linspace(0.5, 2.0, n // 2 + 1)

    def apply(x):
        modes = jnp.fft.rfft(x)
        return x + jnp.fft.irfft(jax.lax.complex(w * modes.real, w * modes.imag), n=n)

    matrix = np.eye(n) + np.fft.irfft(np.asarray(w)[:, None] * np.fft.rfft(np.eye(n), axis=0), n=n, axis=0)
    return apply, matrix


def solve(apply, b):
    operator = lx.FunctionLinearOperator(apply, jax.eval_shape(lambda: b), lx.positive_semidefinite_tag)
    return lx.linear_solve(operator, b, MappedCholesky()).value


@pytest.mark.parametrize("n", [10, COLUMN_BLOCK + 12])
@pytest.mark.parametrize("batched", [False, True])
def test_fourier_transforms_inside_the_operator_do_not_mind_the_factorisation(n, batched):
    """XLA's transforms on CPU fail on columns, which LAPACK likes: lineax's own Cholesky fails here."""
    apply, matrix = smoothed(n)
    b = jnp.asarray(np.random.default_rng(0).normal(size=(3, n)), FLOAT)
    one = jax.jit(lambda b: solve(apply, b))
    found = jax.jit(jax.vmap(one))(b) if batched else jnp.stack([one(row) for row in b])
    np.testing.assert_allclose(found, np.linalg.solve(matrix, b.T).T, **EXACT)


def test_a_pytree_is_solved_as_one_vector():
    random = np.random.default_rng(1)
    root = random.normal(size=(5, 5))
    A = jnp.asarray(root @ root.T + np.eye(5), FLOAT)

    def apply(tree):
        flat = A @ jnp.concatenate([tree["u"], tree["v"].ravel()])
        return {"u": flat[:1], "v": flat[1:].reshape(2, 2)}

    b = {"u": jnp.ones(1, FLOAT), "v": jnp.arange(4.0, dtype=FLOAT).reshape(2, 2)}
    found = solve(apply, b)
    expected = np.linalg.solve(A, np.concatenate([np.ones(1), np.arange(4.0)]))
    np.testing.assert_allclose(np.concatenate([found["u"], found["v"].ravel()]), expected, **EXACT)


def test_the_derivative_of_a_solve_is_that_of_the_inverse():
    A, b, dA = jnp.array([[3.0, 1.0], [1.0, 2.0]]), jnp.array([1.0, -1.0]), jnp.array([[0.2, 0.1], [0.1, -0.3]])

    def run(t, b):
        return solve(lambda x: (A + t * dA) @ x, b)

    inverse = np.linalg.inv(A)
    for mode in (jax.jacfwd, jax.jacrev):
        by_t, by_b = mode(run, argnums=(0, 1))(0.0, b)
        np.testing.assert_allclose(by_t, -inverse @ dA @ inverse @ b, **EXACT)
        np.testing.assert_allclose(by_b, inverse, **EXACT)
