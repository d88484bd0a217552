"""Instruments and their registry: names, shapes, positions, and what is refused."""

import numpy as np
import pytest

from vardax.covariances import BlockDiagonalCovariance, DenseCovariance, DiagonalCovariance
from vardax.obs_operators import InstrumentRegistry, InstrumentSpec, InterpObs, PointObs
from vardax.types import Observations

TWO = DiagonalCovariance(np.ones(2))


def spec(name, **fields):
    return InstrumentSpec(**({"obs_op": PointObs([0, 2]), "R_op": TWO, "instrument_id": name} | fields))


def test_a_registry_is_sorted_by_name():
    registry = InstrumentRegistry([spec("tropomi"), spec("goes"), spec("argo")])
    assert registry.ids == ("argo", "goes", "tropomi")
    assert [entry.instrument_id for entry in registry] == list(registry.ids)
    assert len(registry) == 3
    assert "goes" in registry
    assert "GOES" not in registry
    assert registry["goes"].instrument_id == "goes"


def test_the_shape_is_known_from_R_or_the_mask():
    assert spec("a").shape == (2,)
    assert spec("a", R_op=None, mask=[[1, 0, 1]]).shape == (1, 3)
    assert spec("a", R_op=None).shape is None


def test_positions_and_errors_come_from_the_observations():
    points = Observations([1.0, 2.0], [0.5, 9.0], 0.0, [[0.5], [1.0]], valid=[1, 0])
    bound = spec("a", obs_op=InterpObs([np.arange(3.0)]), R_op=None).at(points)
    np.testing.assert_array_equal(bound.obs_op.mask, [1, 0])
    np.testing.assert_allclose(bound.R_op.variance, [0.25, 1.0])
    correlated = DenseCovariance([[1.0, 0.5], [0.5, 1.0]])
    kept = spec("a", obs_op=InterpObs([np.arange(3.0)]), R_op=correlated).at(points)
    np.testing.assert_allclose(kept.R_op.as_matrix(), correlated.as_matrix())


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: InstrumentRegistry([]), ValueError, "`entries` is empty, expected at least one InstrumentSpec"),
        (lambda: InstrumentRegistry([spec("a"), spec("b"), spec("a")]), ValueError, "a is there more than once"),
        (lambda: InstrumentRegistry([PointObs([0])]), TypeError, "an entry is PointObs, expected InstrumentSpec"),
        (lambda: InstrumentRegistry([spec("goes")])["gose"], ValueError, "no instrument 'gose'.*Did you mean 'goes'"),
        (lambda: spec(""), ValueError, "`instrument_id` is '', expected a name without '/'"),
        (lambda: spec("a/b"), ValueError, "`instrument_id` is 'a/b', expected a name without '/'"),
        (lambda: spec(7), TypeError, "`instrument_id` is 7, expected a name such as 'tropomi'"),
        (lambda: spec("a", obs_op=3.0), TypeError, "InstrumentSpec 'a': `obs_op` is float, expected an observation"),
        (lambda: spec("a", R_op=np.eye(2)), TypeError, "InstrumentSpec 'a': `R_op` is ndarray.*`DenseCovariance`"),
        (
            lambda: spec("a", R_op=BlockDiagonalCovariance({"u": TWO})),
            TypeError,
            "`R_op` acts on .*expected one array of observations",
        ),
        (lambda: spec("a", mask=[1, 1, 1]), ValueError, r"`mask` has shape \(3,\), expected \(2,\), the shape of"),
        (lambda: spec("a", mask=[2, np.nan]), ValueError, r"`mask` must be 1 \(seen\) or 0; found 2 other entries"),
    ],
)
def test_what_is_no_instrument_is_refused(make, error, words):
    with pytest.raises(error, match=words):
        make()
