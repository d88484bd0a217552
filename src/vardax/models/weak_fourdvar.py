"""Weak-constraint 4DVar: the initial state and the model errors whose trajectory fits a window best.

    x_t = M_t(x_{t-1}) + eta_t,   t = 1..T
    J(x_0, eta) = ½‖x_0 - x_b‖²_{B⁻¹} + ½ Σ_{t=0..T} ‖y_t - H(x_t)‖²_{R⁻¹} + ½ Σ_{t=1..T} ‖eta_t‖²_{Q⁻¹}

minimised over the controls of both, chi = (B^{-1/2} (x_0 - x_b), Q^{-1/2} eta), so neither inverse is applied. eta_t is
a state, whatever H observes; it is added after the last internal step of interval t.

**Assumes** model errors that are Gaussian, unbiased and independent from one interval to the next.
**Use it** for windows over which the model's error matters. Q decides how far the trajectory may leave the model: as Q
goes to zero this is `StrongFourDVar`.
**Not for** a model without error over the window, where T + 1 states are estimated for the price of information on one.

With `sub_windows` the model errs only between sub-windows: eta holds the jumps. With `parallel` the states at the
starts of all sub-windows take the place of the jumps in the control, and the sub-windows run side by side
(`vardax.minimisers.sub_windows`).

Trémolet, Y. (2006). Accounting for an imperfect model in 4D-Var. QJRMS 132, 2483-2504.
"""

from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import optimistix as optx
from jaxtyping import Array, PyTree

from vardax.covariances.repeated import RepeatedCovariance
from vardax.dynamics.adjoint_memory import check_reverse, check_tangents, forward_memory
from vardax.minimisers.gauss_newton import GaussNewtonKrylov
from vardax.minimisers.minimise import minimise
from vardax.minimisers.moments import AbstractTimeInterpolation, LinearInTime, as_time_interpolation
from vardax.minimisers.penalties import as_penalties
from vardax.minimisers.problem import ControlSpaceProblem
from vardax.minimisers.sub_windows import SubWindows
from vardax.minimisers.transforms import Identity
from vardax.minimisers.windows import WeakWindow, Window, starting
from vardax.models.boundary import (
    as_adjoint,
    as_minimiser,
    as_model_error_covariance,
    as_obs_covariance,
    as_prior_covariance,
    as_state,
    check_model_error_covariance,
    per_sample,
)
from vardax.models.joint_controls import as_joint_control
from vardax.models.method import AbstractAnalysisMethod, ControlPrior
from vardax.types import Analysis

__all__ = ["WeakFourDVar"]


class WeakFourDVar(AbstractAnalysisMethod):
    """Weak-constraint 4DVar; returns the pair x_0* (B, *state), eta* (B, T, *state), and the trajectory in `Analysis`.

    `model_err_cov_op` is Q: of one interval, and then the same for each, or of all T on fields (T, *state). A
    `first_guess` is a state x_0 (with eta = 0) or a pair. The other slots and options are those of `StrongFourDVar`;
    `minimiser=GaussNewtonKrylov(IncrementalConfig(...))` minimises by outer and inner loops.

    `sub_windows=S` lets the model err at the ends of the first S - 1 of S sub-windows of equal length, and only there:
    eta* is (B, S - 1, *state), and Q that of one jump, or of all S - 1. The entry at the end of a sub-window is that
    after the jump. `parallel=True` runs the sub-windows (without `sub_windows`: all intervals) side by side, by `vmap`.
    It needs Q⁻¹, and more iterations the smaller Q is; the minimum is the same.
    """

    takes_window: ClassVar[bool] = True
    iterative: ClassVar[bool] = True

    forward: Any
    obs_op: Any
    prior_mean: PyTree[Array] = eqx.field(converter=as_state)
    prior_cov_op: lx.AbstractLinearOperator = eqx.field(converter=as_prior_covariance)
    obs_cov_op: lx.AbstractLinearOperator | None = eqx.field(converter=as_obs_covariance)
    model_err_cov_op: lx.AbstractLinearOperator = eqx.field(converter=as_model_error_covariance)
    minimiser: Any = eqx.field(default=None, converter=as_minimiser)
    minimiser_adjoint: optx.AbstractAdjoint = eqx.field(default=optx.ImplicitAdjoint(), converter=as_adjoint)
    forward_adjoint: Any = eqx.field(default=optx.RecursiveCheckpointAdjoint())
    control_transform: PyTree = eqx.field(default=Identity(), kw_only=True)
    n_substeps: int = eqx.field(static=True, default=1, kw_only=True)
    n_steps: int | None = eqx.field(static=True, default=None, kw_only=True)
    time_interpolation: AbstractTimeInterpolation = eqx.field(
        default=LinearInTime(), converter=as_time_interpolation, kw_only=True
    )
    sub_windows: int | None = eqx.field(static=True, default=None, kw_only=True)
    parallel: bool = eqx.field(static=True, default=False, kw_only=True)
    joint: Any = eqx.field(default=None, converter=as_joint_control, kw_only=True)
    terms: tuple = eqx.field(default=(), converter=as_penalties, kw_only=True)
    tol: float | None = eqx.field(static=True, default=None, kw_only=True)
    max_steps: int = eqx.field(static=True, default=500, kw_only=True)
    strict: bool = eqx.field(static=True, default=False, kw_only=True)

    def __check_init__(self) -> None:
        if self.sub_windows is not None and self.sub_windows < 2:
            raise ValueError(f"WeakFourDVar: `sub_windows` is {self.sub_windows}, expected at least 2, or None.")
        forward_memory(self.forward_adjoint, self.forward)
        if isinstance(self.minimiser, optx.AbstractLeastSquaresSolver | GaussNewtonKrylov):
            check_tangents(self.forward, self.forward_adjoint, type(self.minimiser).__name__)
        check_reverse(self.forward, "the gradient of the cost")

    def observe(self, samples: Any) -> WeakWindow | SubWindows:
        window, (_, length) = Window.of(self, samples), self._jumps(samples)
        return SubWindows(window, self._errors(samples), length) if self.parallel else WeakWindow(window, length)

    def control_prior(self, samples: Any) -> tuple[ControlPrior, ...]:
        Q = self._errors(samples)
        state = ControlPrior(self.prior_mean, self.prior_cov_op, self.control_transform)
        if not self.parallel:
            no_error = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), Q.out_structure())
            return state, ControlPrior(no_error, Q, Identity())
        return state, ControlPrior(self._background_starts(samples), Q, Identity())

    def _jumps(self, samples: Any) -> tuple[int, int]:
        """How many model errors there are, and how many intervals lie between them."""
        n_steps = samples.n_steps(self.n_steps, "WeakFourDVar")
        if self.sub_windows is None:
            return n_steps, 1
        if n_steps % self.sub_windows:
            raise ValueError(
                f"WeakFourDVar: `sub_windows` is {self.sub_windows}, expected a divisor of the {n_steps} intervals of "
                "the window."
            )
        return self.sub_windows - 1, n_steps // self.sub_windows

    def _errors(self, samples: Any) -> lx.AbstractLinearOperator:
        """Q of all model errors."""
        n_errors, structure = self._jumps(samples)[0], self.prior_cov_op.out_structure()
        Q = check_model_error_covariance(self.model_err_cov_op, structure, n_errors, "WeakFourDVar")
        return RepeatedCovariance(Q, n_errors) if Q.out_structure() == structure else Q

    def _background_starts(self, samples: Any) -> PyTree[Array]:
        """The background at the starts of the later sub-windows, (B, J, *state)."""
        observe, structure = self.observe(samples), self.prior_cov_op.out_structure()
        n_samples = samples.value.shape[0]
        backgrounds = per_sample(self.prior_mean, structure, n_samples, "prior_mean / background", "WeakFourDVar")
        run = lambda x, start: starting(observe, start).background(x)  # noqa: E731
        return eqx.filter_vmap(run)(backgrounds, samples.start)

    def solve(self, problem: ControlSpaceProblem, start: PyTree[Array] | None) -> Analysis:
        return minimise(
            problem, self.minimiser, self.minimiser_adjoint, tol=self.tol, max_steps=self.max_steps, start=start
        )
