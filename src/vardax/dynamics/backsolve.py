r"""The continuous adjoint: a trajectory whose gradient is another integration, backwards in time.

    a(T) = ∂J/∂x_T,   da/dt = -(∂f/∂x)ᵀ a,   dg/dt = -(∂f/∂p)ᵀ a,   a += ∂J/∂x_k at each entry k

The trajectory is the model's own, step by step, and the only thing that is kept. From each of its entries, state, a and
g are integrated back to the entry before, so the state never drifts further from the trajectory than in one interval.
What comes out is the adjoint of the differential equation, not of the steps: it agrees with the exact gradient as far
as the steps solve the equation. There is no tangent, so no jvp and no Gauss-Newton product.

The derivative with respect to times needs no integration: moving the end of an interval changes the state by f there,
moving its start by -M f.

Reference: R. T. Q. Chen, Y. Rubanova, J. Bettencourt and D. Duvenaud, "Neural ordinary differential equations", NeurIPS
(2018).
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from vardax.dynamics.diffrax_forward import DiffraxForward
from vardax.dynamics.stepping import in_state_dtype

__all__ = ["Backwards", "backsolved", "backwards_of"]

_OPTIONS = ("solver", "stepsize_controller", "max_steps")


@dataclasses.dataclass(frozen=True)
class Backwards:
    """How the adjoint is integrated: what a `BacksolveAdjoint` says, and None where it leaves that to the model."""

    solver: Any = None
    stepsize_controller: Any = None
    max_steps: int = 4096

    def integrator(self, forward: Any, field: Callable[..., Any], dt: Any, n_substeps: int) -> DiffraxForward:
        """A model of the adjoint equation: with the solver of a `DiffraxForward`, else Tsit5, in the model's steps."""
        solver, controller, steps = dfx.Tsit5(), dfx.ConstantStepSize(), n_substeps
        if isinstance(forward, DiffraxForward):
            solver, controller, steps = forward.solver, forward.stepsize_controller, n_substeps * forward.n_substeps
        return DiffraxForward(
            field,
            dt,
            solver=self.solver or solver,
            stepsize_controller=self.stepsize_controller or controller,
            n_substeps=steps,
            max_steps=self.max_steps,
        )


def backwards_of(spec: Any) -> Backwards:
    """What a specification named BacksolveAdjoint asks for.

    >>> backwards_of(dfx.BacksolveAdjoint(max_steps=100))
    Backwards(solver=None, stepsize_controller=None, max_steps=100)
    """
    options = dict(getattr(spec, "kwargs", {}))
    if unknown := sorted(set(options) - set(_OPTIONS)):
        raise ValueError(
            f"`forward_adjoint` is BacksolveAdjoint with {', '.join(f'`{name}`' for name in unknown)}, which a rollout "
            f"decides itself; expected only {', '.join(f'`{name}`' for name in _OPTIONS)}."
        )
    return Backwards(**options)


def backsolved(
    trajectory: Callable[..., PyTree[Array]],
    arguments: tuple[Any, PyTree[Array], Any, PyTree[Array] | None],
    *,
    n_steps: int,
    n_substeps: int,
    backwards: Backwards,
) -> PyTree[Array]:
    """`trajectory(forward, x0, t0, increments)` of those `arguments`, with the continuous adjoint as its derivative.

    Its entries are `n_steps` intervals of `n_substeps` model steps; `increments` are added at the end of each.
    """
    return _backsolved(arguments, trajectory, n_steps, n_substeps, backwards)


@eqx.filter_custom_vjp
def _backsolved(arguments: tuple, trajectory: Callable, n_steps: int, n_substeps: int, backwards: Backwards) -> Any:
    return trajectory(*arguments)


@_backsolved.def_fwd
def _run_forwards(
    perturbed: Any, arguments: tuple, trajectory: Callable, n_steps: int, n_substeps: int, backwards: Backwards
) -> tuple[PyTree[Array], PyTree[Array]]:
    states = trajectory(*arguments)
    return states, states


@_backsolved.def_bwd
def _run_backwards(
    states: PyTree[Array],
    gradient: PyTree,
    perturbed: Any,
    arguments: tuple,
    trajectory: Callable,
    n_steps: int,
    n_substeps: int,
    backwards: Backwards,
) -> tuple:
    """The gradient with respect to forward, x0, t0 and increments, from that with respect to the states."""
    forward, x0, t0, increments = arguments
    own, rest = eqx.partition(forward, eqx.is_inexact_array)
    parameters = jax.tree.map(lambda p: p.astype(_dtype_of(x0)), own)
    gradient = jax.tree.map(lambda g, x: jnp.zeros_like(x) if g is None else g, gradient, states, is_leaf=_is_none)
    start, dt = (jnp.asarray(in_state_dtype(value, x0), _dtype_of(x0)) for value in (t0, forward.dt))
    interval_dt = n_substeps * dt

    def field(t: Any, x: PyTree, p: PyTree) -> PyTree:
        model = eqx.combine(p, rest)
        return model.vector_field(t, x, getattr(model, "args", None))

    def adjoint_field(t: Any, packed: tuple, _: Any) -> tuple:
        x, a, _ = packed
        dx, pull = jax.vjp(lambda x, p: field(t, x, p), x, parameters)
        return dx, *jax.tree.map(jnp.negative, pull(a))

    integrator = backwards.integrator(forward, adjoint_field, -dt, n_substeps)

    def interval(carry: tuple, entry: tuple) -> tuple[tuple, PyTree[Array]]:
        """From entry k to entry k - 1."""
        a, g, by_start, by_interval_dt = carry
        k, x, x_before, a_here, increment = entry
        a = jax.tree.map(jnp.add, a, a_here)
        if increment is not None:
            x = jax.tree.map(jnp.subtract, x, increment)
        begin = start + (k - 1).astype(dt.dtype) * interval_dt
        end = begin + interval_dt
        _, before, g = integrator.step((x, a, g), -interval_dt, t0=end)
        by_end, by_begin = _dot(a, field(end, x, parameters)), -_dot(before, field(begin, x_before, parameters))
        by_interval_dt = by_interval_dt + by_end + (k - 1).astype(dt.dtype) * (by_end + by_begin)
        return (before, g, by_start + by_end + by_begin, by_interval_dt), a

    later, earlier = (jax.tree.map(lambda leaf, s=s: leaf[s], states) for s in (slice(1, None), slice(None, -1)))
    first, others = (jax.tree.map(lambda leaf, s=s: leaf[s], gradient) for s in (0, slice(1, None)))
    zero = jnp.zeros((), dt.dtype)
    carry = (jax.tree.map(jnp.zeros_like, x0), jax.tree.map(jnp.zeros_like, parameters), zero, zero)
    entries = (jnp.arange(1, n_steps + 1), later, earlier, others, increments)
    (a, g, by_start, by_interval_dt), by_increments = jax.lax.scan(interval, carry, entries, reverse=True)
    by_forward = jax.tree.map(lambda gradient, p: gradient.astype(p.dtype), g, own)
    if eqx.is_inexact_array(forward.dt):
        by_dt = by_forward.dt + (n_substeps * by_interval_dt).astype(forward.dt.dtype)
        by_forward = eqx.tree_at(lambda model: model.dt, by_forward, by_dt)
    by_start = by_start.astype(t0.dtype) if eqx.is_inexact_array(t0) else None
    return by_forward, jax.tree.map(jnp.add, a, first), by_start, None if increments is None else by_increments


def _is_none(leaf: Any) -> bool:
    return leaf is None


def _dtype_of(x0: PyTree[Array]) -> Any:
    return jnp.result_type(*[leaf.dtype for leaf in jax.tree.leaves(x0)])


def _dot(a: PyTree[Array], b: PyTree[Array]) -> Array:
    return jax.tree.reduce(jnp.add, jax.tree.map(lambda u, v: jnp.sum(u * v), a, b))
