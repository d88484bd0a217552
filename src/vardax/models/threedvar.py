"""3DVar: the most probable state at one time, for any observation operator.

    J(x) = ½‖x - x_b‖²_{B⁻¹} + ½‖y - H(x)‖²_{R⁻¹}

minimised over the control chi = B^{-1/2} (x - x_b), so that B^{-1} is never applied and the background term is ½‖chi‖².

**Assumes** Gaussian errors of the background and the observations; H may be nonlinear.
**Use it** for nonlinear observations at one time. With a least-squares solver (`optx.GaussNewton`,
`optx.LevenbergMarquardt`) the whitened residual is minimised, with a minimiser (default L-BFGS) the cost.
**Not for** a linear H, where `OptimalInterpolation` is exact and faster, or for several times (`StrongFourDVar`).

Courtier, P. et al. (1998). The ECMWF implementation of three-dimensional variational assimilation. QJRMS 124,
1783-1807.
"""

from typing import Any, ClassVar

import equinox as eqx
import lineax as lx
import optimistix as optx
from jaxtyping import Array, PyTree

from vardax.minimisers.minimise import minimise
from vardax.minimisers.penalties import as_penalties
from vardax.minimisers.problem import ControlSpaceProblem
from vardax.minimisers.transforms import Identity
from vardax.minimisers.windows import Snapshot
from vardax.models.boundary import as_adjoint, as_minimiser, as_obs_covariance, as_prior_covariance, as_state
from vardax.models.method import AbstractAnalysisMethod
from vardax.types import Analysis

__all__ = ["ThreeDVar"]


class ThreeDVar(AbstractAnalysisMethod):
    """3DVar with any optimistix minimiser or least-squares solver.

    - `obs_cov_op`: R of one time entry; None takes the standard deviations that come with the observations.
    - `minimiser`: default L-BFGS. One that is given must also satisfy its own rtol and atol.
    - `minimiser_adjoint`: how gradients of the analysis are made; `ImplicitAdjoint()` differentiates the optimum.
    - `tol` (default 1e-6 in float64, 1e-4 in float32): converged when ‖∇J(chi)‖ <= tol · max(1, ‖∇J(x_b)‖).
    - `max_steps` (default 500): a cap on the steps of the minimiser; it truncates and never raises by itself.
    - `control_transform`: `Exp()` or `Softplus()` for positive states, one for all leaves or a pytree of them.
    - `terms`: further terms of J: objects with `residual(state)`, or cost functions `cost(state, observed)`.
    - `strict`: raise `ConvergenceError` where the analysis did not converge.
    """

    takes_window: ClassVar[bool] = False
    iterative: ClassVar[bool] = True

    obs_op: Any
    prior_mean: PyTree[Array] = eqx.field(converter=as_state)
    prior_cov_op: lx.AbstractLinearOperator = eqx.field(converter=as_prior_covariance)
    obs_cov_op: lx.AbstractLinearOperator | None = eqx.field(converter=as_obs_covariance)
    minimiser: Any = eqx.field(default=None, converter=as_minimiser)
    minimiser_adjoint: optx.AbstractAdjoint = eqx.field(default=optx.ImplicitAdjoint(), converter=as_adjoint)
    control_transform: PyTree = eqx.field(default=Identity(), kw_only=True)
    terms: tuple = eqx.field(default=(), converter=as_penalties, kw_only=True)
    tol: float | None = eqx.field(static=True, default=None, kw_only=True)
    max_steps: int = eqx.field(static=True, default=500, kw_only=True)
    strict: bool = eqx.field(static=True, default=False, kw_only=True)

    def observe(self, samples: Any) -> Snapshot:
        return Snapshot(self.obs_op)

    def solve(self, problem: ControlSpaceProblem, start: PyTree[Array] | None) -> Analysis:
        return minimise(
            problem, self.minimiser, self.minimiser_adjoint, tol=self.tol, max_steps=self.max_steps, start=start
        )
