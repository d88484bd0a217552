"""Linear latent maps: exact on their range, closest beyond it, with the contract of a reduced basis."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vardax.latent.eof import EOFBasis
from vardax.latent.fourier import FourierBasis
from vardax.latent.radial import RadialBasis, gaussian
from vardax.latent.wavelet import WaveletBasis
from vardax.protocols import LatentMap, ReducedBasis
from vardax.types import Grid

X64 = jax.config.jax_enable_x64
TIGHT = 1e-12 if X64 else 2e-5
RANDOM = np.random.default_rng(0)
LAND = np.ones((6, 8))
LAND[:2, :3] = 0


def make_bases():
    samples = RANDOM.normal(size=(20, 6, 8)) @ RANDOM.normal(size=(8, 8))
    masked = Grid([np.arange(6.0), np.arange(8.0)], mask=LAND, periodic=(1,))
    centres = [[3.0, 1.0], [1.0, 6.0], [4.0, 7.5], [5.0, 4.0]]
    return {
        "EOF": EOFBasis.from_samples(samples, 5),
        "EOF, weights and mask": EOFBasis.from_samples(
            samples, 5, weights=RANDOM.uniform(0.5, 2, size=(6, 8)), mask=LAND
        ),
        "Fourier": FourierBasis((6, 8), (1, 2), variances=2.0),
        "wavelet": WaveletBasis((8, 8), 2, drop=(1, 2), moments=2),
        "Haar": WaveletBasis((6, 8), (1, 3), moments=1),
        "radial": RadialBasis(masked, centres, 3.0),
        "radial, Gaussian": RadialBasis((6, 8), centres, [1.0, 2.0, 2.0, 1.5], kernel=gaussian),
    }


BASES = make_bases()
every_basis = pytest.mark.parametrize("basis", BASES.values(), ids=list(BASES))


def columns(basis):
    """V, (cells, nbasis)."""
    return np.asarray(jax.vmap(basis.expand)(jnp.eye(basis.nbasis))).reshape(basis.nbasis, -1).T


def weights(basis):
    found = getattr(basis, "weights", None)
    return np.ones(basis.mean.size) if found is None else np.ravel(found)


@every_basis
def test_it_has_the_contracts(basis):
    assert isinstance(basis, LatentMap)
    assert isinstance(basis, ReducedBasis)
    assert basis.latent_dim == basis.nbasis == basis.variances.size
    assert basis.state_signature.shape == basis.mean.shape


@every_basis
def test_encode_inverts_decode(basis):
    z = jnp.asarray(RANDOM.normal(size=basis.nbasis))
    np.testing.assert_allclose(basis.encode(basis.decode(z)), z, atol=20 * TIGHT)


@every_basis
def test_encode_finds_the_closest_state(basis):
    """Weighted least squares on the cells that there are, by dense algebra."""
    state = RANDOM.normal(size=basis.mean.shape)
    V, w = columns(basis).astype(float), weights(basis).astype(float)
    right = V.T @ (w * (state - np.asarray(basis.mean, float)).ravel())
    expected = np.linalg.solve(V.T @ (w[:, None] * V), right)
    np.testing.assert_allclose(basis.encode(jnp.asarray(state)), expected, atol=50 * TIGHT)


@every_basis
def test_decode_is_the_mean_and_a_combination_of_the_functions(basis):
    z = RANDOM.normal(size=basis.nbasis)
    expected = np.ravel(basis.mean) + columns(basis) @ z
    np.testing.assert_allclose(np.ravel(basis.decode(jnp.asarray(z))), expected, atol=50 * TIGHT)
    np.testing.assert_allclose(basis.operg(0.0, jnp.asarray(z), basis.mean), basis.decode(jnp.asarray(z)), atol=TIGHT)
    np.testing.assert_allclose(np.ravel(basis.operg(0.0, jnp.asarray(z))), columns(basis) @ z, atol=50 * TIGHT)


@every_basis
def test_its_prior_has_its_variances(basis):
    z = jnp.asarray(RANDOM.normal(size=basis.nbasis))
    prior = basis.prior()
    np.testing.assert_allclose(prior.B_z_op.mv(basis.prior_inv(z)), z, rtol=1e-5)
    np.testing.assert_array_equal(prior.latent_map.decode(prior.z_b), basis.mean)


@every_basis
def test_it_follows_the_dtype_of_what_it_gets(basis):
    for dtype in (jnp.float32, jnp.float64) if X64 else (jnp.float32,):
        z = jnp.ones(basis.nbasis, dtype)
        assert basis.decode(z).dtype == basis.encode(basis.decode(z)).dtype == basis.prior_inv(z).dtype == dtype


@pytest.mark.parametrize("name", ["EOF", "EOF, weights and mask", "Fourier", "wavelet", "Haar"])
def test_orthonormal_bases_are(name):
    V, w = columns(BASES[name]), weights(BASES[name])
    np.testing.assert_allclose(V.T @ (w[:, None] * V), np.eye(V.shape[1]), atol=TIGHT)


@pytest.mark.parametrize("basis", [FourierBasis(9, 4), WaveletBasis(8, 3)], ids=["Fourier", "wavelet"])
def test_a_whole_basis_loses_nothing(basis):
    state = jnp.asarray(RANDOM.normal(size=basis.mean.shape))
    assert basis.nbasis == state.size
    np.testing.assert_allclose(basis.decode(basis.encode(state)), state, atol=20 * TIGHT)


def test_variances_are_one_for_each_function():
    with pytest.raises(ValueError, match=r"FourierBasis: `variances` has shape \(3,\), expected \(5,\), or one number"):
        FourierBasis(8, 2, variances=[1.0, 2.0, 3.0])
    with pytest.raises(ValueError, match="1 of `variances` are not positive"):
        FourierBasis(8, 1, variances=[1.0, 0.0, 3.0])
