"""`DirectAdjoint`: the iterations of a solver as a plain scan, differentiated as they are.

    y_0 given,   s_{i+1} = step(s_i, theta),   i = 0 .. n - 1,   y* = y(s_n)

optimistix runs a solver through a loop that its adjoint supplies. Here that loop is a `lax.scan` of `max_steps` steps,
of which those after the last one needed are not taken; everything that a step's derivative needs is kept. Tangents
(jvp), adjoints (vjp) and their compositions all work, which is what a loop with a custom derivative rule cannot offer.
"""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import optimistix as optx
from jax.extend.core import Primitive
from jaxtyping import Array, Bool, PyTree

__all__ = ["DirectAdjoint", "arrays_of", "made_again", "scan_steps", "stop_gradient", "worth_keeping"]

_WORTH_KEEPING: set[Primitive] = set()


def worth_keeping(primitive: Primitive) -> None:
    """Say of an operation that its results cost more to make again than to keep: `made_again` keeps them."""
    _WORTH_KEEPING.add(primitive)


def made_again(step: Callable) -> Callable:
    """A step that is made again for its derivative, from its inputs and the results that are `worth_keeping`."""
    return jax.checkpoint(step, policy=lambda primitive, *_, **__: primitive in _WORTH_KEEPING)


class DirectAdjoint(optx.AbstractAdjoint):
    """Differentiate through every step of the solver, keeping all of them: forward and reverse mode.

    The fastest and most transparent way to the derivative of a truncated solve: no step is run twice, nothing is
    assumed about convergence. Memory is `max_steps` linearised steps whether they are needed or not, so give the solve
    the `max_steps` that it needs. For long solves take `RecursiveCheckpointAdjoint`, for converged ones
    `ImplicitAdjoint` or `KStepAdjoint`.

    >>> def root(a):
    ...     half_way = lambda y, a: 0.5 * (y + a / y)
    ...     solver = optx.FixedPointIteration(rtol=1e-6, atol=1e-6)
    ...     return optx.fixed_point(half_way, solver, a, a, adjoint=DirectAdjoint(), max_steps=10).value
    >>> round(float(jax.grad(root)(4.0)), 4), round(float(jax.jacfwd(root)(4.0)), 4)
    (0.25, 0.25)
    """

    def apply(self, primal_fn: Callable, rewrite_fn: Callable, inputs: PyTree, tags: frozenset[object]) -> PyTree:
        """optimistix's entry: run the solver with the loop of this adjoint."""
        del rewrite_fn, tags
        return primal_fn((*inputs, _unrolled))


def _unrolled(cond_fun: Callable, body_fun: Callable, init: PyTree, *, max_steps: int | None) -> PyTree:
    """The loop `while cond_fun: body_fun` as a scan."""
    if max_steps is None:
        raise ValueError(
            "DirectAdjoint keeps every step, so their number must be bounded: `max_steps` is None, expected an integer."
        )
    return scan_steps(lambda _, carry: cond_fun(carry), lambda _, carry: body_fun(carry), init, jnp.arange(max_steps))


def scan_steps(
    going: Callable,
    step: Callable,
    start: PyTree,
    indices: Array,
    *,
    keep: Callable[[Callable], Callable] = lambda f: f,
) -> PyTree:
    """carry -> `step(i, carry)` for each of the indices for which `going(i, carry)`, from `start`.

    `keep` says what of a step is kept for its derivative: everything, or with `made_again` little more than the carry.

    A step that is not taken is not computed either, unless another member of a batch takes it; then it runs at the
    start, where it is known to be harmless: no NaN of a finished solve meets the zero of its cotangent.
    """
    arrays, static = eqx.partition(start, eqx.is_array)
    harmless = stop_gradient(arrays)

    def one(carry: PyTree, index: Array) -> tuple[PyTree, None]:
        taken = going(index, eqx.combine(carry, static))

        def take(carry: PyTree) -> PyTree:
            stepped = step(index, eqx.combine(_where(taken, carry, harmless), static))
            return _where(taken, arrays_of(stepped, like=start), carry)

        return jax.lax.cond(_anywhere(taken), take, lambda carry: carry, carry), None

    carry, _ = jax.lax.scan(keep(one), arrays, indices)
    return eqx.combine(carry, static)


@jax.custom_batching.custom_vmap
def _anywhere(flag: Bool[Array, ""]) -> Bool[Array, ""]:
    """Whether any member of a batch has the flag: not batched itself, so that `lax.cond` remains a branch."""
    return flag


@_anywhere.def_vmap
def _anywhere_in_batch(axis_size: int, in_batched: list[bool], flag: Array) -> tuple[Array, bool]:
    del axis_size, in_batched
    return _anywhere(jnp.any(flag)), False


def arrays_of(tree: PyTree, *, like: PyTree) -> PyTree:
    """The leaves of `tree` that are arrays in `like`; a step may return a constant as something else."""
    return jax.tree.map(jnp.asarray, eqx.filter(tree, jax.tree.map(eqx.is_array, like)))


def stop_gradient(tree: PyTree) -> PyTree:
    """`tree` with its floating-point arrays constant; other leaves may be anything."""
    return jax.tree.map(lambda leaf: jax.lax.stop_gradient(leaf) if eqx.is_inexact_array(leaf) else leaf, tree)


def _where(condition: Array, a: PyTree, b: PyTree) -> PyTree:
    return jax.tree.map(lambda u, v: jnp.where(condition, u, v), a, b)
