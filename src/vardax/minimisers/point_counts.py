"""Scattered observations of many counts, brought to few.

A compiled analysis holds for one count of points, and every day has its own. So an operator that reads positions is
given the points of a *bucket*, filled up with points that are not valid: 30 days whose counts differ by no more than a
factor of four compile at most three times. An operator without positions says itself how many observations it predicts,
and a correlated R says to which point each of its rows belongs: then counts have to agree, or be padded by hand.
"""

from collections.abc import Sequence
from typing import Any

import jax
import lineax as lx

from vardax.covariances.functions import is_diagonal
from vardax.types import Observations, is_traced

__all__ = ["SMALLEST_BUCKET", "as_points", "bucket_of", "fill_up", "of_one_count"]

SMALLEST_BUCKET = 32
"""Fewer points than this are filled up to it."""


def as_points(batch: Any) -> list[Observations] | None:
    """The Observations of a batch, one for each sample; None where it is a batch on a grid."""
    points = [batch] if isinstance(batch, Observations) else batch
    scattered = isinstance(points, list | tuple) and all(isinstance(o, Observations) for o in points)
    return list(points) if scattered and points else None


def bucket_of(count: int) -> int:
    """The count that `count` points are filled up to: the next power of two, from `SMALLEST_BUCKET` on.

    >>> [bucket_of(count) for count in (1, 100, 128, 400)]
    [32, 128, 128, 512]
    """
    return max(SMALLEST_BUCKET, 1 << max(count - 1, 0).bit_length())


def fill_up(batch: Any, obs_op: Any, obs_cov_op: lx.AbstractLinearOperator | None, owner: str) -> Any:
    """A batch whose Observations have one count, and one that many other counts share.

    That is the number of entries of a diagonal `obs_cov_op`, or the smallest bucket that holds the points of every
    sample. Points that were padded by hand keep their count; so do all while tracing, where each compiles anyway.
    """
    points = as_points(batch)
    if points is None:
        return batch
    counts = sorted({o.value.shape[0] for o in points})
    if reason := _why_fixed(obs_op, obs_cov_op):
        if len(counts) > 1:
            raise ValueError(
                f"{owner}: the Observations of `batch` have {counts} points, and {reason}; give all the same with "
                "`pad_to`."
            )
        return points
    if obs_cov_op is not None:
        return of_one_count(points, max(counts[-1], _n_errors(obs_cov_op)), owner)
    by_hand = all(o.padded for o in points) or any(is_traced(leaf) for leaf in jax.tree.leaves(points))
    return of_one_count(points, counts[-1] if by_hand else bucket_of(counts[-1]), owner)


def _why_fixed(obs_op: Any, obs_cov_op: lx.AbstractLinearOperator | None) -> str:
    """Why points must not be added, in words; empty where they may be."""
    if not hasattr(obs_op, "at"):
        return "`obs_op` does not read their positions"
    return "" if obs_cov_op is None or is_diagonal(obs_cov_op) else "`obs_cov_op` is not diagonal"


def _n_errors(obs_cov_op: lx.AbstractLinearOperator) -> int:
    """For how many points R is."""
    return getattr(obs_cov_op.out_structure(), "shape", (0,))[-1]


def of_one_count(points: Sequence[Observations], size: int, owner: str) -> list[Observations]:
    """The points of every sample with one count and one number of instruments, so that they stack."""
    shapes = {(o.coords.shape[1:], *sorted((key, a.shape[1:]) for key, a in o.aux.items())) for o in points}
    if len(shapes) > 1:
        raise ValueError(
            f"{owner}: the Observations of `batch` have `coords` and `aux` of different shapes, {sorted(shapes)}; "
            "expected one for all samples."
        )
    n_instruments = max(o.n_instruments for o in points)
    return [_padded(o, size, n_instruments) for o in points]


def _padded(points: Observations, size: int, n_instruments: int) -> Observations:
    if points.padded and (points.value.shape[0], points.n_instruments) == (size, n_instruments):
        return points
    filled = points.pad_to(size)
    names = ("value", "error", "time", "coords", "instrument", "valid", "aux", "start")
    fields = {name: getattr(filled, name) for name in names}
    return Observations(**fields, n_instruments=n_instruments, padded=True)
