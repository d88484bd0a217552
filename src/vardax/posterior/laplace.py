"""Laplace's approximation: the Gaussian posterior around the analysis of a control-space problem.

    P = S (I + GᵀG)⁻¹ Sᵀ,     S = dx/dchi

The smaller of I + GᵀG and I + GGᵀ is factorised when it has at most `DENSE_LIMIT` rows, which makes products, samples,
variances and the log-determinant exact; beyond, (I + GᵀG)⁻¹ is a conjugate-gradient solve. The closed form of optimal
interpolation is this with an affine H.
"""

from typing import Any

import equinox as eqx
from jaxtyping import Array, PyTree

from vardax.minimisers.closed_form import factorise, is_dense_case
from vardax.minimisers.problem import BatchedProblem, ControlSpaceProblem
from vardax.posterior.covariance import PosteriorCovariance
from vardax.posterior.inverses import AbstractInverse, DenseInverse, IterativeInverse
from vardax.posterior.posterior import Posterior
from vardax.posterior.provenance import provenance_of
from vardax.types import Analysis

__all__ = ["LaplaceCovariance", "control_of", "normal_inverse"]


class LaplaceCovariance(eqx.Module):
    """The posterior adapter of the variational methods: P at the analysis, as a lazy operator.

    `n_samples` is used only by `std()` and `quantile()`, where neither normal matrix is small enough to factorise and
    the observations are not of single cells, or where the smaller one is that of the observations and B has no
    variances at this size.
    """

    n_samples: int = eqx.field(static=True, default=200)

    def __call__(self, analysis: Analysis | PyTree[Array], model: Any, batch: Any) -> Posterior:
        """The posterior of `model` (a method or its analysis step) at `analysis` (an `Analysis`, or its state)."""
        problem = model.problem(batch)
        return self.of_problem(analysis, problem, method=type(getattr(model, "method", model)).__name__)

    def of_problem(
        self, analysis: Analysis | PyTree[Array], problem: BatchedProblem | ControlSpaceProblem, *, method: str = ""
    ) -> Posterior:
        """The posterior of a problem that is at hand."""
        state, control = control_of(analysis, problem)
        covariance = PosteriorCovariance(problem, control, normal_inverse(problem, control), self.n_samples)
        return Posterior(state, covariance, provenance=provenance_of(analysis, problem, self, method))


def control_of(
    analysis: Analysis | PyTree[Array], problem: BatchedProblem | ControlSpaceProblem
) -> tuple[PyTree[Array], PyTree[Array]]:
    """(state, control) of an `Analysis`, or of a state, whose control is the smallest that gives it."""
    if isinstance(analysis, Analysis):
        return analysis.state, analysis.control
    return analysis, _shortest(problem, analysis)


@eqx.filter_jit
def _shortest(problem: BatchedProblem | ControlSpaceProblem, state: PyTree[Array]) -> PyTree[Array]:
    return problem.map_samples(lambda sample, x: sample.control_of(x), state)


@eqx.filter_jit
def normal_inverse(problem: BatchedProblem | ControlSpaceProblem, control: PyTree[Array]) -> AbstractInverse:
    """(I + GᵀG)⁻¹ of each sample: factorised where the smaller side is small enough."""

    def one(sample: ControlSpaceProblem, chi: PyTree[Array]) -> AbstractInverse:
        if not is_dense_case(sample):
            return IterativeInverse()
        _, G, GT = sample.linearise(chi)
        return DenseInverse(factorise(sample, G, GT).cholesky)

    return problem.map_samples(one, control)
