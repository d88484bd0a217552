"""The Galerkin form against the dense formula: between (I + A)⁻¹ and I for every number of vectors, and falling."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vardax.minimisers.galerkin import galerkin_pairs
from vardax.minimisers.last_hessian import extended

X64 = jax.config.jax_enable_x64
CLOSE = 1e-9 if X64 else 2e-4
N, P = 16, 9
RNG = np.random.default_rng(4)
G = RNG.normal(size=(P, N)) @ np.diag(np.logspace(1.0, -1.0, N))
A = G.T @ G
TRUTH = np.linalg.inv(np.eye(N) + A)


@eqx.filter_jit
def _covariance(matrix, start, k):
    record = extended(None, lambda v: matrix.T @ (matrix @ v), start, N, k)
    pairs = galerkin_pairs(record)
    return jax.vmap(pairs.solve)(jnp.eye(N)), pairs, record


def covariance(k, matrix=G):
    """C of k vectors, the pairs behind it and the Lanczos vectors."""
    C, pairs, record = _covariance(jnp.asarray(matrix), jnp.asarray(matrix.T @ np.ones(len(matrix))), jnp.asarray(k))
    return np.asarray(C), pairs, np.asarray(record.vectors[: int(record.n)])


@pytest.mark.parametrize("k", [1, 4, P])
def test_it_is_the_dense_formula(k):
    C, _, Q = covariance(k)
    AQ = A @ Q.T
    expected = np.eye(N) - AQ @ np.linalg.solve(Q @ AQ + AQ.T @ AQ, AQ.T)
    np.testing.assert_allclose(C, expected, atol=CLOSE)


def test_it_lies_between_the_truth_and_the_prior_and_falls_with_every_vector():
    before = np.eye(N)
    for k in range(1, P + 1):
        C, pairs, _ = covariance(k)
        assert np.linalg.eigvalsh(C - TRUTH).min() > -CLOSE
        assert np.linalg.eigvalsh(before - C).min() > -CLOSE
        np.testing.assert_allclose(-np.sum(np.log(pairs.values)), np.linalg.slogdet(C)[1], atol=10 * CLOSE)
        before = C
    np.testing.assert_allclose(before, TRUTH, atol=CLOSE)


@pytest.mark.x64
def test_the_usual_form_of_ritz_pairs_has_no_such_bound():
    """Why this form: on few vectors the other one is surer than the truth."""
    _, _, Q = covariance(4)
    usual = np.eye(N) - Q.T @ (np.eye(4) - np.linalg.inv(np.eye(4) + Q @ A @ Q.T)) @ Q
    assert np.linalg.eigvalsh(usual - TRUTH).min() < -0.01


def test_its_root_gives_its_samples():
    C, pairs, _ = covariance(5)
    root = np.asarray(eqx.filter_jit(lambda p: jax.vmap(p.damp)(jnp.eye(N)))(pairs))
    np.testing.assert_allclose(root @ root.T, C, atol=CLOSE)


def test_more_vectors_than_there_are_change_nothing():
    np.testing.assert_allclose(covariance(N)[0], TRUTH, atol=CLOSE)


def test_nothing_observed_is_the_prior():
    C, pairs, _ = covariance(3, np.zeros((P, N)))
    np.testing.assert_array_equal(C, np.eye(N))
    np.testing.assert_array_equal(pairs.values, 1.0)
