r"""How the analysis of the observations depends on the observations: the influence matrix HK of one sample.

    HK = ∂(H x_a) / ∂y = R Wᵀ S W,      S = G A⁻¹ Gᵀ,      A = I + GᵀG,      WᵀW = R⁻¹ on the observed entries

with G the derivative of the whitened prediction with respect to the control, so masks, correlated R and the model are
in it. Where the smaller of control and observations has at most `DENSE_LIMIT` entries its normal matrix is factorised
(C Cᵀ) and the diagonal is exact, from columns of C^{-T}:

    control space       diag(HK) = Σ_k (R Wᵀ G u_k) ∘ (Wᵀ G u_k),          u_k = C^{-T} e_k
    observation space   diag(HK) = m - Σ_k (R Wᵀ u_k) ∘ (Wᵀ u_k),          m the mask

Beyond, products with A⁻¹ are conjugate-gradient solves, and the diagonal is the mean of z ∘ HK z over random signs z
(Hutchinson). HK is the self-sensitivity or influence matrix of Cardinali, C., Pezzulli, S. and Andersson, E. (2004),
QJRMS 130, 2767-2786.
"""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PyTree

from vardax.minimisers.closed_form import COLUMN_BLOCK, NormalFactor, factorise, in_control_space, is_dense_case
from vardax.minimisers.conjugate_gradients import RelativeCG
from vardax.minimisers.observed import ObservedEntries
from vardax.minimisers.problem import ControlSpaceProblem
from vardax.types import Analysis

__all__ = ["ObservationInfluence", "by_instrument", "control_at", "control_of", "observed_counts", "sum_over"]

MAX_STEPS = 1000
"""Conjugate-gradient steps of one product with A⁻¹."""


def control_at(problem: ControlSpaceProblem, control: PyTree[Array] | None) -> PyTree[Array]:
    """Where to linearise: the control of an analysis, or zero, the background."""
    return problem.zero_control() if control is None else control


def control_of(analysis: Analysis | PyTree[Array] | None) -> PyTree[Array] | None:
    """The control of an `Analysis`; a control itself and None as they are."""
    return analysis.control if isinstance(analysis, Analysis) else analysis


def by_instrument(observed: ObservedEntries, values: Float[Array, "..."]) -> Float[Array, "instruments"]:
    """The sums of `values` (E, *obs) over the entries of each instrument."""
    if observed.instrument is None or observed.n_instruments == 1:
        return jnp.sum(values)[None]
    return jax.ops.segment_sum(values.ravel(), observed.instrument.ravel(), num_segments=observed.n_instruments)


def observed_counts(observed: ObservedEntries) -> Float[Array, "instruments"]:
    """How many entries of each instrument were observed."""
    return by_instrument(observed, observed.mask)


class ObservationInfluence(eqx.Module):
    """HK of one sample, linearised at a control: products and its diagonal, never a matrix of a large side."""

    problem: ControlSpaceProblem
    G: Callable
    GT: Callable
    factor: NormalFactor | None

    @classmethod
    def at(cls, problem: ControlSpaceProblem, control: PyTree[Array] | None = None) -> "ObservationInfluence":
        """Linearised at `control`, by default at the background."""
        _, G, GT = problem.linearise(control_at(problem, control))
        return cls(problem, G, GT, factorise(problem, G, GT) if is_dense_case(problem) else None)

    def mv(self, v: Float[Array, "..."]) -> Float[Array, "..."]:
        """HK v for v in observation space, (E, *obs): how the analysed observations change when y changes by v."""
        increment = self._solve(self.GT(self._as_residual(self.problem.observed.whiten(v))))
        return self._unwhiten(self._observations(self.G(increment)))

    def exact_diagonal(self) -> Float[Array, "..."]:
        """diag(HK), (E, *obs), from the columns of the factor."""
        assert self.factor is not None
        if in_control_space(self.problem):
            return self._sum_of_columns(self.G, self.problem.zero_control())
        total = self._sum_of_columns(lambda column: column, self.problem.zero_residual())
        return self.problem.observed.mask - total

    def exact_prior_diagonal(self) -> Float[Array, "..."]:
        """diag(H B Hᵀ R⁻¹), (E, *obs): from all units of the control, or from G Gᵀ = C Cᵀ - I."""
        assert self.factor is not None
        cholesky = self.factor.cholesky
        if in_control_space(self.problem):
            return self.prior_diagonal(jnp.eye(cholesky.shape[0], dtype=cholesky.dtype))
        _, unravel = ravel_pytree(self.problem.zero_residual())
        total = sum_over(lambda column: self._square(self._observations(unravel(column))), cholesky.T)
        return total - self.problem.observed.mask

    def prior_diagonal(self, controls: Float[Array, "k n"]) -> Float[Array, "..."]:
        """diag(F (Σ_k u_k u_kᵀ) Fᵀ R⁻¹) over ravelled controls u_k, with F = R Wᵀ G."""
        _, unravel = ravel_pytree(self.problem.zero_control())
        prior_part = self.problem.observe.prior_part
        part = lambda u: self._square(self._observations(self.G(prior_part(unravel(u)))))  # noqa: E731
        return sum_over(part, controls)

    def _sum_of_columns(self, image: Callable, zero: PyTree[Array]) -> Float[Array, "..."]:
        assert self.factor is not None
        cholesky = self.factor.cholesky
        _, unravel = ravel_pytree(zero)

        def part(unit: Array) -> Array:
            column = jax.scipy.linalg.solve_triangular(cholesky, unit, lower=True, trans=1)
            return self._square(self._observations(image(unravel(column))))

        return sum_over(part, jnp.eye(cholesky.shape[0], dtype=cholesky.dtype))

    def _square(self, whitened: Array) -> Array:
        """(R Wᵀ g) ∘ (Wᵀ g): the diagonal of R Wᵀ g gᵀ W."""
        weighted = self._whiten_transposed(whitened)
        return self.problem.observed.mv(weighted) * weighted

    def _whiten_transposed(self, whitened: Array) -> Array:
        observed = self.problem.observed
        return jax.linear_transpose(observed.whiten, observed.value)(whitened)[0]

    def _unwhiten(self, whitened: Array) -> Array:
        """W⁺ = R Wᵀ."""
        return self.problem.observed.mv(self._whiten_transposed(whitened))

    def _as_residual(self, whitened: Array) -> PyTree[Array]:
        """A whitened observation as a residual whose further terms and jumps are zero."""
        zero = self.problem.zero_residual()
        return (whitened, *zero[1:]) if isinstance(zero, tuple) else whitened

    def _observations(self, residual: PyTree[Array]) -> Array:
        return residual[0] if isinstance(residual, tuple) else residual

    def _solve(self, v: PyTree[Array]) -> PyTree[Array]:
        """A⁻¹ v, by conjugate gradients to the square root of the precision where nothing is factorised."""
        if self.factor is not None:
            return self.factor.solve(v)
        prior_part = self.problem.observe.prior_part
        normal = lambda u: jax.tree.map(jnp.add, prior_part(u), self.GT(self.G(u)))  # noqa: E731
        operator = lx.FunctionLinearOperator(normal, jax.eval_shape(lambda: v), lx.positive_semidefinite_tag)
        tolerance = float(np.sqrt(jnp.finfo(jax.tree.leaves(v)[0].dtype).eps))
        return lx.linear_solve(operator, v, RelativeCG(tolerance, MAX_STEPS), throw=False).value


def sum_over(part: Callable[[Array], Array], rows: Float[Array, "k n"]) -> Array:
    """Σ part(row), a block of rows at a time: never all results at once."""
    block = min(rows.shape[0], COLUMN_BLOCK)
    zero = jax.eval_shape(part, rows[0])
    blocks = jnp.pad(rows, ((0, -rows.shape[0] % block), (0, 0))).reshape(-1, block, rows.shape[1])

    def add(total: Array, chunk: Array) -> tuple[Array, None]:
        return total + jnp.sum(jax.vmap(part)(chunk), axis=0), None

    return jax.lax.scan(add, jnp.zeros(zero.shape, zero.dtype), blocks)[0]
