"""Bilinear priors of fields: patches, any grid, all numbers of axes, gradients, and what is refused."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vardax.primitives.costs import prior_cost
from vardax.priors.bilinear_forms import Gated, Product, Square
from vardax.priors.bilinear_grid import BilinAEPrior2D, BilinAEPrior2DMultivar, BilinAEPrior3D
from vardax.priors.resampling import CellCentred, CornerAligned
from vardax.protocols import LatentMap, Prior

RANDOM = np.random.default_rng(3)
T, H, W = 2, 28, 30
X = jnp.asarray(RANDOM.normal(size=(T, H, W)))
CLOSE = 1e-10 if jax.config.jax_enable_x64 else 1e-5


@pytest.mark.parametrize(
    ("form", "factor", "reach"),
    [(Gated(), 1, 2), (Gated(), 2, 6), (Product(), 2, 10)],
    ids=["gated", "gated, coarse", "product, coarse"],
)
def test_inside_the_reconstruction_of_a_patch_is_the_patch_of_the_reconstruction(form, factor, reach):
    """Away from the edges by the reach of the convolutions and of the interpolation, all on the coarse grid."""
    prior = BilinAEPrior2D(T, 3, form=form, downsampling=factor)
    inside, whole = slice(reach, -reach), prior(X)[:, 2:26, 4:28]
    patch = prior(X[:, 2:26, 4:28])
    np.testing.assert_allclose(patch[:, inside, inside], whole[:, inside, inside], atol=CLOSE)
    assert not np.allclose(patch[:, reach - 1], whole[:, reach - 1], atol=1e-6)  # one cell nearer it is not


def test_corner_aligned_upsampling_depends_on_the_size_of_the_grid():
    prior = BilinAEPrior2D(T, 3, downsampling=2, upsampling=CornerAligned())
    whole, patch = prior(X), prior(X[:, :16, :20])
    assert not np.allclose(patch[:, 6, 6], whole[:, 6, 6], atol=1e-4)


def test_any_grid_will_do_and_a_periodic_one_turns():
    prior = BilinAEPrior2D(T, 3, form=Product(), downsampling=3)
    assert prior(X[:, :7, :11]).shape == (T, 7, 11)
    circle = BilinAEPrior2D(T, 3, padding="periodic", downsampling=2)
    turned = circle(jnp.roll(X, (2, 6), axis=(1, 2)))
    np.testing.assert_allclose(turned, jnp.roll(circle(X), (2, 6), axis=(1, 2)), atol=CLOSE)
    with pytest.raises(
        ValueError, match=r"the grid \(19, 30\) has a periodic axis, which cannot be continued to a multiple of 2"
    ):
        circle(X[:, :19])


def test_variables_are_channels():
    prior = BilinAEPrior2DMultivar(T, 3, 4)
    single = BilinAEPrior2D(3 * T, 4)  # the same weights
    x = jnp.asarray(RANDOM.normal(size=(T, 3, 6, 5)))
    np.testing.assert_allclose(prior(x).reshape(3 * T, 6, 5), single(x.reshape(3 * T, 6, 5)), atol=CLOSE)
    assert prior.encode(x).shape == (4, 6, 5)


def test_a_constant_depth_makes_three_dimensions_two():
    """On a periodic axis along which nothing changes, a kernel acts as its sum."""
    deep, flat = (cls(T, 3, padding="periodic") for cls in (BilinAEPrior3D, BilinAEPrior2D))
    parts = lambda p: [getattr(c, n) for c in (p.net.layers.gates, p.net.layers.readout) for n in ("weight", "bias")]  # noqa: E731
    flat = eqx.tree_at(parts, flat, [array.sum(axis=2) if array.ndim > 1 else array for array in parts(deep)])
    x = X[:, :6, :7]
    np.testing.assert_allclose(deep(jnp.stack([x] * 4, axis=1))[:, 2], flat(x), atol=CLOSE)


def test_it_reconstructs_by_encoding_and_decoding():
    prior = BilinAEPrior2D(T, 3, form=Square(), downsampling=2)
    assert isinstance(prior, Prior)
    assert isinstance(prior, LatentMap)
    latent = prior.encode(X)
    assert latent.shape == (prior.latent_dim, H // 2, W // 2)
    np.testing.assert_allclose(prior.decode(latent), prior(X), atol=CLOSE)


@pytest.mark.x64
def test_the_gradient_of_the_cost_is_that_of_finite_differences():
    prior = BilinAEPrior2D(T, 3, form=Product(), downsampling=2)
    cost = jax.jit(lambda x: prior_cost(x, prior_fn=prior))
    x, direction = X[:, :7, :6], jnp.asarray(RANDOM.normal(size=(T, 7, 6)))
    slope = jnp.vdot(jax.grad(cost)(x), direction)
    differences = (cost(x + 1e-5 * direction) - cost(x - 1e-5 * direction)) / 2e-5
    np.testing.assert_allclose(slope, differences, rtol=1e-7)


def test_states_without_a_time_axis_and_weights_of_another_precision():
    prior = BilinAEPrior2D(None, 3, dtype="float16")
    x = X[0].astype("float32")
    assert prior(x).shape == (H, W)
    assert prior(x).dtype == prior.encode(x).dtype == "float32"
    assert prior.net.layers.gates.weight.dtype == "float16"


def test_bad_input_is_refused_in_words():
    prior = BilinAEPrior2D(T, 3, downsampling=2)
    with pytest.raises(ValueError, match=r"BilinAEPrior2D: the state has shape \(3, 28, 30\), expected \(2, height"):
        prior(jnp.zeros((3, 28, 30)))
    with pytest.raises(ValueError, match=r"BilinAEPrior3D: the state has shape .*expected \(2, depth, height, width\)"):
        BilinAEPrior3D(T, 3)(X)
    with pytest.raises(ValueError, match=r"the grid \(7, 6\) is not divided by `downsampling`, 2"):
        prior.encode(X[:, :7, :6])
    with pytest.raises(ValueError, match=r"the grid \(4, 6\) cannot be used.*\(2, 3\) is smaller than the kernel"):
        BilinAEPrior2D(T, 3, kernel_size=7, padding="periodic", downsampling=2)(X[:, :4, :6])
    with pytest.raises(ValueError, match="`latent_dim` is 0, expected an integer of at least 1"):
        BilinAEPrior2D(T, 0)
    with pytest.raises(ValueError, match="BilinAEPrior2DMultivar: `n_variables` is 0"):
        BilinAEPrior2DMultivar(T, 0)
    with pytest.raises(ValueError, match="`kernel_size` is 4, expected an odd number"):
        BilinAEPrior2D(T, kernel_size=4)
    with pytest.raises(ValueError, match="`upsampling` is CornerAligned, which a periodic axis has no corners for"):
        BilinAEPrior2D(T, 3, padding="periodic", downsampling=2, upsampling=CornerAligned())
    for name, wrong in (("form", CellCentred()), ("upsampling", Gated())):
        with pytest.raises(Exception, match=name):
            BilinAEPrior2D(T, 3, **{name: wrong})
