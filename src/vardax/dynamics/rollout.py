"""A model trajectory over a window, and what is kept of it for the adjoint.

    x_0 given,   x_{k+1} = M_k(x_k),   k = 0 .. K - 1

`rollout` stacks x_0 .. x_K on a leading axis. It is a plain `lax.scan`, without a custom derivative rule (but for
`BacksolveAdjoint`), so tangents (jvp), adjoints (vjp), Hessian-vector and Gauss-Newton products all work through it,
also under `vmap`.

What differs is memory. The adjoint of step k needs the state x_k (and the intermediate values of the step), which are
either kept or computed again. The `forward_adjoint` slot chooses, recognised by name (`forward_memory`):

- `DirectAdjoint()`: everything is kept. Fastest; memory K times that of one linearised step.
- `RecursiveCheckpointAdjoint(checkpoints=k)`: two nested scans. The k block starts are kept; a block is run again when
  the adjoint reaches it and each of its steps once more, so about k + K/k states and up to two more model runs.
- `RecursiveCheckpointAdjoint()`: keeps everything while that is estimated to fit `KEEP_BUDGET_BYTES`, and takes
  k = sqrt(K) beyond. `rollout_memory` says which of the two it is.
- `ForwardMode()`: a plain scan; for jvp, which keeps nothing anyway.
- `BacksolveAdjoint()`: keeps the trajectory only and integrates the adjoint equation backwards, for models that offer
  `vector_field(t, x, args)`. Gradients only, no tangents (see `backsolve`).

The estimate is K times the bytes of the residuals of one linearised step, read off an abstract trace. It is per
sample: a batch under `vmap` keeps that much for each member.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, SupportsIndex

import equinox as eqx
import jax
import jax.numpy as jnp
import optimistix as optx
from jaxtyping import Array, ArrayLike, PyTree

from vardax.dynamics.adjoint_memory import Rematerialise, StoreLinearisation, check_count, forward_memory
from vardax.dynamics.backsolve import Backwards, backsolved
from vardax.dynamics.diffrax_forward import DiffraxForward
from vardax.dynamics.stepping import StepConvention, in_state_dtype, step_convention

__all__ = [
    "KEEP_BUDGET_BYTES",
    "as_forward",
    "rollout",
    "rollout_memory",
]

KEEP_BUDGET_BYTES = 2**30
"""`RecursiveCheckpointAdjoint()` keeps the whole linearisation while it is estimated below this (1 GiB)."""

SURE_FACTOR = 1000
"""No step is expected to keep more than this many times its state: windows that fit even then are not estimated."""


def as_forward(forward: Any) -> Any:
    """A model that `rollout` can step: `forward` itself, or its vector field stepped by Tsit5."""
    has_dt = hasattr(forward, "dt")
    if has_dt and not hasattr(forward, "step") and callable(getattr(forward, "vector_field", None)):
        return DiffraxForward(forward.vector_field, forward.dt, args=getattr(forward, "args", None))
    if has_dt and hasattr(forward, "step"):
        return forward
    raise TypeError(
        f"`forward` is a {type(forward).__name__}, expected a model with `step(state, dt)` and `dt`; "
        "wrap a step function in DiscreteForward(step_fn, dt), a vector field in DiffraxForward(vector_field, dt)."
    )


def rollout(
    forward: Any,
    x0: PyTree[Array],
    n_steps: SupportsIndex,
    *,
    forward_adjoint: Any = optx.RecursiveCheckpointAdjoint(),  # noqa: B008  (an immutable value)
    t0: ArrayLike = 0.0,
    n_substeps: SupportsIndex = 1,
    increments: PyTree[Array] | None = None,
) -> PyTree[Array]:
    """The states after 0, 1, .. `n_steps` observation intervals, stacked on a leading axis.

    An interval is `n_substeps` steps of `forward.dt`. `increments` (n_steps, *state) are added to the state at the end
    of each interval: model errors. A model whose `step` takes `t`, `t0` or `t0, t1` gets t0 + k dt at its internal step
    k. One that has no `step` but `vector_field(t, x, args)` is stepped by Tsit5. One with `check_state(state)` is asked
    about x0 first, where its values are at hand. `x0` is an array or a pytree of arrays; so is the result, in the same
    dtypes.

    >>> class Doubling:
    ...     dt, state_signature = 1.0, None
    ...     def step(self, state, dt):
    ...         return 2 * state
    >>> rollout(Doubling(), jnp.array([1.0, 3.0]), 2).tolist()
    [[1.0, 3.0], [2.0, 6.0], [4.0, 12.0]]

    Reference: A. Griewank and A. Walther, "Algorithm 799: Revolve", ACM TOMS 26 (2000), for checkpointing.
    """
    run = _Run.checked(forward, x0, n_steps, n_substeps, t0)
    memory = forward_memory(forward_adjoint, run.forward)
    block = memory if isinstance(memory, Backwards) else run.block_length(memory)
    if increments is not None:
        _check_increments(increments, run.x0, run.n_steps)
    if hasattr(run.forward, "check_state"):
        run.forward.check_state(run.x0)
    # A foreign object may change between calls, which a compilation keyed on its identity would not notice.
    trajectory = _compiled_trajectory if isinstance(forward, eqx.Module) else _trajectory
    return trajectory(run.forward, run.x0, run.t0, increments, run.convention, run.n_steps, run.n_substeps, block)


def rollout_memory(
    forward: Any,
    x0: PyTree[Any],
    n_steps: SupportsIndex,
    *,
    forward_adjoint: Any = optx.RecursiveCheckpointAdjoint(),  # noqa: B008  (an immutable value)
    n_substeps: SupportsIndex = 1,
) -> str:
    """In words, what `rollout` with these arguments keeps for its adjoint. Runs nothing; `x0` may be its structure.

    >>> class Doubling:
    ...     dt, state_signature = 1.0, None
    ...     def step(self, state, dt):
    ...         return 2 * state
    >>> rollout_memory(Doubling(), jnp.zeros(3), 9, forward_adjoint=optx.RecursiveCheckpointAdjoint(checkpoints=3))
    'rematerialises: keeps 3 block starts, runs blocks of 3 steps again'
    """
    x0 = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(jnp.shape(leaf), jnp.result_type(leaf)), x0)
    run = _Run.checked(forward, x0, n_steps, n_substeps, 0.0)
    memory = forward_memory(forward_adjoint, run.forward)
    if isinstance(memory, Backwards):
        kept = (run.n_steps + 1) * _bytes(run.x0) / 2**20
        return f"integrates the adjoint backwards: keeps the {run.n_steps + 1} entries ({kept:.3g} MiB)"
    block = run.block_length(memory)
    if block is None:
        return f"keeps the linearisation of all {run.n_internal} steps (about {run.kept_bytes() / 2**20:.3g} MiB)"
    starts, steps = -(-run.n_steps // block), block * run.n_substeps
    return f"rematerialises: keeps {starts} block starts, runs blocks of {steps} steps again"


@dataclasses.dataclass(frozen=True)
class _Run:
    """One rollout, its arguments checked."""

    forward: Any
    convention: StepConvention
    x0: PyTree[Any]
    n_steps: int
    n_substeps: int
    t0: Any

    @classmethod
    def checked(cls, forward: Any, x0: PyTree[Any], n_steps: Any, n_substeps: Any, t0: Any) -> "_Run":
        forward = as_forward(forward)
        check_count("n_steps", n_steps, 0)
        check_count("n_substeps", n_substeps, 1)
        x0 = jax.tree.map(lambda leaf: leaf if isinstance(leaf, jax.ShapeDtypeStruct) else jnp.asarray(leaf), x0)
        convention = step_convention(forward.step, f"{type(forward).__name__}.step")
        # An array, so that the time of the window is traced; a Python number stays weakly typed.
        t0 = jnp.asarray(in_state_dtype(t0, x0)) if convention.takes_time else 0.0
        run = cls(forward, convention, x0, int(n_steps), int(n_substeps), t0)
        _check_closed(run.step_from(run.t0), x0, f"{type(forward).__name__}.step")
        return run

    @property
    def n_internal(self) -> int:
        return self.n_steps * self.n_substeps

    def step_from(self, t: Any) -> Callable[[PyTree[Array]], PyTree[Array]]:
        dt = in_state_dtype(self.forward.dt, self.x0)
        return lambda state: self.convention(self.forward.step, state, dt, t)

    def internal_step(self, carry: tuple[Any, Any]) -> tuple[Any, Any]:
        """(x_k, k) -> (x_{k+1}, k + 1); k is weakly typed, so that the time takes the dtype of the state."""
        state, k = carry
        if k is None:
            return self.step_from(self.t0)(state), None
        return self.step_from(self.t0 + k * in_state_dtype(self.forward.dt, self.x0))(state), k + 1

    def kept_bytes(self) -> int:
        """Estimated bytes of the linearisation of the whole run: residuals of one step, times the steps."""
        residuals = jax.eval_shape(lambda x: jax.vjp(self.step_from(self.t0), x)[1], self.x0)
        return self.n_internal * _bytes(residuals)

    def block_length(self, memory: StoreLinearisation | Rematerialise) -> int | None:
        """Intervals to a rematerialised block, or None to keep everything."""
        if isinstance(memory, StoreLinearisation) or self.n_steps == 0:
            return None
        if memory.checkpoints is not None:
            return -(-self.n_steps // min(memory.checkpoints, self.n_steps))
        if self.n_internal * SURE_FACTOR * _bytes(self.x0) <= KEEP_BUDGET_BYTES:
            return None  # not worth a trace
        if self.kept_bytes() <= KEEP_BUDGET_BYTES:
            return None
        return _balanced_block(self.n_steps, self.n_substeps)


def _trajectory(
    forward: Any,
    x0: PyTree[Array],
    t0: Any,
    increments: PyTree[Array] | None,
    convention: StepConvention,
    n_steps: int,
    n_substeps: int,
    block: int | Backwards | None,
) -> PyTree[Array]:
    """The stacked states; `block` as from `_Run.block_length`, or how to integrate the adjoint."""
    if isinstance(block, Backwards):
        return backsolved(
            lambda model, x, t, etas: _trajectory(model, x, t, etas, convention, n_steps, n_substeps, None),
            (forward, x0, t0, increments),
            n_steps=n_steps,
            n_substeps=n_substeps,
            backwards=block,
        )
    run = _Run(forward, convention, x0, n_steps, n_substeps, t0)
    internal_step = run.internal_step if block is None else jax.checkpoint(run.internal_step, prevent_cse=False)

    def interval(carry: Any, increment: PyTree[Array] | None) -> tuple[Any, Any]:
        if n_substeps == 1:
            state, k = internal_step(carry)
        else:
            (state, k), _ = jax.lax.scan(lambda c, _: (internal_step(c), None), carry, None, length=n_substeps)
        if increment is not None:
            state = jax.tree.map(jnp.add, state, increment)
        return (state, k), state

    start = (x0, jnp.asarray(0) if convention.takes_time else None)
    if block is None or block == 1:
        _, later = jax.lax.scan(interval, start, increments, length=n_steps)
    else:
        later = _scan_in_blocks(interval, start, increments, n_steps, block)
    return jax.tree.map(lambda first, rest: jnp.concatenate([first[None], rest]), x0, later)


_compiled_trajectory = eqx.filter_jit(_trajectory)


def _scan_in_blocks(body: Callable[..., Any], start: Any, xs: PyTree[Array], length: int, block: int) -> PyTree[Array]:
    """`lax.scan(body, start, xs, length=length)[1]` in rematerialised blocks and a shorter last one."""
    full, rest = divmod(length, block)

    def inner(carry: Any, xs: PyTree[Array], *, count: int = block) -> tuple[Any, Any]:
        return jax.lax.scan(body, carry, xs, length=count)

    in_blocks = jax.tree.map(lambda x: x[: full * block].reshape(full, block, *x.shape[1:]), xs)
    carry, nested = jax.lax.scan(jax.checkpoint(inner, prevent_cse=False), start, in_blocks, length=full)
    head = jax.tree.map(lambda leaf: leaf.reshape(full * block, *leaf.shape[2:]), nested)
    if rest == 0:
        return head
    last = jax.tree.map(lambda x: x[full * block :], xs)
    _, tail = jax.checkpoint(lambda c, x: inner(c, x, count=rest))(carry, last)
    return jax.tree.map(lambda a, b: jnp.concatenate([a, b]), head, tail)


def _balanced_block(n_steps: int, n_substeps: int) -> int:
    """The block length m with the fewest kept states, n_steps / m + m n_substeps.

    A divisor is taken where one is nearly as good: a shorter last block has to be compiled too.
    """

    def kept(m: int) -> float:
        return n_steps / m + m * n_substeps

    best = max(1, min(n_steps, round(math.sqrt(n_steps / n_substeps))))
    divisor = min((m for m in range(1, n_steps + 1) if n_steps % m == 0), key=kept)
    return divisor if kept(divisor) <= 1.5 * kept(best) else best


def _check_increments(increments: PyTree[Any], x0: PyTree[Any], n_steps: int) -> None:
    expected = jax.tree.map(lambda leaf: (n_steps, *leaf.shape), x0)
    found = jax.tree.map(jnp.shape, increments)
    if found != expected:
        raise ValueError(f"`increments` has shape {found}, expected {expected}: one state for each interval.")


def _bytes(tree: PyTree[Any]) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def _check_closed(step: Callable[[Any], Any], x0: PyTree[Any], name: str) -> None:
    """Raise unless one step returns the structure, shapes and dtypes that it was given."""
    after = jax.eval_shape(step, x0)
    found, expected = jax.tree.structure(after), jax.tree.structure(x0)
    if found != expected:
        raise TypeError(f"`{name}` returns the structure {found}, expected that of the state `x0`, {expected}.")
    before = jax.tree_util.tree_leaves_with_path(x0)
    for (path, old), new in zip(before, jax.tree.leaves(after), strict=True):
        leaf = f" at leaf {jax.tree_util.keystr(path)}" if path else ""
        if new.shape != old.shape:
            raise ValueError(f"`{name}` returns shape {new.shape}{leaf}, expected {old.shape}, that of the state `x0`.")
        if new.dtype != old.dtype:
            raise TypeError(
                f"`{name}` returns dtype {new.dtype}{leaf}, expected {old.dtype}, that of the state `x0`: give `x0` in "
                f"{new.dtype}, or let the step compute in the dtype of its input."
            )
