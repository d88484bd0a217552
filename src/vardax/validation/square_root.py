"""The square root of B, its inverse, and samples drawn with it.

    L Lᵀ v = B v        B B⁻¹ w = w        cov(x) = B for samples x

The inverse is asked about w in the range of B (w = B v), where its error is not amplified by the conditioning of B:
there a right inverse is right to rounding however ill-conditioned B is.
"""

from collections.abc import Callable
from typing import Any

import jax
import lineax as lx
import numpy as np

from vardax.validation.adjoint import adjoint_rows
from vardax.validation.linearised import Linearised, linearised, structure_check
from vardax.validation.report import Check
from vardax.validation.spaces import Space
from vardax.validation.standardised import Standardised
from vardax.validation.tolerances import Tolerances

__all__ = ["inverse_rows", "root_rows", "sample_rows"]

SAMPLED_NUMBERS = 2**22
FEWEST_SAMPLES, MOST_SAMPLES = 32, 1024


def root_rows(
    subject: Standardised, half: Any, rng: np.random.Generator, limits: Tolerances, n_probes: int
) -> tuple[Check, ...]:
    """L Lᵀ = B, and Lᵀ is the transpose of L."""
    root = _linear_root(half, subject.space)
    structure = structure_check("structure of half", root.function(root.inputs.tree(root.state)), subject.space)
    if not structure.passed:
        return (structure,)
    measured = 0.0
    for _ in range(n_probes):
        u = subject.noise(rng)
        measured = np.maximum(measured, subject.error(root.apply(root.apply_adjoint(u)), subject.product(u)))
    meaning = "L Lᵀ is not B: a factor, a normalisation or a column of the square root is wrong"
    square = Check("square root", float(measured), limits.root, meaning)
    return (structure, square, *adjoint_rows(root, rng, limits, n_probes, name="square root, adjoint"))


def _linear_root(half: Any, space: Space) -> Linearised:
    """L as a linear map; the control of a pair of callables is what the transpose returns."""
    if isinstance(half, tuple) and len(half) == 2 and callable(half[1]):
        return linearised(half, half[1](space.tree(np.ones(space.size))))
    if not isinstance(half, lx.AbstractLinearOperator | np.ndarray | jax.Array):
        raise TypeError(
            f"`half` is {type(half).__name__}, expected a lineax operator, a matrix, or a pair of callables "
            "(L, L_transposed)."
        )
    return linearised(half)


def inverse_rows(
    subject: Standardised, inverse: Callable, rng: np.random.Generator, limits: Tolerances
) -> tuple[Check, ...]:
    """B B⁻¹ w = w for one w = B v: a solve may be slow, and the error is looked at in all cells."""
    space = subject.space
    w = space.rounded(subject.product(subject.noise(rng)))
    solution = inverse(space.tree(w))
    structure = structure_check("structure of inverse", solution, space)
    if not structure.passed:
        return (structure,)
    error = subject.error(subject.product(space.vector(solution)), w)
    return (Check("inverse", error, limits.inverse, "B B⁻¹ w is not w: the inverse is of another matrix"),)


def sample_rows(
    subject: Standardised, sampler: Callable, rng: np.random.Generator, limits: Tolerances, n_probes: int
) -> tuple[tuple[Check, ...], tuple[str, ...]]:
    """Mean and variance of p·x over samples x, for probes p, in standard errors."""
    space = subject.space
    if space.size * FEWEST_SAMPLES > SAMPLED_NUMBERS:
        return (), (f"samples not checked: {FEWEST_SAMPLES} fields of {space.size} cells are too many numbers.",)
    n = int(np.clip(SAMPLED_NUMBERS // max(space.size, 1), FEWEST_SAMPLES, MOST_SAMPLES))
    drawn = sampler(jax.random.key(int(rng.integers(2**31))), n)
    leaves = [np.asarray(leaf, dtype=np.float64).reshape(n, -1) for leaf in jax.tree.leaves(drawn)]
    fields, measured = np.concatenate(leaves, axis=1), 0.0
    for _ in range(n_probes):
        p = subject.noise(rng)
        projections, variance = fields @ p, p @ subject.product(p)
        if variance > 0:
            spread = abs(np.mean(projections**2) / variance - 1) / np.sqrt(2 / n)
            centre = abs(np.mean(projections)) / np.sqrt(variance / n)
            measured = np.maximum(measured, max(spread, centre))
    meaning = f"{n} samples do not have mean 0 and covariance B (in standard errors)"
    return (Check("samples", float(measured), limits.sample, meaning),), ()
