"""Eigenvalues and impulses from products alone."""

import numpy as np
import pytest

from vardax.validation.dirac import lanczos, product_rows
from vardax.validation.spaces import Space, generator
from vardax.validation.standardised import Standardised
from vardax.validation.tolerances import default_tolerances


@pytest.mark.parametrize("n", [1, 2, 7, 60])
def test_lanczos_finds_the_ends_of_a_small_spectrum(n):
    A = generator(None).standard_normal((n, n))
    A = A + A.T
    found = lanczos(lambda v: A @ v, n, n, np.random.default_rng(0))
    np.testing.assert_allclose(found, np.linalg.eigvalsh(A)[[0, -1]], rtol=1e-9, atol=1e-12)


def test_lanczos_finds_one_negative_eigenvalue_among_many():
    values = np.concatenate([[-0.1], np.linspace(0.0, 1.0, 5000)])
    smallest, largest = lanczos(lambda v: values * v, values.size, 30, np.random.default_rng(0))
    assert smallest == pytest.approx(-0.1, abs=1e-3)
    assert largest == pytest.approx(1.0, abs=1e-2)


def test_lanczos_stops_where_the_space_is_exhausted():
    assert lanczos(lambda v: 2.0 * v, 50, 30, np.random.default_rng(0)) == pytest.approx((2.0, 2.0))
    assert lanczos(lambda v: 0.0 * v, 50, 30, np.random.default_rng(0)) == (0.0, 0.0)
    assert np.all(np.isnan(lanczos(lambda v: np.nan * v, 50, 30, np.random.default_rng(0))))


def rows_of(matrix, variances=None):
    matrix = np.asarray(matrix, np.float32)
    space = Space.of(matrix[0], "field")
    subject = Standardised.of(space, lambda v: np.asarray(matrix @ v.astype(np.float32), np.float64), variances)
    rows, notes = product_rows(subject, None, np.random.default_rng(0), default_tolerances("float32"), 3, 30)
    return {row.name: row for row in rows}


@pytest.mark.parametrize("n", [20, 600])
def test_impulses_are_bounded_by_the_variances_below_and_beyond_the_dense_size(n):
    d = np.abs(np.subtract.outer(np.arange(n), np.arange(n)))
    B = np.exp(-d / 3.0)
    assert all(row.passed for row in rows_of(B, np.ones(n)).values())
    B[n // 2, 0] = B[0, n // 2] = 1.5
    assert not rows_of(B, np.ones(n))["Dirac, peak"].passed


def test_a_negative_variance_is_not_a_peak():
    assert not rows_of(np.diag([1.0, -1.0]))["Dirac, peak"].passed
