"""One linear operator from whatever an observation operator offers.

An observation operator maps a state to what would be observed, y = H(x); methods need its derivative H'(x) and the
transpose of that. `linearise_operator` gets both, as one lineax operator, from vardax's own operators and from foreign
ones, whose `linearize` may return a matrix, a callable or a lineax operator, or be absent.

`is_linear` decides whether H(x) = A x + b by a probe, not by asking: with random states x, y of several magnitudes,

    H(x + y) - H(x) - H(y) + H(0) = 0    up to rounding.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
from jaxtyping import Array, PyTree

from vardax.obs_operators.module_operator import ModuleLinearOperator, structure_of
from vardax.types import is_traced

__all__ = ["as_field", "is_linear", "linearise_operator", "matrix_on_field"]

HIDDEN_BY_TRACING = (
    jax.errors.ConcretizationTypeError,
    jax.errors.TracerArrayConversionError,
    jax.errors.UnexpectedTracerError,
)


def as_field(state: Any, owner: str) -> Array:
    """`state` as one array; a pytree is refused with the remedy."""
    if isinstance(state, jax.Array | np.ndarray | float | int):
        return jnp.asarray(state)
    raise TypeError(
        f"{owner} observes a state that is one array, found {jax.tree.structure(state)}; pick the array with "
        f"CallableObs(lambda state: ...)."
    )


def linearise_operator(op: Any, state: PyTree[Array]) -> lx.AbstractLinearOperator:
    """H'(state) as a lineax operator from the structure of `state` to that of H(state); `.T` is the exact transpose.

    >>> linearise_operator(jnp.sin, jnp.zeros(2)).mv(jnp.array([1.0, 2.0])).tolist()
    [1.0, 2.0]
    """
    if isinstance(op, lx.AbstractLinearOperator):
        return op
    if not hasattr(op, "linearize"):
        if not callable(op):
            raise TypeError(f"`obs_op` is {op!r}, expected an observation operator: a callable H(state).")
        _, tangent = jax.linearize(op, state)
        return lx.FunctionLinearOperator(tangent, structure_of(state))
    linear = op.linearize(state)
    if isinstance(linear, lx.AbstractLinearOperator):
        return _on_structures(linear, op, state)
    if callable(linear):
        return lx.FunctionLinearOperator(linear, structure_of(state))
    if hasattr(linear, "ndim") and linear.ndim >= 2:
        return _on_structures(matrix_on_field(jnp.asarray(linear), state, type(op).__name__), op, state)
    raise TypeError(
        f"`{type(op).__name__}.linearize` returns a {type(linear).__name__}, expected a matrix, a callable or a lineax "
        "operator."
    )


def matrix_on_field(matrix: Array, state: PyTree[Array], owner: str) -> lx.AbstractLinearOperator:
    """A matrix (m, n) on the ravelled state, or an array (*obs, *state) on its trailing axes."""
    field = as_field(state, owner)
    matrix = matrix.astype(field.dtype)
    if matrix.ndim == 2 and matrix.shape[1] == field.size:
        fn = _RavelledProduct(matrix)
    elif field.ndim and matrix.ndim > field.ndim and matrix.shape[-field.ndim :] == field.shape:
        fn = _FieldProduct(matrix)
    else:
        raise ValueError(
            f"{owner}: the matrix has shape {matrix.shape}, which does not fit a state of shape {field.shape}; "
            f"expected (m, {field.size}) or (..., {', '.join(map(str, field.shape))})."
        )
    return ModuleLinearOperator(fn, structure_of(field))


class _RavelledProduct(eqx.Module):
    matrix: Array

    def __call__(self, field: Array) -> Array:
        return jnp.matmul(self.matrix, field.reshape(-1), precision="highest")


class _FieldProduct(eqx.Module):
    matrix: Array

    def __call__(self, field: Array) -> Array:
        return jnp.tensordot(self.matrix, field, axes=field.ndim, precision="highest")


def _on_structures(linear: lx.AbstractLinearOperator, op: Any, state: PyTree[Array]) -> lx.AbstractLinearOperator:
    """`linear` between the structures of the state and of H(state), reshaping where only the shapes differ."""
    wanted_in, wanted_out = structure_of(state), structure_of(jax.eval_shape(op, state))
    found_in, found_out = linear.in_structure(), linear.out_structure()
    if found_in == wanted_in and found_out == wanted_out:
        return linear
    _check_reshapes("takes", type(op).__name__, found_in, wanted_in, "the state")
    _check_reshapes("gives", type(op).__name__, found_out, wanted_out, "the predicted observations")

    def reshaped(vector: PyTree[Array]) -> PyTree[Array]:
        return _reshape(linear.mv(_reshape(vector, found_in)), wanted_out)

    return lx.FunctionLinearOperator(reshaped, wanted_in)


def _reshape(tree: PyTree[Array], structure: PyTree[jax.ShapeDtypeStruct]) -> PyTree[Array]:
    leaves = zip(jax.tree.leaves(tree), jax.tree.leaves(structure), strict=True)
    reshaped = [leaf.reshape(like.shape).astype(like.dtype) for leaf, like in leaves]
    return jax.tree.unflatten(jax.tree.structure(structure), reshaped)


def _check_reshapes(verb: str, owner: str, found: PyTree[Any], wanted: PyTree[Any], what: str) -> None:
    sizes_found, sizes_wanted = ([leaf.size for leaf in jax.tree.leaves(tree)] for tree in (found, wanted))
    if sizes_found != sizes_wanted:
        raise ValueError(
            f"`{owner}.linearize` returns a linear operator that {verb} {found}, expected the structure of {what}, "
            f"{wanted}."
        )


def is_linear(obs_op: Any, state_structure: PyTree[Any] | None = None) -> bool:
    """Whether `obs_op` is affine, H(x) = A x + b, by a probe with random states of magnitude 1e-3, 1 and 1e3.

    `state_structure` is a state or its `jax.ShapeDtypeStruct`s. Without it the operator is tried on arrays of one, two
    and three axes until one is accepted, so give it where the operator depends on the shape of the state. A defect
    counts when it is beyond sqrt(eps) of the terms, so a departure from linearity below 1.5e-8 (float64) or 3e-4
    (float32) of H itself passes. Under tracing, arrays of the operator are replaced by random ones; where values are
    hidden in a closure nothing can be decided, and the answer is True. An operator made of others, which may still wait
    for positions, answers part by part (`linear_on`).

    >>> is_linear(jnp.tanh, jnp.zeros(3)), is_linear(lambda x: 2 * x + 1, jnp.zeros(3))
    (False, True)
    """
    if isinstance(obs_op, lx.AbstractLinearOperator) or getattr(obs_op, "linear_by_construction", False):
        return True
    if state_structure is not None and hasattr(obs_op, "linear_on"):
        return obs_op.linear_on(structure_of(state_structure))
    try:
        with jax.ensure_compile_time_eval(), jax.default_matmul_precision("highest"):
            operator = _with_concrete_arrays(obs_op)
            structure = _guess_structure(operator) if state_structure is None else structure_of(state_structure)
            return all(_defect_is_rounding(operator, structure, scale) for scale in (1e-3, 1.0, 1e3))
    except HIDDEN_BY_TRACING:
        return True


def _with_concrete_arrays(op: Any) -> Any:
    """`op` with its traced arrays replaced by random numbers, which says the same about linearity in the state."""

    def stand_in(leaf: Any) -> Any:
        if not is_traced(leaf):
            return leaf
        if jnp.issubdtype(leaf.dtype, jnp.inexact):
            return jax.random.normal(jax.random.key(0), leaf.shape, leaf.dtype)
        return jnp.zeros(leaf.shape, leaf.dtype)

    return jax.tree.map(stand_in, op)


def _guess_structure(op: Callable[..., Any]) -> jax.ShapeDtypeStruct:
    """A structure that `op` accepts and that it makes something of."""
    for shape in ((64,), (64, 64), (16, 16, 16), ()):
        structure = jax.ShapeDtypeStruct(shape, jnp.result_type(float))
        try:
            predicted = jax.eval_shape(op, structure)
        except Exception:  # (whatever an operator raises for a shape that it does not take)
            continue
        if all(leaf.size for leaf in jax.tree.leaves(predicted)):
            return structure
    raise ValueError(
        f"is_linear: {type(op).__name__} accepts none of the trial states; give `state_structure`, a state or "
        "its jax.ShapeDtypeStruct."
    )


def _defect_is_rounding(op: Callable[..., Any], structure: PyTree[Any], scale: float) -> bool:
    x, y = (_random_state(structure, seed, scale) for seed in (0, 1))
    total, zero = jax.tree.map(jnp.add, x, y), jax.tree.map(jnp.zeros_like, x)
    predicted = [[np.asarray(leaf) for leaf in jax.tree.leaves(op(state))] for state in (total, x, y, zero)]
    return all(_affine(*leaves) for leaves in zip(*predicted, strict=True))


def _affine(of_sum: np.ndarray, of_x: np.ndarray, of_y: np.ndarray, of_zero: np.ndarray) -> bool:
    """Whether the second difference vanishes, entry by entry, relative to the terms it is made of."""
    eps = float(jnp.finfo(of_sum.dtype).eps) if jnp.issubdtype(of_sum.dtype, jnp.inexact) else 0.0
    terms = np.stack([of_sum, of_x, of_y, of_zero]).astype(np.promote_types(of_sum.dtype, np.float64))
    if not np.all(np.isfinite(terms)):
        return False
    defect = np.abs(terms[0] - terms[1] - terms[2] + terms[3])
    size = np.sum(np.abs(terms), axis=0)
    return bool(np.all(defect <= np.sqrt(eps) * size + 100 * eps * np.max(size, initial=0.0)))


def _random_state(structure: PyTree[Any], seed: int, scale: float) -> PyTree[Array]:
    leaves, treedef = jax.tree.flatten(structure)
    keys = jax.random.split(jax.random.key(seed), max(len(leaves), 1))

    def draw(key: Array, leaf: Any) -> Array:
        if not jnp.issubdtype(leaf.dtype, jnp.inexact):
            return jnp.zeros(leaf.shape, leaf.dtype)
        return scale * jax.random.normal(key, leaf.shape, leaf.dtype)

    return jax.tree.unflatten(treedef, [draw(key, leaf) for key, leaf in zip(keys, leaves, strict=False)])
