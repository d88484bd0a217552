"""Minimise the cost of a control-space problem with any optimistix solver.

`minimise` runs to the end inside one traced computation and returns an `Analysis`; `iterate` is driven from the host
and yields one `Analysis` per step. Least-squares solvers get the residual (chi, r), minimisers the scalar cost. The
default is L-BFGS. Gradients of the analysis with respect to everything in the problem go through `minimiser_adjoint`.
"""

from collections.abc import Iterator
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import optimistix as optx
from jaxtyping import Array, PyTree

from vardax.adjoints.direct import stop_gradient
from vardax.minimisers.blow_up import guarded_for
from vardax.minimisers.conjugate_gradients import RelativeCG
from vardax.minimisers.dense_cholesky import MappedCholesky
from vardax.minimisers.lbfgs import LimitedMemoryBFGS
from vardax.minimisers.problem import BatchedProblem, ControlSpaceProblem, tree_norm
from vardax.minimisers.recording import Record, RecordingSolver, default_tolerance, reusable, scalar_cost
from vardax.types import Analysis, CostSummary, CostTerms, Status

__all__ = ["iterate", "minimise"]

DENSE_ADJOINT_LIMIT = 128
"""Control sizes up to which `ImplicitAdjoint()` factorises the Hessian; beyond, it solves by conjugate gradients."""


def _solver(minimiser: Any, tol: float | None, max_steps: int, dtype: Any) -> RecordingSolver:
    """The solver of the user's, or the default one, with the one stopping rule."""
    tol = default_tolerance(dtype) if tol is None else tol
    if minimiser is not None:
        return RecordingSolver(minimiser, own_rule=True, tol=tol, max_steps=max_steps)
    eps = float(jnp.finfo(dtype).eps)
    solver = LimitedMemoryBFGS(eps, scale=1 / eps)
    return RecordingSolver(solver, own_rule=False, tol=tol, max_steps=max_steps, scale=1 / eps)


def _coarsest_dtype(problem: ControlSpaceProblem | BatchedProblem) -> Any:
    """The dtype that limits how exact J is: of the observations or of B^{1/2}."""
    dtypes = [problem.observed.value.dtype, *(leaf.dtype for leaf in jax.tree.leaves(problem.half.in_structure()))]
    return max(dtypes, key=lambda dtype: float(jnp.finfo(dtype).eps))


def _carried(control: PyTree[Array]) -> PyTree[Array]:
    """The control in JAX's default float: optimistix's L-BFGS, Levenberg-Marquardt and Dogleg need that dtype."""
    return jax.tree.map(lambda c: c.astype(np.promote_types(c.dtype, jnp.result_type(float))), control)


def _start(problem: ControlSpaceProblem, start: PyTree[Array] | None) -> tuple[PyTree[Array], tuple]:
    """The first control, and (cost terms, gradient norm) of the background where the start is another point.

    A start whose cost is not finite is replaced by the background.
    """
    zero = _carried(problem.zero_control())
    if start is None:
        return zero, (None, None)
    gradient, terms = jax.grad(scalar_cost, has_aux=True)(zero, (problem, None))
    usable = jnp.isfinite(problem.cost(start))
    first = jax.tree.map(lambda s, z: jnp.where(usable, s, z), _carried(start), zero)
    return first, stop_gradient((terms, tree_norm(gradient).astype(terms.J_b.dtype)))


def _implicit_for(adjoint: optx.AbstractAdjoint, control: PyTree[Array]) -> optx.AbstractAdjoint:
    """`ImplicitAdjoint()` without a solver of the user's own: matrix-free beyond `DENSE_ADJOINT_LIMIT` controls."""
    if adjoint != optx.ImplicitAdjoint():
        return adjoint
    if sum(c.size for c in jax.tree.leaves(control)) <= DENSE_ADJOINT_LIMIT:
        return optx.ImplicitAdjoint(linear_solver=MappedCholesky())
    eps = float(jnp.finfo(jax.tree.leaves(control)[0].dtype).eps)
    return optx.ImplicitAdjoint(linear_solver=RelativeCG(rtol=eps**0.75))


def _analysis(
    problem: ControlSpaceProblem, control: PyTree[Array], record: Record, solver: RecordingSolver, krylov: Any
) -> Analysis:
    state = problem.window_state(control)
    converged = solver.converged(record)
    stopped = jnp.where(
        record.non_finite,
        Status.NON_FINITE.value,
        jnp.where(record.exhausted, Status.MAX_STEPS.value, Status.STALLED.value),
    )
    return Analysis(
        state=problem.observe.result(state),
        control=jax.tree.map(lambda c, s: c.astype(s.dtype), control, problem.half.in_structure()),
        cost=CostSummary(record.first, problem.terms(control)),
        n_iterations=record.n_steps,
        converged=converged,
        status=jnp.where(converged, Status.CONVERGED.value, stopped),
        history=record.history,
        gradient_norm=record.gradient_norm,
        trajectory=problem.observe.trajectory(state),
        latent=problem.observe.latent(state),
        memory=problem.observe.memory(state),
        krylov=krylov,
    )


def _no_worse_than_background(
    control: PyTree[Array], record: Record, background: CostTerms | None
) -> tuple[PyTree[Array], Record]:
    """A truncated run from a bad first guess may end above J(x_b): then the background is the better analysis."""
    if background is None:
        return control, record
    worse = ~(record.best.total <= background.total)
    control = jax.tree.map(lambda c: jnp.where(worse, jnp.zeros_like(c), c), control)
    norm = jnp.where(worse, record.reference, record.gradient_norm)
    return control, eqx.tree_at(lambda r: r.gradient_norm, record, norm)


def minimise(
    problem: ControlSpaceProblem,
    minimiser: Any,
    adjoint: optx.AbstractAdjoint,
    *,
    tol: float | None,
    max_steps: int,
    start: PyTree[Array] | None = None,
) -> Analysis:
    """The analysis of one sample: chi* = argmin J(chi), started at `start` (default chi = 0, the background)."""
    solver = _solver(minimiser, tol, max_steps, _coarsest_dtype(problem))
    first, (background, reference) = _start(problem, start)
    solution = optx.minimise(
        scalar_cost,
        solver,
        first,
        (guarded_for(adjoint, problem), reference),
        has_aux=True,
        max_steps=max_steps,
        adjoint=_implicit_for(adjoint, first),
        throw=False,
        tags=_TAGS,
    )
    control, record = _no_worse_than_background(solution.value, solution.stats["record"], background)
    return _analysis(problem, control, record, solver, record.inner)


def iterate(
    problem: BatchedProblem,
    minimiser: Any,
    *,
    tol: float | None,
    max_steps: int,
    start: PyTree[Array] | None = None,
) -> Iterator[Analysis]:
    """One `Analysis` per step, driven from the host: for progress, and for stopping or resuming at will.

    Resume a stopped iteration with `warm_start=` the last analysis. Samples that have finished stay as they are.
    """
    solver = _solver(minimiser, tol, max_steps, _coarsest_dtype(problem))
    y, record, background = _begin(problem, start, solver)
    for _ in range(max_steps):
        y, record, done, analysis = _advance(problem, y, record, background, solver)
        yield analysis
        if bool(jnp.all(done)):
            return


_TAGS = frozenset({lx.positive_semidefinite_tag})


@eqx.filter_jit
def _begin(problem: BatchedProblem, start: PyTree, solver: RecordingSolver) -> tuple:
    """The first iterate, the solver's first state and, where the start is another point, the background's cost."""

    def one(sample: ControlSpaceProblem, start: PyTree | None) -> tuple[PyTree[Array], Record, CostTerms | None]:
        first, (background, reference) = _start(sample, start)
        args = (sample, reference)
        f_struct, aux_struct = eqx.filter_eval_shape(scalar_cost, first, args)
        return first, solver.init(scalar_cost, first, args, {}, f_struct, aux_struct, _TAGS), background

    return problem.map_samples(one, start)


@eqx.filter_jit
def _advance(problem: BatchedProblem, y: PyTree, record: Record, background: PyTree, solver: RecordingSolver) -> tuple:
    """One step of every sample that has not finished, and what is known after it."""

    def one(sample: ControlSpaceProblem, y: PyTree, record: Record, background: CostTerms | None) -> tuple:
        # The record holds the gradient norm of the background, so it is not computed again.
        args = (sample, None if background is None else record.reference)
        finished = solver.terminate(scalar_cost, y, args, {}, record, _TAGS)[0]
        stepped_y, stepped, _ = solver.step(scalar_cost, y, args, {}, record, _TAGS)
        # What is no array is the same in every state, but not the same object: kept, so that nothing compiles again.
        keep = lambda new, old: jnp.where(finished, old, new) if eqx.is_array(new) else old  # noqa: E731
        y, record = jax.tree.map(keep, (stepped_y, stepped), (y, record))
        done = solver.terminate(scalar_cost, y, args, {}, record, _TAGS)[0]
        control, shown = _no_worse_than_background(record.best_control, record, background)
        return y, record, done, _analysis(sample, control, shown, solver, reusable(record.inner))

    return problem.map_samples(one, y, record, background)
