"""Run a learned minimiser on a control-space problem whose prior is a term of the cost.

`learned_analysis` makes all steps inside one traced computation and returns an `Analysis`; `iterate_learned` is driven
from the host. The cost is a function of the state x = x_b + chi, which is what a modulator was trained to see.

How the result is differentiated is the adjoint's. All but one differentiate steps. `RecursiveCheckpointAdjoint()` keeps
the state and the memory before each (and what is `worth_keeping`), and makes each once more on the way back. Beyond
`EVERY_STEP_LIMIT` steps, or with fewer `checkpoints` than steps, it is optimistix's, which keeps few of them and makes
the steps between several times.

`ImplicitAdjoint` differentiates the fixed point of the step that is made, (x, h) = step(x, h), by the implicit function
theorem. (That of ∇J = 0 would know nothing of the modulator, and be wrong where the modulator rests elsewhere.) Its
derivative is exact at a fixed point, and off by as much as the iteration has not reached it: `Analysis.residual` is the
last step relative to the state.
"""

from collections.abc import Callable, Iterator
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import optimistix as optx
from jaxtyping import Array, Bool, Float, PyTree

from vardax.adjoints.direct import DirectAdjoint, arrays_of, made_again, scan_steps, stop_gradient
from vardax.minimisers.conjugate_gradients import RelativeCG
from vardax.minimisers.learned import (
    LearnedMinimiser,
    LearnedRecord,
    LearnedState,
    gradient_scale,
    modulated_step,
)
from vardax.minimisers.problem import BatchedProblem, ControlSpaceProblem
from vardax.minimisers.recording import default_tolerance
from vardax.types import Analysis, CostSummary, CostTerms, History, Status

__all__ = ["iterate_learned", "learned_analysis"]

DENSE_LIMIT = 512
"""Sizes of state and memory up to which `ImplicitAdjoint()` factorises the Jacobian of the step; beyond, conjugate
gradients on the normal equations."""

EVERY_STEP_LIMIT = 128
"""Steps up to which `RecursiveCheckpointAdjoint()` keeps the state before each; beyond, it is optimistix's."""

LINEAR_STEPS = 400
"""Conjugate gradients at most, for one implicit derivative: a contraction needs far fewer."""


def state_cost(x: PyTree[Array], problem: ControlSpaceProblem) -> tuple[Float[Array, ""], CostTerms]:
    """J(x), with its terms."""
    terms = problem.terms_of_state(x, problem.zero_control())
    return terms.total.astype(jnp.result_type(*jax.tree.leaves(x))), terms


def learned_analysis(
    problem: ControlSpaceProblem,
    solver: LearnedMinimiser,
    adjoint: optx.AbstractAdjoint,
    *,
    tol: float | None,
    start: PyTree[Array] | None,
) -> Analysis:
    """The analysis of one sample: x_n, from the state of the control `start` (None: the background)."""
    first = problem.window_state(problem.zero_control() if start is None else start)
    implicit = isinstance(adjoint, optx.ImplicitAdjoint)
    # What is differentiated implicitly needs no derivative of its steps.
    given = stop_gradient((problem, solver, first)) if implicit else (problem, solver, first)
    solution = _solve(given, optx.RecursiveCheckpointAdjoint() if implicit else adjoint)
    x, record = solution.value, solution.stats["record"]
    if implicit:
        x = _fixed_point(problem, solver, first, (x, solution.stats["memory"]), adjoint)
        tol = default_tolerance(record.change.dtype) if tol is None else tol
    return _analysis(problem, x, record, tol)


class _Unrolled(optx.AbstractAdjoint):
    """The unrolled derivative as one scan. `keep` says what of a step is kept for it, as in `scan_steps`.

    An iteration that ends by number (`to_the_end`) makes all its steps without asking. A step that was refused is tried
    again, and refused again.
    """

    keep: Callable = eqx.field(static=True)
    to_the_end: bool = eqx.field(static=True)

    def apply(self, primal_fn: Callable, rewrite_fn: Callable, inputs: PyTree, tags: frozenset[object]) -> PyTree:
        del rewrite_fn, tags

        def loop(cond_fun: Callable, body_fun: Callable, init: PyTree, *, max_steps: int) -> PyTree:
            if not self.to_the_end:
                going, step = (lambda _, carry: cond_fun(carry)), (lambda _, carry: body_fun(carry))
                return scan_steps(going, step, init, jnp.arange(max_steps), keep=self.keep)
            arrays, static = eqx.partition(init, eqx.is_array)

            def one(arrays: PyTree, _: None) -> tuple[PyTree, None]:
                return arrays_of(body_fun(eqx.combine(arrays, static)), like=init), None

            arrays, _ = jax.lax.scan(self.keep(one), arrays, None, length=max_steps)
            return eqx.combine(arrays, static)

        return primal_fn((*inputs, loop))


def _everything(step: Callable) -> Callable:
    return step


def _unrolled(adjoint: optx.AbstractAdjoint, solver: LearnedMinimiser) -> optx.AbstractAdjoint:
    """The adjoint as it is, or the scan that it means."""
    to_the_end = solver.rtol == solver.atol == 0
    if isinstance(adjoint, DirectAdjoint):
        return _Unrolled(_everything, to_the_end)
    if isinstance(adjoint, optx.RecursiveCheckpointAdjoint):
        kept = EVERY_STEP_LIMIT if adjoint.checkpoints is None else adjoint.checkpoints
        return _Unrolled(made_again, to_the_end) if kept >= solver.n_steps else adjoint
    return adjoint


def _solve(given: tuple[ControlSpaceProblem, LearnedMinimiser, PyTree[Array]], adjoint: optx.AbstractAdjoint) -> Any:
    problem, solver, first = given
    return optx.minimise(
        state_cost,
        solver,
        first,
        problem,
        has_aux=True,
        max_steps=solver.n_steps,
        adjoint=_unrolled(adjoint, solver),
        throw=False,
    )


class _Reached(optx.AbstractFixedPointSolver):
    """A fixed point that is at hand: no step is made, so that only its derivative is asked for."""

    rtol: float = eqx.field(static=True, default=0.0)
    atol: float = eqx.field(static=True, default=0.0)
    norm: Any = eqx.field(static=True, default=optx.max_norm)

    def init(self, fn: Any, y: Any, args: Any, options: Any, f_struct: Any, aux_struct: Any, tags: Any) -> None:
        return None

    def step(self, fn: Any, y: Any, args: Any, options: Any, state: Any, tags: Any) -> tuple[Any, None, Any]:
        new, aux = fn(y, args)
        return new, None, aux

    def terminate(
        self, fn: Any, y: Any, args: Any, options: Any, state: Any, tags: Any
    ) -> tuple[Bool[Array, ""], optx.RESULTS]:
        return jnp.asarray(True), optx.RESULTS.successful

    def postprocess(
        self, fn: Any, y: Any, aux: Any, args: Any, options: Any, state: Any, tags: Any, result: Any
    ) -> tuple[Any, Any, dict[str, Any]]:
        return y, aux, {}


class _AsFarAsItGets(lx.AbstractLinearSolver):
    """An iterative solver that is content where it had to stop: an iteration that has no fixed point near, which the
    analysis says, must not end a training run."""

    inner: lx.AbstractLinearSolver

    def init(self, operator: lx.AbstractLinearOperator, options: dict[str, Any]) -> Any:
        return self.inner.init(operator, options)

    def compute(
        self, state: Any, vector: PyTree[Array], options: dict[str, Any]
    ) -> tuple[PyTree[Array], lx.RESULTS, dict[str, Any]]:
        solution, _, stats = self.inner.compute(state, vector, options)
        return solution, lx.RESULTS.successful, stats

    def transpose(self, state: Any, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return self.inner.transpose(state, options)

    def conj(self, state: Any, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return self.inner.conj(state, options)

    def assume_full_rank(self) -> bool:
        return True


def _fixed_point(
    problem: ControlSpaceProblem,
    solver: LearnedMinimiser,
    first: PyTree[Array],
    reached: tuple[PyTree[Array], PyTree[Array]],
    adjoint: optx.ImplicitAdjoint,
) -> PyTree[Array]:
    """x of `reached`, with the derivative of the fixed point of (x, h) -> (x, h) after one more step."""
    scale = jnp.ones(())
    if solver.normalises:
        scale = gradient_scale(jax.grad(lambda x: state_cost(x, problem)[0])(first))

    def step(pair: tuple[PyTree[Array], PyTree[Array]], args: tuple) -> tuple[PyTree[Array], PyTree[Array]]:
        problem, solver, scale = args
        gradient = jax.grad(lambda x: state_cost(x, problem)[0])(pair[0])
        return modulated_step(solver, gradient, *pair, scale, jnp.asarray(0))

    size = sum(leaf.size for leaf in jax.tree.leaves(reached))
    if adjoint == optx.ImplicitAdjoint() and size > DENSE_LIMIT:
        eps = float(jnp.finfo(jnp.result_type(*jax.tree.leaves(reached))).eps)
        adjoint = optx.ImplicitAdjoint(_AsFarAsItGets(lx.Normal(RelativeCG(eps**0.75, LINEAR_STEPS))))
    solution = optx.fixed_point(
        step, _Reached(), stop_gradient(reached), (problem, solver, scale), max_steps=None, adjoint=adjoint, throw=False
    )
    return solution.value[0]


def _analysis(problem: ControlSpaceProblem, x: PyTree[Array], record: LearnedRecord, tol: float | None) -> Analysis:
    zero = problem.zero_control()
    control = jax.tree.map(lambda a, b, z: (a - b).astype(z.dtype), x, problem.background, zero)
    last = problem.terms_of_state(x, zero)
    # The row of the first step is J of the first state, computed there; it keeps no derivative.
    begin = jax.tree.map(lambda rows: rows[0], record.aux)
    converged = ~record.non_finite
    ended = jnp.asarray(Status.COMPLETED.value)
    if tol is not None:
        converged &= record.change <= tol
        ended = jnp.where(converged, Status.CONVERGED.value, Status.MAX_STEPS.value)
    return Analysis(
        state=problem.observe.result(x),
        control=control,
        cost=CostSummary(begin, last),
        n_iterations=record.n_steps,
        converged=converged,
        status=jnp.where(record.non_finite, Status.NON_FINITE.value, ended),
        history=History.of(record.aux, record.gradient_norm.astype(last.J_b.dtype)),
        gradient_norm=record.gradient_norm[jnp.maximum(record.n_steps - 1, 0)].astype(last.J_b.dtype),
        trajectory=problem.observe.trajectory(x),
        residual=record.change.astype(last.J_b.dtype),
    )


def iterate_learned(
    problem: BatchedProblem, solver: LearnedMinimiser, *, tol: float | None, start: PyTree[Array] | None
) -> Iterator[Analysis]:
    """One `Analysis` per step, driven from the host; it ends when no sample moves on."""
    x, state = _begin(problem, solver, start)
    for _ in range(solver.n_steps):
        x, state, done, analysis = _advance(problem, solver, x, state, tol)
        yield analysis
        if bool(jnp.all(done)):
            return


@eqx.filter_jit
def _begin(problem: BatchedProblem, solver: LearnedMinimiser, start: PyTree | None) -> tuple:
    def one(sample: ControlSpaceProblem, start: PyTree | None) -> tuple[PyTree, LearnedState]:
        x = sample.window_state(sample.zero_control() if start is None else start)
        f_struct, aux_struct = eqx.filter_eval_shape(state_cost, x, sample)
        return x, solver.init(state_cost, x, sample, {}, f_struct, aux_struct, frozenset())

    return problem.map_samples(one, start)


@eqx.filter_jit
def _advance(problem: BatchedProblem, solver: LearnedMinimiser, x: PyTree, state: PyTree, tol: float | None) -> tuple:
    def one(sample: ControlSpaceProblem, x: PyTree, state: LearnedState) -> tuple:
        terminated = lambda x, state: solver.terminate(state_cost, x, sample, {}, state, frozenset())[0]  # noqa: E731
        finished = terminated(x, state)
        new_x, new_state, _ = solver.step(state_cost, x, sample, {}, state, frozenset())
        keep = lambda new, old: jnp.where(finished, old, new) if eqx.is_array(new) else old  # noqa: E731
        x, state = jax.tree.map(keep, (new_x, new_state), (x, state))
        _, _, stats = solver.postprocess(state_cost, x, None, sample, {}, state, frozenset(), optx.RESULTS.successful)
        return x, state, terminated(x, state), _analysis(sample, x, stats["record"], tol)

    return problem.map_samples(one, x, state)
