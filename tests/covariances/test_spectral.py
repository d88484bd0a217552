"""Stationary covariances on a periodic box."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vardax.covariances.spectral import (
    apply_spectrum,
    circulant_approximation,
    matern_amplitude,
    periodic_matern,
    spectral_mean,
    spectral_weights,
)

DOMAINS = [(8,), (9,), (6, 5), (5, 6), (4, 3, 6)]
EXACT = 1e-12 if jnp.zeros(0).dtype == jnp.float64 else 1e-5


def sum_over_images(domain, nu, cells, images: int) -> np.ndarray:
    """ρ summed over periodic images, one image after the other."""
    total = np.zeros(domain)
    axes = np.meshgrid(*[np.arange(n) for n in domain], indexing="ij")
    for image in itertools.product(range(-images, images + 1), repeat=len(domain)):
        parts = zip(axes, image, domain, cells, strict=True)
        total += correlation(np.sqrt(sum(((axis + m * n) / length) ** 2 for axis, m, n, length in parts)), nu)
    return total


def correlation(r: np.ndarray, nu: float) -> np.ndarray:
    if math.isinf(nu):
        return np.exp(-(r**2) / 2)
    x = math.sqrt(2 * nu) * r
    return {0.5: 1.0, 1.5: 1 + x, 2.5: 1 + x + x**2 / 3}[nu] * np.exp(-x)


@pytest.mark.x64
@pytest.mark.parametrize("nu", [0.5, 1.5, 2.5, math.inf])
@pytest.mark.parametrize(
    ("domain", "cells", "images"),
    [((9,), (2.0,), 12), ((6,), (6.0,), 60), ((6, 5), (1.0, 2.0), 18), ((3, 4, 3), (0.4,) * 3, 7)],
)
def test_all_images_within_reach_are_summed(domain, cells, images, nu):
    found = periodic_matern(domain, nu, jnp.array(cells))
    np.testing.assert_allclose(found, sum_over_images(domain, nu, cells, images), rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("domain", DOMAINS)
def test_weights_count_every_mode_once(domain):
    spectrum = np.random.default_rng(0).normal(size=domain)
    full = np.abs(np.fft.fftn(spectrum)) ** 2
    half = np.abs(np.fft.rfftn(spectrum)) ** 2
    np.testing.assert_allclose(np.sum(spectral_weights(domain) * half), np.sum(full))
    np.testing.assert_allclose(spectral_mean(jnp.asarray(half), domain), np.mean(full), rtol=1e-5)


@pytest.mark.parametrize("domain", DOMAINS)
@pytest.mark.parametrize("nu", [0.5, 1.5, 2.5, math.inf])
def test_eigenvalues_are_not_negative_and_their_mean_is_the_variance(domain, nu):
    amplitude = matern_amplitude(domain, nu, jnp.full(len(domain), 1.3), jnp.asarray(2.0))
    assert np.all(amplitude >= 0)
    np.testing.assert_allclose(spectral_mean(amplitude**2, domain), 4.0, rtol=EXACT)


def test_eigenvalues_at_the_level_of_rounding_count_as_zero():
    amplitude = matern_amplitude((64,), math.inf, jnp.array([8.0]), jnp.asarray(1.0))
    assert amplitude[-1] == 0
    assert amplitude[0] > 1


def test_gradients_are_finite_where_eigenvalues_vanish():
    def total(length):
        return jnp.sum(matern_amplitude((64,), math.inf, jnp.array([1.0]) * length, jnp.asarray(1.0)))

    gradient = jax.grad(total)(8.0)
    assert jnp.isfinite(gradient)


@pytest.mark.parametrize("domain", DOMAINS)
def test_products_pad_and_crop(domain):
    spectrum = jnp.asarray(np.random.default_rng(0).uniform(size=[*domain[:-1], domain[-1] // 2 + 1]))
    shape = tuple(n - 1 for n in domain)
    v = jax.random.normal(jax.random.key(0), shape)
    padded = jnp.zeros(domain, v.dtype).at[tuple(slice(n) for n in shape)].set(v)
    whole = apply_spectrum(spectrum, padded, domain, domain)
    cropped = apply_spectrum(spectrum, v, domain, shape)
    np.testing.assert_allclose(cropped, whole[tuple(slice(n) for n in shape)], atol=EXACT)


def test_circulant_approximation_is_the_closest_periodic_covariance():
    """T. Chan's: the diagonal of F B Fᴴ, computed here from the dense matrix."""
    shape, domain = (5, 6), (16, 6)
    amplitude = matern_amplitude(domain, 1.5, jnp.array([1.5, 1.0]), jnp.asarray(1.0))
    row = jnp.fft.irfftn(amplitude**2, s=domain)
    matrix = np.zeros((*shape, *shape))
    for i, j, k, l in itertools.product(range(5), range(6), range(5), range(6)):
        matrix[i, j, k, l] = row[abs(i - k), abs(j - l)]
    transformed = np.fft.fftn(np.fft.ifftn(matrix, axes=(2, 3)), axes=(0, 1)).reshape(30, 30)
    expected = np.real(np.diag(transformed)).reshape(shape)[:, :4]
    np.testing.assert_allclose(circulant_approximation(row, domain, shape), expected, atol=10 * EXACT)


@pytest.mark.parametrize("batched", [False, True])
def test_transforms_next_to_a_triangular_solve(batched):
    """Triangular solves like columns, the CPU's transforms run on rows only: the program must say so."""
    spectrum = matern_amplitude((4, 5), 1.5, jnp.ones(2), jnp.ones(()))
    lower, v = jnp.tril(jnp.ones((4, 4))), jnp.arange(20.0).reshape(4, 5)

    def between_solves(v):
        solve = lambda rhs: jax.scipy.linalg.solve_triangular(lower, rhs, lower=True)  # noqa: E731
        return solve(apply_spectrum(spectrum, solve(v), (4, 5), (4, 5)))

    product = np.linalg.solve(lower, v)
    product = np.fft.irfftn(np.asarray(spectrum) * np.fft.rfftn(product), s=(4, 5), axes=(0, 1))
    expected = np.linalg.solve(lower, product)
    found = jax.jit(jax.vmap(between_solves))(jnp.stack([v, 2 * v, v]))[2] if batched else jax.jit(between_solves)(v)
    np.testing.assert_allclose(found, expected, atol=100 * EXACT)
