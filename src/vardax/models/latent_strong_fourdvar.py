"""Strong-constraint 4DVar in latent space, with a latent model: a window that is never run in state space.

    z_t = M_z(z_{t-1}),   x_t = D(z_t)
    J(z_0) = ½‖z_0 - z_b‖²_{B_z⁻¹} + ½ Σ_{t=0..T} ‖y_t - H(D(z_t))‖²_{R⁻¹},     x_0* = D(z_0*)

minimised over the control chi = B_z^{-1/2} (z_0 - z_b). The model runs on latent vectors; states are decoded only where
they are observed.

**Assumes** a latent model without error over the window, and a truth close to the range of the decoder D.
**Use it** where a latent model is much cheaper than that of the states: a trained network
(`NeuralLatentForwardModel`), or coordinates in which the dynamics are simple.
**Not for** a latent model that was not tested over the whole window: its errors appear as errors of the analysis.
`LatentHybridFourDVar` keeps the model of states; `EncodedForwardModel` puts one between decoder and encoder.

Peyron, M. et al. (2021). Latent space data assimilation by using deep learning. QJRMS 147, 3759-3777.
"""

from typing import Any, ClassVar

import equinox as eqx
import jax
import lineax as lx
import optimistix as optx
from jaxtyping import Array, PyTree

from vardax.dynamics.adjoint_memory import check_reverse, check_tangents, forward_memory
from vardax.latent.prior import LatentPrior
from vardax.minimisers.latent_window import DecodedWindow
from vardax.minimisers.minimise import minimise
from vardax.minimisers.moments import AbstractTimeInterpolation, LinearInTime, as_time_interpolation
from vardax.minimisers.penalties import as_penalties
from vardax.minimisers.problem import ControlSpaceProblem
from vardax.minimisers.windows import Window
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

__all__ = ["LatentStrongFourDVar"]


class LatentStrongFourDVar(AbstractAnalysisMethod):
    """Latent 4DVar with a latent model; returns the decoded x_0* (B, *state), with z_0* in `Analysis.latent`.

    `forward` moves latent vectors: any object with `step(latent, dt)` and `dt`. The trajectory is one of states, and
    `terms` see it. `n_steps`, the number of intervals, is needed where observations are scattered, as are
    `n_substeps` and `time_interpolation` of `StrongFourDVar`. The prior and the other slots are those of
    `LatentThreeDVar`; a cycle hands on the decoded end of the window.
    """

    takes_window: ClassVar[bool] = True
    iterative: ClassVar[bool] = True

    latent_map: Any
    forward: Any
    obs_op: Any
    prior: LatentPrior = eqx.field(converter=as_latent_prior)
    obs_cov_op: lx.AbstractLinearOperator | None = eqx.field(converter=as_obs_covariance)
    n_steps: int | None = eqx.field(static=True, default=None)
    minimiser: Any = eqx.field(default=None, converter=as_minimiser)
    minimiser_adjoint: optx.AbstractAdjoint = eqx.field(default=optx.ImplicitAdjoint(), converter=as_adjoint)
    forward_adjoint: Any = eqx.field(default=optx.RecursiveCheckpointAdjoint())
    n_substeps: int = eqx.field(static=True, default=1, kw_only=True)
    time_interpolation: AbstractTimeInterpolation = eqx.field(
        default=LinearInTime(), converter=as_time_interpolation, kw_only=True
    )
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

    def __check_init__(self) -> None:
        forward_memory(self.forward_adjoint, self.forward)
        if isinstance(self.minimiser, optx.AbstractLeastSquaresSolver):
            check_tangents(self.forward, self.forward_adjoint, type(self.minimiser).__name__)
        check_reverse(self.forward, "the gradient of the cost")

    @property
    def posterior_adapter(self) -> LatentLaplaceCovariance:
        """The covariance of z, decoded."""
        return LatentLaplaceCovariance()

    def state_background(self) -> tuple[PyTree, PyTree[jax.ShapeDtypeStruct]]:
        return latent_background(self)

    def control_prior(self, samples: Any) -> tuple[ControlPrior, ...]:
        return latent_control_prior(self, samples)

    def observe(self, samples: Any) -> DecodedWindow:
        return DecodedWindow(Window.of(self, samples), self.latent_map)

    def solve(self, problem: ControlSpaceProblem, start: PyTree[Array] | None) -> Analysis:
        return minimise(
            problem, self.minimiser, self.minimiser_adjoint, tol=self.tol, max_steps=self.max_steps, start=start
        )
