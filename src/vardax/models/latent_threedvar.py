"""3DVar in latent space: the most probable latent vector at one time.

    J(z) = ½‖z - z_b‖²_{B_z⁻¹} + ½‖y - H(D(z))‖²_{R⁻¹},     x* = D(z*)

minimised over the control chi = B_z^{-1/2} (z - z_b). D is the decoder of a latent map: a basis of fields
(`vardax.latent`), or a trained network.

**Assumes** that the truth is close to the range of D, and a background error that is Gaussian there. What D cannot make
is not corrected by any observation.
**Use it** where states are confined to a set of few dimensions that samples of them show: the control is short, and
every analysis is one of those states. With D the identity it is `ThreeDVar`, with D = V linear that with B = V B_z Vᵀ.
**Not for** details that the samples did not have. With a window, `LatentStrongFourDVar` or `LatentHybridFourDVar`.

Peyron, M. et al. (2021). Latent space data assimilation by using deep learning. QJRMS 147, 3759-3777.
"""

from typing import Any, ClassVar

import equinox as eqx
import jax
import lineax as lx
import optimistix as optx
from jaxtyping import Array, PyTree

from vardax.latent.prior import LatentPrior
from vardax.minimisers.latent_window import DecodedStart
from vardax.minimisers.minimise import minimise
from vardax.minimisers.penalties import as_penalties
from vardax.minimisers.problem import ControlSpaceProblem
from vardax.minimisers.windows import Snapshot
from vardax.models.boundary import as_adjoint, as_minimiser, as_obs_covariance, as_state
from vardax.models.latent_slots import (
    as_latent_covariance,
    as_latent_prior,
    latent_background,
    latent_control_prior,
    latent_prior,
)
from vardax.models.method import AbstractAnalysisMethod, ControlPrior
from vardax.posterior.latent import LatentLaplaceCovariance
from vardax.types import Analysis

__all__ = ["LatentThreeDVar"]


class LatentThreeDVar(AbstractAnalysisMethod):
    """Latent 3DVar; returns the decoded x* (B, *state), with z* in `Analysis.latent`.

    - `latent_map`: any object with `encode(state)` and `decode(latent)`.
    - `obs_op`: of states, as everywhere.
    - `prior`: N(z_b, B_z), a `LatentPrior`.
    - `prior_mean`: a background state (B, *state) instead of D(z_b), encoded; `analyse(background=...)` and cycles set
      it. `prior_cov_op`: a covariance of z that takes the place of B_z in `prior`.

    The other slots and options are those of `ThreeDVar`. The control is chi*, with z* = z_b + B_z^{1/2} chi*.
    """

    takes_window: ClassVar[bool] = False
    iterative: ClassVar[bool] = True

    latent_map: Any
    obs_op: Any
    prior: LatentPrior = eqx.field(converter=as_latent_prior)
    obs_cov_op: lx.AbstractLinearOperator | None = eqx.field(converter=as_obs_covariance)
    minimiser: Any = eqx.field(default=None, converter=as_minimiser)
    minimiser_adjoint: optx.AbstractAdjoint = eqx.field(default=optx.ImplicitAdjoint(), converter=as_adjoint)
    prior_mean: PyTree[Array] | None = eqx.field(default=None, converter=as_state, kw_only=True)
    prior_cov_op: lx.AbstractLinearOperator | None = eqx.field(
        default=None, converter=as_latent_covariance, kw_only=True
    )
    terms: tuple = eqx.field(default=(), converter=as_penalties, kw_only=True)
    tol: float | None = eqx.field(static=True, default=None, kw_only=True)
    max_steps: int = eqx.field(static=True, default=500, kw_only=True)
    strict: bool = eqx.field(static=True, default=False, kw_only=True)

    def __post_init__(self) -> None:
        self.prior, self.prior_cov_op = latent_prior(self.prior, self.prior_cov_op), None

    @property
    def posterior_adapter(self) -> LatentLaplaceCovariance:
        """The covariance of z, decoded."""
        return LatentLaplaceCovariance()

    def state_background(self) -> tuple[PyTree, PyTree[jax.ShapeDtypeStruct]]:
        return latent_background(self)

    def control_prior(self, samples: Any) -> tuple[ControlPrior, ...]:
        return latent_control_prior(self, samples)

    def observe(self, samples: Any) -> DecodedStart:
        return DecodedStart(Snapshot(self.obs_op), self.latent_map)

    def solve(self, problem: ControlSpaceProblem, start: PyTree[Array] | None) -> Analysis:
        return minimise(
            problem, self.minimiser, self.minimiser_adjoint, tol=self.tol, max_steps=self.max_steps, start=start
        )
