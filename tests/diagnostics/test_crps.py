"""The score of ensembles and Gaussians against its definition as an integral, and its known expectations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from vardax.diagnostics.crps import crps_ensemble, crps_gaussian, fair_crps_ensemble

RTOL = 1e-9 if jax.config.jax_enable_x64 else 1e-4
RANDOM = np.random.default_rng(6)


def array(values):
    return jnp.asarray(values, jnp.result_type(float))


def integral(cdf, y):
    x = np.linspace(-12, 12, 240001)
    return np.trapezoid((cdf(x) - (x >= y)) ** 2, x)


@pytest.mark.parametrize(("mean", "std", "y"), [(0.0, 1.0, 0.7), (1.0, 0.4, -2.0), (-1.0, 2.0, -1.0)])
def test_the_gaussian_form_is_the_integral(mean, std, y):
    expected = integral(scipy.stats.norm(mean, std).cdf, y)
    np.testing.assert_allclose(crps_gaussian(mean, std, y), expected, rtol=1e-4)


def test_the_ensemble_form_is_the_integral_of_its_step_function():
    members, y = RANDOM.normal(size=7), 0.3
    expected = integral(lambda x: np.mean(members[:, None] <= x, axis=0), y)
    np.testing.assert_allclose(crps_ensemble(array(members), array(y)), expected, rtol=1e-3)


def test_both_ensemble_forms_are_those_of_all_pairs():
    members, truth = RANDOM.normal(size=(5, 2, 3)), RANDOM.normal(size=(2, 3))
    distance = np.abs(members - truth).mean(axis=0)
    pairs = np.abs(members[:, None] - members[None]).sum(axis=(0, 1))
    np.testing.assert_allclose(crps_ensemble(array(members), array(truth)), distance - pairs / 50, rtol=RTOL)
    np.testing.assert_allclose(
        fair_crps_ensemble(array(members), array(truth)), distance - pairs / 40, rtol=1e-4, atol=1e-6
    )


def test_one_member_has_its_absolute_error():
    np.testing.assert_allclose(crps_ensemble(array([[2.0]]), array([-1.0])), [3.0])
    np.testing.assert_allclose(crps_gaussian(2.0, 0.0, -1.0), 3.0)


def test_small_and_large_ensembles_have_the_same_fair_score():
    """Both estimate the score of N(0, 1) for truths from N(0, 1), which is 1 / √π; the plain one pays for its size."""
    expected = 1 / np.sqrt(np.pi)
    truth = array(RANDOM.normal(size=40000))
    np.testing.assert_allclose(np.mean(crps_gaussian(0.0, 1.0, truth)), expected, rtol=0.02)
    for n in (2, 10):
        members = array(RANDOM.normal(size=(n, 40000)))
        np.testing.assert_allclose(np.mean(fair_crps_ensemble(members, truth)), expected, rtol=0.02)
        plain = np.mean(crps_ensemble(members, truth))
        np.testing.assert_allclose(plain, expected * (1 + 1 / n), rtol=0.02)


def test_gradients_are_finite_where_the_spread_vanishes():
    slope = jax.grad(lambda std: jnp.sum(crps_gaussian(jnp.zeros(2), std, jnp.ones(2))))(jnp.array([0.0, 1.0]))
    assert np.isfinite(slope).all()


def test_one_member_is_not_fair():
    with pytest.raises(ValueError, match="1 member, expected at least 2; use `crps_ensemble`"):
        fair_crps_ensemble(array([[2.0]]), array([-1.0]))
