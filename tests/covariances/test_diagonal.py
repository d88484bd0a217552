"""Uncorrelated errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vardax.covariances import DiagonalCovariance
from vardax.covariances.diagonal import safe_sqrt


def test_it_is_elementwise_on_fields_of_any_rank():
    variance = jnp.arange(1.0, 25.0).reshape(2, 3, 4)
    covariance, v = DiagonalCovariance(variance), jnp.full((2, 3, 4), 2.0)
    np.testing.assert_allclose(covariance.mv(v), 2.0 * variance)
    np.testing.assert_allclose(covariance.half().mv(v), 2.0 * jnp.sqrt(variance))
    np.testing.assert_allclose(covariance.inv_mv(v), 2.0 / variance)
    np.testing.assert_allclose(covariance.logdet(), jnp.sum(jnp.log(variance)), rtol=1e-6)


def test_zero_variance_gives_zero_samples_and_finite_gradients():
    covariance = DiagonalCovariance(jnp.array([0.0, 1.0]))
    assert np.all(covariance.sample(jax.random.key(0), 4)[:, 0] == 0)
    gradient = jax.grad(lambda variance: jnp.sum(DiagonalCovariance(variance).half().mv(jnp.ones(2))))(
        jnp.array([0.0, 4.0])
    )
    np.testing.assert_allclose(gradient, [0.0, 0.25])


@pytest.mark.parametrize("what", ["inv_mv", "logdet"])
def test_zero_variance_has_no_inverse(what):
    covariance = DiagonalCovariance(jnp.array([0.0, 1.0]))
    arguments = (jnp.ones(2),) if what == "inv_mv" else ()
    with pytest.raises(ValueError, match=rf"DiagonalCovariance.{what}: 1 variances are zero"):
        getattr(covariance, what)(*arguments)


@pytest.mark.parametrize("bad", [-1.0, float("nan"), float("inf")])
def test_bad_variances_are_refused(bad):
    with pytest.raises(ValueError, match="`variance` must be finite and not negative; found 1 of 2"):
        DiagonalCovariance([1.0, bad])


def test_values_are_not_looked_at_while_tracing():
    traced = jax.jit(lambda variance: DiagonalCovariance(variance).mv(jnp.ones(2)))(jnp.array([-1.0, 1.0]))
    np.testing.assert_allclose(traced, [-1.0, 1.0])


def test_safe_square_root_has_a_finite_derivative_everywhere():
    x = jnp.array([-1.0, 0.0, 4.0])
    np.testing.assert_allclose(safe_sqrt(x), [0.0, 0.0, 2.0])
    np.testing.assert_allclose(jax.vmap(jax.grad(safe_sqrt))(x), [0.0, 0.0, 0.25])
