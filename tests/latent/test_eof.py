"""EOFs: the principal components of samples, with weights, land and several fields."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vardax.latent.eof import EOFBasis

X64 = jax.config.jax_enable_x64
TIGHT = 1e-10 if X64 else 2e-4
RANDOM = np.random.default_rng(1)
SAMPLES = RANDOM.normal(size=(30, 12)) @ RANDOM.normal(size=(12, 12)) + 3


def test_the_modes_are_eigenvectors_of_the_sample_covariance():
    basis = EOFBasis.from_samples(SAMPLES, 12)
    C = np.cov(SAMPLES.T)
    V = np.asarray(basis.modes, float).T
    np.testing.assert_allclose(C @ V, V * np.asarray(basis.variances)[None], atol=TIGHT * np.trace(C))
    np.testing.assert_allclose(V @ np.diag(basis.variances) @ V.T, C, atol=TIGHT * np.trace(C))
    assert np.all(np.diff(basis.variances) <= 0)


def test_it_explains_the_variance_that_is_left_out_of_the_residual():
    basis = EOFBasis.from_samples(SAMPLES, 4)
    left = SAMPLES - np.asarray(jax.vmap(lambda x: basis.decode(basis.encode(x)))(jnp.asarray(SAMPLES)))
    unexplained = np.sum(left**2) / np.sum((SAMPLES - SAMPLES.mean(axis=0)) ** 2)
    np.testing.assert_allclose(1 - np.sum(basis.explained_variance), unexplained, rtol=1e-3 if not X64 else 1e-9)


def test_the_coefficients_of_the_samples_are_uncorrelated_with_the_variances_of_the_prior():
    basis = EOFBasis.from_samples(SAMPLES, 5)
    z = np.asarray(jax.vmap(basis.encode)(jnp.asarray(SAMPLES)))
    np.testing.assert_allclose(np.cov(z.T), np.diag(basis.variances), atol=TIGHT * float(basis.total_variance))


def test_weights_are_a_change_of_units():
    """Modes of x with weights w are those of √w x, divided by √w."""
    w = RANDOM.uniform(0.2, 3, size=12)
    weighted, scaled = EOFBasis.from_samples(SAMPLES, 3, weights=w), EOFBasis.from_samples(SAMPLES * np.sqrt(w), 3)
    np.testing.assert_allclose(weighted.variances, scaled.variances, rtol=1e-4 if not X64 else 1e-10)
    parallel = np.abs(np.sum(np.asarray(weighted.modes) * w * np.asarray(scaled.modes) / np.sqrt(w), axis=1))
    np.testing.assert_allclose(parallel, 1, atol=TIGHT)


def test_what_is_on_land_does_not_matter():
    mask = np.ones(12)
    mask[[0, 5]] = 0
    dirty = SAMPLES.copy()
    dirty[:, [0, 5]] = np.nan
    basis, sea = EOFBasis.from_samples(dirty, 3, mask=mask), EOFBasis.from_samples(SAMPLES[:, mask > 0], 3)
    np.testing.assert_allclose(np.asarray(basis.modes)[:, mask > 0], sea.modes, atol=TIGHT)
    z = basis.encode(jnp.asarray(dirty[0]))
    np.testing.assert_allclose(z, sea.encode(jnp.asarray(SAMPLES[0, mask > 0])), atol=TIGHT * 10)
    np.testing.assert_array_equal(np.asarray(basis.decode(z))[[0, 5]], 0)


def test_a_state_may_be_a_pytree():
    trees = {"u": SAMPLES[:, :4].reshape(30, 2, 2), "v": SAMPLES[:, 4:]}
    basis, flat = EOFBasis.from_samples(trees, 3), EOFBasis.from_samples(SAMPLES, 3)
    np.testing.assert_allclose(basis.variances, flat.variances, rtol=1e-4 if not X64 else 1e-10)
    one = jax.tree.map(lambda leaf: jnp.asarray(leaf[0]), trees)
    np.testing.assert_allclose(basis.encode(one), flat.encode(jnp.asarray(SAMPLES[0])), atol=TIGHT * 10)
    np.testing.assert_allclose(basis.decode(jnp.ones(3))["v"], flat.decode(jnp.ones(3))[4:], atol=TIGHT * 10)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: EOFBasis.from_samples(SAMPLES[:5], 5), "`n_modes` is 5, expected at most 4: 5 samples of 12 numbers"),
        (lambda: EOFBasis.from_samples(SAMPLES, 2, mask=np.ones(3)), r"`mask` has shape \(3,\), expected \(12,\)"),
        (lambda: EOFBasis.from_samples(SAMPLES, 2, weights=-np.ones(12)), "`weights` has negative or missing entries"),
        (lambda: EOFBasis.from_samples(SAMPLES, 2, mask=np.zeros(12)), "no cell has a weight"),
        (
            lambda: EOFBasis.from_samples(np.where(np.arange(12) == 2, np.nan, SAMPLES), 2),
            "`samples` has 30 non-finite entries on cells; fill them, or mask the cells",
        ),
    ],
)
def test_bad_input_is_refused_in_words(make, words):
    with pytest.raises(ValueError, match=words):
        make()
