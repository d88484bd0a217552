"""How a model crosses the intervals between the entries of a trajectory.

    entry by entry:   phi_0 = x_0,   phi_t = M_t(x_{t-1})       every interval from the state that was given
    free running:     phi_0 = x_0,   phi_t = M_t(phi_{t-1})     all of them from the first

M_t is `n_steps` steps of the model. They have the model's own length, or, with the times ts of the entries, a length of
(ts_t - ts_{t-1}) / n_steps. Both are runs of `vardax.dynamics.rollout`, so the `forward_adjoint` decides what the
adjoint keeps; entry by entry all intervals are run side by side (`vmap`).
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, PyTree

from vardax.dynamics.rollout import rollout
from vardax.dynamics.stepping import StepConvention, in_state_dtype, step_convention
from vardax.types import ArrayData, concrete_values, float_array

__all__ = ["Intervals"]


class Intervals(eqx.Module):
    """The intervals of a trajectory: a model, its steps to an interval, what its adjoint keeps, and when they begin.

    - `t0`: the model time of the first entry, for models that depend on time. It is not trained.
    """

    forward: Any
    n_steps: int = eqx.field(static=True)
    forward_adjoint: Any
    t0: Float[Array, ""]

    def entry_by_entry(self, x: PyTree[Array], ts: Float[Array, "T"] | None = None) -> PyTree[Array]:
        """x_0 and the state that follows each entry but the last."""
        if n_entries(x) == 1:
            return x
        before = jax.tree.map(lambda leaf: leaf[:-1], x)
        if ts is None:
            after = jax.vmap(lambda state, t: self._after(self.forward, state, t))(before, self._starts(x))
        else:
            across = lambda state, t, dt: self._after(_Retimed(self.forward, dt), state, t)  # noqa: E731
            after = jax.vmap(across)(before, ts[:-1], jnp.diff(ts) / self.n_steps)
        return jax.tree.map(lambda leaf, later: jnp.concatenate([leaf[:1], later]), x, after)

    def free_running(self, x: PyTree[Array], ts: Float[Array, "T"] | None = None) -> PyTree[Array]:
        """The trajectory from x_0, with as many entries as `x`."""
        first, n_intervals = jax.tree.map(lambda leaf: leaf[0], x), n_entries(x) - 1
        along = (self.forward, self._start(x)) if ts is None else (_AlongTimes(self.forward, ts, self.n_steps), 0.0)
        forward, t0 = along
        return rollout(
            forward, first, n_intervals, forward_adjoint=self.forward_adjoint, t0=t0, n_substeps=self.n_steps
        )

    def checked_times(self, x: PyTree[Array], ts: ArrayData | None) -> Float[Array, "T"] | None:
        """`ts` as an array that fits `x`, or None as it is."""
        if ts is None:
            return None
        ts, expected = float_array(ts), (n_entries(x),)
        if ts.shape != expected:
            raise ValueError(f"`ts` has shape {ts.shape}, expected {expected}: one time for each entry of `x`.")
        if type(self.forward_adjoint).__name__ == "BacksolveAdjoint":
            raise ValueError(
                "`forward_adjoint` is BacksolveAdjoint, which runs steps of the model's own length only: leave `ts` "
                "out, or take RecursiveCheckpointAdjoint()."
            )
        values = concrete_values(ts)
        if values is not None and len(values) > 1:
            self._check_gaps(x, np.diff(values))
        return ts

    def _check_gaps(self, x: PyTree[Array], gaps: np.ndarray) -> None:
        if not np.all(gaps > 0):
            raise ValueError(
                f"`ts` does not increase from each entry to the next (smallest difference {gaps.min():g})."
            )
        first = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), x)
        for gap in (gaps.min(), gaps.max()):  # a model may refuse a step: too long, or not what it was trained for
            step = _Retimed(self.forward, float(gap) / self.n_steps)
            jax.eval_shape(lambda state, step=step: step.step(state, step.dt), first)

    def _after(self, forward: Any, state: PyTree[Array], t: Array) -> PyTree[Array]:
        """The state one interval later."""
        entries = rollout(forward, state, 1, forward_adjoint=self.forward_adjoint, t0=t, n_substeps=self.n_steps)
        return jax.tree.map(lambda leaf: leaf[1], entries)

    def _start(self, x: PyTree[Array]) -> Array:
        return jax.lax.stop_gradient(in_state_dtype(self.t0, x))

    def _starts(self, x: PyTree[Array]) -> Array:
        """The model time at which each interval begins."""
        start = self._start(x)
        length = self.n_steps * in_state_dtype(self.forward.dt, x)
        return start + length * jnp.arange(n_entries(x) - 1, dtype=start.dtype)


class _Retimed(eqx.Module):
    """A model with steps of another length."""

    forward: Any
    dt: Any
    convention: StepConvention = eqx.field(static=True)

    def __init__(self, forward: Any, dt: Any):
        self.forward, self.dt = forward, dt
        self.convention = step_convention(forward.step, f"{type(forward).__name__}.step")

    def step(self, state: PyTree[Array], dt: ArrayLike, *, t0: ArrayLike = 0.0) -> PyTree[Array]:
        return self.convention(self.forward.step, state, dt, t0)


class _AlongTimes(eqx.Module):
    """A model whose step k is the (k mod n)-th of the n steps between two of the times `ts`; its own time is k."""

    forward: Any
    ts: Float[Array, "T"]
    n_steps: int = eqx.field(static=True)
    convention: StepConvention = eqx.field(static=True)
    dt: float = eqx.field(static=True)

    def __init__(self, forward: Any, ts: Float[Array, "T"], n_steps: int):
        self.forward, self.ts, self.n_steps, self.dt = forward, ts, n_steps, 1.0
        self.convention = step_convention(forward.step, f"{type(forward).__name__}.step")

    def step(self, state: PyTree[Array], dt: ArrayLike, *, t0: ArrayLike) -> PyTree[Array]:
        k = jnp.round(t0).astype(int)
        interval, steps_before = k // self.n_steps, k % self.n_steps
        length = (self.ts[interval + 1] - self.ts[interval]) / self.n_steps
        time = self.ts[interval] + steps_before.astype(length.dtype) * length
        return self.convention(self.forward.step, state, in_state_dtype(length, state), in_state_dtype(time, state))


def n_entries(x: PyTree[Array]) -> int:
    """T of a trajectory (T, *state).

    >>> n_entries({"u": jnp.zeros((4, 2)), "v": jnp.zeros(4)})
    4
    """
    shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(x)]
    counts = {shape[0] if shape else 0 for shape in shapes}
    if len(counts) != 1 or 0 in counts:
        raise ValueError(
            f"a trajectory has shapes {shapes}, expected (T, *state) with the same number T >= 1 of entries in each of "
            "its arrays."
        )
    return counts.pop()
