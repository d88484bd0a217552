"""One stopping rule and one record for every optimistix solver.

`RecordingSolver` wraps any `optimistix.AbstractMinimiser` or `AbstractLeastSquaresSolver`. It passes each step on to
the wrapped solver, and beside it

- keeps the iterate of smallest finite cost (of smallest gradient among costs equal up to rounding), and returns that
  one: a blow-up or a cost that rises is never returned;
- writes the terms of J and the gradient norm of each step into arrays of fixed length;
- stops when ‖∇J(chi)‖ <= tol · max(1, ‖∇J(x_b)‖). A solver that the user chose must also be content by its own rtol and
  atol, so the tighter of the two rules holds; the default solver has none of its own;
- minimises `scale` times the cost where the wrapped solver is the default one (see `LimitedMemoryBFGS`);
- stops when `IDLE_STEPS` steps in a row bring no decrease (rounding, or a step that cannot be improved).

It is a minimiser of the scalar cost in either case; a least-squares solver inside is handed the residual (chi, r) of
the problem in `args`, so that the Hessian of the cost, and its tag, are what the implicit adjoint sees.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optimistix as optx
from jaxtyping import Array, Bool, Float, Int, PyTree

from vardax.adjoints.direct import stop_gradient
from vardax.minimisers.lbfgs import ROUNDING
from vardax.minimisers.problem import tree_norm
from vardax.types import CostTerms, History

__all__ = [
    "IDLE_STEPS",
    "Record",
    "RecordingSolver",
    "default_tolerance",
    "least_squares_residual",
    "reusable",
    "scalar_cost",
]

IDLE_STEPS = 40
"""A line search halves its step at each rejected trial: after this many it is below every rounding error."""


def default_tolerance(dtype: Any) -> float:
    """1e-6 in float64, 1e-4 in float32: what the gradient of a sum of that precision can reach."""
    return 1e-6 if jnp.finfo(dtype).bits >= 64 else 1e-4


class Record(eqx.Module):
    """What is known of the iteration so far. `reference` is ‖∇J(x_b)‖, negative until it is known.

    `inner` is the state of the wrapped solver; when the iteration is over, what of it can be used again.
    """

    inner: Any
    best_control: PyTree[Array]
    first: CostTerms
    best: CostTerms
    gradient_norm: Float[Array, ""]
    reference: Float[Array, ""]
    n_steps: Int[Array, ""]
    idle: Int[Array, ""]
    non_finite: Bool[Array, ""]
    exhausted: Bool[Array, ""]
    history: History


def _select(condition: Array, a: PyTree, b: PyTree) -> PyTree:
    return jax.tree.map(lambda u, v: jnp.where(condition, u, v), a, b)


def scalar_cost(control: PyTree[Array], args: tuple) -> tuple[Float[Array, ""], CostTerms]:
    """J(chi) in the dtype of the control, with its terms. `args` is (problem, reference)."""
    problem, _ = args
    terms = problem.terms(control)
    return terms.total.astype(jax.tree.leaves(control)[0].dtype), terms


def reusable(inner: Any) -> Any:
    """What a posterior can use of a solver's state: the Lanczos vectors of an incremental one, else nothing."""
    return getattr(inner, "krylov", None)


def least_squares_residual(control: PyTree[Array], args: tuple) -> tuple[PyTree[Array], CostTerms]:
    """(chi, r) with J = ½‖(chi, r)‖², in the dtype of the control, with the terms of J."""
    problem, _ = args
    (chi, residual), terms = problem.residual_and_terms(control)
    dtype = jax.tree.leaves(control)[0].dtype
    return (chi, jax.tree.map(lambda r: r.astype(dtype), residual)), terms


class RecordingSolver(optx.AbstractMinimiser):
    """Any optimistix solver, recorded and stopped by the gradient norm. `args` of the solve is (problem, reference)."""

    solver: optx.AbstractIterativeSolver
    own_rule: bool = eqx.field(static=True)
    tol: float = eqx.field(static=True)
    max_steps: int = eqx.field(static=True)
    scale: float = eqx.field(static=True)

    def __init__(
        self, solver: optx.AbstractIterativeSolver, *, own_rule: bool, tol: float, max_steps: int, scale: float = 1.0
    ):
        self.solver, self.own_rule = solver, own_rule
        self.tol, self.max_steps, self.scale = tol, max_steps, scale

    @property
    def rtol(self) -> float:
        return self.solver.rtol

    @property
    def atol(self) -> float:
        return self.solver.atol

    @property
    def norm(self) -> Callable:
        return self.solver.norm

    def _inner(self, fn: Callable, tags: frozenset) -> tuple[Callable, frozenset]:
        """The function that the wrapped solver works on, and the tags that hold for it."""
        if isinstance(self.solver, optx.AbstractLeastSquaresSolver):
            return least_squares_residual, frozenset()
        if self.scale != 1.0:
            return self._scaled_cost, tags
        return fn, tags

    def _scaled_cost(self, control: PyTree[Array], args: tuple) -> tuple[Float[Array, ""], CostTerms]:
        value, terms = scalar_cost(control, args)
        return self.scale * value, terms

    def init(self, fn, y, args, options, f_struct, aux_struct, tags) -> Record:
        inner_fn, inner_tags = self._inner(fn, tags)
        if inner_fn is not fn:
            f_struct, _ = eqx.filter_eval_shape(inner_fn, y, args)
        inner = self.solver.init(inner_fn, y, args, options, f_struct, aux_struct, inner_tags)
        unknown = jax.tree.map(lambda s: jnp.full(s.shape, jnp.inf, s.dtype), aux_struct)
        _, reference = args
        dtype = aux_struct.J_b.dtype
        blank = lambda *tail: jnp.full((self.max_steps, *tail), jnp.nan, dtype)  # noqa: E731
        return Record(
            inner=inner,
            best_control=y,
            first=unknown,
            best=unknown,
            gradient_norm=jnp.asarray(jnp.inf, dtype),
            reference=jnp.asarray(-1.0 if reference is None else reference, dtype),
            n_steps=jnp.asarray(0),
            idle=jnp.asarray(0),
            non_finite=jnp.asarray(False),
            exhausted=jnp.asarray(False),
            history=History.of(jax.tree.map(lambda s: blank(*s.shape), aux_struct), blank()),
        )

    def step(self, fn, y, args, options, state: Record, tags):
        inner_fn, inner_tags = self._inner(fn, tags)
        new_y, inner, aux = self.solver.step(inner_fn, y, args, options, state.inner, inner_tags)
        seen, terms, norm = self._look(y, new_y, args, inner)
        # What is recorded has no derivative: that of a norm is infinite where the gradient vanishes.
        terms, norm = stop_gradient((terms, norm))
        finite = jnp.isfinite(terms.total) & jnp.isfinite(norm)
        better = finite & _improves(terms.total, norm, state)
        first_step = state.n_steps == 0
        decreased = better | first_step
        _, result = self.solver.terminate(inner_fn, new_y, args, options, inner, inner_tags)
        record = Record(
            inner=inner,
            best_control=_select(better, seen, state.best_control),
            first=_select(first_step, terms, state.first),
            best=_select(better, terms, state.best),
            gradient_norm=jnp.where(better, norm, state.gradient_norm),
            reference=jnp.where(first_step & (state.reference < 0), norm, state.reference),
            n_steps=state.n_steps + 1,
            idle=jnp.where(decreased, 0, state.idle + 1),
            non_finite=state.non_finite | ~finite,
            exhausted=(state.n_steps + 1 >= self.max_steps) | (result == optx.RESULTS.nonlinear_max_steps_reached),
            history=_write(state.history, state.n_steps, terms, norm),
        )
        return new_y, record, aux

    def _look(
        self, y: PyTree[Array], new_y: PyTree[Array], args: tuple, inner: Any
    ) -> tuple[PyTree[Array], CostTerms, Float[Array, ""]]:
        """The iterate that is known after this step, with its terms and gradient norm.

        A solver with a search evaluates first and keeps what it accepted: `new_y`, at the first step the start. Others
        (Nelder-Mead, optax) keep no cost: then it is the iterate `y` that they came from, so the start is seen too.
        """
        info: Any = getattr(inner, "f_info", None)
        own_gradient: Any = getattr(info, "compute_grad", None) or (lambda: info.grad)
        if hasattr(inner, "aux") and (hasattr(info, "compute_grad") or hasattr(info, "grad")):
            gradient, terms = own_gradient(), inner.aux
            return new_y, terms, (tree_norm(gradient) / self.scale).astype(terms.J_b.dtype)
        gradient, terms = jax.grad(scalar_cost, has_aux=True)(stop_gradient(y), stop_gradient(args))
        return y, terms, tree_norm(gradient).astype(terms.J_b.dtype)

    def converged(self, state: Record) -> Bool[Array, ""]:
        """Whether the best iterate meets the tolerance."""
        small = state.gradient_norm <= self.tol * jnp.maximum(1.0, state.reference)
        return small & jnp.isfinite(state.gradient_norm)  # a background that blows up has an infinite reference

    def terminate(self, fn, y, args, options, state: Record, tags):
        inner_fn, inner_tags = self._inner(fn, tags)
        content, result = self.solver.terminate(inner_fn, y, args, options, state.inner, inner_tags)
        converged = self.converged(state)
        done = (converged & content) if self.own_rule else converged
        # A zero gradient cannot be improved, whatever the solver's own rule says (no observations, exact start).
        done = done | (state.gradient_norm == 0)
        stuck = (state.idle >= IDLE_STEPS) | state.non_finite | (result != optx.RESULTS.successful)
        return (state.n_steps > 0) & (done | stuck), optx.RESULTS.successful

    def postprocess(self, fn, y, aux, args, options, state: Record, tags, result):
        return state.best_control, aux, {"record": eqx.tree_at(lambda r: r.inner, state, reusable(state.inner))}


def _improves(total: Array, norm: Array, state: Record) -> Bool[Array, ""]:
    """A smaller cost; or one that is equal up to rounding, with a smaller gradient."""
    best = state.best.total
    rounding = ROUNDING * jnp.finfo(total.dtype).eps * jnp.abs(best)
    level = jnp.where(jnp.isfinite(best), rounding, jnp.zeros_like(rounding))
    return (total < best - level) | ((total <= best + level) & (norm < state.gradient_norm))


def _write(history: History, step: Array, terms: CostTerms, norm: Array) -> History:
    write = lambda rows, row: rows.at[step].set(row)  # noqa: E731
    return History(
        write(history.J_b, terms.J_b),
        write(history.J_o, terms.J_o_by_instrument),
        write(history.J_q, terms.J_q),
        write(history.gradient_norm, norm),
        write(history.J_theta, terms.J_theta),
        write(history.J_c, terms.J_c),
    )
