"""The score of an offset is the sum that its docstring says, for all pairs of places."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vardax.networks.offsets import SCALES, OffsetBias

DTYPE = jnp.result_type(float)
CLOSE = 1e-12 if jax.config.jax_enable_x64 else 1e-5


@pytest.mark.parametrize("periodic", [False, True])
@pytest.mark.parametrize("grid", [(5,), (4, 3), (2, 3, 2)])
def test_it_is_the_sum_over_widths_for_each_pair(grid, periodic):
    bias = OffsetBias(2, len(grid), periodic, DTYPE, jax.random.key(1))
    found = jax.jit(lambda b: b(grid))(bias)

    weight = np.asarray(bias.weight)
    places = list(itertools.product(*map(range, grid)))
    for (i, here), (j, there) in itertools.product(enumerate(places), repeat=2):
        delta = np.subtract(here, there)
        if periodic:
            delta = [(d + n // 2) % n - n // 2 for d, n in zip(delta, grid, strict=True)]
        expected = np.zeros(2)
        for k, scale in enumerate(SCALES):
            tilt = sum(weight[1 + a, :, k] * d / scale for a, d in enumerate(delta))
            expected += (weight[0, :, k] + tilt) * np.exp(-np.sum(np.square(delta)) / (2 * scale**2))
        np.testing.assert_allclose(found[:, i, j], expected, atol=CLOSE)
