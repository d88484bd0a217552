"""B given by its square root."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vardax.covariances.diagonal import DiagonalCovariance
from vardax.covariances.functions import half
from vardax.covariances.low_rank import LowRankCovariance
from vardax.models.optimal_interpolation import OptimalInterpolation
from vardax.obs_operators.point import PointObs
from vardax.types import Batch1D

RANDOM = np.random.default_rng(4)
MODES = RANDOM.normal(size=(12, 3))


@pytest.mark.parametrize("shape", [(12,), (3, 4), (2, 3, 2)])
def test_the_factor_is_the_square_root(shape, equals_matrix):
    for covariance in (LowRankCovariance(MODES.reshape(*shape, 3)), LowRankCovariance(MODES, shape=shape)):
        assert covariance.shape == shape
        assert covariance.n_modes == 3
        assert covariance.half().in_structure().shape == (3,)
        equals_matrix(covariance, MODES @ MODES.T)
    np.testing.assert_allclose(
        covariance.half().mv(jnp.arange(3.0)), (MODES @ np.arange(3.0)).reshape(shape), rtol=1e-5, atol=1e-6
    )


def test_fields_may_be_pytrees(equals_matrix):
    covariance = LowRankCovariance({"v": MODES[:4], "u": MODES[4:].reshape(4, 2, 3)})
    order = np.concatenate([MODES[4:], MODES[:4]])  # leaves of a dictionary come by name
    assert covariance.shape == {"u": (4, 2), "v": (4,)}
    equals_matrix(covariance, order @ order.T)


def test_more_modes_than_cells_are_welcome(equals_matrix):
    equals_matrix(LowRankCovariance(MODES.T), MODES.T @ MODES)


def test_the_analysis_stays_in_the_span_of_the_modes():
    """P* and x* by the formula in the three numbers of the control."""
    index, y = np.array([1, 4, 9]), np.array([[1.0, -2.0, 0.5]])
    B, R = LowRankCovariance(MODES), DiagonalCovariance(np.full(3, 0.25))
    found = OptimalInterpolation(PointObs(index), np.zeros(12), B, R)(Batch1D.from_observations(y))
    G = MODES[index] / 0.5
    weights = np.linalg.solve(np.eye(3) + G.T @ G, G.T @ (y[0] / 0.5))
    np.testing.assert_allclose(found[0], MODES @ weights, rtol=1e-4, atol=1e-5)


def test_what_has_no_inverse_says_what_to_do():
    covariance = LowRankCovariance(MODES)
    for call in (lambda: covariance.inv_mv(jnp.ones(12)), covariance.logdet):
        with pytest.raises(ValueError, match=r"\(3 modes for 12 cells\) has no inverse; work with `half`.*DiagonalCov"):
            call()
    with pytest.raises(ValueError, match="R between the observed entries is not positive definite"):
        covariance.restrict(np.ones(12))
    total = covariance + DiagonalCovariance(np.ones(12))
    assert half(total).in_structure()[0].shape == (3,)


def test_as_r_with_a_diagonal_it_is_marginalised():
    from vardax.covariances.functions import restrict

    R = DiagonalCovariance(np.linspace(1.0, 2.0, 12)) + LowRankCovariance(MODES)
    mask = np.arange(12) % 3 != 0
    matrix = (np.diag(np.linspace(1.0, 2.0, 12)) + MODES @ MODES.T)[np.ix_(mask, mask)]
    found = restrict(R, mask).solve(jnp.ones(12))
    np.testing.assert_allclose(found[mask], np.linalg.solve(matrix, np.ones(8)), atol=1e-5)


@pytest.mark.x64
def test_gradient_with_respect_to_the_factor(equals_differences):
    v = jnp.arange(12.0)
    equals_differences(lambda F: jnp.sum(LowRankCovariance(F).mv(v) ** 2), jnp.asarray(MODES))


def test_under_vmap_over_factors():
    factors = jnp.asarray(np.stack([MODES, 2 * MODES]))
    variances = jax.vmap(lambda F: LowRankCovariance(F).diagonal())(factors)
    np.testing.assert_allclose(variances[1], 4 * variances[0], rtol=1e-6)


@pytest.mark.parametrize(
    ("factor", "options", "words"),
    [
        (np.ones(()), {}, r"`factor` has an array of shape \(\), expected \(\*shape, modes\)"),
        (np.ones((4, 0)), {}, "at least one mode"),
        ({"u": np.ones((4, 2)), "v": np.ones((4, 3))}, {}, r"as many as the first array has \(2\)"),
        (np.ones((4, 2)), {"shape": (3,)}, r"`factor` has shape \(4, 2\), expected \(3, modes\)"),
        ({"u": np.ones((4, 2))}, {"shape": 4}, "`shape` goes with one matrix"),
        ({}, {}, "`factor` holds no arrays"),
        ([[1.0], [np.nan]], {}, "`factor` has 1 entries that are not finite"),
    ],
)
def test_bad_factors_are_refused(factor, options, words):
    with pytest.raises(ValueError, match=words):
        LowRankCovariance(factor, **options)
