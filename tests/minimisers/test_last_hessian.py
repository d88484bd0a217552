"""The pairs that an analysis leaves behind, against dense eigenvalues and the dense inverse of I + GᵀG."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vardax.covariances.dense import DenseCovariance
from vardax.dynamics.discrete import DiscreteForward
from vardax.minimisers.gauss_newton import DualCG, IncrementalConfig, LanczosCG
from vardax.minimisers.lanczos import ControlVectors, conjugate_gradients
from vardax.minimisers.last_hessian import extended, last_hessian
from vardax.models.incremental_fourdvar import IncrementalFourDVar
from vardax.models.threedvar import ThreeDVar
from vardax.models.weak_fourdvar import WeakFourDVar
from vardax.obs_operators.callable import CallableObs
from vardax.obs_operators.linear import LinearObs
from vardax.types import Batch1D

X64 = jax.config.jax_enable_x64
CLOSE = 1e-9 if X64 else 2e-3
N, P, STEPS = 12, 7, 10
RNG = np.random.default_rng(0)
G = RNG.normal(size=(P, N))
A = np.eye(N) + G.T @ G


@eqx.filter_jit
def _cg(matrix, b, steps, limit, reorthogonalise):
    space = ControlVectors(b, lambda v: matrix @ v, lambda w: matrix.T @ w)
    return conjugate_gradients(space, steps=steps, limit=limit, rtol=0.0, atol=0.0, reorthogonalise=reorthogonalise)[1]


def cg(steps=STEPS, limit=STEPS, matrix=G, reorthogonalise=True):
    """The record of an inner loop, and its right-hand side."""
    b = jnp.asarray(RNG.normal(size=N))
    return _cg(jnp.asarray(matrix), b, steps, jnp.asarray(limit), reorthogonalise), b


@eqx.filter_jit
def _extended(record, matrix, start, steps):
    return extended(record, lambda v: matrix.T @ (matrix @ v), start, steps)


def go_on(record, start, steps=STEPS, matrix=G):
    return _extended(record, jnp.asarray(matrix), start, steps)


def tridiagonal(record):
    n = int(record.n)
    off = np.asarray(record.off[: n - 1])
    return np.diag(record.diagonal[:n]) + np.diag(off, 1) + np.diag(off, -1)


def check_factorisation(record, matrix=A):
    """VᵀV = I and VᵀAV = T."""
    V = np.asarray(record.vectors[: int(record.n)])
    np.testing.assert_allclose(V @ V.T, np.eye(len(V)), atol=CLOSE)
    np.testing.assert_allclose(V @ matrix @ V.T, tridiagonal(record), atol=CLOSE * np.max(matrix))


@eqx.filter_jit
def inverse(pairs, size=N):
    return jax.vmap(pairs.solve)(jnp.eye(size))


def ritz_pairs(record):
    return eqx.filter_jit(lambda record: record.ritz_pairs())(record)


@pytest.mark.parametrize("limit", [0, 1, 4, STEPS])
def test_a_record_goes_on_to_the_vectors_that_were_asked_for(limit):
    """p observations and a start outside the range of Gᵀ: p + 1 vectors, and then nothing more."""
    record, b = cg(limit=limit)
    longer = go_on(record, b)
    assert P + 1 <= int(longer.n) <= P + 2  # the last one may be rounding error
    check_factorisation(longer)
    np.testing.assert_allclose(inverse(ritz_pairs(longer)), np.linalg.inv(A), atol=CLOSE)


def test_what_is_finished_is_kept():
    record, b = cg(limit=4)
    longer = go_on(record, b, 6)
    assert int(longer.n) == 6
    np.testing.assert_array_equal(longer.vectors[:4], record.vectors[:4])
    np.testing.assert_allclose(longer.diagonal[:4], record.diagonal[:4], rtol=CLOSE)
    check_factorisation(longer)


def test_a_full_record_is_left_alone_and_may_be_cut():
    record, b = cg(steps=5, limit=5)
    same, shorter = go_on(record, b, 5), go_on(record, b, 3)
    np.testing.assert_array_equal(same.vectors, record.vectors)
    np.testing.assert_array_equal(same.diagonal, record.diagonal)
    assert int(shorter.n) == 3
    check_factorisation(shorter)


def test_pairs_are_eigenpairs():
    record, b = cg(limit=2)
    pairs = ritz_pairs(go_on(record, b, P + 1))
    assert pairs.converged.all()
    expected = np.sort(np.linalg.eigvalsh(A))[-(P + 1) :]
    np.testing.assert_allclose(pairs.values, expected, rtol=CLOSE)
    for value, u in zip(pairs.values, np.asarray(pairs.vectors), strict=True):
        np.testing.assert_allclose(A @ u, value * u, atol=CLOSE * np.max(A))


def test_eigenvalues_that_occur_several_times_are_all_found():
    """Lanczos from one start sees each once: here 3 three times and 5 twice."""
    Q = np.linalg.qr(RNG.normal(size=(N, N)))[0]
    repeated = np.sqrt([2.0, 2.0, 2.0, 4.0, 4.0])[:, None] * Q[:5]
    record, b = cg(matrix=repeated)
    assert int(record.n) <= 4
    longer = go_on(record, b, matrix=repeated)
    assert 6 <= int(longer.n) <= 7
    dense = np.eye(N) + repeated.T @ repeated
    np.testing.assert_allclose(inverse(ritz_pairs(longer)), np.linalg.inv(dense), atol=CLOSE)


def test_no_start_and_nothing_observed():
    zero = jnp.zeros(N)
    found = go_on(None, zero)
    np.testing.assert_allclose(inverse(ritz_pairs(found)), np.linalg.inv(A), atol=CLOSE)
    nothing = go_on(None, zero, matrix=np.zeros((P, N)))
    assert int(nothing.n) == 0
    np.testing.assert_array_equal(inverse(ritz_pairs(nothing)), np.eye(N))


def test_a_record_that_rounding_has_spoilt_begins_again():
    steep = np.diag(np.logspace(3.0 if X64 else 1.5, -2, N)) @ np.linalg.qr(RNG.normal(size=(N, N)))[0]
    record, b = cg(steps=40, limit=40, matrix=steep, reorthogonalise=False)
    found = go_on(record, b, N, steep)
    V = np.asarray(found.vectors[: int(found.n)])
    np.testing.assert_allclose(V @ V.T, np.eye(len(V)), atol=CLOSE)
    expected = np.linalg.inv(np.eye(N) + steep.T @ steep)
    np.testing.assert_allclose(inverse(ritz_pairs(found)), expected, atol=1e-7 if X64 else 2e-2)


# -- of an analysis --------------------------------------------------------------------------------------------------

STATES = 6
COVARIANCE = 0.5 * np.exp(-np.abs(np.subtract.outer(np.arange(STATES), np.arange(STATES))) / 2)
H, M = RNG.normal(size=(2, STATES)), 0.8 * np.roll(np.eye(STATES), 1, axis=0)
ERRORS = np.array([[0.2, 0.05], [0.05, 0.1]])


def analysed(config, y, obs_op=None):
    forward = DiscreteForward(lambda x: jnp.asarray(M) @ x, 1.0)
    slots = (LinearObs(H) if obs_op is None else obs_op, jnp.ones(STATES), DenseCovariance(COVARIANCE))
    method, batch = IncrementalFourDVar(forward, *slots, DenseCovariance(ERRORS), config), Batch1D.from_observations(y)
    return method, batch, method.analyse(batch)


def posterior_covariance(y, n_entries=3):
    """(B⁻¹ + Σ (H Mᵗ)ᵀ R⁻¹ H Mᵗ)⁻¹ over the entries that were observed."""
    precision = np.linalg.inv(COVARIANCE)
    for t in range(n_entries):
        if np.isfinite(y[t]).all():
            at = H @ np.linalg.matrix_power(M, t)
            precision = precision + at.T @ np.linalg.solve(ERRORS, at)
    return np.linalg.inv(precision)


OBSERVATIONS = RNG.normal(size=(2, 3, 2))
OBSERVATIONS[1, 1:] = np.nan
CONFIGS = {
    "stopped early": IncrementalConfig(n_outer=2, cg_rtol=0.3, cg_atol=1.0),
    "dual": IncrementalConfig(n_outer=2, inner_solver=DualCG()),
    "not compared": IncrementalConfig(n_outer=1, inner_solver=LanczosCG(reorthogonalise=False)),
    "preconditioned": IncrementalConfig(n_outer=2, precondition_from_previous=True),
}


@pytest.mark.slow
@pytest.mark.parametrize("config", CONFIGS)
def test_pairs_that_span_the_space_give_the_posterior_covariance(config):
    method, batch, analysis = analysed(CONFIGS[config], OBSERVATIONS)
    pairs, problem = last_hessian(method.problem(batch), analysis), method.problem(batch)
    L = np.asarray(problem.half.as_matrix())
    for sample in range(2):
        inner = inverse(jax.tree.map(lambda a, s=sample: a[s], pairs), L.shape[1])
        found = L @ np.asarray(inner) @ L.T
        np.testing.assert_allclose(found, posterior_covariance(OBSERVATIONS[sample]), atol=CLOSE)


@pytest.mark.slow
def test_the_pairs_are_those_of_the_point_where_the_last_loop_was_linearised():
    bending = CallableObs(lambda x: x[:2] ** 3)
    method, batch, analysis = analysed(IncrementalConfig(n_outer=1, n_inner=STATES), OBSERVATIONS, bending)
    problem = method.problem(batch)
    pairs = last_hessian(problem, analysis)
    zero = problem.zero_control()  # one outer loop: the background
    v = jnp.asarray(RNG.normal(size=zero.shape), zero.dtype)
    product = problem.hessian_product(zero, v)
    back = problem.map_samples(lambda _, pairs, w: pairs.solve(w), pairs, product)
    np.testing.assert_allclose(back, v, atol=1e3 * CLOSE)
    assert not np.allclose(problem.hessian_product(analysis.control, v), product, rtol=1e-2)


@pytest.mark.slow
def test_an_analysis_without_a_record_has_its_pairs_too():
    slots = (LinearObs(H), jnp.ones(STATES), DenseCovariance(COVARIANCE), DenseCovariance(ERRORS))
    method, batch = ThreeDVar(*slots), Batch1D.from_observations(OBSERVATIONS[:, :1])
    pairs = last_hessian(method.problem(batch), method.analyse(batch), n_pairs=4)
    L = np.asarray(method.problem(batch).half.as_matrix())
    found = L @ np.asarray(inverse(jax.tree.map(lambda a: a[0], pairs), L.shape[1])) @ L.T
    np.testing.assert_allclose(found, posterior_covariance(OBSERVATIONS[0], 1), atol=CLOSE)
    assert pairs.values.shape == (2, 4)
    with pytest.raises(ValueError, match="`n_pairs` is 0, expected at least 1"):
        last_hessian(method.problem(batch), method.analyse(batch), n_pairs=0)
    forward, Q = DiscreteForward(lambda x: x, 1.0), DenseCovariance(np.eye(STATES))
    beside = WeakFourDVar(forward, *slots, Q, sub_windows=2, parallel=True)
    with pytest.raises(ValueError, match="part of the control has no prior"):
        last_hessian(beside.problem(Batch1D.from_observations(OBSERVATIONS)), method.analyse(batch))
