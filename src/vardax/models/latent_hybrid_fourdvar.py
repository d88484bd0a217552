"""Hybrid latent 4DVar: the model runs on states, what is estimated is a latent vector.

    x_0 = D(z_0),   x_t = M_t(x_{t-1})
    J(z_0) = ½‖z_0 - z_b‖²_{B_z⁻¹} + ½ Σ_{t=0..T} ‖y_t - H(x_t)‖²_{R⁻¹},     x_0* = D(z_0*)

minimised over the control chi = B_z^{-1/2} (z_0 - z_b). Only the start of the window is a decoded state; the model
takes it from there.

**Assumes** a model without error over the window, and a start of it close to the range of the decoder D.
**Use it** where the model is trusted and the background covariance is not: D and B_z say which starts are plausible.
With D the identity it is `StrongFourDVar`, with D = V linear that with B = V B_z Vᵀ.
**Not for** saving runs of the model: each iteration runs it as `StrongFourDVar` does. With a latent model,
`LatentStrongFourDVar`.

Cheng, S. et al. (2023). Generalised latent assimilation in heterogeneous reduced spaces with machine learning surrogate
models. Journal of Scientific Computing 94, 11.
"""

from typing import Any, ClassVar

import equinox as eqx
import jax
import lineax as lx
import optimistix as optx
from jaxtyping import Array, PyTree

from vardax.dynamics.adjoint_memory import check_reverse, check_tangents, forward_memory
from vardax.latent.prior import LatentPrior
from vardax.minimisers.latent_window import DecodedStart
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

__all__ = ["LatentHybridFourDVar"]


class LatentHybridFourDVar(AbstractAnalysisMethod):
    """Latent 4DVar with the model of states; returns the decoded x_0* (B, *state), with z_0* in `Analysis.latent`.

    `forward` moves states, and the trajectory is its own. `n_steps`, the number of intervals, is needed where
    observations are scattered; `n_substeps`, `time_interpolation` and `forward_adjoint` are those of `StrongFourDVar`,
    the prior and the other slots those of `LatentThreeDVar`.
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

    def observe(self, samples: Any) -> DecodedStart:
        return DecodedStart(Window.of(self, samples), self.latent_map)

    def solve(self, problem: ControlSpaceProblem, start: PyTree[Array] | None) -> Analysis:
        return minimise(
            problem, self.minimiser, self.minimiser_adjoint, tol=self.tol, max_steps=self.max_steps, start=start
        )
