"""The state of the trained arrays is found in a state for more, and goes back to its places."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vardax.training.optimiser_state import put_back, take_out

ALL = {"ages": jnp.arange(3), "bias": jnp.ones(2), "weight": jnp.full((2, 3), 2.0)}
TRAINED = ALL | {"ages": None, "bias": None}


@pytest.mark.parametrize(
    "optimizer",
    [
        optax.adam(0.1),
        optax.chain(optax.clip(1.0), optax.masked(optax.sgd(0.1, momentum=0.9), lambda p: jax.tree.map(jnp.ndim, p))),
    ],
    ids=["adam", "masked"],
)
def test_what_is_taken_out_is_the_state_of_the_trained_arrays(optimizer):
    for state in (optimizer.init(ALL), optimizer.init(TRAINED)):
        taken = take_out(optimizer, state, TRAINED)
        expected = optimizer.init(TRAINED)
        assert jax.tree.structure(taken) == jax.tree.structure(expected)
        assert all(jax.tree.leaves(jax.tree.map(np.array_equal, taken, expected)))
        moved = put_back(state, jax.tree.map(lambda leaf: leaf + 1, taken))
        assert jax.tree.structure(moved) == jax.tree.structure(state)
        steps = jax.tree.map(lambda new, old: float(jnp.mean(jnp.asarray(new - old))), moved, state)
        assert sum(jax.tree.leaves(steps)) == len(jax.tree.leaves(taken))


def test_a_state_of_another_shape_is_refused():
    flat = optax.flatten(optax.adam(0.1))
    floats = ALL | {"ages": None}
    with pytest.raises(ValueError, match=r"the shape \(8,\) at .*, expected an array of shape \(6,\).*learned"):
        take_out(flat, flat.init(floats), TRAINED)
