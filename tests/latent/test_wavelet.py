"""Daubechies' wavelets: their defining equations, and what they leave out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vardax.latent.wavelet import WaveletBasis, daubechies

TIGHT = 1e-12 if jax.config.jax_enable_x64 else 1e-5


@pytest.mark.parametrize("p", [1, 2, 3, 6, 10])
def test_the_filter_is_orthonormal_to_its_shifts_and_has_its_vanishing_moments(p):
    h = daubechies(p)
    limit = 1e-6 if p == 10 else 1e-9
    assert h.size == 2 * p
    for shift in range(p):
        np.testing.assert_allclose(h[2 * shift :] @ h[: h.size - 2 * shift], float(shift == 0), atol=limit)
    detail = h[::-1] * (-1.0) ** np.arange(h.size)
    for power in range(p):
        moments = detail * (np.arange(h.size) / h.size) ** power
        np.testing.assert_allclose(np.sum(moments), 0, atol=limit)


def test_the_second_filter_is_the_published_one():
    """(1 ± √3, 3 ± √3) / (4 √2), Daubechies (1988), table 1."""
    r = np.sqrt(3)
    np.testing.assert_allclose(daubechies(2), np.array([1 + r, 3 + r, 3 - r, 1 - r]) / (4 * np.sqrt(2)), atol=1e-14)


def test_haar_without_the_finest_details_is_the_mean_of_pairs():
    field = np.random.default_rng(3).normal(size=16)
    basis = WaveletBasis(16, 3, drop=1, moments=1)
    expected = np.repeat(field.reshape(8, 2).mean(axis=1), 2)
    np.testing.assert_allclose(basis.decode(basis.encode(jnp.asarray(field))), expected, atol=10 * TIGHT)


def test_the_levels_name_the_functions():
    """A Haar function of level j is constant on 2^j cells, or two opposite halves of them."""
    basis = WaveletBasis(16, 3, moments=1)
    for number, (level,) in enumerate(basis.level):
        assert np.sum(np.abs(np.asarray(basis.expand(jnp.eye(16)[number]))) > 1e-6) == 2**level


def test_bad_input_is_refused_in_words():
    with pytest.raises(ValueError, match=r"an axis has 12 cells, expected a multiple of 2\^levels = 8"):
        WaveletBasis(12, 3)
    with pytest.raises(ValueError, match="`drop` is 3, expected at most `levels`, 2"):
        WaveletBasis(12, 2, drop=3)
    with pytest.raises(ValueError, match="`moments` is 11, expected at most 10"):
        daubechies(11)
