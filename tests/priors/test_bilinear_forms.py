"""The bilinear forms against formulas in numpy, on one cell where convolutions are matrices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vardax.networks.convolution import Convolution
from vardax.priors.bilinear_forms import Gated, Product, Square
from vardax.priors.resampling import CellCentred, Resampling

C, L, N = 3, 4, 5
D = np.random.default_rng(2).normal(size=(C, N))
CLOSE = 1e-10 if jax.config.jax_enable_x64 else 1e-5


def convolution(n_in, n_out, key):
    return Convolution(1, n_in, n_out, 1, key=key)


def layers(form):
    return form.layers(convolution, C, L, Resampling(1, CellCentred(), (False,)), jax.random.key(3))


def affine(conv, field, part=slice(None)):
    """A convolution with one cell as its matrix and bias."""
    return np.asarray(conv.weight)[part, :, 0] @ field + np.asarray(conv.bias)[part, None]


def test_gated_is_a_relu_times_a_tanh():
    net = layers(Gated())
    z = np.maximum(affine(net.gates, D, slice(L)), 0) * np.tanh(affine(net.gates, D, slice(L, 2 * L)))
    np.testing.assert_allclose(net.encode(jnp.asarray(D)), z, atol=CLOSE)
    np.testing.assert_allclose(net.decode(jnp.asarray(z)), affine(net.readout, z), atol=CLOSE)


@pytest.mark.parametrize(("form", "second"), [(Product(), slice(2 * L, 3 * L)), (Square(), slice(L, 2 * L))])
def test_product_and_square_are_quadratic_in_the_latent_field(form, second):
    net = layers(form)
    z = affine(net.hidden, np.maximum(affine(net.first, D), 0))
    np.testing.assert_allclose(net.encode(jnp.asarray(D)), z, atol=CLOSE)
    linear, p, q = (affine(net.features, z, part) for part in (slice(L), slice(L, 2 * L), second))
    expected = affine(net.readout, np.concatenate([linear, p * q]))
    np.testing.assert_allclose(net.decode(jnp.asarray(z)), expected, atol=CLOSE)
