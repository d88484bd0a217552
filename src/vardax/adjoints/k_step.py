"""`KStepAdjoint`: differentiate the last k updates of a solver, and take what came before as given.

    s_{i+1} = step(s_i, theta),   i = 0 .. n - 1:   dy*/dtheta ≈ the derivative of k updates from stop_gradient(s_{n-k})

Where the solver contracts at the rate rho, the error of this Jacobian falls as rho^k; for k >= n nothing is dropped.
The memory is that of the live steps and three states of the solver, whatever n is.

The solver first runs to its end, so that n is known (`tail`); then its last updates are made once more, live, in a scan
of their own. That takes less than n + 2k steps for solvers that move in each step. The value is that of the first run,
whatever k; without differentiation there is no second one.

Bolte, J., Pauwels, E. and Vaiter, S. (2023). One-step differentiation of iterative algorithms. NeurIPS 36.
"""

import operator
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optimistix as optx
from jaxtyping import Array, PyTree

from vardax.adjoints.direct import scan_steps, stop_gradient
from vardax.adjoints.tail import Tail, advance, delay, run_to_the_end

__all__ = ["KStepAdjoint"]


def _checked_k(k: Any) -> int:
    if isinstance(k, bool) or not hasattr(k, "__index__"):
        raise TypeError(f"KStepAdjoint: k is {k!r}, expected an integer.")
    if k < 1:
        raise ValueError(f"KStepAdjoint: k is {k}, expected k >= 1; without a live step every gradient would be zero.")
    return operator.index(k)


class KStepAdjoint(optx.AbstractAdjoint):
    """Differentiate through the last `k` updates: a truncated unrolling, of constant memory.

    Use it for solvers that contract, with many steps and a memory that matters: fixed-point iterations, learned
    solvers, and Newton-like ones, of which a single step is already exact at the solution. A `k` beyond the number of
    steps is clipped; the value never depends on `k`. For a converged minimum `ImplicitAdjoint` is exact.

    An update is a step of the solver that changed its iterate. It keeps the linearisation of one step; of two for
    solvers with a line search or a trust region, whose update also needs the trial before it (see `tail`). Memory is
    that of `k` updates, not of `max_steps`.

    >>> def root(a):
    ...     half_way = lambda y, a: 0.5 * (y + a / y)
    ...     solver = optx.FixedPointIteration(rtol=1e-6, atol=1e-6)
    ...     return optx.fixed_point(half_way, solver, 1.0, a, adjoint=KStepAdjoint(k=1)).value
    >>> round(float(jax.grad(root)(4.0)), 4)
    0.25
    """

    k: int = eqx.field(static=True, converter=_checked_k)

    def apply(self, primal_fn: Callable, rewrite_fn: Callable, inputs: PyTree, tags: frozenset[object]) -> PyTree:
        """optimistix's entry: run the solver with the loop of this adjoint."""
        del rewrite_fn, tags
        frozen_inputs = stop_gradient(inputs)

        def solution(reach: Callable[[PyTree], PyTree]) -> PyTree:
            """What the solver returns from the state `reach(initial state)`."""
            return primal_fn((*frozen_inputs, lambda cond, body, init, *, max_steps: reach(init)))[0]

        def look(carry: PyTree) -> tuple[PyTree, PyTree]:
            return solution(lambda _: carry), carry[0]  # optimistix's loops carry the iterate first

        def loop(cond_fun: Callable, body_fun: Callable, init: PyTree, *, max_steps: int | None) -> PyTree:
            step = eqx.filter_closure_convert(body_fun, init)
            late = delay(step, solution)
            n_moves = self.k + late if max_steps is None else min(self.k + late, max_steps)
            frozen, start = stop_gradient(step), stop_gradient(init)
            tail = run_to_the_end(
                cond_fun, frozen, start, n_moves=n_moves, look=look if late else None, max_steps=max_steps
            )
            return _with_derivative_of(_last_updates(step, frozen, init, tail), tail.final)

        return primal_fn((*inputs, loop))


def _last_updates(step: Callable, frozen: Callable, init: PyTree, tail: Tail) -> PyTree:
    """The state after the steps of the tail. Between them the state moves on, and its derivative stays what it was."""

    def take(index: Array, state: tuple[PyTree, Array]) -> tuple[PyTree, Array]:
        carry, at = state
        if tail.steps.size > 1:  # one step alone begins where it should
            carry = _with_derivative_of(carry, advance(frozen, stop_gradient(carry), at, index))
        return step(carry), index + 1

    nothing_dropped = jnp.any(tail.steps == 0) | jnp.all(tail.steps < 0)
    start = _select(nothing_dropped, init, stop_gradient(tail.before))
    carry, _ = scan_steps(lambda index, _: index >= 0, take, (start, tail.at), tail.steps)
    return carry


@jax.custom_jvp
def _value(value: Array, like: Array) -> Array:
    """`value`, with the derivative of `like`, which is not even computed unless somebody differentiates."""
    del like
    return value


@_value.defjvp
def _value_jvp(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    return _value(*primals), tangents[1]


def _with_derivative_of(live: PyTree, value: PyTree) -> PyTree:
    """`value`, with the derivatives of `live`."""
    return jax.tree.map(lambda v, like: _value(v, like) if eqx.is_inexact_array(v) else v, value, live)


def _select(condition: Array, a: PyTree, b: PyTree) -> PyTree:
    return jax.tree.map(lambda u, v: jnp.where(condition, u, v) if eqx.is_array(u) else u, a, b)
