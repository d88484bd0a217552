"""Strong-constraint 4DVar: the initial state whose trajectory fits a window of observations best.

    J(x_0) = ½‖x_0 - x_b‖²_{B⁻¹} + ½ Σ_{t=0..T} ‖y_t - H(M_t(x_0))‖²_{R⁻¹}

minimised over chi = B^{-1/2} (x_0 - x_b). M_t is the model run to entry t; its gradient comes from automatic
differentiation with the memory that `forward_adjoint` allows.

**Assumes** a model without error over the window. **Use it** for windows that the model predicts well; entry 0 of the
batch observes x_0 itself, entry t the state after t intervals of `n_substeps` model steps.
**Not for** windows much longer than the model's doubling time (many minima), or models whose error matters over the
window.

Le Dimet, F.-X. and Talagrand, O. (1986). Variational algorithms for analysis and assimilation of meteorological
observations. Tellus A 38, 97-110.
"""

from typing import Any, ClassVar

import equinox as eqx
import lineax as lx
import optimistix as optx
from jaxtyping import Array, PyTree

from vardax.dynamics.adjoint_memory import check_reverse, check_tangents, forward_memory
from vardax.minimisers.minimise import minimise
from vardax.minimisers.moments import AbstractTimeInterpolation, LinearInTime, as_time_interpolation
from vardax.minimisers.penalties import as_penalties
from vardax.minimisers.problem import ControlSpaceProblem
from vardax.minimisers.transforms import Identity
from vardax.minimisers.windows import Window
from vardax.models.boundary import as_adjoint, as_minimiser, as_obs_covariance, as_prior_covariance, as_state
from vardax.models.joint_controls import as_joint_control
from vardax.models.method import AbstractAnalysisMethod
from vardax.types import Analysis

__all__ = ["StrongFourDVar"]


class StrongFourDVar(AbstractAnalysisMethod):
    """Strong-constraint 4DVar; returns the window start x_0* (B, *state), and the trajectory in `Analysis`.

    `forward` is any object with `step(state, dt)` and `dt`. `forward_adjoint` chooses what the differentiated model run
    keeps: `RecursiveCheckpointAdjoint(checkpoints)`, `DirectAdjoint()`, `ForwardMode()`. `n_substeps` model steps make
    one interval between entries. Scattered `Observations` need `n_steps`, the number of intervals: each is predicted at
    its own time from the start of the window (`Observations.start`), by `time_interpolation`, which is `LinearInTime()`
    or `NearestInTime()`. `joint` estimates parameters or biases as well (`JointControl`, `ForcingBias`, ...; the state
    is then the tuple (x_0, theta)); `terms` see the trajectory (`DigitalFilter`, any `CostFunction`). The other slots
    and options are those of `ThreeDVar`.
    """

    takes_window: ClassVar[bool] = True
    iterative: ClassVar[bool] = True

    forward: Any
    obs_op: Any
    prior_mean: PyTree[Array] = eqx.field(converter=as_state)
    prior_cov_op: lx.AbstractLinearOperator = eqx.field(converter=as_prior_covariance)
    obs_cov_op: lx.AbstractLinearOperator | None = eqx.field(converter=as_obs_covariance)
    minimiser: Any = eqx.field(default=None, converter=as_minimiser)
    minimiser_adjoint: optx.AbstractAdjoint = eqx.field(default=optx.ImplicitAdjoint(), converter=as_adjoint)
    forward_adjoint: Any = eqx.field(default=optx.RecursiveCheckpointAdjoint())
    control_transform: PyTree = eqx.field(default=Identity(), kw_only=True)
    n_substeps: int = eqx.field(static=True, default=1, kw_only=True)
    n_steps: int | None = eqx.field(static=True, default=None, kw_only=True)
    time_interpolation: AbstractTimeInterpolation = eqx.field(
        default=LinearInTime(), converter=as_time_interpolation, kw_only=True
    )
    joint: Any = eqx.field(default=None, converter=as_joint_control, kw_only=True)
    terms: tuple = eqx.field(default=(), converter=as_penalties, kw_only=True)
    tol: float | None = eqx.field(static=True, default=None, kw_only=True)
    max_steps: int = eqx.field(static=True, default=500, kw_only=True)
    strict: bool = eqx.field(static=True, default=False, kw_only=True)

    def __check_init__(self) -> None:
        forward_memory(self.forward_adjoint, self.forward)
        if isinstance(self.minimiser, optx.AbstractLeastSquaresSolver):
            check_tangents(self.forward, self.forward_adjoint, type(self.minimiser).__name__)
        check_reverse(self.forward, "the gradient of the cost")

    def observe(self, samples: Any) -> Window:
        return Window.of(self, samples)

    def solve(self, problem: ControlSpaceProblem, start: PyTree[Array] | None) -> Analysis:
        return minimise(
            problem, self.minimiser, self.minimiser_adjoint, tol=self.tol, max_steps=self.max_steps, start=start
        )
