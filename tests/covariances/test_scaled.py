"""Standard deviations times a correlation."""

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest

from vardax.covariances.block_diagonal import BlockDiagonalCovariance
from vardax.covariances.dense import DenseCovariance
from vardax.covariances.diagonal import DiagonalCovariance
from vardax.covariances.functions import restrict
from vardax.covariances.matern import MaternLinearOperator
from vardax.covariances.scaled import ScaledCovariance
from vardax.models.optimal_interpolation import OptimalInterpolation
from vardax.obs_operators.identity import MaskedIdentity
from vardax.types import Batch2D

SHAPE = (3, 5)
STD = np.linspace(0.5, 3.0, 15).reshape(SHAPE)
MATERN = MaternLinearOperator(SHAPE, 1.5)


def tree():
    return BlockDiagonalCovariance({"u": MATERN, "p": MaternLinearOperator(4, 1.0)})


FORMS = {
    "field": lambda: (STD, MATERN, np.ravel(STD)),
    "number": lambda: (2.0, MATERN, np.full(15, 2.0)),
    "pytree": lambda: ({"u": STD, "p": 3.0}, tree(), np.concatenate([np.full(4, 3.0), np.ravel(STD)])),
    "number for a pytree": lambda: (3.0, tree(), np.full(19, 3.0)),
    "a foreign correlation": lambda: ([1.0, 2.0], lx.MatrixLinearOperator(jnp.array([[1.0, 0.3], [0.3, 1.0]])), [1, 2]),
    "variances other than one": lambda: (STD, DenseCovariance(np.diag(np.arange(1.0, 16)), shape=SHAPE), np.ravel(STD)),
}
every_form = pytest.mark.parametrize("name", FORMS)


@every_form
def test_it_is_the_scaled_matrix(name, equals_matrix):
    std, correlation, flat = FORMS[name]()
    equals_matrix(ScaledCovariance(std, correlation), np.outer(flat, flat) * np.asarray(correlation.as_matrix(), float))


@pytest.mark.x64
@every_form
def test_inverse_and_determinant_are_those_of_the_correlation_scaled(name, inverts_matrix):
    std, correlation, flat = FORMS[name]()
    covariance = ScaledCovariance(std, correlation)
    inverts_matrix(covariance, np.outer(flat, flat) * np.asarray(correlation.as_matrix()))


def test_a_deviation_of_zero_is_a_cell_that_is_known():
    """Its variance is zero, an analysis leaves it alone, gradients are finite, and there is no inverse."""
    covariance = ScaledCovariance(jnp.asarray(STD).at[1, 2].set(0.0), MATERN)
    assert covariance.diagonal()[1, 2] == 0
    assert not np.any(covariance.mv(jnp.zeros(SHAPE).at[1, 2].set(1.0)))
    R = DiagonalCovariance(np.full(SHAPE, 0.1))
    batch = Batch2D.from_observations(jnp.ones((1, 1, *SHAPE)))
    analysis = OptimalInterpolation(MaskedIdentity(), np.zeros(SHAPE), covariance, R)(batch)
    assert analysis[0, 1, 2] == 0
    assert np.all(np.delete(np.ravel(analysis), 7) > 0.1)
    quadratic = lambda std: jnp.sum(ScaledCovariance(std, MATERN).half().T.mv(jnp.ones(SHAPE)) ** 2)  # noqa: E731
    assert np.all(np.isfinite(jax.grad(quadratic)(covariance.std)))
    for call in (lambda: covariance.inv_mv(jnp.ones(SHAPE)), covariance.logdet):
        with pytest.raises(ValueError, match="1 standard deviations are zero, so there is no inverse"):
            call()


def test_as_r_its_correlations_are_kept():
    R, mask = ScaledCovariance(STD, MATERN), np.arange(15) % 4 != 0
    matrix = np.outer(STD, STD) * np.asarray(MATERN.as_matrix(), float)
    r, other = jnp.cos(jnp.arange(15.0)).reshape(SHAPE), np.linspace(2.0, 1.0, 15)
    for std, scale in ((None, np.ones(15)), (other.reshape(SHAPE), other / np.ravel(STD))):
        expected = np.linalg.solve((matrix * np.outer(scale, scale))[np.ix_(mask, mask)], np.ravel(r)[mask])
        found = restrict(R, mask.reshape(SHAPE), std=std).solve(r)
        np.testing.assert_allclose(np.ravel(found)[mask], expected, rtol=1e-4, atol=1e-5)
    zero = ScaledCovariance(jnp.asarray(STD).at[0, 0].set(0.0), MATERN)
    assert np.all(np.isfinite(restrict(zero, mask.reshape(SHAPE)).solve(r)))
    with pytest.raises(ValueError, match="of 1 observed entries is zero"):
        restrict(zero, np.ones(SHAPE))


def test_a_large_diagonal_correlation_stays_diagonal():
    n = 5000
    R = ScaledCovariance(np.full(n, 2.0), DiagonalCovariance(np.ones(n)))
    assert lx.is_diagonal(R)
    np.testing.assert_allclose(restrict(R, np.ones(n)).whiten(jnp.ones(n)), 0.5)


@pytest.mark.x64
def test_gradients_with_respect_to_deviations_and_length(equals_differences):
    v = jnp.sin(jnp.arange(15.0)).reshape(SHAPE)

    def quadratic(parameters):
        std, length = parameters
        return jnp.vdot(v, ScaledCovariance(std, MaternLinearOperator(SHAPE, length)).mv(v))

    equals_differences(quadratic, (jnp.asarray(STD), jnp.asarray(1.3)))


@pytest.mark.parametrize(
    ("std", "correlation", "error", "words"),
    [
        (np.ones(4), MATERN, ValueError, r"`std` has shape \(4,\), expected \(3, 5\), or one number"),
        (-1.0, MATERN, ValueError, "`std` must be finite and not negative; found 1 of 1"),
        (np.where(STD > 2.9, np.nan, STD), MATERN, ValueError, "found 1 of 15 entries"),
        (np.ones(3), np.eye(3), TypeError, "`correlation` is ndarray.*DenseCovariance"),
        ({"u": 1.0}, tree(), ValueError, "`std` is PyTreeDef.* or one number"),
        (np.ones(SHAPE), tree(), ValueError, "`std` is PyTreeDef|one number"),
        (np.ones(SHAPE, complex), MATERN, TypeError, "`std` has dtype complex"),
    ],
)
def test_bad_deviations_are_refused(std, correlation, error, words):
    with pytest.raises(error, match=words):
        ScaledCovariance(std, correlation)
