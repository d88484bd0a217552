"""Incremental 4DVar: strong-constraint 4DVar by Gauss-Newton outer loops with conjugate gradients inside.

    J(x_0) = ½‖x_0 - x_b‖²_{B⁻¹} + ½ Σ_{t=0..T} ‖y_t - H(M_t(x_0))‖²_{R⁻¹}
    outer loop:  linearise H M_t at the latest x_0;     inner loop:  (I + GᵀG) dchi = -∇J,   x_0 += B^{1/2} dchi

The problem is that of `StrongFourDVar` and so is its minimum; each outer loop runs the model once, and each inner step
its tangent-linear and adjoint.

**Assumes** what strong 4DVar assumes, and that the model is linear enough over an increment for Gauss-Newton.
**Use it** where few model runs are affordable, or many controls: the operational form of 4DVar. `config` sets the
number of loops (`n_outer`, `n_inner`), the inner solver (`LanczosCG()`, or `DualCG()` for few observations and a long
control), a coarser or simplified model for the increments, and preconditioning by earlier loops.
**Not for** a cost with several minima between the background and the truth: shorten the window, or lengthen it step by
step with `first_guess`.

Courtier, P., Thepaut, J.-N. and Hollingsworth, A. (1994). A strategy for operational implementation of 4D-Var, using an
incremental approach. QJRMS 120, 1367-1387.
"""

import dataclasses
from typing import Any, ClassVar

import equinox as eqx
import lineax as lx
import optimistix as optx
from jaxtyping import Array, PyTree

from vardax.dynamics.adjoint_memory import check_tangents, forward_memory
from vardax.minimisers.gauss_newton import GaussNewtonKrylov, IncrementalConfig
from vardax.minimisers.minimise import minimise
from vardax.minimisers.moments import AbstractTimeInterpolation, LinearInTime, as_time_interpolation
from vardax.minimisers.penalties import as_penalties
from vardax.minimisers.problem import ControlSpaceProblem
from vardax.minimisers.transforms import Identity
from vardax.minimisers.windows import Window
from vardax.models.boundary import as_obs_covariance, as_prior_covariance, as_state
from vardax.models.joint_controls import as_joint_control
from vardax.models.method import AbstractAnalysisMethod
from vardax.posterior.gauss_newton_hessian import GaussNewtonHessian
from vardax.types import Analysis

__all__ = ["IncrementalFourDVar"]


class IncrementalFourDVar(AbstractAnalysisMethod):
    """Incremental 4DVar; returns the window start x_0* (B, *state), and the trajectory in `Analysis`.

    `history` has one row for each evaluation of J: the start, then what each outer loop tried. Gradients of the
    analysis are implicit, at the analysis. The other slots and options are those of `StrongFourDVar`.
    """

    takes_window: ClassVar[bool] = True
    iterative: ClassVar[bool] = True
    stops_by_design: ClassVar[bool] = True

    forward: Any
    obs_op: Any
    prior_mean: PyTree[Array] = eqx.field(converter=as_state)
    prior_cov_op: lx.AbstractLinearOperator = eqx.field(converter=as_prior_covariance)
    obs_cov_op: lx.AbstractLinearOperator | None = eqx.field(converter=as_obs_covariance)
    config: Any = eqx.field(default=IncrementalConfig())
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
    strict: bool = eqx.field(static=True, default=False, kw_only=True)

    def __check_init__(self) -> None:
        check_tangents(self.forward, self.forward_adjoint, "IncrementalFourDVar")
        forward_memory(self.forward_adjoint, self.forward)
        if not isinstance(self.config, IncrementalConfig):
            raise TypeError(f"IncrementalFourDVar: `config` is {self.config!r}, expected IncrementalConfig(...).")

    @property
    def max_steps(self) -> int:
        """Evaluations of J at most: those of `config`."""
        return self.config.max_evaluations

    @property
    def minimiser(self) -> GaussNewtonKrylov:
        """The incremental iteration, as the minimiser that `minimise` and `iterate` run."""
        return GaussNewtonKrylov(config=self.config, tol=self.tol)

    @property
    def posterior_adapter(self) -> GaussNewtonHessian:
        """The Hessian of the last linearisation: no further run of the model."""
        return GaussNewtonHessian()

    def for_posterior(self, adapter: Any) -> "IncrementalFourDVar":
        """This method, making the Lanczos vectors that `adapter` wants while it has the linearisation."""
        n_krylov = getattr(adapter, "n_krylov", 0)
        return self.with_(config=dataclasses.replace(self.config, n_krylov=n_krylov)) if n_krylov else self

    def observe(self, samples: Any) -> Window:
        return Window.of(self, samples)

    def solve(self, problem: ControlSpaceProblem, start: PyTree[Array] | None) -> Analysis:
        return minimise(
            problem, self.minimiser, optx.ImplicitAdjoint(), tol=self.tol, max_steps=self.max_steps, start=start
        )
