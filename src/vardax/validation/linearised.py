"""What the user gave, as a map with its tangent and its adjoint at one state.

    function: x -> F(x)        tangent: dx -> F'(x) dx        adjoint: dy -> F'(x)ᵀ dy

Accepted are linear operators (a matrix, a lineax operator, a pair of callables), observation operators (with or
without `linearize`), forward models (`step`, and `tangent`/`adjoint` of their own where they have them), any function
that JAX can differentiate, and a triple of callables. Objects that JAX can trace are compiled; others (NumPy, external
programs) are called as they are.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
from jaxtyping import PyTree

from vardax.dynamics.stepping import in_state_dtype, step_convention
from vardax.obs_operators.linearisation import linearise_operator
from vardax.validation.report import Check
from vardax.validation.spaces import Space

__all__ = [
    "Linearised",
    "compiled",
    "linearised",
    "linearised_step",
    "step_of",
    "structure_check",
    "title_of",
]


@dataclass(frozen=True)
class Linearised:
    """F, F' and F'ᵀ at `state`, on pytrees. `adjoint` is None where an object brings a tangent and no adjoint."""

    function: Callable[[PyTree], PyTree]
    tangent: Callable[[PyTree], PyTree]
    adjoint: Callable[[PyTree], PyTree] | None
    state: np.ndarray
    value: np.ndarray
    inputs: Space
    outputs: Space

    def structure_rows(self) -> tuple[Check, ...]:
        """Do the tangent and the adjoint return what F returns, and what it takes?"""
        rows = [structure_check("structure of tangent", self.tangent(self._zero(self.inputs)), self.outputs)]
        if self.adjoint is not None:
            rows.append(structure_check("structure of adjoint", self.adjoint(self._zero(self.outputs)), self.inputs))
        return tuple(rows)

    @staticmethod
    def _zero(space: Space) -> PyTree:
        return space.tree(np.zeros(space.size))

    def evaluate(self, x: np.ndarray) -> np.ndarray:
        return self.outputs.vector(self.function(self.inputs.tree(x)))

    def apply(self, dx: np.ndarray) -> np.ndarray:
        return self.outputs.vector(self.tangent(self.inputs.tree(dx)))

    def apply_adjoint(self, dy: np.ndarray) -> np.ndarray:
        if self.adjoint is None:
            raise ValueError("`op` has a tangent of its own but no adjoint; give it one to check it.")
        return self.inputs.vector(self.adjoint(self.outputs.tree(dy)))


def structure_check(name: str, found: PyTree, space: Space) -> Check:
    """Zero when `found` has the tree, shapes and dtypes of `space`."""
    difference = space.mismatch(found)
    return Check(name, float(bool(difference)), 0.0, difference or "tree, shapes and dtypes are as they should be")


def title_of(test: str, op: Any, given: str | None = None) -> str:
    """The first line of a report: which test, on what."""
    name = getattr(op, "__name__", None) or type(op).__name__
    return f"{test} of {given or name}"


def compiled(function: Callable, *example: Any) -> Callable:
    """`function` compiled when JAX can trace it, and as it is otherwise; then its own errors show when it is called."""
    try:
        eqx.filter_eval_shape(function, *example)
    except Exception:
        return function
    return eqx.filter_jit(function)


def linearised(op: Any, state: PyTree = None) -> Linearised:
    """`op` as a map with tangent and adjoint at `state` (which linear operators with a structure do not need)."""
    if isinstance(op, lx.AbstractLinearOperator):
        return _of_linear_operator(op, state)
    if isinstance(op, np.ndarray | jax.Array):
        return _of_matrix(op, state)
    if state is None:
        raise ValueError(
            "`state` is missing; give a state (an array or a pytree of arrays) around which to linearise. Only "
            "matrices and lineax operators do without."
        )
    if isinstance(op, tuple):
        return _of_callables(op, state)
    if hasattr(op, "step"):
        return linearised_step(op, state)
    if not callable(op):
        raise TypeError(
            f"`op` is {type(op).__name__}, expected a matrix, a lineax operator, an observation operator, a forward "
            "model, a function, or a tuple (function, tangent, adjoint)."
        )
    if hasattr(op, "linearize"):
        return _of_observation_operator(op, state)
    return _differentiated(op, state)


def _assembled(function: Callable, tangent: Callable, adjoint: Callable | None, state: PyTree) -> Linearised:
    inputs = Space.of(state, "state")
    x = inputs.vector(state)
    value = function(inputs.tree(x))
    outputs = Space.of(value, "the value of `op` at `state`")
    zero_out = outputs.tree(np.zeros(outputs.size))
    return Linearised(
        function=compiled(function, inputs.tree(x)),
        tangent=compiled(tangent, inputs.tree(x)),
        adjoint=None if adjoint is None else compiled(adjoint, zero_out),
        state=x,
        value=outputs.vector(value),
        inputs=inputs,
        outputs=outputs,
    )


def _of_linear_operator(op: lx.AbstractLinearOperator, state: PyTree) -> Linearised:
    inputs = Space.of(op.in_structure(), "op.in_structure()")
    if state is None:
        state = inputs.tree(np.ones(inputs.size))
    if difference := inputs.mismatch(state):
        raise ValueError(f"`state` does not fit `op`: {difference}.")
    return _assembled(op.mv, op.mv, op.T.mv, state)


def _of_matrix(matrix: Any, state: PyTree) -> Linearised:
    matrix = jnp.asarray(matrix)
    if matrix.ndim != 2:
        raise ValueError(f"`op` is an array of shape {matrix.shape}, expected a matrix (two axes) or an operator.")
    return _of_linear_operator(lx.MatrixLinearOperator(matrix), state)


def _of_callables(op: tuple, state: PyTree) -> Linearised:
    if len(op) not in (2, 3) or not all(callable(part) for part in op):
        raise TypeError(
            f"`op` is a tuple of {len(op)}, expected callables: (function, tangent, adjoint) with function(x), "
            "tangent(x, dx), adjoint(x, dy), or (A, A_transposed) for a linear map."
        )
    if len(op) == 2:
        return _assembled(op[0], op[0], op[1], state)
    function, tangent, adjoint = op
    space = Space.of(state, "state")
    x = space.tree(space.vector(state))
    return _assembled(function, lambda dx: tangent(x, dx), lambda dy: adjoint(x, dy), state)


def step_of(model: Any, dt: float | None = None, t0: float = 0.0) -> Callable[[PyTree], PyTree]:
    """x -> model.step(x, dt), with the time where the model asks for it."""
    if not callable(getattr(model, "step", None)):
        raise TypeError(f"`model` is {type(model).__name__}, expected a forward model with `step(state, dt)`.")
    dt = getattr(model, "dt", None) if dt is None else dt
    if dt is None:
        raise ValueError("`dt` is missing; the model has no `dt` of its own, so give the length of a step.")
    convention = step_convention(model.step, f"{type(model).__name__}.step")
    return lambda x: convention(model.step, x, in_state_dtype(dt, x), in_state_dtype(t0, x))


def linearised_step(model: Any, state: PyTree, dt: float | None = None, t0: float = 0.0) -> Linearised:
    """One step, with the tangent and adjoint of the model itself where it has them."""
    step = step_of(model, dt, t0)
    tangent, adjoint = getattr(model, "tangent", None), getattr(model, "adjoint", None)
    if tangent is None:
        return _differentiated(step, state)
    space = Space.of(state, "state")
    x = space.tree(space.vector(state))
    own_adjoint = None if adjoint is None else lambda dy: adjoint(x, dy)
    return _assembled(step, lambda dx: tangent(x, dx), own_adjoint, state)


def _of_observation_operator(op: Any, state: PyTree) -> Linearised:
    space = Space.of(state, "state")
    linear = linearise_operator(op, space.tree(space.vector(state)))
    return _assembled(op, linear.mv, linear.T.mv, state)


def _differentiated(function: Callable, state: PyTree) -> Linearised:
    """By JAX: jvp and vjp."""
    space = Space.of(state, "state")
    x = space.tree(space.vector(state))
    try:
        eqx.filter_eval_shape(function, x)
    except (jax.errors.JAXTypeError, jax.errors.JAXIndexError) as error:
        raise TypeError(
            "`op` cannot be differentiated by JAX, because it leaves JAX for NumPy or Python numbers; write it with "
            "jax.numpy, or give the tuple (function, tangent, adjoint)."
        ) from error
    tangent = lambda dx: jax.jvp(function, (x,), (dx,))[1]  # noqa: E731
    adjoint = lambda dy: jax.vjp(function, x)[1](dy)[0]  # noqa: E731
    return _assembled(function, tangent, adjoint, state)
