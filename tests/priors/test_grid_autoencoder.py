"""What all convolutional autoencoders share: windows as channels, grids of any size, precision."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vardax.priors.grid_autoencoder import (
    GridAutoencoder,
    Window,
    as_key,
    in_precision_of,
    on_multiples,
    time_axes,
)

RANDOM = np.random.default_rng(1)


class Halve(eqx.Module):
    """Layers without weights: every second cell, and each of these twice."""

    def encode(self, channels):
        return channels[:, ::2]

    def decode(self, latent):
        return jnp.repeat(latent, 2, axis=1)


def test_time_and_variables_become_channels_and_come_back():
    window, x = Window("Owner", (3, 2), 2), jnp.asarray(RANDOM.normal(size=(3, 2, 4, 5)))
    channels = window.channels(x)
    np.testing.assert_array_equal(channels[2 * 2 + 1], x[2, 1])
    np.testing.assert_array_equal(window.from_channels(channels), x)
    with pytest.raises(ValueError, match=r"Owner: the state has shape \(3, 4, 5\), expected \(3, 2, height, width\)"):
        window.channels(x[:, 0])
    with pytest.raises(ValueError, match=r"expected \(2, width\): one window, without a batch axis"):
        Window("Owner", (2,), 1).channels(jnp.zeros((1, 2, 8)))
    assert Window("Owner", (), 1).channels(jnp.zeros(8)).shape == (1, 8)


def test_a_grid_of_any_size_is_continued_and_cut():
    net = GridAutoencoder(Window("Owner", (1,), 1), Halve(), 1, 2, (False,))
    x = jnp.arange(5.0)[None]
    np.testing.assert_array_equal(net.reconstruct(x), [[0, 0, 2, 2, 4]])
    np.testing.assert_array_equal(net.decode(net.encode(x[:, :4])), [[0, 0, 2, 2]])
    with pytest.raises(ValueError, match=r"the grid \(5,\) is not divided by `downsampling`, 2; continue it, or call"):
        net.encode(x)
    with pytest.raises(ValueError, match=r"the latent field has shape \(2, 3\), expected 1 channels on 1 axes"):
        net.decode(jnp.zeros((2, 3)))


def test_continuing_repeats_the_last_cells_of_each_axis():
    field = jnp.asarray(RANDOM.normal(size=(2, 5, 6)))
    larger = on_multiples(field, 4, "Owner", periodic=(False, False))
    np.testing.assert_array_equal(larger, np.pad(field, [(0, 0), (0, 3), (0, 2)], mode="edge"))
    assert on_multiples(larger, 4, "Owner", periodic=(True, True)) is larger
    assert on_multiples(larger[:, :5], 4, "Owner", periodic=(False, True)).shape == larger.shape
    with pytest.raises(ValueError, match=r"Owner: the grid \(5, 6\) has a periodic axis, which cannot be continued"):
        on_multiples(field, 4, "Owner", periodic=(False, True))


def test_layers_compute_in_the_precision_of_their_weights():
    net = eqx.nn.Linear(3, 2, dtype=jnp.bfloat16, key=as_key(None))
    x = jnp.asarray(RANDOM.normal(size=3), "float32")
    seen = []
    after = in_precision_of(net, lambda v: (seen.append(v.dtype), net(v))[1], x)
    assert (seen, after.dtype) == ([jnp.bfloat16], "float32")
    assert in_precision_of(Halve(), lambda v: v, x).dtype == "float32"


def test_keys_and_counts_have_defaults_and_limits():
    assert jax.random.key_data(as_key(None)).tolist() == jax.random.key_data(jax.random.key(0)).tolist()
    assert time_axes(None, "Owner") == ()
    assert time_axes(3, "Owner", 2) == (3, 2)
    with pytest.raises(ValueError, match="Owner: `n_time` is 0, expected an integer of at least 1"):
        time_axes(0, "Owner")
    with pytest.raises(ValueError, match="Owner: `n_variables` is 1.5"):
        time_axes(1, "Owner", 1.5)
