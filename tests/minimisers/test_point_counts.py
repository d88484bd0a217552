"""Counts of scattered points are brought to few, and only where that means the same."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vardax.covariances.dense import DenseCovariance
from vardax.covariances.diagonal import DiagonalCovariance
from vardax.minimisers.point_counts import SMALLEST_BUCKET, as_points, bucket_of, fill_up, of_one_count
from vardax.obs_operators.identity import MaskedIdentity
from vardax.obs_operators.interp import InterpObs
from vardax.types import Batch1D, Observations

READS = InterpObs([np.arange(3.0)])


def points(p, **fields):
    return Observations(np.ones(p), 1.0, 0.0, np.zeros((p, 1)), **fields)


def counts(batch, obs_op=READS, R=None):
    return [o.value.shape[0] for o in fill_up(batch, obs_op, R, "Owner")]


@given(st.integers(0, 10**6))
def test_a_bucket_holds_its_count_and_is_not_twice_as_large(count):
    size = bucket_of(count)
    assert count <= size
    assert size == SMALLEST_BUCKET or size < 2 * count


@given(st.integers(1, 10**6), st.integers(0, 2**31 - 1))
def test_counts_within_a_factor_of_four_need_three_buckets(smallest, seed):
    thirty = np.random.default_rng(seed).integers(smallest, 4 * smallest + 1, 30)
    assert len({bucket_of(int(count)) for count in thirty}) <= 3


def test_points_are_filled_up_to_a_bucket():
    (filled,) = fill_up(points(5, start=2.0, instrument=[0, 0, 1, 2, 0]), READS, None, "Owner")
    assert filled.value.shape == (SMALLEST_BUCKET,)
    assert filled.valid.tolist() == [1.0] * 5 + [0.0] * (SMALLEST_BUCKET - 5)
    assert float(filled.start) == 2.0
    assert filled.n_instruments == 3
    assert counts([points(0)]) == [SMALLEST_BUCKET]


def test_samples_share_the_bucket_of_the_largest():
    filled = fill_up([points(40, instrument=np.ones(40, int)), points(3)], READS, None, "Owner")
    assert [o.value.shape[0] for o in filled] == [64, 64]
    assert {o.n_instruments for o in filled} == {2}
    assert len({jax.tree.structure(o) for o in filled}) == 1


def test_points_padded_by_hand_keep_their_count():
    assert counts([points(5).pad_to(7)]) == [7]
    assert counts([points(5).pad_to(7), points(6).pad_to(9)]) == [9, 9]
    assert counts([points(5).pad_to(7), points(6)]) == [32, 32]


def test_while_tracing_counts_stay():
    seen = []
    jax.jit(lambda o: seen.append(counts(o)))([points(5), points(3)])
    assert seen == [[5, 5]]


def test_a_diagonal_R_says_how_many_points_there_are():
    assert counts([points(5), points(3)], R=DiagonalCovariance(np.ones(8))) == [8, 8]
    assert counts([points(5)], R=DiagonalCovariance(np.ones((1, 8)))) == [8]
    assert counts([points(5)], R=DiagonalCovariance(np.ones(4))) == [5]  # refused where R meets the points


def test_what_belongs_to_its_place_is_not_filled_up():
    """Row i of a correlated R is that of point i, and an operator without positions predicts as many as it does."""
    correlated = DenseCovariance(np.eye(8) + 0.1)
    assert counts([points(5)], R=correlated) == [5]
    assert counts(points(5), obs_op=MaskedIdentity()) == [5]
    with pytest.raises(
        ValueError, match=r"Owner: .* have \[3, 5\] points, and `obs_cov_op` is not diagonal; .*`pad_to`"
    ):
        counts([points(5), points(3)], R=correlated)
    with pytest.raises(
        ValueError, match=r"have \[3, 5\] points, and `obs_op` does not read their positions; .*`pad_to`"
    ):
        counts([points(5), points(3)], obs_op=MaskedIdentity())


def test_batches_on_a_grid_pass():
    batch = Batch1D(np.ones((1, 3)), np.ones((1, 3)))
    assert fill_up(batch, READS, None, "Owner") is batch
    assert as_points(batch) is None
    assert as_points([]) is None
    assert as_points([points(2), np.ones(2)]) is None


def test_what_does_not_stack_is_refused():
    flat = Observations(np.ones(3), 1.0, 0.0, np.zeros((3, 2)))
    with pytest.raises(
        ValueError, match="Owner: .* `coords` and `aux` of different shapes.*expected one for all samples"
    ):
        of_one_count([points(3), flat], 3, "Owner")
    with pytest.raises(ValueError, match="`coords` and `aux` of different shapes.*kernel"):
        of_one_count([points(3), points(3, aux={"kernel": np.ones((3, 2))})], 3, "Owner")


def test_filling_up_compiles_nothing(count_compilations):
    days = [points(p) for p in range(1, 20)]
    with count_compilations() as compiled:
        for day in days:
            fill_up([day], READS, None, "Owner")
    assert compiled.n == 0, compiled.names
    assert jnp.isfinite(days[0].value).all()
