"""InstrumentErrors: R / w on ravelled observations, as a covariance and restricted to what was observed."""

import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest

from vardax.covariances import DenseCovariance, DiagonalCovariance
from vardax.obs_operators import InstrumentErrors
from vardax.validation import covariance_test

RNG = np.random.default_rng(0)
ROOT = RNG.standard_normal((6, 6))
MATRIX = ROOT @ ROOT.T + np.eye(6)
VARIANCE = RNG.uniform(0.5, 2.0, (2, 3))
WEIGHT = 0.3


def blocks():
    return {
        "dense field": (InstrumentErrors(DenseCovariance(MATRIX, shape=(2, 3)), WEIGHT), MATRIX / WEIGHT),
        "diagonal field": (InstrumentErrors(DiagonalCovariance(VARIANCE), WEIGHT), np.diag(VARIANCE.ravel()) / WEIGHT),
        "lineax": (
            InstrumentErrors(lx.DiagonalLinearOperator(jnp.asarray(VARIANCE.ravel())), WEIGHT),
            np.diag(VARIANCE.ravel()) / WEIGHT,
        ),
    }


@pytest.mark.parametrize("name", blocks())
def test_it_is_the_weighted_covariance(name):
    operator, dense = blocks()[name]
    report = covariance_test(operator)
    assert report, str(report)
    np.testing.assert_allclose(operator.as_matrix(), dense, rtol=1e-5)
    np.testing.assert_allclose(operator.diagonal(), np.diag(dense), rtol=1e-5)
    v = jnp.asarray(RNG.standard_normal(6))
    np.testing.assert_allclose(operator.inv_mv(v), np.linalg.solve(dense, v), rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(operator.logdet(), np.linalg.slogdet(dense)[1], rtol=1e-4)


@pytest.mark.parametrize("std", [None, np.linspace(0.5, 1.5, 6)])
@pytest.mark.parametrize("name", blocks())
def test_what_is_missing_is_marginalised_exactly(name, std):
    operator, dense = blocks()[name]
    mask = np.array([1, 0, 1, 1, 0, 1])
    seen = mask != 0
    if std is not None:
        ratio = std / np.sqrt(np.diag(dense))
        dense = dense * ratio[:, None] * ratio[None]
    part = operator.restrict(mask, std=std)
    r = RNG.standard_normal(6)
    observed = dense[np.ix_(seen, seen)]
    solved = np.zeros(6)
    solved[seen] = np.linalg.solve(observed, r[seen])
    residual = jnp.asarray(np.where(seen, r, np.nan))
    np.testing.assert_allclose(part.solve(residual), solved, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(jnp.sum(part.whiten(residual) ** 2), r[seen] @ solved[seen], rtol=1e-3)
    np.testing.assert_allclose(part.mv(residual)[seen], observed @ r[seen], rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(part.logdet(), np.linalg.slogdet(observed)[1], rtol=1e-4, atol=1e-5)


def test_a_diagonal_R_stays_diagonal():
    assert blocks()["diagonal field"][0].diagonal_matrix
    assert not blocks()["dense field"][0].diagonal_matrix
