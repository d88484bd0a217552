"""Whether an approximate inverse of H B Hᵀ + R pays, and what it would be made of.

It takes a B that knows the covariance between cells (`CellwiseCovariance`), an H that looks at single cells
(`observed_cells`), and an uncorrelated R. It pays where plain conjugate gradients would take many steps, about
¼ log(2/tol) ‖I + R⁻¹ H B Hᵀ‖^½, for what it costs. All this is read from products with B, H and R, so nothing has to
be known of their kind, and the answer may be traced.
"""

import math
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from vardax.minimisers.krylov_result import Observing
from vardax.minimisers.observed_cells import ObservedCells, observed_cells
from vardax.minimisers.preconditioned_form import ErrorProducts
from vardax.minimisers.vecchia import CellCovariance, VecchiaInverse, vecchia_inverse

__all__ = [
    "FACTOR_COST",
    "FACTOR_STEPS",
    "LEAST_CELLS",
    "MOST_OBSERVATIONS",
    "CellwiseCovariance",
    "FactorPlan",
    "can_be_factored",
    "plan_factor",
]

LEAST_CELLS = 2**16
"""Cells of the smallest grid for which a factor is considered: below, plain steps cost next to nothing."""

MOST_OBSERVATIONS = 2_000_000
"""Most observations for which a factor is considered; it holds about a hundred numbers for each."""

FACTOR_COST = 1000
"""What the factor of one observation costs, in cells of a plain step: a step of n cells costs as much as n / 1000."""

FACTOR_STEPS = 20
"""Steps that remain with the factor, of many."""

TIGHTEST = 1e-12
"""Tolerances below this count as this."""


@runtime_checkable
class CellwiseCovariance(Protocol):
    """A covariance of fields on a grid of `shape` that knows the covariance of single cells."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The grid."""
        ...

    def between_cells(self) -> CellCovariance:
        """(a, b) -> B between cells a and b: for each axis of the grid an array of indices, broadcast."""
        ...


class FactorPlan(NamedTuple):
    """Whether to factorise, where the observations are, and their error variances (zero where missing)."""

    worthwhile: Bool[Array, ""]
    observed: ObservedCells
    variances: Float[Array, "..."]

    def inverse(self, B: CellwiseCovariance) -> VecchiaInverse:
        """The approximate inverse, without derivatives."""
        observed, variances = self.observed, jnp.ravel(self.variances)
        return jax.lax.stop_gradient(vecchia_inverse(B.between_cells(), observed, variances, B.shape))


def can_be_factored(B: Any, R: Any, n_obs: int) -> bool:
    """Whether B and R know enough, and the sizes are such that a factor may pay."""
    if not (isinstance(B, CellwiseCovariance) and isinstance(R, ErrorProducts)):
        return False
    return math.prod(B.shape) >= LEAST_CELLS and n_obs <= MOST_OBSERVATIONS


def plan_factor(observing: Observing, shape: tuple[int, ...], tol: float) -> FactorPlan:
    """Look at the observations, of this shape, and judge whether a factor pays for a solve to `tol`."""
    variances, uncorrelated = _error_variances(observing, shape)
    observed = observed_cells(observing, observing.B.shape)
    local = jnp.all(observed.local | (jnp.ravel(variances) == 0))
    worthwhile = uncorrelated & local & _pays(observing, variances, tol)
    return jax.lax.stop_gradient(FactorPlan(worthwhile, observed, variances))


def _error_variances(observing: Observing, shape: tuple[int, ...]) -> tuple[Array, Array]:
    """The diagonal of R, and whether there is nothing else: then s ∘ R s is the same for all signs s."""

    def probe(seed: int) -> Array:
        signs = jax.random.rademacher(jax.random.key(seed), shape, observing.dtype)
        return signs * observing.R.mv(signs)

    first, second = probe(0), probe(1)
    rounding = 10 * float(jnp.finfo(observing.dtype).eps)
    return first, jnp.all((jnp.abs(first - second) <= rounding * jnp.abs(first)) & (first >= 0))


def _pays(observing: Observing, variances: Array, tol: float) -> Array:
    """Whether plain conjugate gradients take longer. The largest row sum bounds the largest eigenvalue."""
    seen = (variances > 0).astype(observing.dtype)
    condition = 1 + jnp.max(jnp.abs(observing.R.solve(observing.covariance(seen))))
    steps = 0.25 * math.log(2 / max(tol, TIGHTEST)) * jnp.sqrt(condition)
    return steps > FACTOR_STEPS + FACTOR_COST * jnp.sum(seen) / math.prod(observing.B.shape)
