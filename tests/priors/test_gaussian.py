"""The Gaussian prior against dense formulas, for a B that is correlated and a state that is a pytree."""

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest

from vardax.covariances.block_diagonal import BlockDiagonalCovariance
from vardax.covariances.dense import DenseCovariance
from vardax.covariances.diagonal import DiagonalCovariance
from vardax.covariances.matern import MaternLinearOperator
from vardax.covariances.repeated import RepeatedCovariance
from vardax.priors.gaussian import GaussianPrior
from vardax.protocols import Prior

RANDOM = np.random.default_rng(3)
N = 6
ROOT = RANDOM.normal(size=(N, N))
B = ROOT @ ROOT.T / N + 0.3 * np.eye(N)
MEAN, X = RANDOM.normal(size=(2, N))
TIGHT = 1e-10 if jax.config.jax_enable_x64 else 1e-4


@pytest.fixture(scope="module")
def prior():
    return GaussianPrior(MEAN, DenseCovariance(B))


def test_the_cost_and_its_gradient_are_the_dense_ones(prior):
    cost, gradient = jax.value_and_grad(prior.cost)(jnp.asarray(X))
    expected = np.linalg.solve(B, X - MEAN)
    np.testing.assert_allclose(cost, 0.5 * (X - MEAN) @ expected, rtol=TIGHT)
    np.testing.assert_allclose(gradient, expected, rtol=10 * TIGHT)


def test_the_derivative_of_the_residual_is_a_square_root_of_the_inverse(prior):
    slope = np.asarray(jax.jacobian(prior.residual)(jnp.asarray(X)))
    np.testing.assert_allclose(slope.T @ slope, np.linalg.inv(B), rtol=100 * TIGHT, atol=100 * TIGHT)


def test_the_reconstruction_is_the_mean(prior):
    assert isinstance(prior, Prior)
    np.testing.assert_array_equal(prior(jnp.asarray(X)), prior.mean)
    assert prior.state_signature == jax.ShapeDtypeStruct((N,), prior.mean.dtype)


@pytest.mark.parametrize(
    "operator",
    [
        pytest.param(lx.MatrixLinearOperator(jnp.asarray(B), lx.positive_semidefinite_tag), id="lineax"),
        pytest.param(MaternLinearOperator((N,), 1.5, 0.7), id="matern"),
        pytest.param(2.5 * DiagonalCovariance(np.arange(1.0, N + 1)), id="scaled diagonal"),
    ],
)
def test_any_covariance_will_do(operator):
    matrix = np.asarray(jax.vmap(operator.mv)(jnp.eye(N)), float)
    prior, tight = GaussianPrior(MEAN, operator), 1e-8 if jax.config.jax_enable_x64 else 1e-3
    expected = 0.5 * (X - MEAN) @ np.linalg.solve(matrix, X - MEAN)
    np.testing.assert_allclose(prior.cost(jnp.asarray(X)), expected, rtol=tight)
    np.testing.assert_allclose(0.5 * jnp.sum(prior.residual(jnp.asarray(X)) ** 2), expected, rtol=tight)


def test_states_that_are_pytrees_have_the_sum_of_their_blocks():
    mean, x = ({"a": jnp.asarray(a[:4]), "b": jnp.asarray(a[4:])} for a in (MEAN, X))
    blocks = {"a": DenseCovariance(B[:4, :4]), "b": DiagonalCovariance(np.full(2, 4.0))}
    prior = GaussianPrior(mean, BlockDiagonalCovariance(blocks))
    gap = X - MEAN
    expected = 0.5 * (gap[:4] @ np.linalg.solve(B[:4, :4], gap[:4]) + np.sum(gap[4:] ** 2) / 4)
    np.testing.assert_allclose(prior.cost(x), expected, rtol=TIGHT)
    residual = np.concatenate(jax.tree.leaves(prior.residual(x)))
    np.testing.assert_allclose(0.5 * residual @ residual, expected, rtol=TIGHT)
    assert jax.tree.structure(prior(x)) == jax.tree.structure(mean)


def test_a_window_has_a_covariance_for_all_its_times():
    window = np.stack([X, 2 * X])
    prior = GaussianPrior(np.stack([MEAN, MEAN]), RepeatedCovariance(DenseCovariance(B), 2))
    expected = sum(0.5 * (x - MEAN) @ np.linalg.solve(B, x - MEAN) for x in window)
    np.testing.assert_allclose(prior.cost(jnp.asarray(window)), expected, rtol=TIGHT)
    with pytest.raises(
        ValueError, match=r"`mean` has shape \(2, 6\), expected \(6,\).*RepeatedCovariance\(cov_op, n\)"
    ):
        GaussianPrior(np.stack([MEAN, MEAN]), DenseCovariance(B))


def test_a_background_of_the_next_cycle_takes_the_place_of_the_mean(prior, count_compilations):
    cost = jax.jit(lambda p, x: p.cost(x))
    x = jnp.asarray(X)
    cost(prior, x)
    moved = prior.with_mean(jnp.asarray(X + 0.1))
    with count_compilations() as compiled:
        found = cost(moved, x)
    assert compiled.n == 0, compiled.names
    np.testing.assert_allclose(found, 0.5 * 0.01 * np.sum(np.linalg.inv(B)), rtol=1e-3)


def test_the_cost_has_the_dtype_of_the_state(prior):
    for dtype in ("float32", "float16"):
        x = jnp.asarray(X, dtype)
        assert {jax.eval_shape(f, x).dtype.name for f in (prior, prior.cost, jax.grad(prior.cost))} == {dtype}
        assert prior.residual(x).dtype == dtype


def test_bad_input_is_refused_in_words(prior):
    with pytest.raises(TypeError, match="`cov_op` is ndarray, expected a lineax linear operator; wrap a matrix in"):
        GaussianPrior(MEAN, B)
    with pytest.raises(ValueError, match="`mean` has 1 non-finite entries; it must be complete"):
        GaussianPrior(np.where(np.arange(N) == 2, np.nan, MEAN), DenseCovariance(B))
    with pytest.raises(ValueError, match=r"the state has shape \(3,\), expected \(6,\), that of `mean`"):
        prior.cost(jnp.zeros(3))
    with pytest.raises(ValueError, match=r"the state has shape \(2, 6\), expected \(6,\)"):
        prior(jnp.zeros((2, 6)))
