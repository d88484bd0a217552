"""Run a solver to its end, and find the steps that made its last updates.

What makes an update depends on the solver. One that moves at once (fixed-point iteration, Newton, a learned solver)
makes one in each step. Solvers with a search evaluate in each step the point that the step before proposed: they move
there and propose the next one, or reject it and propose a shorter step. Their update is made by the step at which the
direction was found, the last rejected trial if there was one, which scaled it, and the step that moved. `delay` tells
the two kinds apart.

`run_to_the_end` keeps no history, but the numbers of the steps that moved last and the states at which the last two
blocks of moves began: from one of these the state before any of the last updates can be found again.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, PyTree

from vardax.adjoints.direct import arrays_of

__all__ = ["Tail", "advance", "delay", "run_to_the_end"]

LONGEST_DELAY = 2
"""No solver is expected to show later than this what it has found."""


class Tail(NamedTuple):
    """How a solver ended.

    `steps` are the numbers of the steps that made the last updates, rising, after a filling of -1. `before` is a state
    that they all come after, that of step `at`.
    """

    final: PyTree
    steps: Int[Array, " L"]
    before: PyTree
    at: Int[Array, ""]


class _Run(NamedTuple):
    """A run on its way: its state, how many steps and moves were made, the last moves, those up to the last renewal."""

    carry: PyTree
    n_steps: Int[Array, ""]
    n_moves: Int[Array, ""]
    moves: Int[Array, " K"]
    kept: Int[Array, " K"]


def delay(step: Callable, solution: Callable[[Callable], PyTree]) -> int:
    """How many more steps it takes until the solution shows what a step has found: 0, or 1 for solvers with a search.

    `solution(reach)` is what the solver returns from the state `reach(initial state)`. The answer is read off abstract
    traces, by tangents that are symbolically zero: the problem is perturbed inside the steps only.
    """
    perturbed, rest = eqx.partition(step, eqx.is_inexact_array)

    def after(n_steps: int, perturbed: PyTree) -> PyTree:
        live = eqx.combine(perturbed, rest)

        def reach(init: PyTree) -> PyTree:
            carry = init
            for _ in range(n_steps):
                carry = eqx.combine(arrays_of(live(carry), like=init), init)
            return carry

        return solution(reach)

    for found in range(LONGEST_DELAY + 1):
        if _depends(lambda tree, n_steps=found + 1: after(n_steps, tree), perturbed):
            return found
    return 0


def _depends(fn: Callable[[PyTree], PyTree], perturbed: PyTree) -> bool:
    """Whether any floating-point array of `fn(perturbed)` has a tangent that is not symbolically zero."""
    found = []

    @eqx.filter_custom_jvp
    def look(leaf: Array) -> Array:
        return leaf

    @look.def_jvp
    def _look_jvp(primals: tuple, tangents: tuple) -> tuple:
        found.append(tangents[0] is not None)
        return primals[0], tangents[0]

    def looked_at(perturbed: PyTree) -> list[Array]:
        return [look(leaf) for leaf in jax.tree.leaves(fn(perturbed)) if eqx.is_inexact_array(leaf)]

    jax.eval_shape(lambda tree: jax.jvp(looked_at, (tree,), (tree,)), perturbed)
    return any(found)


def run_to_the_end(
    going: Callable[[PyTree], Array],
    step: Callable[[PyTree], PyTree],
    init: PyTree,
    *,
    n_moves: int,
    look: Callable[[PyTree], tuple[PyTree, PyTree]] | None,
    max_steps: int | None,
) -> Tail:
    """`while going(carry): carry = step(carry)`, and the steps that made the last `n_moves` moves.

    Without `look` every step is a move. `look(carry)` gives (solution, iterate): a step moves if it changes one of
    them, and the moves that count are those up to the last new solution, each with the step before it.
    """
    arrays, static = eqx.partition(init, eqx.is_array)
    whole = lambda arrays: eqx.combine(arrays, static)  # noqa: E731

    def unfinished(run: _Run) -> Bool[Array, ""]:
        more = going(whole(run.carry))
        return more if max_steps is None else more & (run.n_steps < max_steps)

    def one(run: _Run) -> _Run:
        carry = arrays_of(step(whole(run.carry)), like=init)
        moved = renewed = jnp.asarray(True)
        if look is not None:
            renewed, elsewhere = map(_differ, look(whole(run.carry)), look(whole(carry)))
            moved = renewed | elsewhere | (run.n_steps == 0)
        moves = jnp.where(moved, jnp.append(run.moves[1:], run.n_steps), run.moves)
        kept = jnp.where(renewed, moves, run.kept)
        return _Run(carry, run.n_steps + 1, run.n_moves + moved.astype(int), moves, kept)

    def block(runs: tuple[_Run, _Run, _Run]) -> tuple[_Run, _Run, _Run]:
        start, last, _ = runs
        until = start.n_moves + n_moves
        return jax.lax.while_loop(lambda run: unfinished(run) & (run.n_moves < until), one, start), start, last

    none = jnp.full(n_moves, -1)
    first = _Run(arrays, jnp.asarray(0), jnp.asarray(0), none, none)
    end, last, older = jax.lax.while_loop(lambda runs: unfinished(runs[0]), block, (first, first, first))
    steps = end.kept if look is None else _with_trials(end, n_moves)
    begin = jnp.min(jnp.where(steps < 0, end.n_steps, steps))
    before = _where(begin >= older.n_steps, older, first)
    before = _where(begin >= last.n_steps, last, before)
    return Tail(whole(end.carry), steps, whole(before.carry), before.n_steps)


def _with_trials(end: _Run, n_moves: int) -> Int[Array, " L"]:
    """The moves, each but the first with the step before it; the last steps where they are few, or nothing moved."""
    trials = jnp.where(end.kept[1:] - 1 > end.kept[:-1], end.kept[1:] - 1, -1)
    updates = jnp.sort(jnp.concatenate([end.kept, trials]))
    last = jnp.maximum(end.n_steps - n_moves + jnp.arange(n_moves), -1)
    consecutive = jnp.concatenate([jnp.full(n_moves - 1, -1), last])
    return jnp.where((end.n_steps <= n_moves) | (end.kept[-1] < 0), consecutive, updates)


def advance(step: Callable[[PyTree], PyTree], carry: PyTree, at: Any, until: Any) -> PyTree:
    """The state at step `until`, from that at step `at`."""
    arrays, static = eqx.partition(carry, eqx.is_array)
    arrays, _ = jax.lax.while_loop(
        lambda state: state[1] < until,
        lambda state: (arrays_of(step(eqx.combine(state[0], static)), like=carry), state[1] + 1),
        (arrays, jnp.asarray(at)),
    )
    return eqx.combine(arrays, static)


def _differ(a: PyTree, b: PyTree) -> Bool[Array, ""]:
    unequal = jax.tree.map(lambda u, v: jnp.any(u != v), a, b)
    return jax.tree.reduce(jnp.logical_or, unequal, jnp.asarray(False))


def _where(condition: Array, a: PyTree, b: PyTree) -> PyTree:
    return jax.tree.map(lambda u, v: jnp.where(condition, u, v), a, b)
