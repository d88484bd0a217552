"""exp(−A/2) v by a Chebyshev polynomial, against the matrix exponential."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
import scipy.special

from vardax.covariances.chebyshev import TRUNCATION, ChebyshevExponential, chebyshev_coefficients, needed_steps
from vardax.covariances.stencil import diffusion_stencil

X64 = jnp.zeros(0).dtype == jnp.float64
SHAPE = (5, 6)


def operator(length=2.0, uniform=False, steps=None):
    """Diffusion on a small grid with land, with cells of different or of equal volumes."""
    rng = np.random.default_rng(0)
    one = jnp.ones((1, 1))
    sizes = (one, one) if uniform else tuple(jnp.asarray(1 + rng.random((2, *SHAPE))))
    volume = one if uniform else jnp.asarray(1 + rng.random(SHAPE))
    square = jnp.square(length) * one
    mask = jnp.asarray(rng.random(SHAPE) > 0.2)
    stencil, bound = diffusion_stencil({(0, 0): square, (1, 1): square, (0, 1): square / 3}, sizes, volume, mask, (1,))
    return ChebyshevExponential(stencil, bound, needed_steps(float(bound)) if steps is None else steps)


def matrix_of(product):
    units = jnp.eye(30).reshape(-1, *SHAPE)
    return np.asarray(jax.jit(jax.vmap(product.mv))(units)).reshape(30, 30)


def exponential(product):
    """exp(−V^{-1/2} S V^{-1/2} / 2)."""
    root = np.sqrt(np.broadcast_to(product.stencil.volume, SHAPE)).ravel()
    return scipy.linalg.expm(-matrix_of(product.stencil) / root[:, None] / root[None, :] / 2)


@pytest.mark.parametrize("uniform", [False, True], ids=["volumes vary", "equal volumes"])
@pytest.mark.parametrize("length", [0.3, 2.0, 6.0])
def test_it_is_the_matrix_exponential(length, uniform):
    product = operator(length, uniform)
    found = matrix_of(product)
    np.testing.assert_allclose(found, exponential(product), atol=TRUNCATION if X64 else 2 * TRUNCATION)
    np.testing.assert_allclose(found, found.T, atol=1e-15 if X64 else 1e-6)


@pytest.mark.parametrize("extra", [0, 1, 2, 3])
def test_more_steps_change_nothing(extra):
    """Also an odd number of steps, of which the last round does one."""
    needed = operator().steps
    product = operator(steps=needed + extra)
    assert product.steps == needed + extra
    np.testing.assert_allclose(matrix_of(product), exponential(product), atol=2 * TRUNCATION)


def test_no_connection_leaves_fields_as_they_are():
    one = jnp.ones((1,))
    stencil, bound = diffusion_stencil({(0, 0): one}, (one,), one, jnp.array([True, False, True]), ())
    product = ChebyshevExponential(stencil, bound, needed_steps(float(bound)))
    np.testing.assert_allclose(product.mv(jnp.array([1.0, 2.0, 3.0])), [1.0, 2.0, 3.0], atol=TRUNCATION)


@pytest.mark.x64
@pytest.mark.parametrize("bound", [0.5, 30.0, 4000.0])
def test_coefficients_are_bessel_functions(bound):
    """c_k = (2 − δ_k0) (−1)^k exp(−ρ) I_k(ρ), ρ = bound/4."""
    k = np.arange(needed_steps(bound) + 1)
    expected = np.where(k == 0, 1, 2) * (-1.0) ** k * scipy.special.ive(k, bound / 4)
    found = chebyshev_coefficients(jnp.array(bound), int(k[-1]))
    np.testing.assert_allclose(found, expected, atol=TRUNCATION / 10)


@pytest.mark.parametrize("bound", [0.1, 8.0, 400.0, 1e5])
def test_the_steps_are_as_many_as_needed(bound):
    """The terms left out sum to less than the truncation, and one more would not."""
    steps = needed_steps(bound)
    k = np.arange(steps + 1, steps + 2000)
    beyond = 2 * scipy.special.ive(k, bound / 4)
    assert np.sum(beyond) < TRUNCATION
    assert steps == 1 or 2 * scipy.special.ive(steps, bound / 4) + np.sum(beyond) >= TRUNCATION
    assert steps < 4 + np.sqrt(6.5 * bound)


def test_far_too_few_steps_give_nan():
    assert np.all(np.isnan(operator(6.0, steps=4).mv(jnp.ones(SHAPE))))


@pytest.mark.parametrize("uniform", [False, True], ids=["volumes vary", "equal volumes"])
def test_it_is_its_own_transpose_by_automatic_differentiation(uniform):
    product = operator(uniform=uniform)
    v, u = jnp.asarray(np.random.default_rng(1).standard_normal((2, *SHAPE)))

    @jax.jit
    def ways(v, u):
        transposed = jax.linear_transpose(product.mv, v)(u)[0]
        return transposed, jax.vjp(product.mv, v)[1](u)[0], jax.jvp(product.mv, (v,), (u,))[1]

    for found in ways(v, u):
        np.testing.assert_allclose(found, matrix_of(product).dot(u.ravel()).reshape(SHAPE), atol=1e-13 if X64 else 1e-5)


@pytest.mark.x64
@pytest.mark.parametrize("order", [1, 2])
def test_derivatives_with_respect_to_lengths(order, equals_differences):
    v = jnp.array([1.0, -2.0, 0.5, 3.0])

    def loss(length, shift):
        one = jnp.ones((1,))
        stencil, bound = diffusion_stencil({(0, 0): jnp.square(length) * one}, (one,), one, jnp.ones(4, bool), ())
        return jnp.sum(ChebyshevExponential(stencil, bound, 14).mv(v + shift) ** 3)

    slope = lambda length: jnp.vdot(v, jax.grad(loss, 1)(length, jnp.zeros(4)))  # noqa: E731
    equals_differences({1: lambda length: loss(length, jnp.zeros(4)), 2: slope}[order], jnp.array(2.0))


@pytest.mark.parametrize("transposed", [False, True])
def test_a_product_holds_no_more_than_a_few_fields(transposed):
    """Nothing is kept from step to step, in neither direction: a transposed product costs what the product costs."""
    product = operator(steps=50)
    function = lambda v: jax.linear_transpose(product.mv, v)(v)[0] if transposed else product.mv(v)  # noqa: E731
    memory = jax.jit(function).lower(jnp.ones(SHAPE)).compile().memory_analysis()
    field = 30 * (8 if X64 else 4)
    assert memory.temp_size_in_bytes < 30 * field
