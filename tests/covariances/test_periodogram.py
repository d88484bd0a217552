"""What periodograms of windowed fields are on average."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vardax.covariances.matern import MaternLinearOperator
from vardax.covariances.periodogram import (
    expected_periodogram,
    mean_periodogram,
    periodogram,
    random_field,
    window_of,
)

X64 = jnp.zeros(0).dtype == jnp.float64
DTYPE = jnp.result_type(float)
CASES = {
    "periodic": ((12,), (False,), None),
    "free": ((11,), (True,), None),
    "free, one cell": ((1, 9), (True, True), None),
    "mixed, land": ((7, 8), (True, False), 0.3),
    "periodic, land": ((6, 8), (False, False), 0.3),
}


def windowed(name):
    shape, free, share = CASES[name]
    mask = np.ones(shape, bool) if share is None else np.random.default_rng(0).random(shape) > share
    return jnp.asarray(mask), free, window_of(jnp.asarray(mask), free, DTYPE)


@pytest.mark.parametrize("nu", [0.5, np.inf])
@pytest.mark.parametrize("name", CASES)
def test_the_mean_is_that_of_the_covariance(name, nu):
    """E |F g x|² = diag(F g C g Fᴴ), with the matrix of the covariance in the middle."""
    mask, free, window = windowed(name)
    cells = jnp.full(mask.ndim, 1.7)
    padding = [size - n for size, n in zip(window.box, mask.shape, strict=True)]
    kinds = ["free" if is_free else "periodic" for is_free in free]
    C = MaternLinearOperator(mask.shape, 1.0 if 1 in mask.shape else 1.7, nu=nu, boundary=kinds, padding=padding)
    cells = jnp.full(mask.ndim, 1.0 if 1 in mask.shape else 1.7)
    g = np.ravel(window.weights)
    inner = g[:, None] * np.asarray(C.as_matrix()) * g[None, :]
    modes = np.stack([np.fft.rfftn(unit.reshape(mask.shape), window.box, range(mask.ndim)) for unit in np.eye(g.size)])
    expected = np.einsum("i...,ij,j...->...", modes, inner, modes.conj()).real / np.sum(g**2)
    found = expected_periodogram(cells, nu, window)
    np.testing.assert_allclose(found, expected, atol=1e-12 if X64 else 1e-4)


def test_the_window_is_zero_on_land_and_falls_off_towards_free_edges():
    mask, _, window = windowed("mixed, land")
    g = np.asarray(window.weights)
    assert np.all(g[~np.asarray(mask)] == 0)
    _, _, free = windowed("free")
    assert 0 < free.weights[0] < free.weights[1] <= free.weights[5] == 1
    np.testing.assert_allclose(free.weights, free.weights[::-1], rtol=1e-6)
    assert np.all(np.asarray(windowed("periodic")[2].weights) == 1)


def test_random_fields_have_the_periodogram():
    mask, _, window = windowed("mixed, land")
    cells = jnp.array([1.5, 2.0])
    draws = jax.jit(jax.vmap(lambda key: random_field(key, cells, 1.5, window)))(
        jax.random.split(jax.random.key(0), 4000)
    )
    assert draws.shape == (4000, *mask.shape)
    expected = np.asarray(expected_periodogram(cells, 1.5, window))
    found = np.asarray(mean_periodogram(draws, window))
    assert np.all(np.abs(found / expected - 1) < 6 * np.sqrt(2 / 4000))
    np.testing.assert_allclose(np.mean(np.var(draws, axis=0)), 1, rtol=0.03)


def test_the_mean_over_samples_is_one():
    _, _, window = windowed("free")
    fields = jnp.asarray(np.random.default_rng(0).standard_normal((3, 11)))
    each = np.mean([periodogram(field, window) for field in fields], axis=0)
    np.testing.assert_allclose(mean_periodogram(fields, window), each, rtol=1e-5)
