"""The Hessian that an incremental analysis leaves behind: its eigenpairs, for posteriors and later preconditioners.

    A = I + GᵀG ≈ V T Vᵀ on span(V),      A = I on its complement where that is beyond the reach of G

The inner loop ends when the increment is good enough, often before it has seen much of A. `last_hessian` takes the
Lanczos record of the last outer loop and goes on from where it stopped, at the point where that loop was linearised, to
min(`n_pairs`, size of the control) vectors. It is asked for after the analysis, which it neither changes nor slows
down; each further vector is one product with A.

The vectors may run out first. When the next one vanishes, the span is invariant: Lanczos from one start sees each
eigenvalue once, so it goes on with GᵀG applied to noise, orthogonal to what is known. If that vanishes too, G sees
nothing more, the rest of A is the identity, and the pairs at hand are exact: p observations give about p of them.

Where there is no usable record (another minimiser, `DualCG`, `cvt=False`, a preconditioner, `inner_forward`), Lanczos
starts afresh at the analysis, with Gᵀr.

Golub, G. and Van Loan, C. (2013). Matrix Computations, 4th ed., sections 10.1 and 10.3 (Lanczos, reorthogonalisation).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float, Int, PyTree

from vardax.minimisers.lanczos import KrylovRecord, RitzPairs, combine
from vardax.minimisers.problem import BatchedProblem, ControlSpaceProblem, tree_dot, tree_norm
from vardax.types import Analysis, is_traced

__all__ = ["extended", "last_hessian", "last_record"]

DEFAULT_PAIRS = 30
"""How many pairs an analysis without a record gets: the inner steps that `IncrementalConfig` allows."""

VANISHED = 30.0
"""A vector that keeps less than this many rounding errors of its length, orthogonal to the basis, has vanished. One
that is rounding error all the same costs a product, and no accuracy."""

EXHAUSTED = 1e3
"""GᵀG times noise has vanished below this many rounding errors: eigenvalues that differ from 1 by less are left out."""


def last_hessian(
    problem: BatchedProblem | ControlSpaceProblem, analysis: Analysis, n_pairs: int | None = None
) -> RitzPairs:
    """Eigenpairs of the last outer loop's I + GᵀG, of each sample: at most `n_pairs` (as many as there were `n_inner`).

    `problem` is `method.problem(batch)`. `RitzPairs.solve` applies the inverse that belongs to the pairs.
    """
    if n_pairs is not None and n_pairs < 1:
        raise ValueError(f"last_hessian: `n_pairs` is {n_pairs}, expected at least 1.")
    return _pairs_of(problem, last_record(problem, analysis.control, analysis.krylov, n_pairs))


def last_record(
    problem: BatchedProblem | ControlSpaceProblem, control: PyTree[Array], record: Any, n_pairs: int | None = None
) -> KrylovRecord:
    """The Lanczos record of I + GᵀG of each sample, with `n_pairs` vectors or as many as there are.

    It goes on from `record` (`Analysis.krylov`) where that can be used, and starts at `control` where it cannot. A
    record that is known to be complete is taken as it is; otherwise the problem is linearised once more.
    """
    if not problem.observe.proper:
        raise ValueError(
            "last_hessian: part of the control has no prior, so the Hessian is not the identity where G sees nothing; "
            "take sub-windows one after another, `parallel=False`."
        )
    usable = isinstance(record, KrylovRecord) and record.control is not None
    if usable and n_pairs is not None and _is_complete(record, n_pairs, problem, control):
        return _cut(problem, control, record, n_pairs)
    return _last_record(problem, control, record if usable else None, n_pairs)


def _is_complete(record: KrylovRecord, n_pairs: int, problem: Any, control: PyTree[Array]) -> bool:
    """Whether a record is known to have all vectors that are wanted."""
    if record.complete is None or is_traced(record.complete):
        return False
    n_samples = problem.n_samples if isinstance(problem, BatchedProblem) else 1
    size = sum(leaf.size for leaf in jax.tree.leaves(control)) // n_samples
    return record.diagonal.shape[-1] >= min(n_pairs, size) and bool(np.all(np.asarray(record.complete)))


@eqx.filter_jit
def _cut(problem: Any, control: PyTree[Array], record: KrylovRecord, n_pairs: int) -> KrylovRecord:
    def one(_: ControlSpaceProblem, control: PyTree[Array], record: KrylovRecord) -> KrylovRecord:
        return _in_dtype(record.first(n_pairs), control)

    return problem.map_samples(one, control, record)


def _in_dtype(record: KrylovRecord, control: PyTree[Array]) -> KrylovRecord:
    """A record in the dtype of the control: an iteration may have run in another."""
    vectors = jax.tree.map(lambda rows, c: rows.astype(c.dtype), record.vectors, control)
    dtype = jnp.result_type(*jax.tree.leaves(control))
    at = jax.tree.map(lambda a, c: a.astype(c.dtype), record.control, control)
    return KrylovRecord(vectors, record.diagonal.astype(dtype), record.off.astype(dtype), record.n, at, record.complete)


@eqx.filter_jit
def _pairs_of(problem: Any, record: KrylovRecord) -> RitzPairs:
    return problem.map_samples(lambda _, record: record.ritz_pairs(), record)


@eqx.filter_jit
def _last_record(
    problem: Any, control: PyTree[Array], record: KrylovRecord | None, n_pairs: int | None
) -> KrylovRecord:
    def one(sample: ControlSpaceProblem, control: PyTree[Array], record: KrylovRecord | None) -> KrylovRecord:
        known = DEFAULT_PAIRS if record is None else record.diagonal.shape[0]
        steps = min(known if n_pairs is None else n_pairs, sum(leaf.size for leaf in jax.tree.leaves(control)))
        record = None if record is None else _in_dtype(record, control)
        residual, G, GT = sample.linearise(control if record is None else record.control)
        start = jax.tree.map(lambda v, c: v.astype(c.dtype), GT(residual), control)
        return extended(record, lambda v: GT(G(v)), start, steps)

    return problem.map_samples(one, control, record)


class _Lanczos(NamedTuple):
    """`n` finished vectors of the basis, the next one in row n; `exhausted` when there is none."""

    n: Int[Array, ""]
    basis: PyTree[Array]
    diagonal: Float[Array, "k"]
    off: Float[Array, "k"]
    exhausted: Bool[Array, ""]


def extended(
    record: KrylovRecord | None,
    GTG: Callable[[PyTree[Array]], PyTree[Array]],
    start: PyTree[Array],
    steps: int,
    limit: Array | None = None,
) -> KrylovRecord:
    """The record of A = I + GᵀG with `steps` vectors, or as many as there are; from `start` where `record` is None.

    `limit` ends it earlier, where that is found out only while it runs.
    """
    eps = float(jnp.finfo(jax.tree.leaves(start)[0].dtype).eps)
    most = steps if limit is None else jnp.minimum(limit, steps)

    def unfinished(state: _Lanczos) -> Array:
        return (state.n < most) & ~state.exhausted

    def iteration(state: _Lanczos) -> _Lanczos:
        v = jax.tree.map(lambda rows: rows[state.n], state.basis)
        image = GTG(v)
        value = 1 + tree_dot(v, image)
        diagonal = state.diagonal.at[state.n].set(value.astype(state.diagonal.dtype))
        rounding = VANISHED * eps * jnp.max(jnp.abs(diagonal))
        found, length, exhausted = _next_vector(state.basis, image, rounding, GTG, state.n + 1)
        return _Lanczos(
            n=state.n + 1,
            basis=jax.tree.map(lambda rows, row: rows.at[state.n + 1].set(row), state.basis, found),
            diagonal=diagonal,
            off=state.off.at[state.n].set(length.astype(state.off.dtype)),
            exhausted=exhausted,
        )

    last = jax.lax.while_loop(unfinished, iteration, _resumed(record, GTG, start, steps, eps))
    complete = (last.n >= steps) | last.exhausted
    control = None if record is None else record.control
    return KrylovRecord(last.basis, last.diagonal, last.off, last.n, control, complete)


def _resumed(
    record: KrylovRecord | None,
    GTG: Callable[[PyTree[Array]], PyTree[Array]],
    start: PyTree[Array],
    steps: int,
    eps: float,
) -> _Lanczos:
    """Where a record stopped. Its last finished vector is finished again: the one after it, a residual that has
    shrunk, is known only roughly. A record that rounding has spoilt, and one without a step, begin again."""
    empty = jax.tree.map(lambda leaf: jnp.zeros((steps + 1, *leaf.shape), leaf.dtype), start)
    first, _, exhausted = _next_vector(empty, start, VANISHED * eps * tree_norm(start), GTG, jnp.asarray(0))
    fresh = jax.tree.map(lambda rows, row: rows.at[0].set(row), empty, first)
    dtype = jnp.result_type(*jax.tree.leaves(start))
    if record is None:
        return _Lanczos(jnp.asarray(0), fresh, jnp.ones(steps, dtype), jnp.zeros(steps, dtype), exhausted)
    basis = jax.tree.map(lambda rows: _resized(rows, steps + 1, 0.0), record.vectors)
    finished = jnp.minimum(record.n, steps)
    sound = (finished > 0) & (_defect(basis, finished) <= eps**0.5)
    kept = jnp.where(sound, jnp.where(record.n < steps, finished - 1, finished), 0)
    known = lambda rows, blank: jnp.where(_rows(rows, kept) | (_rows(rows, kept + 1) & sound), rows, blank)  # noqa: E731
    return _Lanczos(
        n=kept,
        basis=jax.tree.map(known, basis, fresh),
        diagonal=_resized(record.diagonal, steps, 1.0),
        off=_resized(record.off, steps, 0.0),
        exhausted=exhausted & ~sound,
    )


def _next_vector(
    basis: PyTree[Array], candidate: PyTree[Array], rounding: Array, GTG: Callable, number: Array
) -> tuple[PyTree[Array], Float[Array, ""], Bool[Array, ""]]:
    """A unit vector orthogonal to the basis, the length that `candidate` has along it, and whether there is none."""
    new, length = _orthogonal(basis, candidate)

    def from_noise(_: Any) -> tuple[PyTree[Array], Array, Array]:
        flat, unravel = ravel_pytree(candidate)
        noise = jax.random.normal(jax.random.fold_in(jax.random.key(0), number), flat.shape, flat.dtype)
        image = jax.tree.map(lambda a, c: a.astype(c.dtype), GTG(unravel(noise)), candidate)
        other, left = _orthogonal(basis, image)
        nothing = left <= EXHAUSTED * jnp.finfo(flat.dtype).eps * tree_norm(image)
        return jax.tree.map(lambda leaf: jnp.where(nothing, jnp.zeros_like(leaf), leaf), other), length * 0, nothing

    vanished = (length <= rounding) | (length == 0)
    return jax.lax.cond(vanished, from_noise, lambda _: (new, length, jnp.asarray(False)), None)


def _orthogonal(basis: PyTree[Array], v: PyTree[Array]) -> tuple[PyTree[Array], Float[Array, ""]]:
    """v without its parts along the basis, as a unit vector, and the length that was left; three passes."""
    remove = lambda v: jax.tree.map(jnp.subtract, v, combine(_parts(basis, v), basis))  # noqa: E731
    left = remove(remove(v))
    length = tree_norm(left)
    unit = jax.tree.map(lambda leaf: leaf / jnp.where(length > 0, length, 1).astype(leaf.dtype), left)
    unit = remove(unit)
    again = tree_norm(unit)
    return jax.tree.map(lambda leaf: leaf / jnp.where(again > 0, again, 1).astype(leaf.dtype), unit), length


def _parts(basis: PyTree[Array], v: PyTree[Array]) -> Float[Array, "k"]:
    return jax.vmap(tree_dot, in_axes=(0, None))(basis, v)


def _defect(basis: PyTree[Array], n: Array) -> Float[Array, ""]:
    """How far the first n vectors are from orthonormal."""
    products = jax.vmap(_parts, in_axes=(None, 0))(basis, basis)
    index = jnp.arange(products.shape[0])
    used = (index[:, None] < n) & (index[None, :] < n)
    return jnp.max(jnp.where(used, jnp.abs(products - jnp.eye(index.size, dtype=products.dtype)), 0.0))


def _rows(rows: Array, n: Array) -> Bool[Array, "..."]:
    """Which of the stacked rows are among the first n."""
    return (jnp.arange(rows.shape[0]) < n).reshape(-1, *(1,) * (rows.ndim - 1))


def _resized(rows: Array, n: int, blank: float) -> Array:
    """The first n rows, with blank ones where there are fewer."""
    widths = ((0, max(n - rows.shape[0], 0)), *((0, 0),) * (rows.ndim - 1))
    return jnp.pad(rows, widths, constant_values=blank)[:n]
