"""Waves on a periodic grid."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vardax.latent.fourier import FourierBasis

TIGHT = 1e-12 if jax.config.jax_enable_x64 else 1e-5


def test_it_keeps_the_long_waves_as_the_fast_transform_does():
    field = np.random.default_rng(2).normal(size=(8, 10))
    spectrum = np.fft.fft2(field)
    ky, kx = np.abs(np.fft.fftfreq(8, 1 / 8).round())[:, None], np.abs(np.fft.fftfreq(10, 1 / 10).round())[None]
    expected = np.fft.ifft2(np.where((ky <= 2) & (kx <= 3), spectrum, 0)).real
    basis = FourierBasis((8, 10), (2, 3))
    assert basis.nbasis == 5 * 7
    np.testing.assert_allclose(basis.decode(basis.encode(jnp.asarray(field))), expected, atol=10 * TIGHT)


def test_the_wavenumbers_name_the_functions():
    basis = FourierBasis((8, 10), (2, 3))
    for wanted in ((0, 0), (2, 1), (1, 3)):
        for number in np.flatnonzero(np.all(basis.wavenumbers == wanted, axis=1)):
            field = np.asarray(basis.expand(jnp.eye(basis.nbasis)[number]))
            strongest = np.unravel_index(np.argmax(np.abs(np.fft.fft2(field))), field.shape)
            assert tuple(min(k, n - k) for k, n in zip(strongest, field.shape, strict=True)) == wanted


def test_variances_by_wavenumber_make_a_homogeneous_prior():
    """The same variance everywhere: sines and cosines of a wavenumber share theirs."""
    basis = FourierBasis(12, 4)
    B = 1 / (1.0 + basis.wavenumbers[:, 0]) ** 2
    V = np.stack([np.asarray(basis.expand(e)) for e in jnp.eye(basis.nbasis)], axis=1)
    np.testing.assert_allclose(np.diag(V @ np.diag(B) @ V.T), B.sum() / 12, atol=TIGHT)


def test_bad_input_is_refused_in_words():
    with pytest.raises(ValueError, match="`n_waves` is 4 on an axis of 8 cells, expected below 4"):
        FourierBasis(8, 4)
    with pytest.raises(ValueError, match=r"`n_waves` is \(1, 2\), expected a whole number, or one for each of 1 axes"):
        FourierBasis(8, (1, 2))
