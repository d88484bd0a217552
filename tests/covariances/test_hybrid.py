"""A static and an ensemble covariance, weighted; and the hybrid 3D-Var of the PDAF tutorial's size in plain numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import optimistix as optx
import pytest

from vardax.covariances.block_diagonal import BlockDiagonalCovariance
from vardax.covariances.dense import DenseCovariance
from vardax.covariances.diagonal import DiagonalCovariance
from vardax.covariances.ensemble import LocalizedEnsembleCovariance
from vardax.covariances.hybrid import HybridCovariance
from vardax.covariances.low_rank import LowRankCovariance
from vardax.covariances.matern import MaternLinearOperator
from vardax.models.optimal_interpolation import OptimalInterpolation
from vardax.models.threedvar import ThreeDVar
from vardax.obs_operators.point import PointObs
from vardax.types import Batch1D

X64 = jnp.zeros(0).dtype == jnp.float64
SHAPE = (3, 4)
STATIC = MaternLinearOperator(SHAPE, 1.2, 0.8, boundary="free")
MEMBERS = np.random.default_rng(1).normal(size=(5, *SHAPE))
FIELD = np.linspace(0.0, 2.0, 12).reshape(SHAPE)


def ensemble(localised=True):
    return LocalizedEnsembleCovariance(MEMBERS, MaternLinearOperator(SHAPE, 1.0) if localised else None)


def matrix_of(covariance):
    return np.asarray(covariance.as_matrix(), float)


def scaled(weight, matrix):
    root = np.sqrt(np.broadcast_to(weight, SHAPE).ravel())
    return np.outer(root, root) * matrix


@pytest.mark.parametrize("localised", [True, False])
@pytest.mark.parametrize("weights", [(0.5, 0.5), (1.5, 0.0), (FIELD, 0.3), (FIELD, 2.0 - FIELD)], ids=str)
def test_it_is_the_weighted_sum(weights, localised, equals_matrix):
    B = ensemble(localised)
    expected = scaled(weights[0], matrix_of(STATIC)) + scaled(weights[1], matrix_of(B))
    equals_matrix(HybridCovariance(STATIC, B, weights), expected)


def test_the_control_is_the_pair_of_controls():
    static, members = HybridCovariance(STATIC, ensemble(), [0.3, 0.7]).half().in_structure()
    assert static.shape == STATIC.domain_shape
    assert members.shape == (5, *SHAPE)


def test_fields_may_be_pytrees(equals_matrix):
    static = BlockDiagonalCovariance({"u": STATIC, "p": DiagonalCovariance(np.ones(2))})
    flow = LocalizedEnsembleCovariance({"u": MEMBERS, "p": MEMBERS[:, 0, :2]}, None)
    expected = 0.25 * matrix_of(static) + 0.75 * matrix_of(flow)
    equals_matrix(HybridCovariance(static, flow, (0.25, 0.75)), expected)
    by_variable = {"u": 0.5, "p": np.array([0.1, 0.2])}
    root = np.sqrt(np.concatenate([by_variable["p"], np.full(12, 0.5)]))
    expected = np.outer(root, root) * matrix_of(static) + 0.75 * matrix_of(flow)
    equals_matrix(HybridCovariance(static, flow, (by_variable, 0.75)), expected)


@pytest.mark.x64
def test_inverse_and_determinant_also_beyond_a_low_rank_part(inverts_matrix):
    covariance = HybridCovariance(STATIC, ensemble(False), (0.4, 0.6))
    inverts_matrix(covariance, matrix_of(covariance))
    singular = HybridCovariance(ensemble(False), ensemble(False), (0.4, 0.6))
    for call in (lambda: singular.inv_mv(jnp.ones(SHAPE)), singular.logdet):
        with pytest.raises(ValueError, match="B is only positive semidefinite, so there is no inverse"):
            call()


METHODS = {
    "OI": OptimalInterpolation,
    "3DVar": lambda *slots: ThreeDVar(*slots, tol=1e-11 if X64 else None),
    "Gauss-Newton": lambda *slots: ThreeDVar(*slots, minimiser=optx.GaussNewton(1e-8, 1e-8)),
}


def methods():
    """OI; the iterative ones in the slow run."""
    return [pytest.param(name, marks=() if name == "OI" else pytest.mark.slow) for name in METHODS]


@pytest.mark.parametrize("method", methods())
def test_the_analysis_is_that_of_the_dense_formula(method):
    B = HybridCovariance(STATIC, ensemble(), (0.5, 0.5))
    index, y, variance = np.array([0, 5, 6, 11]), np.array([[1.0, -0.5, np.nan, 2.0]]), np.array([0.3, 0.2, 0.1, 0.4])
    x_b = np.sin(np.arange(12.0))
    model = METHODS[method](PointObs(index), x_b.reshape(SHAPE), B, DiagonalCovariance(variance))
    found = model(Batch1D.from_observations(y))
    seen = np.isfinite(y[0])
    rows, matrix = index[seen], matrix_of(B)
    S = matrix[np.ix_(rows, rows)] + np.diag(variance[seen])
    expected = x_b + matrix[:, rows] @ np.linalg.solve(S, y[0, seen] - x_b[rows])
    np.testing.assert_allclose(np.ravel(found[0]), expected, atol=1e-7 if X64 else 2e-3)


@pytest.mark.x64
def test_gradients_with_respect_to_weights_length_and_members(equals_differences):
    v = jnp.cos(jnp.arange(12.0)).reshape(SHAPE)

    def quadratic(parameters):
        weights, length, members = parameters
        static = MaternLinearOperator(SHAPE, length)
        B = HybridCovariance(static, LocalizedEnsembleCovariance(members, static), weights)
        return jnp.vdot(v, B.mv(v)) + sum(jnp.sum(part**3) for part in B.half().T.mv(v))

    equals_differences(quadratic, (jnp.array([0.4, 0.6]), jnp.asarray(1.3), jnp.asarray(MEMBERS)))
    at_zero = jax.grad(lambda w: jnp.vdot(v, HybridCovariance(STATIC, ensemble(), (0.5, w)).mv(v)))(0.0)
    np.testing.assert_allclose(at_zero, jnp.vdot(v, ensemble().mv(v)), rtol=1e-10)


@pytest.mark.x64
@pytest.mark.slow
def test_gradients_with_respect_to_weights_that_are_fields(equals_differences):
    v = jnp.cos(jnp.arange(12.0)).reshape(SHAPE)
    quadratic = lambda weights: jnp.vdot(v, HybridCovariance(STATIC, ensemble(), weights).mv(v))  # noqa: E731
    equals_differences(quadratic, (jnp.asarray(FIELD + 0.1), jnp.asarray(0.6)))


@pytest.mark.parametrize(
    ("static", "flow", "weights", "error", "words"),
    [
        (STATIC, MEMBERS, (0.5, 0.5), TypeError, "`ensemble` is ndarray.*`LocalizedEnsembleCovariance"),
        (np.eye(12), ensemble(), (0.5, 0.5), TypeError, "`static` is ndarray.*DenseCovariance"),
        (
            DenseCovariance(np.eye(3)),
            ensemble(),
            (0.5, 0.5),
            ValueError,
            r"`ensemble` acts on .*expected the fields of",
        ),
        (STATIC, ensemble(), (0.5, -0.5), ValueError, "`weights` must be finite and not negative; found 1 of 1"),
        (STATIC, ensemble(), 0.5, ValueError, r"`weights` is 0.5, expected two: \(weight of static"),
        (STATIC, ensemble(), (0.2, 0.3, 0.5), ValueError, "expected two"),
        (STATIC, ensemble(), (0.5, np.ones(5)), ValueError, r"`weights` has shape \(5,\), expected \(3, 4\)"),
    ],
)
def test_bad_parts_and_weights_are_refused(static, flow, weights, error, words):
    with pytest.raises(error, match=words):
        HybridCovariance(static, flow, weights)


# -- PDAF ------------------------------------------------------------------------------------------------------------


def pdaf_case(seed=0):
    """18 x 36 cells, waves as truth and members, 28 observations with a standard deviation of 0.5, as there."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:18, 0:36]
    wave = lambda phase: np.sin(2 * np.pi * (x / 36 + y / 18) + phase)  # noqa: E731
    static = np.stack([wave(p) + 0.3 * rng.normal(size=(18, 36)) for p in rng.uniform(0, 6, 9)], axis=-1)
    return rng, wave, (static - static.mean(-1, keepdims=True)) / np.sqrt(8), rng.choice(648, 28, replace=False)


@pytest.mark.x64
@pytest.mark.parametrize("method", [method for method in methods() if method.values != ("3DVar",)])
def test_cycles_of_low_rank_and_hybrid_3dvar_like_the_tutorial_of_pdaf(method):
    """B = V Vᵀ, then ½ V Vᵀ + ½ sample covariance, three cycles: equal to numpy in control space to 1e-10."""
    rng, wave, V, index = pdaf_case()
    state = expected = wave(0.4) + 0.2 * rng.normal(size=(18, 36))
    for cycle in range(3):
        members = np.stack([wave(0.2 * cycle + p) for p in rng.normal(size=9)]) + 0.1 * rng.normal(size=(9, 18, 36))
        observed = np.ravel(wave(0.2 * cycle))[index] + 0.5 * rng.normal(size=28)
        hybrid = HybridCovariance(LowRankCovariance(V), LocalizedEnsembleCovariance(members, None), (0.5, 0.5))
        anomalies = np.moveaxis((members - members.mean(0)) / np.sqrt(8), 0, -1)
        L = V if cycle == 0 else np.concatenate([np.sqrt(0.5) * V, np.sqrt(0.5) * anomalies], axis=-1)
        B = LowRankCovariance(V) if cycle == 0 else hybrid
        model = METHODS[method](PointObs(index), state, B, DiagonalCovariance(np.full(28, 0.25)))
        state = np.asarray(model(Batch1D.from_observations(observed[None]))[0])
        L = L.reshape(648, -1)
        G = L[index] / 0.5
        chi = np.linalg.solve(np.eye(G.shape[1]) + G.T @ G, G.T @ (observed - np.ravel(expected)[index]) / 0.5)
        expected = expected + (L @ chi).reshape(18, 36)
        np.testing.assert_allclose(state, expected, atol=1e-10)
        state, expected = (np.roll(field, 2, axis=1) for field in (state, expected))
