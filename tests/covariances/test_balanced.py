"""Correlations between variables from a balance: geostrophy, regressions, matrices; against K B_block Kᵀ."""

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest

from vardax.covariances.balanced import BalancedCovariance
from vardax.covariances.block_diagonal import BlockDiagonalCovariance
from vardax.covariances.dense import DenseCovariance
from vardax.covariances.diagonal import DiagonalCovariance
from vardax.covariances.matern import MaternLinearOperator
from vardax.models.optimal_interpolation import OptimalInterpolation
from vardax.obs_operators.callable import CallableObs
from vardax.obs_operators.point import PointObs
from vardax.primitives.control import tangent_linear
from vardax.types import Batch1D

X64 = jnp.zeros(0).dtype == jnp.float64
SHAPE = (4, 5)
PSI = MaternLinearOperator(SHAPE, 1.5, 2.0)


def geostrophy(psi):
    """u = −∂ψ/∂y, v = ∂ψ/∂x, h = f ψ, on a periodic grid of unit spacing."""
    slope = lambda axis: (jnp.roll(psi, -1, axis) - jnp.roll(psi, 1, axis)) / 2  # noqa: E731
    return {"u": -slope(0), "v": slope(1), "h": 0.7 * psi}


class Regression(eqx.Module):
    """Temperature with an unbalanced part: T = T_u + c ψ."""

    coefficient: jax.Array

    def __call__(self, fields):
        return {"psi": fields["psi"], "T": fields["T"] + self.coefficient * fields["psi"]}


def regression_block():
    return BlockDiagonalCovariance({"psi": PSI, "T": MaternLinearOperator(SHAPE, 0.8, 0.5)})


def matrix_of_callable(fn, structure):
    """K, column by column."""
    flat = jax.flatten_util.ravel_pytree
    zero, back = flat(jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), structure))
    return np.stack([np.asarray(flat(fn(back(unit)))[0], float) for unit in jnp.eye(zero.size)], axis=1)


RANDOM = np.random.default_rng(2)
K = RANDOM.normal(size=(6, 6))
BALANCES = {
    "from one field to three": lambda: (geostrophy, PSI),
    "a regression": lambda: (Regression(jnp.asarray(0.4)), regression_block()),
    "square matrix": lambda: (K, DenseCovariance(K @ K.T, shape=(2, 3))),
    "rectangular matrix": lambda: (RANDOM.normal(size=(8, 6)), DenseCovariance(K @ K.T)),
    "matrix on fields": lambda: (RANDOM.normal(size=(2, 2, 2, 3)), DenseCovariance(K @ K.T, shape=(2, 3))),
    "lineax operator": lambda: (lx.MatrixLinearOperator(jnp.asarray(K)), DiagonalCovariance(np.arange(1.0, 7.0))),
}


@pytest.mark.parametrize("name", BALANCES)
def test_it_is_k_b_k_transposed(name, equals_matrix):
    balance, block = BALANCES[name]()
    covariance = BalancedCovariance(balance, block)
    if callable(balance) and not isinstance(balance, lx.AbstractLinearOperator):
        matrix = matrix_of_callable(balance, block.in_structure())
    else:
        matrix = np.asarray(balance.as_matrix() if hasattr(balance, "as_matrix") else balance, float)
        matrix = matrix.reshape(-1, block.in_size())
    B = np.asarray(block.as_matrix(), float)
    equals_matrix(covariance, matrix @ B @ matrix.T)


def test_the_fields_are_those_that_the_balance_gives():
    assert BalancedCovariance(geostrophy, PSI).shape == {"u": SHAPE, "v": SHAPE, "h": SHAPE}
    assert BalancedCovariance(K, DenseCovariance(K @ K.T, shape=(2, 3))).shape == (2, 3)
    assert BalancedCovariance(np.ones((8, 6)), DenseCovariance(K @ K.T)).shape == (8,)
    assert BalancedCovariance(geostrophy, PSI).half().in_structure().shape == SHAPE


def test_an_observed_height_moves_the_wind_with_it():
    """One observation of h: the increment of the wind is geostrophic, and the dense formula agrees."""
    B = BalancedCovariance(geostrophy, PSI)
    zero = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), B.in_structure())
    model = OptimalInterpolation(CallableObs(lambda x: x["h"][1, 2:3]), zero, B, DiagonalCovariance([0.1]))
    found = jax.tree.map(lambda leaf: leaf[0], model(Batch1D.from_observations(jnp.array([[1.0]]))))
    expected = geostrophy(found["h"] / 0.7)
    for name in ("u", "v"):
        assert np.max(np.abs(found[name])) > 0.05
        np.testing.assert_allclose(found[name], expected[name], atol=1e-12 if X64 else 1e-5)
    variance = 0.49 * 4.0
    np.testing.assert_allclose(found["h"][1, 2], variance / (variance + 0.1), rtol=1e-5)


@pytest.mark.x64
def test_inverse_and_determinant(inverts_matrix):
    covariance = BalancedCovariance(Regression(jnp.asarray(0.4)), regression_block())
    inverts_matrix(covariance, np.asarray(covariance.as_matrix()))
    with pytest.raises(ValueError, match="logdet: B is only positive semidefinite"):
        BalancedCovariance(np.ones((8, 6)), DenseCovariance(K @ K.T)).logdet()


@pytest.mark.x64
def test_gradients_with_respect_to_balance_and_block(equals_differences):
    def quadratic(parameters):
        coefficient, length = parameters
        block = BlockDiagonalCovariance({"psi": MaternLinearOperator(SHAPE, length), "T": PSI})
        B = BalancedCovariance(Regression(coefficient), block)
        v = jax.tree.map(lambda s: jnp.cos(jnp.arange(float(s.size))).reshape(s.shape), B.in_structure())
        return sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(B.mv(v)))

    equals_differences(quadratic, (jnp.asarray(0.4), jnp.asarray(1.3)))
    v = jnp.arange(6.0)
    equals_differences(lambda K: jnp.sum(BalancedCovariance(K, DiagonalCovariance(v)).mv(v) ** 2), jnp.asarray(K))


def test_a_nonlinear_balance_is_refused_and_its_linearisation_welcome(equals_matrix):
    nonlinear = lambda psi: psi + 0.1 * psi**2  # noqa: E731
    block = DenseCovariance(K @ K.T)
    with pytest.raises(
        ValueError, match="`balance_op` is not linear; give its linearisation, `vardax.primitives.tangent"
    ):
        BalancedCovariance(nonlinear, block)
    with pytest.raises(ValueError, match="`balance_op` of zero is not zero, so it is affine"):
        BalancedCovariance(lambda psi: psi + 1.0, block)
    background = jnp.arange(6.0)
    slope = np.diag(1 + 0.2 * np.arange(6.0))
    equals_matrix(BalancedCovariance(tangent_linear(nonlinear, background), block), slope @ K @ K.T @ slope)


def test_it_is_built_and_used_inside_jit_without_compiling_again(count_compilations):
    @jax.jit
    def product(coefficient, v):
        return BalancedCovariance(Regression(coefficient), regression_block()).mv(v)

    v = jax.tree.map(lambda s: jnp.ones(s.shape, s.dtype), regression_block().in_structure())
    first = product(jnp.asarray(0.4), v)
    with count_compilations() as compiled:
        product(jnp.asarray(0.5), v)
    assert compiled.n == 0
    apply = eqx.filter_jit(lambda B, v: B.mv(v))
    eager = BalancedCovariance(Regression(jnp.asarray(0.4)), regression_block())
    np.testing.assert_allclose(apply(eager, v)["T"], first["T"], rtol=1e-5)
    other = BalancedCovariance(Regression(jnp.asarray(0.3)), regression_block())
    with count_compilations() as compiled:
        apply(other, v)
    assert compiled.n == 0, compiled.names


def test_a_plain_function_is_no_leaf():
    covariance = BalancedCovariance(geostrophy, PSI)
    assert all(map(eqx.is_array, jax.tree.leaves(covariance)))
    v = jax.tree.map(lambda s: jnp.ones(s.shape, s.dtype), covariance.in_structure())
    np.testing.assert_allclose(jax.jit(lambda B: B.mv(v)["h"])(covariance), covariance.mv(v)["h"], rtol=1e-5)


def test_variances_of_a_large_state_are_refused_with_a_remedy_and_a_posterior_has_them_from_samples():
    """A posterior in observation space needs the variances of B for an exact answer; without them it draws samples."""
    covariance = BalancedCovariance(lambda x: 2.0 * x, MaternLinearOperator((100, 100), 3.0))
    with pytest.raises(ValueError, match=r"diagonal needs a dense matrix of 10000 rows.*`jnp.var\(B.sample\(key, n\)"):
        covariance.diagonal()
    R = DiagonalCovariance(np.full(2, 1.0))
    model = OptimalInterpolation(PointObs(np.array([0, 50])), jnp.zeros((100, 100)), covariance, R)
    std = model.posterior(Batch1D.from_observations(jnp.ones((1, 2)))).std()[0]
    np.testing.assert_allclose(std[0, [0, 50]], np.sqrt(1 / (1 / 4 + 1)), rtol=0.25)
    np.testing.assert_allclose(np.sqrt(np.mean(std[40:60] ** 2)), 2.0, rtol=0.02)


@pytest.mark.parametrize(
    ("balance", "block", "error", "words"),
    [
        (K, K, TypeError, "`block` is ndarray.*DenseCovariance"),
        (3.0, PSI, TypeError, "`balance_op` is float, expected a linear callable, a matrix or a lineax operator"),
        (np.ones((3, 7)), PSI, ValueError, r"`balance_op` has shape \(3, 7\), expected \(m, 20\)"),
        (np.ones((3, 7)), regression_block(), ValueError, r"expected \(m, 40\)"),
        (lx.MatrixLinearOperator(jnp.ones((3, 7))), PSI, ValueError, "`balance_op` takes .* expected the fields of"),
    ],
)
def test_bad_balances_are_refused(balance, block, error, words):
    with pytest.raises(error, match=words):
        BalancedCovariance(balance, block)
