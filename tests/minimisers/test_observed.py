"""Masks and R meet in one place: missing entries are marginalised exactly, and never reach the algebra."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vardax.covariances.dense import DenseCovariance
from vardax.covariances.diagonal import DiagonalCovariance
from vardax.minimisers.moments import LinearInTime
from vardax.minimisers.observed import ObservedSamples, as_window, place, read_samples, restrict_samples
from vardax.types import Batch1D, Batch2D, Observations

NAN = float("nan")
RANDOM = np.random.default_rng(3)
M, E, SAMPLES = 4, 3, 2
R = np.eye(M) + 0.4 * (np.ones((M, M)) - np.eye(M)) + np.diag(np.arange(M) * 0.5)
Y = RANDOM.normal(size=(SAMPLES, E, M))
MASK = np.array([[[1, 1, 0, 1], [0, 0, 0, 0], [1, 1, 1, 1]], [[0, 1, 1, 0], [1, 0, 0, 0], [1, 1, 1, 0]]])
TOLERANCE = {"rtol": 1e-10, "atol": 1e-12} if jax.config.jax_enable_x64 else {"rtol": 2e-4, "atol": 1e-5}


def points(p=3, seed=0, **fields):
    random = np.random.default_rng(seed)
    default = {"value": random.normal(size=p), "error": random.uniform(0.5, 1, p), "time": 0.0}
    return Observations(**(default | {"coords": random.normal(size=(p, 2))} | fields))


def entries(cov, batch=None, owner="test"):
    batch = Batch1D(Y, MASK) if batch is None else batch
    return restrict_samples(read_samples(batch, (M,), window=True, owner=owner), cov, owner)


def one(stacked, sample):
    return jax.tree.map(lambda a: a[sample], stacked)


def marginal_inverse(cov, mask):
    """R⁻¹ of the observed entries in the places of the observed entries, zero elsewhere."""
    inverse, kept = np.zeros_like(cov), np.flatnonzero(np.ravel(mask))
    inverse[np.ix_(kept, kept)] = np.linalg.inv(cov[np.ix_(kept, kept)]) if kept.size else 0
    return inverse


each_cov = pytest.mark.parametrize(
    ("cov", "matrix"),
    [(DenseCovariance(R), R), (DiagonalCovariance(np.diag(R)), np.diag(np.diag(R)))],
    ids=["correlated", "diagonal"],
)


@each_cov
@pytest.mark.parametrize("sample", range(SAMPLES))
def test_missing_entries_are_marginalised(cov, matrix, sample):
    observed = one(entries(cov), sample)
    r = RANDOM.normal(size=(E, M))
    whitened, solved, product = (getattr(observed, name)(jnp.asarray(r)) for name in ("whiten", "solve", "mv"))
    for t in range(E):
        mask = MASK[sample, t]
        inverse = marginal_inverse(matrix, mask)
        np.testing.assert_allclose(solved[t], inverse @ r[t], **TOLERANCE)
        np.testing.assert_allclose(whitened[t] @ whitened[t], r[t] @ inverse @ r[t], **TOLERANCE)
        np.testing.assert_allclose(product[t], mask * (matrix @ (mask * r[t])), **TOLERANCE)
        assert (whitened[t][mask == 0] == 0).all()


@each_cov
def test_the_observation_error_replaces_the_deviations_of_R_and_keeps_its_correlations(cov, matrix):
    sd = RANDOM.uniform(0.3, 2.0, size=Y.shape)
    observed = one(entries(cov, Batch1D(Y, MASK, obs_err=sd)), 0)
    r = RANDOM.normal(size=(E, M))
    spread = np.sqrt(np.diag(matrix))
    correlation = matrix / np.outer(spread, spread)
    whitened, solved, product = (getattr(observed, name)(jnp.asarray(r)) for name in ("whiten", "solve", "mv"))
    for t in range(E):
        rescaled = correlation * np.outer(sd[0, t], sd[0, t])
        inverse = marginal_inverse(rescaled, MASK[0, t])
        np.testing.assert_allclose(solved[t], inverse @ r[t], **TOLERANCE)
        np.testing.assert_allclose(whitened[t] @ whitened[t], r[t] @ inverse @ r[t], **TOLERANCE)
        np.testing.assert_allclose(product[t], MASK[0, t] * (rescaled @ (MASK[0, t] * r[t])), **TOLERANCE)


def test_R_may_cover_the_whole_window():
    root = RANDOM.normal(size=(E * M, E * M))
    matrix = root @ root.T + np.eye(E * M)
    observed = one(entries(DenseCovariance(matrix, shape=(E, M))), 0)
    r = RANDOM.normal(size=(E, M))
    inverse = marginal_inverse(matrix, MASK[0])
    np.testing.assert_allclose(observed.solve(jnp.asarray(r)).ravel(), inverse @ r.ravel(), **TOLERANCE)
    whitened = observed.whiten(jnp.asarray(r))
    np.testing.assert_allclose(jnp.sum(whitened**2), r.ravel() @ inverse @ r.ravel(), **TOLERANCE)


@each_cov
def test_the_parts_of_the_instruments_add_up_to_the_whole_cost(cov, matrix):
    ids = RANDOM.integers(0, 3, size=Y.shape)
    observed = one(entries(cov, Batch1D(Y, MASK, instrument=ids)), 0)
    innovation = observed.innovation(jnp.zeros((E, M)))
    whitened = observed.whiten(innovation)
    parts = observed.cost_by_instrument(innovation, whitened)
    assert parts.shape == (3,)
    np.testing.assert_allclose(jnp.sum(parts), 0.5 * jnp.sum(whitened**2), **TOLERANCE)
    if np.count_nonzero(matrix) == M:  # uncorrelated: each part is the cost of that instrument alone
        for i in range(3):
            terms = MASK[0] * (ids[0] == i) * Y[0] ** 2 / np.diag(matrix)
            np.testing.assert_allclose(parts[i], 0.5 * terms.sum(), **TOLERANCE)


def test_a_nan_prediction_of_a_missing_entry_does_no_harm():
    observed = one(entries(DenseCovariance(R)), 0)
    predicted = jnp.where(jnp.asarray(MASK[0]) == 1, 0.5, jnp.nan)

    def cost(predicted):
        whitened = observed.whiten(observed.innovation(predicted))
        return 0.5 * jnp.sum(whitened**2)

    value, gradient = jax.value_and_grad(cost)(predicted)
    assert jnp.isfinite(value)
    assert jnp.isfinite(gradient).all()
    assert (np.asarray(gradient)[MASK[0] == 0] == 0).all()


def test_an_innovation_is_exactly_zero_where_nothing_was_observed():
    innovation = one(entries(DenseCovariance(R)), 0).innovation(jnp.full((E, M), jnp.inf))
    assert (np.asarray(innovation)[MASK[0] == 0] == 0).all()


# -- what is read ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("y", [np.ones((2, 4)), np.ones((2, 1, 4))], ids=["(B, *obs)", "(B, 1, *obs)"])
def test_a_single_time_has_one_entry(y):
    samples = read_samples(Batch1D(y, np.ones_like(y)), (4,), window=False, owner="test")
    assert samples.value.shape == samples.mask.shape == (2, 1, 4)


def test_fields_keep_their_shape():
    samples = read_samples(Batch2D.from_observations(np.ones((2, 3, 4, 5))), (4, 5), window=True, owner="test")
    assert samples.value.shape == (2, 3, 4, 5)
    assert samples.n_entries == 3


def test_every_field_of_a_single_time_gets_the_time_axis():
    batch = Batch1D(np.ones((2, 4)), np.ones((2, 4)), obs_err=np.ones((2, 4)), instrument=np.ones((2, 4), int))
    samples = read_samples(batch, (4,), window=False, owner="test")
    assert samples.obs_err.shape == samples.instrument.shape == (2, 1, 4)
    assert samples.n_instruments == 2


def test_scattered_points_are_stacked():
    samples = read_samples([points(seed=0), points(seed=1, instrument=[0, 2, 1])], (3,), window=False, owner="test")
    assert samples.value.shape == samples.obs_err.shape == (2, 1, 3)
    assert samples.n_instruments == 3
    assert samples.points.coords.shape == (2, 1, 3, 2)


def test_one_set_of_points_is_a_batch_of_one():
    assert read_samples(points(), (3,), window=False, owner="test").value.shape == (1, 1, 3)


def test_the_gaps_of_points_are_missing():
    samples = read_samples(points(value=[1.0, NAN, 2.0], valid=[1, 1, 0]), (3,), window=False, owner="test")
    assert samples.mask.tolist() == [[[1.0, 0.0, 0.0]]]


def test_scattered_points_of_a_window_are_one_entry():
    samples = read_samples([points(start=2.0), points(seed=1)], (3,), window=True, owner="Owner")
    assert samples.value.shape == (2, 1, 3)
    assert samples.start.tolist() == [2.0, 0.0]
    assert samples.n_steps(5, "Owner") == 5
    with pytest.raises(ValueError, match=r"Owner: scattered Observations .* give `n_steps`"):
        samples.n_steps(None, "Owner")


def test_a_batch_says_itself_how_long_its_window_is():
    samples = read_samples(Batch1D(Y, MASK, times=[2.0, 3.0, 4.0]), (M,), window=True, owner="Owner")
    assert samples.n_steps(None, "Owner") == samples.n_steps(E - 1, "Owner") == E - 1
    assert samples.start.tolist() == [2.0] * SAMPLES
    with pytest.raises(
        ValueError, match=r"Owner: `batch.input` has 3 time entries, expected 6, because `n_steps` is 5"
    ):
        samples.n_steps(5, "Owner")


def test_points_get_their_moments_and_those_outside_the_window_are_masked():
    obs = points(4, time=[2.0, 2.75, 9.0, 1.0], start=2.0)
    samples = place(read_samples([obs], (4,), window=True, owner="Owner"), 0.5, 2, LinearInTime())
    assert samples.moments.entry.tolist() == [[0, 1, 1, 0]]
    np.testing.assert_allclose(samples.moments.fraction, [[0.0, 0.5, 1.0, 0.0]])
    assert samples.mask.tolist() == [[[1.0, 1.0, 0.0, 0.0]]]
    assert samples.value[0, 0, 2:].tolist() == [0.0, 0.0]
    observed = one(restrict_samples(samples, None, "Owner"), 0)
    predicted = observed.moments(lambda x: x, jnp.arange(12.0).reshape(3, 4))
    np.testing.assert_allclose(predicted, [[0.0, 7.0, 10.0, 3.0]])
    assert observed.innovation(predicted)[0, 2:].tolist() == [0.0, 0.0]


def test_a_batch_that_does_not_fit_the_operator_is_refused():
    with pytest.raises(ValueError) as error:
        read_samples(Batch1D(np.ones((2, 1, 5)), np.ones((2, 1, 5))), (3,), window=False, owner="Owner")
    for words in ("Owner", "`batch.input`", "(2, 1, 5)", "(B, 3) or (B, 1, 3)", "`obs_op`"):
        assert words in str(error.value)


def test_a_window_for_a_single_time_method_names_the_method_for_windows():
    with pytest.raises(ValueError, match=r"has 3 time entries, expected 1; use StrongFourDVar"):
        read_samples(Batch1D(np.ones((2, 3, 4)), np.ones((2, 3, 4))), (4,), window=False, owner="Owner")


def test_a_window_without_its_time_axis_is_refused():
    with pytest.raises(ValueError, match=r"`batch.input` has shape \(2, 4\), expected \(B, T\+1, 4\)"):
        read_samples(Batch1D(np.ones((2, 4)), np.ones((2, 4))), (4,), window=True, owner="Owner")


def test_points_of_different_counts_are_filled_up():
    samples = read_samples([points(3), points(4)], (4,), window=False, owner="Owner")
    assert samples.mask.tolist() == [[[1.0, 1.0, 1.0, 0.0]], [[1.0, 1.0, 1.0, 1.0]]]


def test_points_that_do_not_fit_the_operator_are_refused():
    with pytest.raises(ValueError, match=r"`batch.input` has shape \(3,\), expected \(B, 5\)"):
        read_samples(points(3), (5,), window=False, owner="Owner")
    with pytest.raises(ValueError, match=r"`batch.input` has shape \(2, 3\), expected \(B, 5\)"):
        read_samples([points(3), points(3)], (5,), window=False, owner="Owner")


def test_an_R_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"Owner: `obs_cov_op` acts on shape \(5,\), expected \(4,\) .* or \(3, 4\)"):
        entries(DiagonalCovariance(np.ones(5)), owner="Owner")


def test_a_large_correlated_R_is_refused_by_name():
    y = np.ones((1, 513))
    samples = read_samples(Batch1D(y, y), (513,), window=False, owner="test")
    with pytest.raises(ValueError, match=r"513 entries.*DiagonalCovariance"):
        restrict_samples(samples, DenseCovariance(np.eye(513)), "test")


def test_one_sample_becomes_a_batch_of_one():
    assert as_window(jnp.array([1.0, NAN])).mask.tolist() == [[1.0, 0.0]]
    batch = Batch1D(Y, MASK, times=[0.0, 1.0, 2.0])
    window = as_window(batch.sample(1))
    assert window.input.shape == (1, E, M)
    assert window.times.shape == (E,)
    assert len(as_window(points())) == 1


def test_an_array_of_one_time_is_read_as_such():
    samples = read_samples(as_window(jnp.ones(4)), (4,), window=False, owner="test")
    assert isinstance(samples, ObservedSamples)
    assert samples.value.shape == (1, 1, 4)
