"""4DVarNet: a learned prior, and a learned solver of the variational cost.

    J(x) = obs_weight · ½‖m (y - H(x))‖²_{R⁻¹} + prior_weight · ‖x - phi(x)‖²
    x_{k+1} = x_k + alpha · modulator(∇J(x_k) / s, x_k, memory_k),      k = 0 .. n - 1

phi is a reconstruction that knows what states look like (an autoencoder, or a model: `DynamicalPrior`), the modulator a
recurrent network that has learned how to descend. Both are trained end to end on pairs of observations and truth
(`vardax.training`); `solver_adjoint` says how the gradient gets through the iterations, and what it costs in memory.

**Assumes** training pairs that are like the data of the application.
**Use it** where B is hard to know and truths are at hand, from simulations: a trained model makes an analysis of fixed
cost. `GaussianPrior` with `IdentityGradMod` is gradient descent on the cost of 3DVar, and converges to it.
**Not for** data unlike the training set, or uncertainties that must be defended: its posterior is the curvature of J,
which training did not make a probability.

Fablet, R. et al. (2021). Learning variational data assimilation models and solvers. JAMES 13, e2021MS002572.
"""

from collections.abc import Iterator
from typing import Any, ClassVar

import equinox as eqx
import jax
import lineax as lx
import optimistix as optx
from jaxtyping import Array, PyTree

from vardax.minimisers.free_state import FreeState, entry_of
from vardax.minimisers.learned_run import iterate_learned, learned_analysis
from vardax.minimisers.moments import AbstractTimeInterpolation, LinearInTime, as_time_interpolation
from vardax.minimisers.problem import BatchedProblem, ControlSpaceProblem
from vardax.minimisers.solver_config import SolverConfig
from vardax.models.boundary import as_adjoint, as_obs_covariance, as_state, check_moments, check_times
from vardax.models.latent_slots import as_latent_covariance
from vardax.models.learned_slots import check_learned_slots, pose_learned, started, state_of, with_covariance
from vardax.models.method import AbstractAnalysisMethod
from vardax.types import Analysis

__all__ = ["FourDVarNet"]


class FourDVarNet(AbstractAnalysisMethod):
    """4DVarNet in any number of dimensions; returns the reconstruction x_n, (B, *state).

    - `prior`: `prior(x) -> x` on one sample; one with `cost` or `residual` (`GaussianPrior`) brings its own term of J.
    - `obs_op`: applied to each entry of the window, or to a state of one time.
    - `grad_mod`: `grad_mod(gradient, state, memory) -> (update, memory)`.
    - `solver_adjoint`: `RecursiveCheckpointAdjoint()`, `DirectAdjoint()`, `KStepAdjoint(k)`, `OneStepAdjoint()`, or
      `ImplicitAdjoint()` for an iteration that converges. The analysis does not depend on it.
    - `forward_adjoint`: what the model run of a `DynamicalPrior` keeps, in place of the prior's own.
    - `obs_cov_op`: R; None takes the standard deviations that come with the observations, or else R = I.
    - `start`: `Interpolated()`, `Observed()`, `Zeros()`, or a function of the batch, such as an
      `OptimalInterpolation`. None: the background, the mean of the prior, interpolation in time where the state itself
      is observed, zero elsewhere, whichever of these exists first.
    - `prior_mean`: a background, where the iteration starts and a prior with a mean has it. `prior_cov_op`: B of a
      `GaussianPrior`, in place of its own.
    - `state_signature`: what a state is like, for priors that work on any and operators that do not say it either.
    - `interval`, `n_steps`, `time_interpolation`: of the entries of a window of scattered `Observations`.

    All steps are made; `converged` means that they were finite, or with `config.tol` that the last one was small, which
    `ImplicitAdjoint` also asks for. `Analysis.residual` is the size of the last step; `gradient_norm` is at x_{n-1}.
    """

    takes_window: ClassVar[bool] = False
    iterative: ClassVar[bool] = True

    prior: Any
    obs_op: Any
    grad_mod: Any
    config: SolverConfig = SolverConfig()
    solver_adjoint: optx.AbstractAdjoint = eqx.field(default=optx.RecursiveCheckpointAdjoint(), converter=as_adjoint)
    forward_adjoint: Any = None
    obs_cov_op: lx.AbstractLinearOperator | None = eqx.field(default=None, converter=as_obs_covariance, kw_only=True)
    start: Any = eqx.field(default=None, kw_only=True)
    prior_mean: PyTree[Array] | None = eqx.field(default=None, converter=as_state, kw_only=True)
    prior_cov_op: Any = eqx.field(default=None, converter=as_latent_covariance, kw_only=True)
    state_signature: PyTree[jax.ShapeDtypeStruct] | None = eqx.field(static=True, default=None, kw_only=True)
    interval: float | Array = eqx.field(default=1.0, kw_only=True)
    n_steps: int | None = eqx.field(static=True, default=None, kw_only=True)
    time_interpolation: AbstractTimeInterpolation = eqx.field(
        default=LinearInTime(), converter=as_time_interpolation, kw_only=True
    )
    strict: bool = eqx.field(static=True, default=False, kw_only=True)

    def __check_init__(self) -> None:
        check_learned_slots(self)

    @property
    def tol(self) -> float | None:
        return self.config.tol

    @property
    def max_steps(self) -> int:
        return self.config.n_steps

    def with_(self, **slots: Any) -> "FourDVarNet":
        """A new method with some slots replaced; the same structure does not compile again.

        B becomes that of the prior at once: a call with another one then runs the same program.
        """
        covariance = slots.get("prior_cov_op")
        if covariance is not None and self.prior_cov_op is None:
            prior = with_covariance(slots.get("prior", self.prior), covariance, type(self).__name__)
            slots = slots | {"prior": prior, "prior_cov_op": None}
        return super().with_(**slots)

    def operand(self, batch: Any) -> PyTree[jax.ShapeDtypeStruct]:
        return entry_of(state_of(self, self.prior, batch))

    def check_times(self, batch: Any) -> None:
        check_times(batch, type(self).__name__)
        if self.n_steps is not None:
            check_moments(batch, self.n_steps, self.interval, 1, type(self).__name__)

    def pose(self, batch: Any) -> BatchedProblem:
        return pose_learned(self, batch)

    def observe(self, samples: Any, n_steps: int | None = None) -> FreeState:
        return FreeState(self.obs_op, self.interval, n_steps, self.time_interpolation)

    def first_control(self, problem: BatchedProblem, batch: Any) -> PyTree[Array] | None:
        return started(self, problem, batch)

    def solve(self, problem: ControlSpaceProblem, start: PyTree[Array] | None) -> Analysis:
        solver = self.config.minimiser(self.grad_mod)
        return learned_analysis(problem, solver, self.solver_adjoint, tol=self.config.tol, start=start)

    def steps(self, problem: BatchedProblem, start: PyTree[Array] | None) -> Iterator[Analysis]:
        return iterate_learned(problem, self.config.minimiser(self.grad_mod), tol=self.config.tol, start=start)
