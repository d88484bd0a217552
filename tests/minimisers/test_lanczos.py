"""The truncated conjugate gradients of an outer loop on a dense problem: iterates, Lanczos record, Ritz pairs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vardax.minimisers.lanczos import ControlVectors, ImageVectors, conjugate_gradients

X64 = jax.config.jax_enable_x64
N_CONTROL, N_OBS, STEPS = 12, 7, 9
CLOSE = {"rtol": 1e-10, "atol": 1e-10} if X64 else {"rtol": 2e-3, "atol": 2e-3}


def system(seed=0, scale=3.0):
    """G rectangular, B^{1/2} neither square nor symmetric, b in the range of neither transpose."""
    rng = np.random.default_rng(seed)
    F, L = scale * rng.normal(size=(N_OBS, N_CONTROL - 2)), rng.normal(size=(N_CONTROL - 2, N_CONTROL))
    return jnp.asarray(F), jnp.asarray(L), jnp.asarray(rng.normal(size=N_CONTROL))


def spaces(F, L, b):
    """The three representations of the same vectors."""
    G = F @ L
    return {
        "control": ControlVectors(b, lambda v: G @ v, lambda w: G.T @ w),
        "dual": ImageVectors.of(b, lambda v: G @ v, lambda w: G.T @ w, lambda w: w),
        "pairs": ImageVectors.of(b, lambda v: L @ v, lambda w: L.T @ w, lambda dz: F.T @ (F @ dz)),
    }


def solve(space, steps=STEPS, limit=None, rtol=0.0, atol=0.0, reorthogonalise=True):
    limit = jnp.asarray(steps if limit is None else limit)
    return conjugate_gradients(space, steps=steps, limit=limit, rtol=rtol, atol=atol, reorthogonalise=reorthogonalise)


def krylov_minimum(A, b, steps):
    """The minimiser of ½ xᵀAx - bᵀx over span{b, Ab, ..., A^{steps-1} b}, by a dense orthonormal basis."""
    A, b = np.asarray(A, float), np.asarray(b, float)
    basis = [b / np.linalg.norm(b)]
    for _ in range(steps - 1):
        v = A @ basis[-1]
        for _ in range(2):
            v = v - np.stack(basis).T @ (np.stack(basis) @ v)
        basis.append(v / np.linalg.norm(v))
    V = np.stack(basis).T
    return V @ np.linalg.solve(V.T @ A @ V, V.T @ b)


@pytest.mark.parametrize("form", ["control", "dual", "pairs"])
@pytest.mark.parametrize("limit", [1, 4, 7])
def test_each_iterate_is_the_minimum_over_its_krylov_space(form, limit):
    F, L, b = system()
    A = jnp.eye(N_CONTROL) + (F @ L).T @ (F @ L)
    x, record = solve(spaces(F, L, b)[form], limit=limit)
    np.testing.assert_allclose(x, krylov_minimum(A, b, limit), **CLOSE)
    assert int(record.n) == limit


@pytest.mark.parametrize("form", ["control", "dual", "pairs"])
def test_it_solves_the_system_in_as_many_steps_as_there_are_eigenvalues(form):
    """A has 7 eigenvalues above 1 and the eigenvalue 1, so 8 steps are exact."""
    F, L, b = system(scale=0.4)
    A = jnp.eye(N_CONTROL) + (F @ L).T @ (F @ L)
    x, _ = solve(spaces(F, L, b)[form], limit=8)
    np.testing.assert_allclose(x, np.linalg.solve(A, b), **CLOSE)


@pytest.mark.parametrize("form", ["control", "dual", "pairs"])
def test_the_tolerance_is_relative_to_the_right_hand_side(form):
    F, L, b = system()
    A = np.eye(N_CONTROL) + np.asarray((F @ L).T @ (F @ L))
    rtol = 1e-3 if X64 else 3e-2
    x, record = solve(spaces(F, L, b)[form], rtol=rtol)
    assert np.linalg.norm(A @ x - b) <= 1.01 * rtol * np.linalg.norm(b)
    shorter, _ = solve(spaces(F, L, b)[form], limit=int(record.n) - 1)
    assert np.linalg.norm(A @ shorter - b) > rtol * np.linalg.norm(b)


def test_a_zero_right_hand_side_takes_no_step():
    F, L, b = system()
    x, record = solve(spaces(F, L, jnp.zeros_like(b))["control"])
    assert int(record.n) == 0
    np.testing.assert_array_equal(x, 0)


@pytest.mark.x64
def test_the_record_is_the_lanczos_factorisation():
    """VᵀV = I and VᵀAV = T."""
    F, L, b = system()
    A = jnp.eye(N_CONTROL) + (F @ L).T @ (F @ L)
    _, record = solve(spaces(F, L, b)["control"], limit=6)
    V = record.vectors[:6]
    T = jnp.diag(record.diagonal[:6]) + jnp.diag(record.off[:5], 1) + jnp.diag(record.off[:5], -1)
    np.testing.assert_allclose(V @ V.T, np.eye(6), atol=1e-12)
    np.testing.assert_allclose(V @ A @ V.T, T, atol=1e-9 * float(jnp.max(jnp.abs(T))))


@pytest.mark.x64
def test_converged_ritz_pairs_are_eigenpairs_and_damping_inverts_them():
    F, L, b = system()
    A = np.asarray(jnp.eye(N_CONTROL) + (F @ L).T @ (F @ L))
    _, record = solve(spaces(F, L, b)["control"], limit=7)
    pairs = record.ritz_pairs()
    good = np.flatnonzero(np.asarray(pairs.converged))
    assert good.size >= 2
    for i in good:
        u, value = np.asarray(pairs.vectors[i]), float(pairs.values[i])
        assert np.linalg.norm(A @ u - value * u) <= 1.1e-2 * value
    u, value = pairs.vectors[good[-1]], pairs.values[good[-1]]
    np.testing.assert_allclose(pairs.damp(u), u / jnp.sqrt(value), rtol=1e-9, atol=1e-12)


@pytest.mark.x64
def test_full_reorthogonalisation_keeps_the_vectors_orthogonal_where_rounding_does_not():
    """A spectrum over nine decades: plain conjugate gradients lose orthogonality within thirty steps."""
    rng = np.random.default_rng(1)
    Q, _ = np.linalg.qr(rng.normal(size=(60, 60)))
    G = jnp.asarray(np.diag(np.logspace(4.5, -2, 60)) @ Q.T)
    b = jnp.asarray(rng.normal(size=60))
    space = ControlVectors(b, lambda v: G @ v, lambda w: G.T @ w)

    def defect(reorthogonalise):
        _, record = solve(space, steps=40, reorthogonalise=reorthogonalise)
        V = np.asarray(record.vectors[: int(record.n)])
        return np.max(np.abs(V @ V.T - np.eye(V.shape[0])))

    assert defect(True) < 1e-10
    assert defect(False) > 1e-3


def test_controls_may_be_pytrees():
    F, L, b = system()
    G = F @ L
    split = lambda v: {"a": v[:5], "b": v[5:].reshape(-1, 1)}  # noqa: E731
    join = lambda tree: jnp.concatenate([tree["a"], tree["b"].ravel()])  # noqa: E731
    tree = ControlVectors(split(b), lambda v: G @ join(v), lambda w: split(G.T @ w))
    x, _ = solve(tree, limit=5)
    expected, _ = solve(spaces(F, L, b)["control"], limit=5)
    np.testing.assert_allclose(join(x), expected, **CLOSE)
