"""The covariance of an ensemble, with and without localisation, against the dense Schur product."""

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import optimistix as optx
import pytest

from vardax.covariances.block_diagonal import BlockDiagonalCovariance
from vardax.covariances.correlations import gaspari_cohn
from vardax.covariances.dense import DenseCovariance
from vardax.covariances.diagonal import DiagonalCovariance
from vardax.covariances.ensemble import LocalizedEnsembleCovariance
from vardax.covariances.kronecker import KroneckerCovariance
from vardax.covariances.matern import MaternLinearOperator
from vardax.models.optimal_interpolation import OptimalInterpolation
from vardax.models.threedvar import ThreeDVar
from vardax.obs_operators.point import PointObs
from vardax.types import Batch1D

X64 = jnp.zeros(0).dtype == jnp.float64
RANDOM = np.random.default_rng(6)


def members(n, *shape):
    return RANDOM.normal(size=(n, *shape)) + 3.0


def taper(n, c=2.5):
    return DenseCovariance(gaspari_cohn(np.abs(np.subtract.outer(np.arange(n), np.arange(n))), c))


def separable(*shape):
    return KroneckerCovariance(*map(taper, shape))


def sample_covariance(ensemble):
    return np.cov(ensemble.reshape(len(ensemble), -1), rowvar=False)


def matrix_of(covariance):
    return np.asarray(covariance.as_matrix(), float)


# (ensemble, localisation): a localisation acts on the state, here
LOCALISED = {
    "1-D, Gaspari-Cohn": lambda: (members(4, 9), taper(9)),
    "2-D, separable": lambda: (members(3, 4, 5), separable(4, 5)),
    "2-D, Matern, free": lambda: (members(5, 4, 3), MaternLinearOperator((4, 3), 1.5, boundary="free")),
    "3-D": lambda: (members(2, 2, 3, 4), MaternLinearOperator((2, 3, 4), 1.0)),
    "a sum of scales": lambda: (members(4, 8), 0.7 * MaternLinearOperator(8, 1.0) + 0.3 * MaternLinearOperator(8, 3.0)),
    "variances other than one": lambda: (members(4, 5), DenseCovariance(np.diag(np.arange(1.0, 6.0)))),
}


@pytest.mark.parametrize("name", LOCALISED)
def test_it_is_the_sample_covariance_times_the_localisation(name, equals_matrix):
    ensemble, localization = LOCALISED[name]()
    expected = sample_covariance(ensemble) * matrix_of(localization)
    covariance = LocalizedEnsembleCovariance(ensemble, localization)
    assert covariance.n_members == len(ensemble)
    equals_matrix(covariance, expected)


@pytest.mark.parametrize("shape", [(9,), (4, 5), (2, 3, 2)])
def test_without_localisation_it_is_the_sample_covariance(shape, equals_matrix):
    ensemble = members(5, *shape)
    covariance = LocalizedEnsembleCovariance(ensemble, None)
    equals_matrix(covariance, sample_covariance(ensemble))
    assert covariance.half().in_structure().shape == (5,)


def test_the_control_is_a_field_of_weights_for_each_member():
    ensemble, free = members(3, 4, 5), MaternLinearOperator((4, 5), 1.0, boundary="free")
    root = LocalizedEnsembleCovariance(ensemble, free).half()
    assert root.in_structure().shape == (3, *free.domain_shape)
    chi = jax.random.normal(jax.random.key(0), root.in_structure().shape)
    anomalies = (ensemble - ensemble.mean(0)) / np.sqrt(2)
    expected = sum(a * np.asarray(free.half().mv(c)) for a, c in zip(anomalies, chi, strict=True))
    np.testing.assert_allclose(root.mv(chi), expected, atol=1e-12 if X64 else 1e-5)


def variables(n):
    return {"u": members(n, 2, 4), "ssh": members(n, 4)}


def test_levels_and_variables_share_the_weights_of_their_place(equals_matrix):
    """A localisation of the trailing axis keeps the ensemble's correlations between levels and variables."""
    ensemble = variables(5)
    flat = np.concatenate([ensemble["ssh"], ensemble["u"].reshape(5, -1)], axis=1)
    place = np.concatenate([np.arange(4)] * 3)
    expected = np.cov(flat, rowvar=False) * matrix_of(taper(4))[np.ix_(place, place)]
    equals_matrix(LocalizedEnsembleCovariance(ensemble, taper(4)), expected)
    stacked = np.stack([ensemble["ssh"], ensemble["u"][:, 0]], axis=1)
    expected = sample_covariance(stacked) * np.kron(np.ones((2, 2)), matrix_of(taper(4)))
    equals_matrix(LocalizedEnsembleCovariance(stacked, taper(4)), expected)


def test_a_localisation_of_the_whole_pytree_may_separate_the_variables(equals_matrix):
    ensemble = variables(5)
    localization = BlockDiagonalCovariance({"u": separable(2, 4), "ssh": taper(4)})
    flat = np.concatenate([ensemble["ssh"], ensemble["u"].reshape(5, -1)], axis=1)
    expected = np.cov(flat, rowvar=False) * matrix_of(localization)
    covariance = LocalizedEnsembleCovariance(ensemble, localization)
    assert jax.tree.map(lambda leaf: leaf.shape, covariance.half().in_structure()) == {"u": (5, 2, 4), "ssh": (5, 4)}
    equals_matrix(covariance, expected)
    assert not np.any(matrix_of(covariance)[:4, 4:])


@pytest.mark.slow
def test_samples_have_the_covariance():
    ensemble, localization = LOCALISED["2-D, separable"]()
    expected = sample_covariance(ensemble) * matrix_of(localization)
    draws = np.asarray(LocalizedEnsembleCovariance(ensemble, localization).sample(jax.random.key(1), 4000), float)
    error = np.cov(draws.reshape(4000, -1), rowvar=False) - expected
    sampling_error = np.sqrt((np.outer(np.diag(expected), np.diag(expected)) + expected**2) / 4000)
    assert np.max(np.abs(error) / sampling_error) < 5


@pytest.mark.x64
def test_localisation_makes_it_invertible(inverts_matrix):
    ensemble, localization = members(6, 9), taper(9, 1.5)
    expected = sample_covariance(ensemble) * matrix_of(localization)
    inverts_matrix(LocalizedEnsembleCovariance(ensemble, localization), expected)


def test_without_localisation_there_is_no_inverse():
    covariance = LocalizedEnsembleCovariance(members(4, 9), None)
    for call in (lambda: covariance.inv_mv(jnp.ones(9)), covariance.logdet):
        with pytest.raises(ValueError, match="of 4 members without localisation has no inverse.*localise it.*Hybrid"):
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
@pytest.mark.parametrize("localised", [True, False])
def test_the_analysis_is_that_of_the_dense_formula(method, localised):
    ensemble, index = members(6, 4, 5), np.array([2, 7, 8, 15])
    localization = separable(4, 5) if localised else None
    B = sample_covariance(ensemble) * (matrix_of(localization) if localised else 1)
    x_b, y, variance = np.cos(np.arange(20.0)), np.array([[1.0, np.nan, -0.5, 2.0]]), np.array([0.3, 0.2, 0.1, 0.4])
    slots = PointObs(index), x_b.reshape(4, 5), LocalizedEnsembleCovariance(ensemble, localization)
    found = METHODS[method](*slots, DiagonalCovariance(variance))(Batch1D.from_observations(y))
    seen = np.isfinite(y[0])
    rows = index[seen]
    S = B[np.ix_(rows, rows)] + np.diag(variance[seen])
    expected = x_b + B[:, rows] @ np.linalg.solve(S, y[0, seen] - x_b[rows])
    np.testing.assert_allclose(np.ravel(found[0]), expected, atol=1e-7 if X64 else 2e-3)


def test_one_member_has_no_spread_and_leaves_the_background():
    covariance = LocalizedEnsembleCovariance(members(1, 6), taper(6))
    assert not np.any(covariance.as_matrix())
    x_b = jnp.arange(6.0)
    model = OptimalInterpolation(PointObs(np.array([1, 4])), x_b, covariance, DiagonalCovariance(np.ones(2)))
    np.testing.assert_array_equal(model(Batch1D.from_observations(jnp.array([[9.0, -9.0]])))[0], x_b)


@pytest.mark.x64
def test_gradients_with_respect_to_members_and_length(equals_differences):
    v = jnp.sin(jnp.arange(8.0))

    def quadratic(parameters):
        ensemble, length = parameters
        covariance = LocalizedEnsembleCovariance(ensemble, MaternLinearOperator(8, length))
        return jnp.vdot(v, covariance.mv(v)) + jnp.sum(covariance.half().T.mv(v) ** 3)

    equals_differences(quadratic, (jnp.asarray(members(3, 8)), jnp.asarray(1.7)))


@pytest.mark.x64
@pytest.mark.slow
def test_gradient_of_an_analysis_with_respect_to_the_members(equals_differences):
    batch = Batch1D.from_observations(jnp.array([[1.0, -1.0]]))

    def analysis(ensemble):
        B = LocalizedEnsembleCovariance(ensemble, taper(6))
        model = OptimalInterpolation(PointObs(np.array([1, 4])), jnp.zeros(6), B, DiagonalCovariance(np.full(2, 0.5)))
        return jnp.sum(model(batch) ** 2)

    equals_differences(analysis, jnp.asarray(members(3, 6)))


def test_eager_products_compile_once(count_compilations):
    covariance = LocalizedEnsembleCovariance(members(3, 6), taper(6))
    control, field = jnp.ones((3, 6)), jnp.ones(6)
    products = lambda B: (B.mv(field), B.half().mv(control), B.half().T.mv(field))  # noqa: E731
    other = LocalizedEnsembleCovariance(members(3, 6), taper(6))
    products(covariance)
    with count_compilations() as compiled:
        products(other)
    assert compiled.n == 0, compiled.names


def test_under_vmap_over_ensembles():
    ensembles = jnp.asarray(np.stack([members(3, 6), members(3, 6)]))
    together = jax.vmap(lambda e: LocalizedEnsembleCovariance(e, taper(6)).mv(jnp.ones(6)))(ensembles)
    alone = LocalizedEnsembleCovariance(ensembles[1], taper(6)).mv(jnp.ones(6))
    np.testing.assert_allclose(together[1], alone, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("ensemble", "localization", "error", "words"),
    [
        (np.ones((0, 4)), None, ValueError, "`ensemble` have 0 members along axis 0, expected one number, at least 1"),
        (np.ones(()), None, ValueError, "have 0 members"),
        ({"u": np.ones((3, 4)), "v": np.ones((2, 4))}, None, ValueError, "have 2 and 3 members"),
        ({}, None, ValueError, "`ensemble` holds no arrays"),
        ([[1.0, np.nan], [1.0, 2.0]], None, ValueError, "`ensemble` has 1 entries that are not finite"),
        (np.ones((3, 4)), np.eye(4), TypeError, "`localization` is ndarray.*DenseCovariance"),
        (np.ones((3, 4)), taper(5), ValueError, r"`localization` acts on .*\(5,\).* a member is .*\(4,\)"),
        ({"u": np.ones((3, 2, 4)), "v": np.ones((3, 2))}, taper(4), ValueError, "the trailing axes of all its arrays"),
        (np.ones((3, 4)), lx.MatrixLinearOperator(jnp.ones((4, 5))), ValueError, "expected a covariance"),
        (np.ones((3, 4), np.float32), DiagonalCovariance(np.ones(4, np.float16)), ValueError, "in the same dtype"),
        (
            {"u": np.ones((3, 4), "float32"), "v": np.ones((3, 4), "float16")},
            None,
            ValueError,
            "dtypes float16, float32",
        ),
    ],
)
def test_bad_ensembles_and_localisations_are_refused(ensemble, localization, error, words):
    with pytest.raises(error, match=words):
        LocalizedEnsembleCovariance(ensemble, localization)
