"""Gradients that point elsewhere or are longer are seen, array by array."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vardax.validation import ValidationError, assert_adjoint_calibrated

GRADIENT = {"w": jnp.asarray(np.random.default_rng(0).normal(size=(3, 4))), "b": jnp.array([1e-3, -2e-3])}


def failure(gradient, oracle=GRADIENT, *at, **limits):
    with pytest.raises(ValidationError) as caught:
        assert_adjoint_calibrated(gradient, oracle, *at, **limits)
    return str(caught.value)


def test_the_same_gradient_passes():
    report = assert_adjoint_calibrated(GRADIENT, GRADIENT, cosine=1 - 1e-6, norm=1e-6)
    assert [row.name for row in report.rows] == ["finite", "cosine['b']", "norm['b']", "cosine['w']", "norm['w']"]


def test_ten_percent_are_seen_and_three_are_not():
    longer = lambda factor: jax.tree.map(lambda g: factor * g, GRADIENT)  # noqa: E731
    assert "the gradient['b'] is too long: 1.1 times the oracle's" in failure(longer(1.1))
    assert "the gradient['b'] is too short" in failure(longer(0.9))
    assert assert_adjoint_calibrated(longer(1.03), GRADIENT)
    assert "norm" in failure(longer(1.03), norm=0.01)


def test_a_wrong_direction_is_seen_in_the_smallest_array():
    turned = GRADIENT | {"b": jnp.array([2e-3, 1e-3])}
    text = failure(turned)
    assert "FAILED: 1 of 5 checks: cosine['b']. Look at: the gradient['b'] points elsewhere" in text
    assert "cosine['w']" in failure(GRADIENT | {"w": -GRADIENT["w"]})


def test_functions_are_evaluated_where_asked():
    loss = lambda x, a: jnp.sum(a * jnp.sin(x))  # noqa: E731
    at = (jnp.arange(4.0), jnp.asarray(2.0))
    assert assert_adjoint_calibrated(jax.grad(loss), lambda x, a: a * jnp.cos(x), *at)
    assert "norm" in failure(jax.grad(loss), lambda x, a: 1.1 * a * jnp.cos(x), *at)


def test_zero_is_zero_and_rounding_is_zero():
    oracle = GRADIENT | {"b": jnp.zeros(2)}
    assert assert_adjoint_calibrated(oracle, oracle)
    noise = 10 * float(jnp.finfo(GRADIENT["b"].dtype).eps)
    assert assert_adjoint_calibrated(GRADIENT | {"b": jnp.full(2, noise)}, oracle)
    assert "cosine['b']" in failure(GRADIENT, oracle)
    assert "cosine['b']" in failure(oracle, GRADIENT)


def test_not_a_number_fails():
    assert "finite" in failure(GRADIENT | {"b": jnp.array([jnp.nan, 0.0])})


def test_gradients_of_other_things_are_refused():
    with pytest.raises(ValueError, match="`gradient` is not like that of `oracle`: found"):
        assert_adjoint_calibrated(GRADIENT["b"], GRADIENT)
