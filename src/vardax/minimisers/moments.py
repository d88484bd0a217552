"""When the observations of a window were made, and what a trajectory predicts for them.

    y_i = (1 - f_i) H_i(x_k) + f_i H_i(x_{k+1}),      (t_i - t_0) / interval = k + f_i

Observations on the entries of a batch are predicted entry by entry (`EveryEntry`). Scattered ones have times of their
own, and lie between two entries x_k, x_{k+1} of the trajectory x_0 ... x_T (`BetweenEntries`); `LinearInTime` takes
both, `NearestInTime` the nearer one. An operator that samples space has `sample_along(trajectory, entry)` and reads
each point off its own entries, and no other; any other operator is applied to every entry of the trajectory.
"""

import abc
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from vardax.obs_operators.sampling import sample_along

__all__ = [
    "AbstractMoments",
    "AbstractTimeInterpolation",
    "BetweenEntries",
    "EveryEntry",
    "LinearInTime",
    "NearestInTime",
    "as_time_interpolation",
    "intervals_since",
    "required_steps",
    "within_window",
]


class AbstractMoments(eqx.Module):
    """At which moments of the window a sample was observed."""

    @abc.abstractmethod
    def __call__(self, operator: Any, trajectory: PyTree[Array]) -> Float[Array, "E ..."]:
        """The predicted observations, (E, *obs), of the trajectory x_0 ... x_T."""


class EveryEntry(AbstractMoments):
    """The same observations at each entry: E = T + 1."""

    def __call__(self, operator: Any, trajectory: PyTree[Array]) -> Float[Array, "E ..."]:
        return jax.vmap(operator)(trajectory)


class BetweenEntries(AbstractMoments):
    """Point i a `fraction` of the way from entry `entry[i]` to the next, or on it (None). All are one entry: E = 1."""

    entry: Int[Array, "... p"]
    fraction: Float[Array, "... p"] | None

    def __call__(self, operator: Any, trajectory: PyTree[Array]) -> Float[Array, "E ..."]:
        before = sample_along(operator, trajectory, self.entry)
        if self.fraction is None:
            return before[None]
        last = jax.tree.leaves(trajectory)[0].shape[0] - 1
        after = sample_along(operator, trajectory, jnp.minimum(self.entry + 1, last))
        fraction = self.fraction.astype(before.dtype)
        return ((1 - fraction) * before + fraction * after)[None]


class AbstractTimeInterpolation(eqx.Module):
    """How a trajectory is read between its entries."""

    @abc.abstractmethod
    def place(self, position: Float[Array, "..."], n_steps: int) -> BetweenEntries:
        """The moments at `position` intervals from the start of a window of `n_steps` intervals."""


class LinearInTime(AbstractTimeInterpolation):
    """Linearly between the entry before and the entry after."""

    def place(self, position: Float[Array, "..."], n_steps: int) -> BetweenEntries:
        position = _inside(position, n_steps)
        before = jnp.clip(jnp.floor(position), 0, max(n_steps - 1, 0))
        return BetweenEntries(before.astype(jnp.int32), position - before)


class NearestInTime(AbstractTimeInterpolation):
    """The nearest entry: half as many values are read, and what a model does within an interval is left out."""

    def place(self, position: Float[Array, "..."], n_steps: int) -> BetweenEntries:
        return BetweenEntries(jnp.round(_inside(position, n_steps)).astype(jnp.int32), None)


def as_time_interpolation(between: Any) -> AbstractTimeInterpolation:
    """`LinearInTime()` or `NearestInTime()`, or a `TypeError` that names them."""
    if isinstance(between, AbstractTimeInterpolation):
        return between
    raise TypeError(f"`time_interpolation` is {between!r}, expected LinearInTime() or NearestInTime().")


def _inside(position: Float[Array, "..."], n_steps: int) -> Float[Array, "..."]:
    return jnp.clip(jnp.where(jnp.isfinite(position), position, jnp.zeros_like(position)), 0, n_steps)


def required_steps(n_steps: int | None, owner: str) -> int:
    """How long a window of scattered points is: they have no entries to be counted."""
    if n_steps is None:
        raise ValueError(
            f"{owner}: scattered Observations do not say how long their window is; give `n_steps`, the number of "
            f"observation intervals: {owner}(..., n_steps=...)."
        )
    return n_steps


def intervals_since(time: Any, start: Any, interval: Any) -> Any:
    """(t - t_0) / interval, in the dtype of the times."""
    return (time - start) / (interval if isinstance(interval, int | float) else interval.astype(time.dtype))


def within_window(position: Any, n_steps: int) -> Any:
    """Which positions are in a window of `n_steps` intervals, its two ends included, up to rounding."""
    rounding = float(jnp.finfo(position.dtype).eps) ** 0.5
    return (position >= -rounding) & (position <= n_steps + rounding)
