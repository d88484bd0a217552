"""Which axes of a grid close on themselves, and modulo what positions count.

Along an axis that closes there is a cell between its last and its first point, and coordinates repeat after a period:
n times the spacing of an even axis, or what is given. A regional grid has no such cell, and its longitudes may still
come in another convention than the observations': then positions count modulo a period (`wrap`) and nothing closes.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from vardax.types import concrete_values

__all__ = ["Periodic", "PeriodsAndClosed", "axis_periods", "coordinate_periods"]

Periodic = int | Sequence[int] | Mapping[int, Any]
"""Axes that close, with a period each where it is not n times the spacing."""

PeriodsAndClosed = tuple[tuple[Float[Array, ""] | None, ...], tuple[bool, ...]]
"""The period of each coordinate, or None, and whether the axis of the same number closes."""


def axis_periods(axes: tuple[Array, ...], periodic: Periodic, wrap: Mapping[int, float]) -> PeriodsAndClosed:
    """The periods of a grid with axes; those that only wrap are longer than the axis."""
    closing, wrapping = _numbered(periodic, "periodic", len(axes)), _numbered(wrap, "wrap", len(axes))
    periods: list[Array | None] = [None] * len(axes)
    for number, period in closing.items():
        axis = axes[number]
        periods[number] = _spacing_period(axis, number) if period is None else _given_period(axis, number, period)
    for number, period in wrapping.items():
        if number in closing:
            raise ValueError(f"InterpObs: axis {number} is in both `periodic` and `wrap`; it closes, or it does not.")
        periods[number] = _given_period(axes[number], number, period)
    return tuple(periods), tuple(number in closing for number in range(len(axes)))


def coordinate_periods(axes: tuple[Array, ...], periodic: Periodic, wrap: Mapping[int, float]) -> PeriodsAndClosed:
    """The periods of a curvilinear grid. A bare number closes an axis, and says nothing about its coordinate."""
    *levels, rows, columns = axes
    closing, wrapping = _numbered(periodic, "periodic", len(axes)), _numbered(wrap, "wrap", len(axes))
    above = [{k: v for k, v in given.items() if k < len(levels)} for given in (closing, wrapping)]
    periods, closed = axis_periods(tuple(levels), *above)
    for number, field in ((len(levels), rows), (len(levels) + 1, columns)):
        if closing.get(number) is not None and number in wrapping:
            raise ValueError(
                f"InterpObs: coordinate {number} has a period in both `periodic` and `wrap`; give it once."
            )
        period = wrapping.get(number, closing.get(number))
        periods = (*periods, None if period is None else _positive_period(field, number, period))
        closed = (*closed, number in closing)
    return periods, closed


def _numbered(given: Periodic, argument: str, ndim: int) -> dict[int, Any]:
    """Axis numbers from 0 on, with the period that was given for each."""
    entries = given if isinstance(given, Mapping) else dict.fromkeys(np.atleast_1d(given).tolist())
    for number in entries:
        if not isinstance(number, int) or not -ndim <= number < ndim:
            raise ValueError(f"InterpObs: `{argument}` names axis {number!r}, expected axis numbers below {ndim}.")
    return {number % ndim: period for number, period in entries.items()}


def _positive_period(field: Array, number: int, period: ArrayLike) -> Array:
    length = concrete_values(period)
    if length is not None and not float(length) > 0:
        raise ValueError(f"InterpObs: the period of coordinate {number} is {float(length):g}, expected more than 0.")
    return jnp.asarray(period, field.dtype)


def _given_period(axis: Array, number: int, period: ArrayLike) -> Array:
    points, length = concrete_values(axis), concrete_values(period)
    if points is not None and length is not None and not float(length) > float(np.ptp(points)):
        raise ValueError(
            f"InterpObs: the period of axis {number} is {float(length):g}, expected more than its extent "
            f"{float(np.ptp(points)):g}; leave out the last point where it repeats the first."
        )
    return jnp.asarray(period, axis.dtype)


def _spacing_period(axis: Array, number: int) -> Array:
    n, points = axis.shape[0], concrete_values(axis)
    steps = np.abs(np.diff(points)) if points is not None else np.ones(1)
    if n < 2 or not np.allclose(steps, steps.mean(), rtol=1e-3, atol=0.0):
        raise ValueError(
            f"InterpObs: axis {number} is not evenly spaced, so its period cannot be read off it; give it as "
            f"periodic={{{number}: period}}."
        )
    return jnp.abs(axis[-1] - axis[0]) * n / (n - 1)
