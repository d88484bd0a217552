"""How a function behaves when it is called: finite values, the same twice, and the caller's arrays left alone.

These are looked at by calling the object directly, uncompiled, with the user's own arrays: compilation would hide a
random number drawn by NumPy, and JAX arrays cannot be written to.
"""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

from vardax.validation.report import Check

__all__ = ["conduct_rows"]


def conduct_rows(function: Callable[[Any], Any], state: PyTree, what: str) -> tuple[Check, ...]:
    """Finite, deterministic, and without side effects on `state`; `what` names the function."""
    before = _copied(state)
    first, second = _copied(function(state)), _copied(function(state))
    not_finite = sum(int(np.sum(~np.isfinite(leaf))) for leaf in first)
    return (
        Check("finite", float(not_finite), 0.0, f"{what} has values that are not finite at `state`"),
        Check("deterministic", _difference(first, second), 0.0, f"{what} returns other values when it is called again"),
        Check("input unchanged", _difference(before, _copied(state)), 0.0, f"{what} writes into the state it is given"),
    )


def _copied(tree: PyTree) -> list[np.ndarray]:
    return [np.array(leaf) for leaf in jax.tree.leaves(tree)]


def _difference(first: list[np.ndarray], second: list[np.ndarray]) -> float:
    """The number of entries that differ."""
    return float(sum(np.sum(a != b) - np.sum((a != a) & (b != b)) for a, b in zip(first, second, strict=True)))
