"""The U-Net: an oracle of its data flow, patches, any grid, gradients."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vardax.primitives.costs import prior_cost
from vardax.priors.unet import UNetPrior2D
from vardax.protocols import Prior

RANDOM = np.random.default_rng(6)
T = 2
X = jnp.asarray(RANDOM.normal(size=(T, 24, 26)))
CLOSE = 1e-10 if jax.config.jax_enable_x64 else 1e-5


@pytest.fixture(scope="module")
def prior():
    return UNetPrior2D(T, 2, depth=1)


def test_inside_the_reconstruction_of_a_patch_is_the_patch_of_the_reconstruction(prior):
    """The reach: two cells of the finest grid, then 2 + 1 on the coarse one, then 2 again."""
    inside, patch = slice(10, -10), prior(X[:, 2:24, 2:24])
    np.testing.assert_allclose(patch[:, inside, inside], prior(X)[:, 2:24, 2:24][:, inside, inside], atol=CLOSE)


def test_fields_go_down_up_and_straight_through(prior):
    """One step down and up by hand."""

    @eqx.filter_jit
    def by_hand(prior, x):
        fine = prior.descent[0](x)
        coarse = prior.descent[1](jnp.mean(fine.reshape(2, 12, 2, 13, 2), axis=(2, 4)))
        joined = prior.ascent[0](jnp.concatenate([fine, prior.resampling.up(coarse)]))
        return coarse, prior.readout(joined)

    seen, expected = by_hand(prior, X)
    np.testing.assert_allclose(prior(X), expected, atol=CLOSE)
    assert (prior.depth, seen.shape, prior.state_signature) == (1, (4, 12, 13), None)
    assert isinstance(prior, Prior)


def test_a_grid_that_is_not_a_multiple_is_continued(prior):
    odd = X[:, :7, :9]
    continued = jnp.pad(odd, [(0, 0), (0, 1), (0, 1)], mode="edge")
    np.testing.assert_allclose(prior(odd), prior(continued)[:, :7, :9], atol=CLOSE)


def test_a_periodic_field_turns():
    prior, x = UNetPrior2D(T, 2, depth=1, padding="periodic"), X[:, :8, :8]
    np.testing.assert_allclose(prior(jnp.roll(x, 2, axis=2)), jnp.roll(prior(x), 2, axis=2), atol=CLOSE)
    with pytest.raises(
        ValueError, match=r"UNetPrior2D: the grid \(7, 8\) has a periodic axis, which cannot be continued to a"
    ):
        prior(x[:, :7])


@pytest.mark.x64
def test_the_gradient_of_the_cost_is_that_of_finite_differences(prior):
    cost = jax.jit(lambda x: prior_cost(x, prior_fn=prior))
    x, direction = X[:, :5, :6], jnp.asarray(RANDOM.normal(size=(T, 5, 6)))
    slope = jnp.vdot(jax.grad(cost)(x), direction)
    differences = (cost(x + 1e-6 * direction) - cost(x - 1e-6 * direction)) / 2e-6
    np.testing.assert_allclose(slope, differences, rtol=1e-6)


def test_bad_input_is_refused_in_words(prior):
    with pytest.raises(ValueError, match=r"the state has shape \(3, 8, 8\), expected \(2, height, width\)"):
        prior(jnp.zeros((3, 8, 8)))
    with pytest.raises(
        ValueError, match=r"UNetPrior2D: the grid \(4, 8\) cannot be used.*\(2, 4\) is smaller than the kernel"
    ):
        UNetPrior2D(T, 1, depth=1, kernel_size=5, padding="reflect")(X[:, :4, :8])
    with pytest.raises(ValueError, match="`depth` is 0, expected an integer of at least 1"):
        UNetPrior2D(T, depth=0)
