"""The contract of a method, and what follows from it.

A method says two things: `problem(batch)`, the control-space problem that it poses, and `solve(problem, start)`, how it
finds the analysis of one sample. Everything a user calls follows: `model(batch)`, `analyse` with overrides,
`analyse_one`, `iterate`, `posterior`, `with_`, `as_analysis_step`. Inputs are checked before anything is compiled; the
computation is jitted once per shape; nothing inside calls back to the host.
"""

import abc
import dataclasses
import difflib
import sys
import warnings
from collections.abc import Iterator
from typing import Any, ClassVar, NamedTuple, TypeVar

import equinox as eqx
import jax
import lineax as lx
import numpy as np
from jaxtyping import Array, PyTree

from vardax.covariances.block_diagonal import BlockDiagonalCovariance
from vardax.minimisers.joint_window import JointWindow
from vardax.minimisers.minimise import iterate
from vardax.minimisers.observed import as_window, locate, read_samples
from vardax.minimisers.point_counts import fill_up
from vardax.minimisers.problem import BatchedProblem, ControlSpaceProblem
from vardax.minimisers.transforms import Identity, spread
from vardax.models.analysis_step import MethodAnalysisStep
from vardax.models.boundary import (
    as_state,
    assemble,
    cast_like_state,
    check_background_values,
    check_batch,
    check_covariance,
    check_joint_values,
    check_moments,
    check_options,
    check_positions,
    check_times,
    observation_shape,
    per_sample,
)
from vardax.models.convergence import check_minimum
from vardax.models.recompilation import note_compilation
from vardax.posterior.laplace import LaplaceCovariance
from vardax.posterior.posterior import Posterior
from vardax.types import Analysis, ConvergenceError, ConvergenceWarning, float_array, is_traced

__all__ = ["AbstractAnalysisMethod", "ControlPrior", "pose_in_control_space"]


_NO_TRANSFORM = Identity()

_WRAPPERS = ("", "vardax", "equinox", "jaxtyping")

MethodT = TypeVar("MethodT", bound="AbstractAnalysisMethod")


class ControlPrior(NamedTuple):
    """What is known of one part of the control before the observations: mean, covariance and control transform."""

    mean: PyTree[Array]
    covariance: lx.AbstractLinearOperator
    transform: PyTree


class AbstractAnalysisMethod(eqx.Module):
    """A way to combine a background and observations into an analysis.

    **To add one**: subclass this in a file of its own in `vardax/models/`, give it the slots below, implement `observe`
    and `solve`, and export it. `takes_window` says whether a batch holds one time or a window.
    """

    takes_window: eqx.AbstractClassVar[bool]
    iterative: eqx.AbstractClassVar[bool]
    stops_by_design: ClassVar[bool] = False

    obs_op: eqx.AbstractVar[Any]
    prior_mean: eqx.AbstractVar[PyTree[Array]]
    prior_cov_op: eqx.AbstractVar[lx.AbstractLinearOperator]
    obs_cov_op: eqx.AbstractVar[lx.AbstractLinearOperator | None]
    tol: eqx.AbstractVar[float | None]
    max_steps: eqx.AbstractVar[int]
    strict: eqx.AbstractVar[bool]

    def __check_init__(self) -> None:
        check_options(self.tol, self.max_steps, type(self).__name__)

    @abc.abstractmethod
    def observe(self, samples: Any) -> Any:
        """The map from a state to the predicted observations of these samples: `Snapshot` or `Window`."""

    @abc.abstractmethod
    def solve(self, problem: ControlSpaceProblem, start: PyTree[Array] | None) -> Analysis:
        """The analysis of one sample, from the control `start` (None: the background)."""

    def control_prior(self, samples: Any) -> tuple[ControlPrior, ...]:
        """The prior of the control, in parts: of the state, unless a method estimates more than a state."""
        transform = getattr(self, "control_transform", _NO_TRANSFORM)
        return (ControlPrior(self.prior_mean, self.prior_cov_op, transform),)

    def state_background(self) -> tuple[PyTree, PyTree[jax.ShapeDtypeStruct]]:
        """The background as a state, and what a state is like: what B acts on, unless a method's B acts elsewhere."""
        return self.prior_mean, self.prior_cov_op.out_structure()

    def operand(self, batch: Any) -> PyTree[jax.ShapeDtypeStruct]:
        """What the observation operator is applied to, for this batch: a state."""
        return self.state_background()[1]

    def check_times(self, batch: Any) -> None:
        """Whether the times of a window can be those of its entries, and of scattered points within it."""
        if self.takes_window:
            slots: Any = self  # every method of a window has these
            check_times(batch, type(self).__name__)
            interval = getattr(slots.forward, "dt", 1.0)
            check_moments(batch, slots.n_steps, interval, slots.n_substeps, type(self).__name__)

    def pose(self, batch: Any) -> BatchedProblem:
        """The control-space problem of a batch. Every shape is checked here, before anything is compiled."""
        return pose_in_control_space(self, batch)

    def first_control(self, problem: BatchedProblem, batch: Any) -> PyTree[Array] | None:
        """Where the iteration starts unless the call says so; None is the background."""
        return None

    def steps(self, problem: BatchedProblem, start: PyTree[Array] | None) -> Iterator[Analysis]:
        """One `Analysis` per iteration of all samples, driven from the host."""
        minimiser = getattr(self, "minimiser", None)
        return iterate(problem, minimiser, tol=self.tol, max_steps=self.max_steps, start=start)

    def problem(self, batch: Any) -> BatchedProblem:
        """The control-space problem of a batch: `cost`, `gradient`, `hessian_product`, ... for each sample."""
        return _problem(self, _checked(self, batch))

    def __call__(self, batch: Any) -> PyTree[Array]:
        """The analysis states (B, *state). One warning where an eager call did not converge; see `analyse`."""
        analysis = self.analyse(batch)
        self._warn(analysis)
        return analysis.state

    def analyse(
        self,
        batch: Any,
        *,
        background: PyTree = None,
        first_guess: PyTree = None,
        warm_start: Analysis | PyTree = None,
        prior_cov_op: Any = None,
        obs_cov_op: Any = None,
        obs_op: Any = None,
    ) -> Analysis:
        """The full `Analysis` of a batch.

        `background` ((*state) or (B, *state)), `prior_cov_op`, `obs_cov_op` and `obs_op` replace the method's own for
        this call. The iteration starts at the background, at the state `first_guess`, or at `warm_start` (an earlier
        `Analysis`, or its control): starts change the number of iterations, not the analysis (a learned solver, whose
        number of iterations is fixed, gets as far as it gets).
        """
        overrides = {"prior_mean": background, "prior_cov_op": prior_cov_op, "obs_cov_op": obs_cov_op, "obs_op": obs_op}
        given = {name: value for name, value in overrides.items() if value is not None}
        method = self.with_(**given) if given else self
        start = _start(type(self).__name__, first_guess, warm_start)
        analysis = _analyse(method, _checked(method, batch), *start)
        if self.strict:
            self._raise(analysis)
        return analysis

    def analyse_one(self, window: Any, **overrides: Any) -> Analysis:
        """The analysis of one sample without a batch axis: a batch's `sample(i)`, an array with NaN gaps, Observations.

        `jax.vmap` of this over samples is `analyse`.
        """
        overrides = {name: _add_sample_axis(name, value) for name, value in overrides.items()}
        analysis = self.analyse(as_window(window), **overrides)
        return jax.tree.map(lambda a: a[0] if eqx.is_array(a) else a, analysis)

    def iterate(self, batch: Any, *, first_guess: Any = None, warm_start: Any = None) -> Iterator[Analysis]:
        """One `Analysis` per iteration, driven from the host. Resume with `warm_start=` the last one."""
        if not self.iterative:
            yield self.analyse(batch, first_guess=first_guess, warm_start=warm_start)
            return
        start = _start(type(self).__name__, first_guess, warm_start)
        problem, start = _problem_and_start(self, _checked(self, batch), *start)
        yield from self.steps(problem, start)

    @property
    def posterior_adapter(self) -> Any:
        """What makes the posterior of this method, unless `posterior` is given another."""
        return LaplaceCovariance()

    def for_posterior(self, adapter: Any) -> "AbstractAnalysisMethod":
        """This method, keeping what `adapter` can use of an analysis."""
        return self

    def posterior(self, batch: Any, *, adapter: Any = None, force: bool = False, **overrides: Any) -> Posterior:
        """The posterior at the analysis: mean, lazy covariance, `std()`, `quantile(q)`, `sample(key, n)`.

        It is the curvature of J at its minimum, so an analysis that did not converge is refused with a
        `ConvergenceError`, unless `force=True`. A method that stops by design (`stops_by_design`: an incremental one
        after the loops of its `config`) may be truncated where it lowered J, which is warned of; a cost that was not
        finite is always refused.
        """
        adapter = self.posterior_adapter if adapter is None else adapter
        analysis = self.for_posterior(adapter).analyse(batch, **overrides)
        if not force:
            check_minimum(analysis, type(self).__name__, self.stops_by_design)
            self._warn(analysis)
        starts = ("first_guess", "warm_start")
        slots = {("prior_mean" if k == "background" else k): v for k, v in overrides.items() if k not in starts}
        return adapter(analysis, self.with_(**slots), batch)

    def with_(self: MethodT, **slots: Any) -> MethodT:
        """A new method with some slots replaced; the same structure does not compile again."""
        names = [field.name for field in dataclasses.fields(self) if field.init]
        for name in slots:
            if name not in names:
                near = difflib.get_close_matches(name, names, n=1)
                hint = f" Did you mean `{near[0]}`?" if near else ""
                raise TypeError(f"{type(self).__name__}.with_: unknown slot `{name}`; it has {', '.join(names)}.{hint}")
        return dataclasses.replace(self, **slots) if slots else self

    def as_analysis_step(self) -> MethodAnalysisStep:
        """This method as the update of a cycle: (forecast, obs, *, obs_op, obs_err_cov) -> analysis."""
        return MethodAnalysisStep(self)

    def _warn(self, analysis: Analysis) -> None:
        if not is_traced(analysis.converged) and not np.all(np.asarray(analysis.converged)):
            # The warning names the user's line: the first frame outside vardax and the wrappers of its methods.
            frame, level = sys._getframe(), 1
            while frame and frame.f_globals.get("__name__", "").partition(".")[0] in _WRAPPERS:
                frame, level = frame.f_back, level + 1
            message = f"{type(self).__name__}: {analysis.message()}"
            warnings.warn(message, ConvergenceWarning, stacklevel=level)

    def _raise(self, analysis: Analysis) -> None:
        if not is_traced(analysis.converged) and not np.all(np.asarray(analysis.converged)):
            raise ConvergenceError(f"{type(self).__name__}: {analysis.message()}")


def _checked(method: AbstractAnalysisMethod, batch: Any) -> Any:
    """The batch, scattered points filled up to a common count, after a check of types and values.

    Values only an eager call can see; shapes are checked where the problem is posed. This and `_start` are functions
    and not methods, because every call pays for them: equinox makes a module of a bound method.
    """
    owner, transform = type(method).__name__, getattr(method, "control_transform", _NO_TRANSFORM)
    check_batch(batch, owner)
    batch = fill_up(batch, method.obs_op, method.obs_cov_op, owner)
    kind = type(method)  # functions of the class: see above
    structure = kind.operand(method, batch) if hasattr(type(method.obs_op), "check") else None
    check_positions(method.obs_op, batch, structure, owner)
    check_background_values(method.prior_mean, transform, owner)
    if (joint := getattr(method, "joint", None)) is not None:
        check_joint_values(joint, owner)
    kind.check_times(method, batch)
    return batch


def _start(owner: str, first_guess: Any, warm_start: Any) -> tuple[Any, Any]:
    """(first guess or None, control or None), as arrays."""
    if first_guess is not None and warm_start is not None:
        raise ValueError(f"{owner}: give `first_guess` (a state) or `warm_start` (an Analysis), not both.")
    control = warm_start.control if isinstance(warm_start, Analysis) else warm_start
    return as_state(first_guess), as_state(control)


def pose_in_control_space(method: AbstractAnalysisMethod, batch: Any) -> BatchedProblem:
    """Read the batch and put together the problem of a method that has a background and its B."""
    owner = type(method).__name__
    if method.prior_cov_op is not None:  # a latent method checks that of its prior
        check_covariance(method.prior_cov_op, "prior_cov_op", owner)
    mean, structure = method.state_background()
    if method.obs_cov_op is not None:
        check_covariance(method.obs_cov_op, "obs_cov_op", owner)
    shape = observation_shape(method.obs_op, mean, structure, batch, owner)
    samples = read_samples(batch, shape, window=method.takes_window, owner=owner)
    samples = locate(samples, method.obs_op)
    observe = method.observe(samples)
    samples = observe.place(samples)
    parts, joint = method.control_prior(samples), getattr(method, "joint", None)
    if joint is not None:
        mean = cast_like_state(joint.mean, method.prior_mean)
        parts = (*parts, ControlPrior(mean, joint.cov_op, joint.control_transform))
        observe = JointWindow(observe, joint)
    prior = _joined(parts)
    return assemble(
        samples,
        mean=prior.mean,
        prior_cov_op=prior.covariance,
        obs_cov_op=method.obs_cov_op,
        observe=observe,
        transform=prior.transform,
        penalties=getattr(method, "terms", ()),
        owner=owner,
    )


def _joined(parts: tuple[ControlPrior, ...]) -> ControlPrior:
    """Independent parts as one: what is estimated is their tuple, or the only one."""
    if len(parts) == 1:
        return parts[0]
    means, covariances, transforms = zip(*parts, strict=True)
    spread_out = (spread(t, cov.out_structure()) for t, cov in zip(transforms, covariances, strict=True))
    return ControlPrior(means, BlockDiagonalCovariance(covariances), tuple(spread_out))


@eqx.filter_jit
def _problem(method: AbstractAnalysisMethod, batch: Any) -> BatchedProblem:
    return method.pose(batch)


@eqx.filter_jit
def _problem_and_start(
    method: AbstractAnalysisMethod, batch: Any, first_guess: Any, control: Any
) -> tuple[BatchedProblem, PyTree[Array] | None]:
    """The problem, and the control where the iteration starts: a projected first guess, or one that is given."""
    owner = type(method).__name__
    problem = method.pose(batch)
    if first_guess is not None:
        background = problem.map_samples(lambda sample: sample.observe.result(sample.background))
        structure = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), background)
        if jax.tree.structure(first_guess) != jax.tree.structure(structure):
            first_guess = _completed(first_guess, background, method)
        first_guess = per_sample(first_guess, structure, problem.n_samples, "first_guess", owner)
        return problem, problem.map_samples(lambda sample, state: sample.control_of(state), first_guess)
    if control is not None:
        control = per_sample(control, problem.half.in_structure(), problem.n_samples, "warm_start", owner)
        return problem, control
    return problem, method.first_control(problem, batch)


def _completed(state: PyTree[Array], background: PyTree[Array], method: AbstractAnalysisMethod) -> PyTree[Array]:
    """A first guess of the state alone, or of the first parts, with the background of what else a method estimates."""
    if not isinstance(background, tuple):
        return state
    alone = jax.tree.structure(state) == jax.tree.structure(method.state_background()[1])
    parts = (state,) if alone else tuple(state) if isinstance(state, tuple) else None
    return state if parts is None else (*parts, *background[len(parts) :])


@eqx.filter_jit
def _analyse(method: AbstractAnalysisMethod, batch: Any, first_guess: Any, control: Any) -> Analysis:
    note_compilation(method, batch, first_guess, control)  # runs where this is traced
    problem, start = _problem_and_start(method, batch, first_guess, control)
    return problem.map_samples(method.solve, start)


def _add_sample_axis(name: str, value: Any) -> Any:
    """One sample's background, first guess or warm start as those of a batch of one."""
    if name not in ("background", "first_guess", "warm_start") or value is None:
        return value
    tree = value.control if isinstance(value, Analysis) else value
    return jax.tree.map(lambda leaf: float_array(leaf)[None], tree)
