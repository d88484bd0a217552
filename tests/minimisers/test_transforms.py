"""Control transforms are increasing bijections onto their range, leaf by leaf."""

import equinox as eqx
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given

from vardax.minimisers.transforms import Exp, Identity, Softplus, from_control, to_control

TRANSFORMS = [Identity(), Exp(), Softplus()]
each_transform = pytest.mark.parametrize("transform", TRANSFORMS, ids=lambda t: type(t).__name__)
RELATIVE = 1e-12 if jax.config.jax_enable_x64 else 1e-5


@each_transform
def test_the_inverse_undoes_the_transform(transform):
    x = jnp.array([0.01, 0.7, 3.0, 40.0])
    np.testing.assert_allclose(transform(transform.inverse(x)), x, rtol=RELATIVE)
    z = jnp.array([-4.0, 0.0, 2.0, 30.0])
    np.testing.assert_allclose(transform.inverse(transform(z)), z, rtol=10 * RELATIVE, atol=RELATIVE)


@each_transform
@given(st.lists(st.floats(-15, 15, width=32), min_size=2, max_size=5, unique=True))
def test_a_transform_is_increasing(transform, values):
    z = jnp.sort(jnp.asarray(values))
    assert (jnp.diff(transform(z)) >= 0).all()
    slopes = jax.vmap(jax.grad(transform))(z)
    assert (slopes > 0).all()
    assert jnp.isfinite(slopes).all()


@pytest.mark.parametrize("transform", [Exp(), Softplus()], ids=lambda t: type(t).__name__)
def test_a_positive_transform_stays_positive(transform):
    assert (transform(jnp.linspace(-60.0, 60.0, 25)) > 0).all()


def test_the_formulas():
    z = jnp.array([-1.0, 0.5])
    np.testing.assert_allclose(Identity()(z), z)
    np.testing.assert_allclose(Exp()(z), np.exp(z), rtol=1e-6)
    np.testing.assert_allclose(Softplus()(z), np.log(1 + np.exp(z)), rtol=1e-6)


def test_softplus_is_the_identity_for_large_values():
    z = jnp.array([50.0, 300.0])
    np.testing.assert_allclose(Softplus()(z), z, rtol=1e-6)
    np.testing.assert_allclose(Softplus().inverse(z), z, rtol=1e-6)


@each_transform
@pytest.mark.parametrize("dtype", [jnp.float16, jnp.float32])
def test_the_dtype_is_kept(transform, dtype):
    assert transform(jnp.ones(2, dtype)).dtype == dtype
    assert transform.inverse(jnp.ones(2, dtype)).dtype == dtype


def test_one_transform_serves_every_leaf():
    state = {"u": jnp.array([1.0]), "c": jnp.array([2.0, 3.0])}
    z = to_control(Exp(), state)
    np.testing.assert_allclose(z["c"], np.log([2.0, 3.0]), rtol=1e-6)
    np.testing.assert_allclose(from_control(Exp(), z)["u"], [1.0], rtol=1e-6)


def test_each_leaf_may_have_its_own_transform():
    state = {"u": jnp.array([-1.0]), "c": jnp.array([2.0])}
    transforms = {"u": Identity(), "c": Exp()}
    z = to_control(transforms, state)
    assert z["u"].tolist() == [-1.0]
    np.testing.assert_allclose(z["c"], np.log([2.0]), rtol=1e-6)
    assert eqx.tree_equal(from_control(transforms, z), state, rtol=1e-6)
