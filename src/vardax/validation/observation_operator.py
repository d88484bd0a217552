"""Is an observation operator fit for an analysis?

Its values have to be finite and repeatable in the dtype of the state, its tangent H'(x) the derivative of H, and the
transpose of H'(x) exact. Where it has a mask, masked entries must not count, in the values and in the adjoint: an
unobserved entry of the result must not follow the state, and a masked cell of the state (land, say) must not reach
the result.
"""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jaxtyping import ArrayLike, PyTree

from vardax.validation.adjoint import adjoint_rows, coarsest, linear_row
from vardax.validation.conduct import conduct_rows
from vardax.validation.linearised import Linearised, linearised, title_of
from vardax.validation.report import Check, ValidationReport
from vardax.validation.spaces import Space, generator, relative_error
from vardax.validation.taylor import taylor_checks
from vardax.validation.tolerances import Tolerances, default_tolerances

__all__ = ["observation_operator_test"]


def observation_operator_test(
    obs_op: Any,
    state: PyTree,
    *,
    observations: Any = None,
    mask: ArrayLike | None = None,
    state_mask: PyTree = None,
    key: Any = None,
    n_probes: int = 2,
    step: float = 0.1,
    n_halvings: int | None = None,
    tolerances: Mapping[str, float] | None = None,
) -> ValidationReport:
    """Values, tangent, adjoint and masks of `obs_op` at `state` (one sample, an array or a pytree).

    `obs_op` is called as `obs_op(state)`; its `linearize(state)` may return a matrix, a callable or a lineax operator,
    or be absent. A triple `(function(x), tangent(x, dx), adjoint(x, dy))` is taken as well. `observations` binds an
    operator that samples space to positions (`obs_op.at(observations)`). `mask` has the shape of the result, 1 where it
    is observed (default: `obs_op.mask`, if that fits); `state_mask` has the structure of the state, 1 where
    it may be read.

    >>> import jax.numpy as jnp
    >>> observation_operator_test(lambda x: x**2, jnp.array([1.0, 2.0, 3.0])).passed
    True
    """
    if observations is not None:
        if not hasattr(obs_op, "at"):
            raise TypeError(f"`observations` were given, but {type(obs_op).__name__} has no `at(observations)`.")
        obs_op = obs_op.at(observations)
    function = obs_op[0] if isinstance(obs_op, tuple) else obs_op
    if not callable(function):
        raise TypeError(f"`obs_op` is {type(obs_op).__name__}, expected an observation operator: a callable H(state).")
    lin = linearised(obs_op, state)
    limits, rng = default_tolerances(coarsest(lin.inputs, lin.outputs), tolerances), generator(key)
    rows = (*conduct_rows(function, state, "H"), _dtype_row(lin), *lin.structure_rows())
    notes: tuple[str, ...] = ()
    if all(row.passed for row in rows):
        checks, table = taylor_checks(lin, rng, limits, n_probes, step, n_halvings)
        notes += () if all(check.passed for check in checks) else table
        rows += (linear_row(lin, rng, limits), *checks)
        rows += () if lin.adjoint is None else adjoint_rows(lin, rng, limits, n_probes)
        if getattr(obs_op, "linear_by_construction", False):
            rows += (_affine_row(lin, rng, limits),)
        rows += _mask_rows(lin, _observed(obs_op, lin, mask), rng, limits)
        rows += _state_mask_rows(lin, _readable(lin, state_mask), rng, limits)
    return ValidationReport(title_of("observation_operator_test", obs_op), rows, notes)


def _dtype_row(lin: Linearised) -> Check:
    """Float32 states give float32 observations, float64 states float64 ones."""
    expected = set(lin.inputs.dtypes)
    others = [f"{name or 'the result'}: {dtype}" for name, dtype in _dtypes(lin.outputs) if dtype not in expected]
    found = f"found {', '.join(others)} for a state of {lin.inputs.described}; " if others else ""
    meaning = f"{found}the result has to have the dtype of the state"
    return Check("dtype of the state", float(len(others)), 0.0, meaning)


def _dtypes(space: Space) -> list[tuple[str, np.dtype]]:
    return list(zip(space.names, space.dtypes, strict=True))


def _affine_row(lin: Linearised, rng: np.random.Generator, limits: Tolerances) -> Check:
    """H(x + d) - H(x) = H'd for a d as large as the state."""
    d = lin.inputs.rounded(lin.inputs.noise(rng) * lin.inputs.leaf_scales(lin.state))
    change, tangent = lin.evaluate(lin.state + d) - lin.value, lin.apply(d)
    size = max(np.linalg.norm(change), np.linalg.norm(tangent), np.linalg.norm(lin.value))
    measured = float(np.linalg.norm(change - tangent) / size) if size > 0 else 0.0
    return Check("linear as claimed", measured, limits.linear, "`linear_by_construction` is set, but H is not affine")


def _entries(space: Space, mask: PyTree, argument: str) -> np.ndarray:
    """A mask on the vector of a space, True where it is 1."""
    leaves, treedef = jax.tree.flatten(mask)
    shapes = tuple(np.shape(leaf) for leaf in leaves)
    if treedef != space.treedef or shapes != space.shapes:
        raise ValueError(f"`{argument}` has shapes {list(shapes)}, expected {list(space.shapes)}.")
    return np.concatenate([np.asarray(leaf).ravel() != 0 for leaf in leaves])


def _observed(obs_op: Any, lin: Linearised, mask: ArrayLike | None) -> np.ndarray | None:
    """`mask`, or the operator's own where that fits the last axes of a result that is one array."""
    if mask is not None:
        return _entries(lin.outputs, mask, "mask")
    own = getattr(obs_op, "mask", None)
    if own is None or len(lin.outputs.shapes) != 1:
        return None
    (shape,) = lin.outputs.shapes
    if shape[len(shape) - np.ndim(own) :] != np.shape(own):
        return None
    return np.broadcast_to(np.asarray(own) != 0, shape).ravel()


def _readable(lin: Linearised, state_mask: PyTree) -> np.ndarray | None:
    return None if state_mask is None else _entries(lin.inputs, state_mask, "state_mask")


def _mask_rows(
    lin: Linearised, observed: np.ndarray | None, rng: np.random.Generator, limits: Tolerances
) -> tuple[Check, ...]:
    """Unobserved entries of the result do not follow the state."""
    if observed is None or np.all(observed):
        return ()
    d = lin.inputs.rounded(lin.inputs.noise(rng) * lin.inputs.leaf_scales(lin.state))
    change = lin.evaluate(lin.state + d) - lin.value
    measured = _share(change[~observed], change)
    meaning = "entries of H(x) where `mask` is 0 follow the state: the mask is ignored"
    rows = [Check("mask", measured, limits.mask, meaning)]
    if lin.adjoint is not None:
        v = lin.outputs.noise(rng)
        unobserved = lin.apply_adjoint(np.where(observed, 0.0, v))
        meaning = "the adjoint takes in entries where `mask` is 0: the mask is ignored"
        rows.append(Check("mask, adjoint", _share(unobserved, lin.apply_adjoint(v)), limits.mask, meaning))
    return tuple(rows)


def _share(part: np.ndarray, whole: np.ndarray) -> float:
    """|part| in units of |whole|, or |part| itself where the whole vanishes."""
    size = np.linalg.norm(whole)
    return float(np.linalg.norm(part) / size) if size > 0 else float(np.linalg.norm(part))


def _state_mask_rows(
    lin: Linearised, readable: np.ndarray | None, rng: np.random.Generator, limits: Tolerances
) -> tuple[Check, ...]:
    """Masked cells of the state do not reach the result."""
    if readable is None or np.all(readable):
        return ()
    other = 1e3 * lin.inputs.noise(rng) * lin.inputs.leaf_scales(lin.state)
    changed = lin.evaluate(lin.inputs.rounded(np.where(readable, lin.state, other)))
    meaning = "H(x) reads cells where `state_mask` is 0: the mask is ignored"
    rows = [Check("state mask", relative_error(changed, lin.value), limits.mask, meaning)]
    if lin.adjoint is not None:
        sensitivity = lin.apply_adjoint(lin.outputs.noise(rng))
        meaning = "the adjoint writes to cells where `state_mask` is 0: the mask is ignored"
        rows.append(Check("state mask, adjoint", _share(sensitivity[~readable], sensitivity), limits.mask, meaning))
    return tuple(rows)
