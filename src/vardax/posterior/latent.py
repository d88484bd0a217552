"""The posterior of a latent method: Gaussian in latent space, decoded to states.

    P_z = B_z^{1/2} (I + GᵀG)⁻¹ B_z^{T/2},     P = D' P_z D'ᵀ,     D' = dD/dz at z*

P has at most as many directions as the latent vector has numbers, however large the state is, and is applied without
ever being formed: a product costs two with D' and one with a small matrix. `sample` decodes samples of z, which are
states of the range of D also where D is curved; `std` is that of the linearised decoder.
"""

from typing import Any

import equinox as eqx
from jaxtyping import Array, PyTree

from vardax.minimisers.problem import BatchedProblem, ControlSpaceProblem
from vardax.posterior.covariance import PosteriorCovariance
from vardax.posterior.laplace import control_of, normal_inverse
from vardax.posterior.posterior import Posterior
from vardax.posterior.provenance import provenance_of
from vardax.posterior.quantities import AbstractQuantity
from vardax.types import Analysis

__all__ = ["DecodedState", "LatentLaplaceCovariance", "LatentVector"]


class DecodedState(AbstractQuantity):
    """x = D(z)."""

    def __call__(self, problem: ControlSpaceProblem, control: PyTree[Array]) -> PyTree[Array]:
        return problem.control_to_state(control)


class LatentVector(AbstractQuantity):
    """z = z_b + B_z^{1/2} chi."""

    def __call__(self, problem: ControlSpaceProblem, control: PyTree[Array]) -> PyTree[Array]:
        return problem.window_state(control)


class LatentLaplaceCovariance(eqx.Module):
    """The posterior adapter of the latent methods: P at the analysis, as a lazy operator of low rank.

    `latent(...)` is the posterior of z itself. `n_samples` is used only by `std()`, where the latent vector is too long
    for its normal matrix to be factorised.
    """

    n_samples: int = eqx.field(static=True, default=200)

    def __call__(self, analysis: Analysis | PyTree[Array], model: Any, batch: Any) -> Posterior:
        """The posterior of the state of `model` (a latent method or its analysis step) at `analysis`."""
        return self._of(DecodedState(), analysis, model, batch)

    def latent(self, analysis: Analysis | PyTree[Array], model: Any, batch: Any) -> Posterior:
        """The posterior of the latent vector: mean z*, covariance P_z."""
        return self._of(LatentVector(), analysis, model, batch)

    def _of(self, quantity: AbstractQuantity, analysis: Any, model: Any, batch: Any) -> Posterior:
        problem, method = model.problem(batch), type(getattr(model, "method", model)).__name__
        _check_latent(problem, method)
        _, control = control_of(analysis, problem)
        inverse = normal_inverse(problem, control)
        covariance = PosteriorCovariance(problem, control, inverse, self.n_samples, quantity)
        return Posterior(covariance.mean(), covariance, provenance=provenance_of(analysis, problem, self, method))


def _check_latent(problem: BatchedProblem | ControlSpaceProblem, method: str) -> None:
    if problem.observe.latent(problem.background) is None:
        raise TypeError(
            f"LatentLaplaceCovariance: {method} is no latent method, it estimates states; take LaplaceCovariance()."
        )
