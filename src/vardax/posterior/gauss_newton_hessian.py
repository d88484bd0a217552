"""The posterior from Lanczos vectors of the Gauss-Newton Hessian, those that an incremental analysis leaves behind.

    P = S C Sᵀ,     C = I - A Q (QᵀAQ + QᵀA²Q)⁻¹ QᵀA,     A = GᵀG

with Q the first k Lanczos vectors of A and S = dx/dchi (`vardax.minimisers.galerkin`). For every k the variances lie
between those of the true posterior and the prior's; they fall as k grows, and are exact when k reaches the number of
independent observations. `std()`, `sample` and the information gain are exact for the covariance that the k vectors
give, and cost no product with G: S alone is applied, B^{1/2} unless a later entry of the window is asked for.

A vector costs one tangent-linear and one adjoint product. `IncrementalFourDVar.posterior` has them made by the
analysis itself, with the linearisation at its last iterate, so the model is not run again. An analysis that is at hand
is gone on with from its own record, which takes one more linearisation unless the record is complete.
"""

from typing import Any

import equinox as eqx
from jaxtyping import Array, PyTree

from vardax.minimisers.galerkin import galerkin_pairs
from vardax.minimisers.lanczos import KrylovRecord
from vardax.minimisers.last_hessian import last_record
from vardax.minimisers.problem import BatchedProblem, ControlSpaceProblem
from vardax.posterior.covariance import PosteriorCovariance
from vardax.posterior.inverses import KrylovInverse
from vardax.posterior.laplace import control_of
from vardax.posterior.posterior import Posterior
from vardax.posterior.provenance import provenance_of
from vardax.types import Analysis

__all__ = ["GaussNewtonHessian"]


class GaussNewtonHessian(eqx.Module):
    """The posterior adapter of the incremental method: `n_krylov` vectors at most, as a lazy operator.

    `n_samples` is used only by `std()` and `quantile()`, where B has no variances at this size.
    """

    n_krylov: int = eqx.field(static=True, default=50)
    n_samples: int = eqx.field(static=True, default=200)

    def __check_init__(self) -> None:
        if self.n_krylov < 1:
            raise ValueError(f"GaussNewtonHessian: `n_krylov` is {self.n_krylov}, expected at least 1.")

    def __call__(self, analysis: Analysis | PyTree[Array], model: Any, batch: Any) -> Posterior:
        """The posterior of `model` (a method or its analysis step) at `analysis` (an `Analysis`, or its state)."""
        problem = model.problem(batch)
        return self.of_problem(analysis, problem, method=type(getattr(model, "method", model)).__name__)

    def of_problem(
        self, analysis: Analysis | PyTree[Array], problem: BatchedProblem | ControlSpaceProblem, *, method: str = ""
    ) -> Posterior:
        """The posterior of a problem that is at hand."""
        state, control = control_of(analysis, problem)
        covariance = self.covariance(problem, control, analysis.krylov if isinstance(analysis, Analysis) else None)
        return Posterior(state, covariance, provenance=provenance_of(analysis, problem, self, method))

    def covariance(
        self, problem: BatchedProblem | ControlSpaceProblem, control: PyTree[Array], record: Any = None
    ) -> PosteriorCovariance:
        """P at `control`, from the Lanczos `record` of an analysis, or from vectors of its own."""
        record = last_record(problem, control, record, self.n_krylov)
        return PosteriorCovariance(problem, control, _inverse(problem, record), self.n_samples)


@eqx.filter_jit
def _inverse(problem: BatchedProblem | ControlSpaceProblem, record: KrylovRecord) -> KrylovInverse:
    return problem.map_samples(lambda _, record: KrylovInverse(galerkin_pairs(record)), record)
