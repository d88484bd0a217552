"""Observations as the cost sees them: values, masks, and R restricted to what was observed.

`read_samples` turns what the user gives (a batch, a list of `Observations`, an array whose gaps are NaN) into
`ObservedSamples`, arrays of shape (B, E, *obs) with E time entries: T + 1 of a batch, one that holds all scattered
points of a window. `locate` binds operators to positions, `place` puts scattered points between the entries of a
trajectory. `restrict_samples` adds the observation error and gives the stacked `ObservedEntries` of a problem. This is
the only place where masks and R meet.
"""

from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array, Bool, Float, Int

from vardax.covariances.diagonal import DiagonalCovariance
from vardax.covariances.functions import diagonal, restrict
from vardax.minimisers.moments import (
    AbstractMoments,
    AbstractTimeInterpolation,
    EveryEntry,
    intervals_since,
    required_steps,
    within_window,
)
from vardax.minimisers.point_counts import of_one_count
from vardax.types import AbstractBatch, Observations, float_array, observed_entries

__all__ = [
    "ObservedEntries",
    "ObservedSamples",
    "as_window",
    "locate",
    "place",
    "read_samples",
    "restrict_samples",
]


class ObservedSamples(eqx.Module):
    """B samples of E time entries: (B, E, *obs), zero where the mask is zero.

    `start` is the model time of each window's start. Scattered `points` are one entry, at the `moments` of each.
    """

    value: Float[Array, "B E ..."]
    mask: Float[Array, "B E ..."]
    obs_err: Float[Array, "B E ..."] | None = None
    instrument: Int[Array, "B E ..."] | None = None
    start: Float[Array, "B"] | None = None
    points: Observations | None = None
    moments: AbstractMoments = EveryEntry()
    operator: Any = None
    n_instruments: int = eqx.field(static=True, default=1)

    @property
    def n_entries(self) -> int:
        return self.value.shape[1]

    def n_steps(self, given: int | None, owner: str) -> int:
        """The number of observation intervals: one less than the entries; what is given where points are scattered."""
        if self.points is not None:
            return required_steps(given, owner)
        if given is not None and given != self.n_entries - 1:
            raise ValueError(
                f"{owner}: `batch.input` has {self.n_entries} time entries, expected {given + 1}, because `n_steps` is "
                f"{given}; leave `n_steps` out, which only scattered Observations need."
            )
        return self.n_entries - 1


class ObservedEntries(eqx.Module):
    """One sample's observations (E, *obs) with the inverse square root of R restricted to the observed entries.

    `rescale` is sd(R) / obs_err where the observations bring their own standard deviations, so that these replace the
    ones of R while its correlations stay. `operator` is the observation operator at this sample's own positions, where
    it reads them from the observations, and `moments` says when of the window, from `start` on, they were made.
    """

    value: Float[Array, "..."]
    mask: Float[Array, "..."]
    error: Any
    rescale: Float[Array, "..."] | None
    instrument: Int[Array, "..."] | None
    operator: Any
    moments: AbstractMoments
    start: Float[Array, "..."] | None
    whole_window: bool = eqx.field(static=True)
    n_instruments: int = eqx.field(static=True)

    def bound(self, obs_op: Any) -> Any:
        """`obs_op`, or the operator that has this sample's own positions."""
        return obs_op if self.operator is None else self.operator

    def _on_entries(self, member: str, v: Array) -> Array:
        """Apply a member of the restricted R: per time entry, or to the whole window when R covers it."""
        dtype = jnp.result_type(*jax.tree.leaves(eqx.filter(self.error, eqx.is_inexact_array)))
        work = v.astype(dtype)
        if self.whole_window:
            return getattr(self.error, member)(work).astype(v.dtype)
        return jax.vmap(lambda error, entry: getattr(error, member)(entry))(self.error, work).astype(v.dtype)

    def innovation(self, predicted: Array) -> Array:
        """y - H(x) where observed, exactly 0 elsewhere."""
        gap = self.value - predicted.astype(self.value.dtype)
        return jnp.where(self.mask != 0, gap, jnp.zeros_like(gap))

    def whiten(self, v: Array) -> Array:
        """W v with WᵀW = R^{-1} on the observed entries."""
        return self._on_entries("whiten", v if self.rescale is None else v * self.rescale)

    def solve(self, v: Array) -> Array:
        """R^{-1} v on the observed entries."""
        if self.rescale is None:
            return self._on_entries("solve", v)
        return self.rescale * self._on_entries("solve", self.rescale * v)

    def mv(self, v: Array) -> Array:
        """R v on the observed entries."""
        if self.rescale is None:
            return self._on_entries("mv", v)
        return self._on_entries("mv", v / self.rescale) / self.rescale

    def cost_by_instrument(self, innovation: Array, whitened: Array) -> Float[Array, "instruments"]:
        """½ rᵀR⁻¹r split over the instruments (entry by entry: r · R⁻¹r); the parts add up to the whole."""
        if self.instrument is None or self.n_instruments == 1:
            return 0.5 * jnp.sum(whitened**2)[None]
        entries = 0.5 * innovation * self.solve(innovation)
        return jax.ops.segment_sum(entries.ravel(), self.instrument.ravel(), num_segments=self.n_instruments)


def read_samples(batch: Any, obs_shape: tuple[int, ...], *, window: bool, owner: str) -> ObservedSamples:
    """The batch as (B, E, *obs). `obs_shape` is the shape that the observation operator gives for one state."""
    if isinstance(batch, ObservedSamples):
        samples = _with_entry_axis(batch) if batch.value.shape[1:] == obs_shape and not window else batch
    elif isinstance(batch, AbstractBatch):
        samples = _from_batch(batch, obs_shape, window)
    else:
        samples = _from_points([batch] if isinstance(batch, Observations) else batch, owner)
    if samples.value.ndim < 2 or samples.value.shape[2:] != obs_shape:
        entry = ", ".join(map(str, obs_shape))
        by_time = window and samples.points is None
        wanted = f"(B, T+1, {entry})" if by_time else f"(B, {entry}) or (B, 1, {entry})"
        raise ValueError(
            f"{owner}: `batch.input` has shape {_shape_of(batch)}, expected {wanted}, because `obs_op` maps a state "
            f"to observations of shape {obs_shape}."
        )
    if not window and samples.n_entries != 1:
        raise ValueError(
            f"{owner}: `batch.input` has {samples.n_entries} time entries, expected 1; use StrongFourDVar for a window."
        )
    return samples


def _shape_of(batch: Any) -> tuple[int, ...]:
    if isinstance(batch, AbstractBatch):
        return batch.input.shape
    if isinstance(batch, Observations | ObservedSamples):
        return batch.value.shape
    return (len(batch), *batch[0].value.shape)


def _from_batch(batch: AbstractBatch, obs_shape: tuple[int, ...], window: bool) -> ObservedSamples:
    value, mask = observed_entries(batch.input, batch.mask)
    fields = {name: getattr(batch, name) for name in ("obs_err", "instrument", "n_instruments")}
    start = None if batch.times is None else jnp.broadcast_to(batch.times[0], value.shape[:1])
    samples = ObservedSamples(value, mask, start=start, **fields)
    return _with_entry_axis(samples) if value.shape[1:] == obs_shape and not window else samples


def _with_entry_axis(samples: ObservedSamples) -> ObservedSamples:
    """(B, *obs) as (B, 1, *obs)."""
    per_entry = lambda s: (s.value, s.mask, s.obs_err, s.instrument)  # noqa: E731
    added = tuple(None if a is None else a[:, None] for a in per_entry(samples))
    return eqx.tree_at(per_entry, samples, added, is_leaf=lambda x: x is None)


def _from_points(points: Sequence[Observations], owner: str) -> ObservedSamples:
    alike = of_one_count(points, max(o.value.shape[0] for o in points), owner)
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves)[:, None], *alike)
    value, mask = observed_entries(stacked.value, stacked.valid)
    return ObservedSamples(
        value=value,
        mask=mask,
        obs_err=stacked.error,
        instrument=stacked.instrument,
        start=stacked.start[:, 0],
        points=stacked,
        n_instruments=stacked.n_instruments,
    )


def locate(samples: ObservedSamples, obs_op: Any) -> ObservedSamples:
    """Bind an operator that reads positions to those of each sample, once per analysis; mask what it cannot see."""
    operator = obs_op
    if samples.points is not None and hasattr(obs_op, "at"):
        operator = eqx.filter_vmap(lambda p: obs_op.at(jax.tree.map(lambda a: a[0], p)))(samples.points)
        samples = eqx.tree_at(lambda s: s.operator, samples, operator, is_leaf=lambda x: x is None)
    seen = _seen_by(operator, samples)
    if seen is None:
        return samples
    masked = (
        jnp.where(seen, samples.value, jnp.zeros_like(samples.value)),
        samples.mask * seen.astype(samples.mask.dtype),
    )
    return eqx.tree_at(lambda s: (s.value, s.mask), samples, masked)


def _seen_by(operator: Any, samples: ObservedSamples) -> Bool[Array, "B E ..."] | None:
    """The mask of an operator, with a sample axis where it is bound; None where it has none that fits what it makes."""
    mask, shape = getattr(operator, "mask", None), samples.mask.shape
    if mask is None:
        return None
    mask, n = jnp.asarray(mask), 0 if samples.operator is None else 1
    own = mask.shape[n:]
    if shape[len(shape) - len(own) :] != own:
        return None
    return jnp.broadcast_to(mask.reshape(*mask.shape[:n], *(1,) * (len(shape) - n - len(own)), *own) != 0, shape)


def place(samples: ObservedSamples, interval: Any, n_steps: int, between: AbstractTimeInterpolation) -> ObservedSamples:
    """Put scattered points between the entries of a trajectory, once per analysis; mask those outside the window."""
    assert samples.points is not None
    position = intervals_since(samples.points.time, samples.points.start[..., None], interval)
    inside = within_window(position, n_steps)
    moments = between.place(position[:, 0], n_steps)
    value = jnp.where(inside, samples.value, jnp.zeros_like(samples.value))
    mask = samples.mask * inside.astype(samples.mask.dtype)
    return eqx.tree_at(lambda s: (s.value, s.mask, s.moments), samples, (value, mask, moments))


def restrict_samples(
    samples: ObservedSamples, obs_cov_op: lx.AbstractLinearOperator | None, owner: str
) -> ObservedEntries:
    """R restricted to what each sample observed, factored once; all leaves stacked over the samples.

    R may describe one time entry, (*obs), and then holds for each, or the whole window, (E, *obs). None is the diagonal
    R of the standard deviations that come with the observations.
    """
    if obs_cov_op is None:
        if samples.obs_err is None:
            raise ValueError(
                f"{owner}: no observation error is given; give `obs_cov_op`, or `obs_err` (`error` of Observations) "
                "with the observations."
            )
        obs_cov_op = DiagonalCovariance(jnp.ones(samples.value.shape[2:], samples.value.dtype))
    structure = obs_cov_op.out_structure()
    if not isinstance(structure, jax.ShapeDtypeStruct):
        raise TypeError(
            f"{owner}: `obs_cov_op` acts on a pytree, {structure}, expected R on the array of observations; join its "
            "blocks with `BlockDiagonalCovariance(R_1, R_2, joined_along=0)`."
        )
    shape, dtype = structure.shape, structure.dtype
    entry_shape, window_shape = samples.value.shape[2:], samples.value.shape[1:]
    if shape not in (entry_shape, window_shape):
        raise ValueError(
            f"{owner}: `obs_cov_op` acts on shape {shape}, expected {entry_shape} (one time entry) or {window_shape} "
            "(the whole window)."
        )
    whole_window = shape != entry_shape
    restrict_one = lambda mask: restrict(obs_cov_op, mask)  # noqa: E731
    per_sample = restrict_one if whole_window else jax.vmap(restrict_one)
    rescale = None
    if samples.obs_err is not None:
        sd = jnp.sqrt(diagonal(obs_cov_op)).astype(samples.value.dtype)
        rescale = jnp.broadcast_to(sd, samples.value.shape) / samples.obs_err
    return ObservedEntries(
        value=samples.value,
        mask=samples.mask,
        error=jax.vmap(per_sample)(samples.mask.astype(dtype)),
        rescale=rescale,
        instrument=samples.instrument,
        operator=samples.operator,
        moments=samples.moments,
        start=samples.start,
        whole_window=whole_window,
        n_instruments=samples.n_instruments,
    )


def as_window(window: Any) -> ObservedSamples | AbstractBatch | list[Observations]:
    """One sample without a batch axis (a batch's sample, an array with NaN gaps, Observations) as a batch of one."""
    if isinstance(window, Observations):
        return [window]
    if isinstance(window, AbstractBatch):
        without_times = eqx.tree_at(lambda b: b.times, window, None, is_leaf=lambda x: x is None)
        batch = jax.tree.map(lambda a: a[None], without_times)
        return eqx.tree_at(lambda b: b.times, batch, window.times, is_leaf=lambda x: x is None)
    value, mask = observed_entries(float_array(window))
    return ObservedSamples(value=value[None], mask=mask[None])
