"""A model from a vector field, stepped by a solver of diffrax.

    dx/dt = f(t, x, args),   x(t + dt) = solver(f, t, x, dt)

With constant steps the solver is a stepper: `n_substeps` steps of dt / n_substeps, as plain arithmetic that JAX
differentiates both ways. (`diffeqsolve` with its default adjoint fails under jvp, and with it all of Gauss-Newton.)
Explicit Runge-Kutta methods are stepped from their tableau; any other solver, implicit ones included, through its own
`step`. With an adaptive controller each interval is a `diffeqsolve` whose adjoint works both ways.

A step that fails (a root finder that does not converge, too many adaptive steps) gives NaN, which the methods report as
`Status.NON_FINITE`. Each step starts the solver anew, so a multi-step method gains nothing over its starting scheme.
"""

from collections.abc import Callable
from typing import Any, SupportsIndex

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import optimistix as optx
from jaxtyping import Array, ArrayLike, PyTree

from vardax.dynamics.runge_kutta import explicit_step
from vardax.dynamics.stepping import checked_count, checked_dt, in_state_dtype

__all__ = ["DiffraxForward"]

_REFUSED = {
    "RecursiveCheckpointAdjoint": "it is reverse-mode only, so Gauss-Newton products and jvp fail; choose the memory "
    "of a window by `forward_adjoint` of the method instead",
    "BacksolveAdjoint": "it is reverse-mode only, so Gauss-Newton products and jvp fail; give it as `forward_adjoint` "
    "of the method instead",
    "ImplicitAdjoint": "it differentiates a steady state, not a trajectory",
}


class DiffraxForward(eqx.Module):
    """The `ForwardModel` of dx/dt = `vector_field(t, x, args)`.

    - `vector_field`: a function, or an `eqx.Module` whose arrays are parameters to differentiate with respect to.
    - `dt`: the length of one step of the model; a negative one runs backwards.
    - `solver`: any diffrax solver of one ODE. An implicit one with constant steps needs tolerances of its own, such as
      `Kvaerno3(root_finder=optimistix.Newton(rtol=1e-8, atol=1e-8))`.
    - `stepsize_controller`: `ConstantStepSize()`, or `PIDController(rtol, atol)` to adapt inside each `dt`.
    - `n_substeps`: solver steps in `dt`; with an adaptive controller, the first one tried is dt / n_substeps.
    - `adjoint`: how adaptive steps are differentiated: `DirectAdjoint()` both ways, `ForwardMode()` by jvp only (and
      faster). Constant steps are always differentiated both ways.
    - `args`: handed to the vector field. `max_steps`: how many adaptive steps `dt` may take.

    >>> decay = DiffraxForward(lambda t, x, args: -x, dt=0.5)
    >>> round(float(decay.step(jnp.array(1.0), decay.dt)), 4)  # exp(-0.5)
    0.6065
    """

    vector_field: Callable[..., Any]
    dt: float | Array
    solver: dfx.AbstractSolver
    stepsize_controller: dfx.AbstractStepSizeController
    adjoint: dfx.AbstractAdjoint
    args: PyTree
    state_signature: PyTree[jax.ShapeDtypeStruct] | None
    n_substeps: int = eqx.field(static=True)
    max_steps: int = eqx.field(static=True)

    def __init__(
        self,
        vector_field: Any,
        dt: Any,
        *,
        solver: Any = dfx.Tsit5(),  # noqa: B008  (an immutable value)
        stepsize_controller: Any = dfx.ConstantStepSize(),  # noqa: B008
        n_substeps: SupportsIndex = 1,
        adjoint: Any = dfx.DirectAdjoint(),  # noqa: B008
        args: PyTree = None,
        max_steps: SupportsIndex = 4096,
        state_signature: PyTree[jax.ShapeDtypeStruct] | None = None,
    ):
        owner = "DiffraxForward"
        if not callable(vector_field):
            raise TypeError(f"{owner}: `vector_field` is {vector_field!r}, expected a function (t, x, args).")
        _check_solver(solver, stepsize_controller)
        _check_adjoint(adjoint)
        self.vector_field, self.args, self.state_signature = vector_field, args, state_signature
        self.dt = checked_dt(dt, owner)
        self.stepsize_controller, self.adjoint = stepsize_controller, adjoint
        self.solver = _prepared(solver, stepsize_controller)
        self.n_substeps = checked_count(n_substeps, "n_substeps", owner, least=1)
        self.max_steps = checked_count(max_steps, "max_steps", owner, least=1)

    @property
    def steps_are_constant(self) -> bool:
        """Whether the solver's steps are all of one length."""
        return isinstance(self.stepsize_controller, dfx.ConstantStepSize)

    def step(self, state: PyTree[Array], dt: ArrayLike, *, t0: ArrayLike = 0.0) -> PyTree[Array]:
        """The state one interval `dt` after time `t0`, in the dtypes of `state`."""
        dtype = jax.tree.leaves(state)[0].real.dtype
        start, length = (jnp.asarray(in_state_dtype(value, state), dtype) for value in (t0, dt))
        if not self.steps_are_constant:
            return self._adaptive(state, start, length)
        h = length / self.n_substeps
        if self.n_substeps == 1:
            return self._solver_step(state, start, h)
        times = start + h * jnp.arange(self.n_substeps).astype(dtype)
        return jax.lax.scan(lambda x, t: (self._solver_step(x, t, h), None), state, times)[0]

    def _solver_step(self, state: PyTree[Array], t: Array, h: Array) -> PyTree[Array]:
        """One constant step."""
        solver = self.solver
        if isinstance(solver, dfx.AbstractERK) and isinstance(solver.tableau, dfx.ButcherTableau):
            tableau = solver.tableau
            field = lambda t, x: self.vector_field(t, x, self.args)  # noqa: E731
            return explicit_step(field, t, state, h, a_lower=tableau.a_lower, b=tableau.b_sol, c=tableau.c)
        term = dfx.ODETerm(self.vector_field)
        # An implicit solver that is given NaN raises, which would end a minimisation instead of the trial step.
        finite = jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(state)]))
        start = jax.tree.map(lambda leaf: jnp.where(finite, leaf, jnp.zeros_like(leaf)), state)
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            carried = solver.init(term, t, t + h, start, self.args)
            after, _, _, _, result = solver.step(term, t, t + h, start, self.args, carried, made_jump=False)
        return _where(finite & (result == dfx.RESULTS.successful), after, state)

    def _adaptive(self, state: PyTree[Array], start: Array, length: Array) -> PyTree[Array]:
        """Steps of the controller's choice over one interval."""
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            solution = dfx.diffeqsolve(
                dfx.ODETerm(self.vector_field),
                self.solver,
                start,
                start + length,
                length / self.n_substeps,
                state,
                self.args,
                stepsize_controller=self.stepsize_controller,
                adjoint=self.adjoint,
                max_steps=self.max_steps,
                throw=False,
            )
        after = jax.tree.map(lambda leaf: leaf[0], solution.ys)
        return _where(solution.result == dfx.RESULTS.successful, after, state)


def _where(successful: Any, after: PyTree[Array], before: PyTree[Array]) -> PyTree[Array]:
    """`after` in the dtypes of `before`, or NaN where the solver gave up."""
    return jax.tree.map(lambda a, b: jnp.where(successful, a.astype(b.dtype), jnp.full_like(b, jnp.nan)), after, before)


class _FiniteRootFinder(optx.AbstractRootFinder):
    """A root finder that gives zero where it fails.

    The step is then thrown away, but its derivative is taken all the same, and must not meet an infinite Jacobian.
    """

    finder: optx.AbstractRootFinder

    @property
    def rtol(self) -> Any:
        return self.finder.rtol

    @property
    def atol(self) -> Any:
        return self.finder.atol

    @property
    def norm(self) -> Any:
        return self.finder.norm

    def init(self, *args: Any, **kwargs: Any) -> Any:
        return self.finder.init(*args, **kwargs)

    def step(self, *args: Any, **kwargs: Any) -> Any:
        return self.finder.step(*args, **kwargs)

    def terminate(self, *args: Any, **kwargs: Any) -> Any:
        return self.finder.terminate(*args, **kwargs)

    def postprocess(
        self, fn: Any, y: Any, aux: Any, args: Any, options: Any, state: Any, tags: Any, result: Any
    ) -> Any:
        y, aux, stats = self.finder.postprocess(fn, y, aux, args, options, state, tags, result)
        found = result == optx.RESULTS.successful
        return jax.tree.map(lambda leaf: jnp.where(found, leaf, jnp.zeros_like(leaf)), y), aux, stats


def _prepared(solver: Any, controller: Any) -> Any:
    """The solver with stages that can be differentiated both ways, and with roots that stay finite."""
    if getattr(solver, "scan_kind", "none there") is None:
        solver = eqx.tree_at(lambda s: s.scan_kind, solver, "bounded", is_leaf=lambda leaf: leaf is None)
    finder = getattr(solver, "root_finder", None)
    if isinstance(controller, dfx.ConstantStepSize) and finder is not None:
        # Its tolerances are properties here, which the type checker takes for arguments.
        finite = finder if isinstance(finder, _FiniteRootFinder) else _FiniteRootFinder(finder)  # pyright: ignore
        solver = eqx.tree_at(lambda s: s.root_finder, solver, finite)
    return solver


def _check_solver(solver: Any, controller: Any) -> None:
    """Refuse what cannot step one ODE with this controller."""
    owner, name = "DiffraxForward", type(solver).__name__
    if not isinstance(solver, dfx.AbstractSolver):
        hint = f" (the class; make an instance: {solver.__name__}())" if isinstance(solver, type) else ""
        raise TypeError(f"{owner}: `solver` is {solver!r}{hint}, expected a diffrax solver such as Tsit5().")
    if solver.term_structure not in (dfx.AbstractTerm, dfx.ODETerm):
        raise ValueError(
            f"{owner}: `solver` is {name}, which needs a split or stochastic equation; expected a solver of one ODE, "
            "such as Tsit5() or Kvaerno5()."
        )
    if isinstance(controller, type) or not isinstance(controller, dfx.AbstractStepSizeController):
        raise TypeError(
            f"{owner}: `stepsize_controller` is {controller!r}, expected ConstantStepSize() or "
            "PIDController(rtol, atol)."
        )
    if isinstance(controller, dfx.StepTo):
        raise ValueError(f"{owner}: `stepsize_controller` is StepTo, whose times are fixed; use `n_substeps` instead.")
    if isinstance(controller, dfx.ConstantStepSize):
        finder = getattr(solver, "root_finder", None)
        if finder is not None and not isinstance(finder.rtol, float | int | Array):
            raise ValueError(
                f"{owner}: `solver` is {name}, whose root finder takes its tolerances from an adaptive controller; "
                f"give it its own, {name}(root_finder=optimistix.Newton(rtol=1e-8, atol=1e-8)), or use PIDController."
            )
    elif not isinstance(solver, dfx.AbstractAdaptiveSolver):
        raise ValueError(
            f"{owner}: `solver` is {name}, which estimates no error, so {type(controller).__name__} cannot adapt its "
            "steps; use ConstantStepSize(), or a solver such as Tsit5()."
        )


def _check_adjoint(adjoint: Any) -> None:
    name = getattr(adjoint, "__name__", type(adjoint).__name__)
    if isinstance(adjoint, dfx.DirectAdjoint | dfx.ForwardMode):
        return
    reason = _REFUSED.get(name, "it is none of diffrax's") if not isinstance(adjoint, type) else "it is a class"
    raise ValueError(
        f"DiffraxForward: `adjoint` is {name}, which does not serve here: {reason}. Expected diffrax.DirectAdjoint() "
        "or diffrax.ForwardMode()."
    )
