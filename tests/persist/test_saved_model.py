"""Weights in and out as bytes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vardax.covariances.diagonal import DiagonalCovariance
from vardax.persist import SavedModel
from vardax.persist.weights import to_bytes


def test_it_is_called_as_the_model():
    assert SavedModel(jax.nn.relu)(jnp.array([-1.0, 2.0])).tolist() == [0.0, 2.0]


def test_weights_move_from_one_model_to_another():
    one, two = (SavedModel(DiagonalCovariance(jnp.array(v))) for v in ([1.0, 4.0], [2.0, 3.0]))
    moved = one.with_weights(two.serialize_weights())
    assert moved.model.variance.tolist() == [2.0, 3.0]
    assert one.model.variance.tolist() == [1.0, 4.0]


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({}, "`variance` is missing in the bytes"),
        ({"variance": np.ones(2), "more": np.ones(1)}, "`more` is missing in the model"),
        ({"variance": np.ones(3)}, r"`variance` is float\d+ of shape \(3,\), expected float\d+ of shape \(2,\)"),
        ({"variance": np.ones(2, np.int32)}, "`variance` is int32"),
    ],
)
def test_weights_that_do_not_fit_are_named(arrays, message):
    with pytest.raises(ValueError, match=message):
        SavedModel(DiagonalCovariance(jnp.ones(2))).with_weights(to_bytes(arrays))
