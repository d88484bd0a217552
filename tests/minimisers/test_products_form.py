"""The analysis with an R that is only known by products, against dense algebra."""

import numpy as np
import pytest

pytestmark = pytest.mark.slow  # compiles many programs


@pytest.mark.x64
def test_products_with_R_are_enough(case):
    increment, weights = case.dense()
    result = case.by_products(tol=1e-11, max_steps=200)
    assert result.converged
    np.testing.assert_allclose(np.ravel(result.increment), increment, atol=1e-8)
    np.testing.assert_allclose(result.weights[case.seen], weights, atol=1e-8)
    np.testing.assert_allclose(case.B.half().mv(result.control), result.increment, atol=1e-10)


@pytest.mark.x64
def test_cost_is_never_above_the_background(case):
    first = case.cost(0.0, np.zeros(case.B_matrix.shape[0]))
    for n_steps in (0, 1, 2, 3, 5, 8, 13):
        result = case.by_products(tol=0.0, max_steps=n_steps)
        cost = case.cost(result.control, result.increment)
        assert cost <= first * (1 + 1e-12)
        np.testing.assert_allclose(cost, result.costs[1], rtol=1e-8)
