"""Conjugate gradients in the inner product of K, on small matrices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vardax.minimisers.paired_gradients import Look, implicit_solve, paired_conjugate_gradients

RANDOM = np.random.default_rng(21)
N = 6
ROOTS = RANDOM.normal(size=(2, N, N))
K, D = (jnp.asarray(root @ root.T / N) for root in ROOTS)
B = jnp.asarray(RANDOM.normal(size=N))


def look(residual):
    image = K @ residual
    return Look(residual, image, (residual @ image,))


def curve(search, image):
    return search + D @ image


@pytest.mark.x64
def test_n_steps_solve_n_equations():
    u, (n, norms, costs) = paired_conjugate_gradients(look, curve, B, jnp.array(1.0), tol=1e-12, max_steps=20)
    np.testing.assert_allclose(u + D @ (K @ u), B, atol=1e-8)
    assert N <= n <= N + 2
    assert np.isfinite(norms).sum() == np.isfinite(costs).sum() == n + 1


@pytest.mark.parametrize("limit", [0, 2])
def test_a_limit_may_be_traced(limit):
    solve = lambda limit: paired_conjugate_gradients(look, curve, B, B[0], tol=0.0, max_steps=9, limit=limit)  # noqa: E731
    assert jax.jit(solve)(jnp.asarray(limit))[1][0] == limit


def test_all_norms_must_fall():
    def strict(residual):
        y = look(residual)
        return y._replace(squared_norms=(y.squared_norms[0], 1 + y.squared_norms[0]))

    _, (n, _, _) = paired_conjugate_gradients(strict, curve, B, B[0], tol=1e-2, max_steps=4)
    assert n == 4


def test_a_negative_curvature_ends_it_at_the_last_sound_iterate():
    u, (n, _, _) = paired_conjugate_gradients(
        lambda r: Look(r, None, (r @ r,)), lambda p, _: -p, B, B[0], tol=1e-6, max_steps=5
    )
    assert n == 0
    np.testing.assert_array_equal(u, 0)


@pytest.mark.x64
def test_derivatives_are_those_of_the_solution():
    def iterated(scale, b):
        u, _ = implicit_solve(look, lambda v: K @ v, lambda v: scale * (D @ v), b, b[0], tol=1e-12, max_steps=40)
        return jnp.sum(jnp.sin(u))

    def direct(scale, b):
        return jnp.sum(jnp.sin(jnp.linalg.solve(jnp.eye(N) + scale * D @ K, b)))

    for found, right in zip(*(jax.grad(f, (0, 1))(jnp.array(0.7), B) for f in (iterated, direct)), strict=True):
        np.testing.assert_allclose(found, right, rtol=1e-7)
