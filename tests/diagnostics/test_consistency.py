"""2 J(x*) / p is one on average, with the stated scatter, when B and R are the truth."""

import numpy as np
import pytest

from vardax.diagnostics.consistency import chi_square, chi_square_sampling_error


def minimum_costs(random, B, R, true_B, true_R, n_draws):
    """J at the minimum for identity H: half the innovation in the norm of (B + R)^-1."""
    innovations = random.multivariate_normal(np.zeros(len(B)), true_B + true_R, n_draws)
    return 0.5 * np.einsum("ki,ij,kj->k", innovations, np.linalg.inv(B + R), innovations)


def test_true_covariances_give_one_within_the_sampling_error():
    random = np.random.default_rng(0)
    B, R = np.array([[2.0, 0.6], [0.6, 1.0]]), np.eye(2) * 0.5
    values = np.asarray(chi_square(minimum_costs(random, B, R, B, R, 4000), 2))
    error = float(chi_square_sampling_error(2))
    assert values.mean() == pytest.approx(1.0, abs=4 * error / np.sqrt(4000))
    assert values.std() == pytest.approx(error, rel=0.1)


def test_covariances_that_are_too_small_show():
    random = np.random.default_rng(1)
    B = R = np.eye(3)
    values = np.asarray(chi_square(minimum_costs(random, B, R, 4 * B, 4 * R, 2000), 3))
    assert values.mean() == pytest.approx(4.0, rel=0.1)


def test_without_observations_there_is_no_value():
    np.testing.assert_array_equal(chi_square(np.array([0.0, 2.0]), np.array([0, 4])), [np.nan, 1.0])
