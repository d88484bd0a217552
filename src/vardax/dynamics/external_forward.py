r"""A model that is not written in JAX: numpy, Fortran behind a wrapper, a program that is called.

    x(t + dt) = step(x),   tangent: (x, dx) -> M'(x) dx,   adjoint: (x, a) -> M'(x)ᵀ a

JAX calls the three through `jax.pure_callback` and knows how they belong together, as a primitive of our own: the
derivative of `step` is `tangent`, whose transpose is `adjoint`. So reverse mode (the default minimiser), forward mode,
`jax.linearize` and its transpose (Gauss-Newton products) all work, also under `vmap`. What the user has not given is
missed only where it is needed: at the transposition, or when the tangent is compiled.

Only first derivatives exist. What asks for more (the Hessian in the gradient of an analysis, a derivative with respect
to `dt`) is refused with the reason. `validation.forward_model_test` checks tangent and adjoint against `step`.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jaxtyping import Array, ArrayLike, PyTree

from vardax.dynamics.stepping import StepConvention, checked_dt, in_state_dtype, step_convention

__all__ = ["ExternalForward"]

_NEEDED_FOR = {
    "tangent": "the tangent-linear model is needed here (forward mode, Gauss-Newton products): give "
    "`tangent(state, dstate)`, or use a minimiser that needs gradients only, such as the default L-BFGS",
    "adjoint": "the adjoint model is needed here (gradients of a cost): give `adjoint(state, costate)`",
}
_OTHER = {"tangent": "adjoint", "adjoint": "tangent"}


class ExternalForward(eqx.Module):
    """The `ForwardModel` of functions on numpy arrays.

    - `step(state)` or `step(state, dt)`, with the model time as `t` or `t0` where it is asked for by name.
    - `tangent(state, dstate)`, `adjoint(state, costate)`: derivative and transposed derivative of one step at `state`,
      with `dt` and the time likewise.

    States are trees of numpy arrays of the caller's own (they may be overwritten); what comes back is taken in the
    dtype of the state. The functions must be pure: JAX decides how often they are called. `vmap` calls them one state
    after another. `dt` is the length of one step.

    >>> decay = ExternalForward(lambda x, dt: x - dt * x, lambda x, dx, dt: dx - dt * dx, lambda x, a, dt: a - dt * a,
    ...                         dt=0.5)
    >>> jax.grad(lambda x: jnp.sum(decay.step(x, decay.dt) ** 2))(jnp.array([2.0, 4.0])).tolist()
    [1.0, 2.0]
    """

    functions: "_Functions" = eqx.field(static=True)
    dt: float | Array
    state_signature: PyTree[jax.ShapeDtypeStruct] | None

    def __init__(
        self,
        step: Any,
        tangent: Any = None,
        adjoint: Any = None,
        *,
        dt: Any = 1.0,
        state_signature: PyTree[jax.ShapeDtypeStruct] | None = None,
    ):
        conventions = {"step": step_convention(step, "step")}
        for name, function in (("tangent", tangent), ("adjoint", adjoint)):
            if function is None:
                continue
            if not callable(function):
                raise TypeError(f"ExternalForward: `{name}` is {function!r}, expected a function (state, vector).")
            conventions[name] = step_convention(functools.partial(function, None), name)
        self.functions = _Functions(step, tangent, adjoint, tuple(conventions.items()))
        self.dt = checked_dt(dt, "ExternalForward")
        self.state_signature = state_signature

    def step(self, state: PyTree[Array], dt: ArrayLike, *, t0: ArrayLike = 0.0) -> PyTree[Array]:
        """The state one interval `dt` after time `t0`."""
        leaves, tree = jax.tree.flatten(jax.tree.map(jnp.asarray, state))
        times = tuple(jnp.asarray(in_state_dtype(value, leaves)) for value in (dt, t0))
        out = _external_p.bind(*times, *leaves, call=_Call(self.functions, tree), which="step")
        return jax.tree.unflatten(tree, out)

    @property
    def tangent(self) -> Callable[[PyTree[Array], PyTree[Array]], PyTree[Array]] | None:
        """(state, dstate) -> M'(state) dstate of a step of `dt`; None where none was given."""
        return None if self.functions.tangent is None else functools.partial(self._linear, "tangent")

    @property
    def adjoint(self) -> Callable[[PyTree[Array], PyTree[Array]], PyTree[Array]] | None:
        """(state, costate) -> M'(state)ᵀ costate of a step of `dt`; None where none was given."""
        return None if self.functions.adjoint is None else functools.partial(self._linear, "adjoint")

    def _linear(self, which: str, state: PyTree[Array], vector: PyTree[Array]) -> PyTree[Array]:
        leaves, tree = jax.tree.flatten(jax.tree.map(jnp.asarray, state))
        times = tuple(jnp.asarray(in_state_dtype(value, leaves)) for value in (self.dt, 0.0))
        vectors = jax.tree.leaves(jax.tree.map(jnp.asarray, vector))
        out = _external_p.bind(*times, *leaves, *vectors, call=_Call(self.functions, tree), which=which)
        return jax.tree.unflatten(tree, out)


class _Functions:
    """The user's functions and how they are called; equal only to itself, so that compilations keep to one model."""

    def __init__(self, step: Any, tangent: Any, adjoint: Any, conventions: tuple[tuple[str, StepConvention], ...]):
        self.step, self.tangent, self.adjoint = step, tangent, adjoint
        self.key = (step, tangent, adjoint)
        self.conventions = dict(conventions)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Functions) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)


class _Call(eqx.Module):
    """Calls from JAX with flat lists of arrays."""

    functions: _Functions = eqx.field(static=True)
    tree: Any = eqx.field(static=True)

    def __call__(self, name: str, dt: Array, t0: Array, *leaves: Array) -> list[Array]:
        """Call back to the host: `leaves` are those of the state, then those of the vector that it is applied to."""
        result = [jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in leaves[-self.tree.num_leaves :]]
        return jax.pure_callback(
            functools.partial(self._on_host, name), result, dt, t0, *leaves, vmap_method="sequential"
        )

    def _on_host(self, name: str, dt: Any, t0: Any, *leaves: Any) -> list[np.ndarray]:
        arrays = [np.array(leaf) for leaf in leaves]
        n = self.tree.num_leaves
        *first, last = (jax.tree.unflatten(self.tree, arrays[i : i + n]) for i in range(0, len(arrays), n))
        function = functools.partial(getattr(self.functions, name), *first)
        out = self.functions.conventions[name](function, last, float(dt), float(t0))
        return self._checked(name, out, arrays[-n:])

    def _checked(self, name: str, out: Any, like: Sequence[np.ndarray]) -> list[np.ndarray]:
        leaves, tree = jax.tree.flatten(out)
        if tree != self.tree:
            raise TypeError(f"ExternalForward: `{name}` returned the structure {tree}, expected {self.tree}.")
        arrays = [np.asarray(leaf, dtype=model.dtype) for leaf, model in zip(leaves, like, strict=True)]
        for array, model in zip(arrays, like, strict=True):
            if array.shape != model.shape:
                raise ValueError(f"ExternalForward: `{name}` returned shape {array.shape}, expected {model.shape}.")
        return arrays


# -- the primitive: dt, t0, the leaves of the state and, for tangent and adjoint, those of the vector ----------------

_external_p = Primitive("vardax_external")
_external_p.multiple_results = True


def _called(*arguments: Array, call: _Call, which: str) -> list[Array]:
    if getattr(call.functions, which) is None:
        raise ValueError(f"ExternalForward: `{which}` is missing, and {_NEEDED_FOR[which]}.")
    return call(which, *arguments)


def _shapes(*arguments: Any, call: _Call, which: str) -> list[Any]:
    return list(arguments[-call.tree.num_leaves :])


def _transpose(cotangents: Sequence[Any], *arguments: Any, call: _Call, which: str) -> list[Any]:
    n, other = call.tree.num_leaves, _OTHER[which]
    if getattr(call.functions, other) is None:
        raise ValueError(f"ExternalForward: `{other}` is missing, and {_NEEDED_FOR[other]}.")
    fixed = arguments[:-n]
    filled = [ad.instantiate_zeros(cotangent) for cotangent in cotangents]
    return [None] * len(fixed) + _external_p.bind(*fixed, *filled, call=call, which=other)


def _jvp(primals: Sequence[Any], tangents: Sequence[Any], *, call: _Call, which: str) -> tuple[list, list]:
    n = call.tree.num_leaves
    for name, tangent in zip(("dt", "t0"), tangents, strict=False):
        if not isinstance(tangent, ad.Zero):
            raise ValueError(f"ExternalForward: the derivative with respect to `{name}` is not known, and asked for.")
    if which != "step" and any(not isinstance(tangent, ad.Zero) for tangent in tangents[2:-n]):
        raise ValueError(
            f"ExternalForward: a second derivative is asked for, and `{which}` is known at a state only. Gradients of "
            "an analysis need the Hessian of its cost; the analysis itself and its Gauss-Newton posterior do not."
        )
    fixed, derivative = (primals, "tangent") if which == "step" else (primals[:-n], which)
    vectors = [ad.instantiate_zeros(tangent) for tangent in tangents[-n:]]
    out = _external_p.bind(*primals, call=call, which=which)
    return out, _external_p.bind(*fixed, *vectors, call=call, which=derivative)


def _batch(arguments: Sequence[Any], axes: Sequence[Any], *, call: _Call, which: str) -> tuple[list, list]:
    """One state after another."""
    mapped = [axis is not None for axis in axes]
    stacked = [jnp.moveaxis(a, axis, 0) for a, axis in zip(arguments, axes, strict=True) if axis is not None]

    def one(members: list[Array]) -> list[Array]:
        rest = iter(members)
        chosen = [next(rest) if is_mapped else a for a, is_mapped in zip(arguments, mapped, strict=True)]
        return _external_p.bind(*chosen, call=call, which=which)

    out = jax.lax.map(one, stacked)
    return out, [0] * len(out)


_external_p.def_impl(_called)
_external_p.def_abstract_eval(_shapes)
mlir.register_lowering(_external_p, mlir.lower_fun(_called, multiple_results=True))
ad.primitive_transposes[_external_p] = _transpose
ad.primitive_jvps[_external_p] = _jvp
batching.primitive_batchers[_external_p] = _batch
