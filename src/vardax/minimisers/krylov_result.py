"""What the large linear-Gaussian solvers share: H and R as they see them, and what they return.

    J(dx) = ½ dxᵀ B⁻¹ dx + ½ (d − H dx)ᵀ R⁻¹ (d − H dx)

B, H and R may differ in dtype; `Observing` casts between them. `KrylovResult` is dx, and how it was reached.
"""

from typing import Any, NamedTuple, Protocol, runtime_checkable

import equinox as eqx
import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array, Bool, Float, Int, PyTree

from vardax.minimisers.paired_gradients import Record
from vardax.minimisers.problem import cast_like

__all__ = ["KrylovResult", "ObservationError", "Observing", "background_cost", "krylov_result"]


@runtime_checkable
class ObservationError(Protocol):
    """R between the observed entries: `AbstractRestriction`, or anything with this product."""

    def solve(self, residual: Array, /) -> Array:
        """R⁻¹ r, zero where missing."""
        ...


class KrylovResult(eqx.Module):
    """The increment of a linear-Gaussian analysis and how it was reached.

    `increment` is dx, `control` the chi with dx = L chi, and `weights` are R⁻¹ (d − H dx), zero where missing, which at
    the minimum gives dx = B Hᵀ w. `gradient_norms` (‖∇J‖ in control space) and `costs` (J) hold the value at the
    background and after each step, NaN after the last, as the iteration carries them. An iteration that does not carry
    them (`preconditioned_form`) leaves NaN between the first and the last.
    """

    increment: PyTree[Array]
    control: PyTree[Array]
    weights: Float[Array, "..."]
    n_iterations: Int[Array, ""]
    converged: Bool[Array, ""]
    gradient_norms: Float[Array, "steps"]
    costs: Float[Array, "steps"]

    @property
    def gradient_norm(self) -> Float[Array, ""]:
        """‖∇J‖ at the increment."""
        return self.gradient_norms[jnp.minimum(self.n_iterations, self.gradient_norms.shape[0] - 1)]


class Observing(NamedTuple):
    """B, H and R⁻¹ with casts between the dtype of the observations and those of B and H."""

    B: Any
    H: lx.AbstractLinearOperator
    R: Any
    dtype: Any

    def predict(self, increment: PyTree[Array]) -> Array:
        """H dx."""
        return self.H.mv(cast_like(increment, self.H.in_structure())).astype(self.dtype)

    def spread(self, weights: Array) -> PyTree[Array]:
        """Hᵀ w."""
        return self.H.transpose().mv(weights.astype(self.H.out_structure().dtype))

    def weigh(self, increment: PyTree[Array]) -> PyTree[Array]:
        """Hᵀ R⁻¹ H dx."""
        return self.spread(self.R.solve(self.predict(increment)))

    def covary(self, weights: Array) -> PyTree[Array]:
        """B Hᵀ w."""
        return self.B.mv(cast_like(self.spread(weights), self.B.in_structure()))

    def covariance(self, weights: Array) -> Array:
        """H B Hᵀ w."""
        return self.predict(self.covary(weights))

    def control(self, half: lx.AbstractLinearOperator, weights: Array) -> PyTree[Array]:
        """Lᵀ Hᵀ w."""
        return half.transpose().mv(cast_like(self.spread(weights), half.out_structure()))


def background_cost(innovation: Array, weighted: Array) -> Float[Array, ""]:
    """J(x_b) = ½ dᵀ R⁻¹ d."""
    return 0.5 * jnp.vdot(innovation, weighted)


def krylov_result(
    increment: PyTree[Array], control: PyTree[Array], weights: Array, record: Record, tol: float
) -> KrylovResult:
    """The result, in the dtype of the observations; converged where the last recorded ‖∇J‖ says so."""
    n_iterations, norms, costs = record
    dtype, last = weights.dtype, norms[n_iterations]
    return KrylovResult(
        increment=increment,
        control=control,
        weights=weights,
        n_iterations=n_iterations,
        converged=jnp.isfinite(last) & (last <= tol * jnp.maximum(1, norms[0])),
        gradient_norms=norms.astype(dtype),
        costs=costs.astype(dtype),
    )
