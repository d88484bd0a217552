"""The curvature of a cost and its inverse against dense algebra."""

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest

from vardax.covariances.dense import DenseCovariance
from vardax.dynamics.discrete import DiscreteForward
from vardax.primitives.hessians import gauss_newton_hessian, laplace_covariance
from vardax.types import Batch1D

X64 = jax.config.jax_enable_x64
TIGHT = {"rtol": 1e-6, "atol": 1e-8} if X64 else {"rtol": 5e-3, "atol": 5e-3}
RNG = np.random.default_rng(12)
N, M_OBS = 4, 2
B = 0.5 * np.exp(-np.abs(np.subtract.outer(np.arange(N), np.arange(N))) / 2)
R = np.array([[0.2, 0.05], [0.05, 0.1]])
H = RNG.normal(size=(M_OBS, N))
Y = RNG.normal(size=(2, 3, M_OBS))
Y[0, 1, 0] = Y[1, 2] = np.nan
FORWARD = DiscreteForward(lambda x: x + 0.1 * jnp.sin(jnp.roll(x, 1)), 1.0)
STARTS = RNG.normal(size=(2, N))


def hessian(x, y):
    """B⁻¹ + Σ (H M_t')ᵀ R⁻¹ H M_t' by dense Jacobians."""
    total, run = np.linalg.inv(B), lambda x: x
    for row in y:
        seen = np.isfinite(row)
        G = (H @ np.asarray(jax.jacobian(run)(x)))[seen]
        total = total + (G.T @ np.linalg.inv(R[np.ix_(seen, seen)]) @ G if seen.any() else 0)
        run = lambda x, before=run: FORWARD.step(before(x), 1.0)  # noqa: E731
    return total


@pytest.fixture(scope="module")
def gauss_newton():
    observe, slots = (lambda x: jnp.asarray(H) @ x), (DenseCovariance(B), DenseCovariance(R))
    return lambda k: gauss_newton_hessian(
        jnp.asarray(STARTS), Batch1D.from_observations(Y), FORWARD, observe, *slots, n_krylov=k
    )


def test_the_gauss_newton_hessian_is_the_dense_one(gauss_newton):
    operator = gauss_newton(50)
    expected = np.zeros((2 * N, 2 * N))
    for sample in range(2):
        block = slice(sample * N, (sample + 1) * N)
        expected[block, block] = hessian(jnp.asarray(STARTS[sample]), Y[sample])
    assert lx.is_positive_semidefinite(operator)
    np.testing.assert_allclose(operator.as_matrix(), expected, **TIGHT)
    v = jnp.asarray(RNG.normal(size=(2, N)))
    np.testing.assert_allclose(operator.inverse.mv(operator.mv(v)), v, **TIGHT)


@pytest.mark.x64
def test_fewer_vectors_know_less_curvature_and_are_still_inverted_exactly(gauss_newton):
    operator, full = gauss_newton(2), gauss_newton(50)
    known, whole = np.asarray(operator.as_matrix()), np.asarray(full.as_matrix())
    assert np.linalg.eigvalsh(whole - known).min() > -1e-8
    assert np.linalg.eigvalsh(known - np.kron(np.eye(2), np.linalg.inv(B))).min() > -1e-8
    np.testing.assert_allclose(operator.inverse.as_matrix(), np.linalg.inv(known), atol=1e-8)


@pytest.mark.parametrize("on_states", [True, False], ids=["all of the state", "some of it"])
def test_the_laplace_covariance_is_the_inverse_hessian(on_states):
    """Second derivatives of the operator included, which Gauss-Newton leaves out."""
    seen, errors = (np.eye(N), 0.1 * np.eye(N)) if on_states else (H, R)
    B_inv, R_inv = np.linalg.inv(B), np.linalg.inv(errors)
    x, y = jnp.asarray(0.3 * RNG.normal(size=N)), jnp.asarray(RNG.normal(size=len(seen)))
    half = lambda v, A: 0.5 * v @ jnp.asarray(A) @ v  # noqa: E731
    cost = lambda x: half(x, B_inv) + half(y - jnp.tanh(jnp.asarray(seen) @ x), R_inv)  # noqa: E731
    operators = (lx.MatrixLinearOperator(jnp.asarray(A), lx.positive_semidefinite_tag) for A in (B_inv, R_inv))
    covariance = laplace_covariance(x, jax.grad(cost), *operators)
    dense = np.linalg.inv(np.asarray(jax.hessian(cost)(x)))
    assert np.linalg.eigvalsh(dense).min() > 0
    np.testing.assert_allclose(jax.vmap(covariance.mv)(jnp.eye(N)), dense, **TIGHT)
