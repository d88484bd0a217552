"""Incremental minimisation: Gauss-Newton outer loops, conjugate gradients inside.

    outer:  r, G, Gᵀ = linearise at chi;     b = -∇J(chi) = -(chi - Gᵀ r)
    inner:  dchi ≈ (I + GᵀG)⁻¹ b             truncated at `n_inner` steps
    search: chi + s dchi with s = 1, ½, ¼, ... until J decreases

G is the tangent-linear map from control to whitened observations, computed once per outer loop; the inner steps are
products with G and Gᵀ. The full step is tried first, so an acceptable step is plain Gauss-Newton, and J never rises.
`GaussNewtonKrylov` is an optimistix minimiser of the control-space problem: recorded, stopped, iterated from the host
and differentiated as every other one (`vardax.minimisers.minimise`).

The increments may come from another model than the analysis (`inner_forward`, `simplification`). Then G and Gᵀ are
those of that model, also in b, as in operational use, while r, J and the line search are those of the full problem: the
outer loops lower J and end where chi = Gᵀ r, close to the minimum as far as the inner adjoint is close to the true one.

Courtier, P., Thepaut, J.-N. and Hollingsworth, A. (1994). A strategy for operational implementation of 4D-Var, using an
incremental approach. QJRMS 120, 1367-1387.
Tshimanga, J., Gratton, S., Weaver, A. and Sartenaer, A. (2008). Limited-memory preconditioners, with application to
incremental four-dimensional variational data assimilation. QJRMS 134, 751-769.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optimistix as optx
from jaxtyping import Array, Bool, Float, Int, PyTree

from vardax.minimisers.joint_window import JointWindow
from vardax.minimisers.lanczos import (
    AbstractVectors,
    ControlVectors,
    ImageVectors,
    KrylovRecord,
    RitzPairs,
    conjugate_gradients,
)
from vardax.minimisers.last_hessian import extended
from vardax.minimisers.lbfgs import ROUNDING
from vardax.minimisers.problem import ControlSpaceProblem, cast_like, tree_dot, tree_norm
from vardax.minimisers.recording import default_tolerance
from vardax.minimisers.windows import InnerWindow, Window
from vardax.types import CostTerms

__all__ = [
    "AbstractInnerSolver",
    "Backtracking",
    "DualCG",
    "GaussNewtonKrylov",
    "IncrementalConfig",
    "LanczosCG",
    "Simplification",
]


WITHIN = 0.1
"""An inner solve goes on to this fraction of the gradient norm that `tol` asks for, where `cg_atol` is above it."""


class AbstractInnerSolver(eqx.Module):
    """How the quadratic of an outer loop is solved."""

    reorthogonalise: eqx.AbstractVar[bool]


class LanczosCG(AbstractInnerSolver):
    """Conjugate gradients in control space: vectors as long as the control.

    `reorthogonalise` keeps `n_inner` + 1 of them and makes every residual orthogonal to all earlier ones, which plain
    conjugate gradients lose to rounding. Without it as many are kept, for the Hessian, but not compared.
    """

    reorthogonalise: bool = eqx.field(static=True, default=True)


class DualCG(AbstractInnerSolver):
    """Restricted preconditioned conjugate gradients: the same iterates, with vectors as long as the observations.

    The choice for few observations and a long control. (Ordinary conjugate gradients in observation space take other
    steps, on which J may rise.)
    """

    reorthogonalise: bool = eqx.field(static=True, default=True)


class Backtracking(eqx.Module):
    """Shorten the step from 1 by `factor` until J falls by `decrease` times what the slope promises, at most
    `max_trials` times in an outer loop."""

    factor: float = eqx.field(static=True, default=0.5)
    decrease: float = eqx.field(static=True, default=1e-4)
    max_trials: int = eqx.field(static=True, default=8)

    def __check_init__(self) -> None:
        if not 0 < self.factor < 1:
            raise ValueError(f"Backtracking: `factor` is {self.factor}, expected a number between 0 and 1.")
        if not 0 <= self.decrease < 0.5:
            raise ValueError(f"Backtracking: `decrease` is {self.decrease}, expected a number from 0 to below 0.5.")
        if self.max_trials < 0:
            raise ValueError(f"Backtracking: `max_trials` is {self.max_trials}, expected 0 or more.")


class Simplification(eqx.Module):
    """Increments on a simpler state: `to_inner` takes a state to that of `inner_forward`, `to_state` brings one back
    to be observed. Both are linear callables."""

    to_inner: Callable
    to_state: Callable


class IncrementalConfig(eqx.Module):
    """How the incremental method iterates.

    - `n_outer`, `n_inner`: outer loops, and steps of the inner solver in each.
    - `cg_rtol`, `cg_atol`: an inner solve stops where ‖b - A dchi‖ <= max(cg_atol, cg_rtol ‖b‖); `cg_atol` is lowered
      to a tenth of the gradient norm that the method's `tol` asks for.
    - `cvt`: iterate on the control; False carries the pairs (dx, B⁻¹dx) and applies B instead of its square root.
    - `inner_solver`: `LanczosCG()` or `DualCG()`.
    - `precondition_from_previous`: converged Ritz pairs of the earlier outer loops precondition the next.
    - `globalisation`: `Backtracking()`.
    - `inner_forward`: a cheaper model for the increments; with a `simplification` it may have another state.
    - `n_krylov`: Lanczos vectors of the Hessian at the result, made when the loops are over from the linearisation that
      is at hand there: what a posterior needs, without another run of the model. `posterior` asks for its own number.
    """

    n_outer: int = eqx.field(static=True, default=3)
    n_inner: int = eqx.field(static=True, default=30)
    cg_atol: float = eqx.field(static=True, default=1e-6)
    cg_rtol: float = eqx.field(static=True, default=1e-6)
    cvt: bool = eqx.field(static=True, default=True)
    inner_solver: Any = LanczosCG()
    precondition_from_previous: bool = eqx.field(static=True, default=False)
    globalisation: Any = Backtracking()
    inner_forward: Any = None
    simplification: Simplification | None = None
    n_krylov: int = eqx.field(static=True, default=0)

    def __check_init__(self) -> None:
        for name, least in (("n_outer", 1), ("n_inner", 1), ("n_krylov", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"IncrementalConfig: `{name}` is {getattr(self, name)}, expected at least {least}.")
        for name in ("cg_atol", "cg_rtol"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"IncrementalConfig: `{name}` is {getattr(self, name)}, expected 0 or more.")
        if not isinstance(self.inner_solver, AbstractInnerSolver):
            raise TypeError(
                f"IncrementalConfig: `inner_solver` is {self.inner_solver!r}, expected LanczosCG() or DualCG()."
            )
        if not isinstance(self.globalisation, Backtracking):
            raise TypeError(f"IncrementalConfig: `globalisation` is {self.globalisation!r}, expected Backtracking().")
        dual = isinstance(self.inner_solver, DualCG)
        if dual and not self.cvt:
            raise ValueError("IncrementalConfig: DualCG works on observations, so `cvt=False` does not apply to it.")
        if self.precondition_from_previous and (dual or not self.cvt):
            raise ValueError(
                "IncrementalConfig: `precondition_from_previous` needs the Lanczos vectors in control space; use "
                "LanczosCG() with cvt=True."
            )
        if self.simplification is not None and self.inner_forward is None:
            raise ValueError(
                "IncrementalConfig: `simplification` says how states become those of `inner_forward`, which is missing."
            )

    @property
    def max_evaluations(self) -> int:
        """Evaluations of J at most: the start, and the trials of each outer loop."""
        return 1 + self.n_outer * (1 + self.globalisation.max_trials)


class _Gradient(NamedTuple):
    """∇J at the accepted iterate, under the name by which the record looks for it."""

    grad: PyTree[Array]


class _State(eqx.Module):
    """The accepted iterate's terms and gradient, and the trial that comes next: y + length · direction."""

    trial: PyTree[Array]
    direction: PyTree[Array]
    length: Float[Array, ""]
    slope: Float[Array, ""]
    aux: CostTerms
    f_info: _Gradient
    reference: Float[Array, ""]
    n_evaluations: Int[Array, ""]
    n_outer: Int[Array, ""]
    n_trials: Int[Array, ""]
    krylov: KrylovRecord
    known: tuple[RitzPairs, ...]


class GaussNewtonKrylov(optx.AbstractMinimiser):
    """The incremental iteration as a minimiser of the problem in `args`; one step evaluates and linearises once.

    `tol` (None: the methods' default) spares the increments of an iterate whose gradient is small enough.
    """

    config: IncrementalConfig
    tol: float | None = eqx.field(static=True, default=None)
    rtol: float = eqx.field(static=True, default=0.0)
    atol: float = eqx.field(static=True, default=0.0)
    norm: Callable = eqx.field(static=True, default=tree_norm)

    def init(self, fn, y, args, options, f_struct, aux_struct, tags) -> _State:
        steps, dtype = self.config.n_inner, f_struct.dtype
        unknown = jax.tree.map(lambda s: jnp.full(s.shape, jnp.inf, s.dtype), aux_struct)
        zeros = jax.tree.map(jnp.zeros_like, y)
        stack = lambda n: jax.tree.map(lambda c: jnp.zeros((n, *c.shape), c.dtype), y)  # noqa: E731
        nothing = RitzPairs(jnp.ones(steps, dtype), stack(steps), jnp.zeros(steps, bool))
        return _State(
            trial=y,
            direction=zeros,
            length=jnp.ones((), dtype),
            slope=jnp.zeros((), dtype),
            aux=unknown,
            f_info=_Gradient(zeros),
            reference=jnp.asarray(-1.0, dtype),
            n_evaluations=jnp.asarray(0),
            n_outer=jnp.asarray(0),
            n_trials=jnp.asarray(0),
            krylov=self._blank_record(y, dtype),
            known=(nothing,) * (self.config.n_outer - 1) if self.config.precondition_from_previous else (),
        )

    def step(self, fn, y, args, options, state: _State, tags):
        problem, reference = args
        residual, terms, *products = problem.linearise_with_terms(state.trial)
        gradient = jax.tree.map(jnp.subtract, problem.observe.prior_part(state.trial), products[1](residual))
        norm = tree_norm(gradient)
        accept = self._accept(state, terms, norm)
        at_start = state.n_evaluations == 0
        known_reference = state.reference if reference is None else jnp.asarray(reference, norm.dtype)
        first_norm = jnp.where(at_start & (known_reference < 0), norm, known_reference)
        choose = lambda new, old: jax.tree.map(lambda a, b: jnp.where(accept, a, b), new, old)  # noqa: E731
        y, aux, gradient = choose((state.trial, terms, gradient), (y, state.aux, state.f_info.grad))
        n_outer = state.n_outer + (accept & ~at_start).astype(state.n_outer.dtype)
        tol = default_tolerance(terms.total.dtype) if self.tol is None else self.tol
        small = tol * jnp.maximum(1.0, first_norm)
        met = norm <= small
        more = accept & ~met & (n_outer < self.config.n_outer)
        limit = jnp.where(more, self.config.n_inner, 0)
        quadratic = (jax.tree.map(jnp.negative, gradient), *products)
        if self.config.inner_forward is not None:
            quadratic = self._inner_quadratic(problem, y, residual)
        direction, krylov, known = self._increment(problem, state, y, quadratic, limit, n_outer, small)
        keep = more
        if self.config.n_krylov:
            keep = accept
            krylov = self._last_record(y, residual, products, accept & ~more, dtype=krylov.diagonal.dtype)
        elif _of_own_hessian(self.config):
            krylov = dataclasses.replace(krylov, control=y)
        direction = choose(direction, state.direction)
        length = jnp.where(accept, 1.0, self.config.globalisation.factor * state.length)
        moved = jax.tree.map(lambda c, d: c + length.astype(c.dtype) * d, y, direction)
        new_state = _State(
            trial=moved,
            direction=direction,
            length=length,
            slope=jnp.where(accept, jnp.minimum(tree_dot(gradient, direction), 0), state.slope),
            aux=aux,
            f_info=_Gradient(gradient),
            reference=first_norm,
            n_evaluations=state.n_evaluations + 1,
            n_outer=n_outer,
            n_trials=jnp.where(accept, 0, state.n_trials + 1),
            krylov=jax.tree.map(lambda a, b: jnp.where(keep, a, b), krylov, state.krylov),
            known=known,
        )
        return y, new_state, aux

    def terminate(self, fn, y, args, options, state: _State, tags) -> tuple[Bool[Array, ""], optx.RESULTS]:
        """Content with every iterate; the last outer loop and the last trial end the iteration."""
        out_of_loops = state.n_outer >= self.config.n_outer
        stuck = state.n_trials > self.config.globalisation.max_trials
        result = optx.RESULTS.where(stuck, optx.RESULTS.nonlinear_divergence, optx.RESULTS.successful)
        result = optx.RESULTS.where(out_of_loops, optx.RESULTS.nonlinear_max_steps_reached, result)
        return jnp.asarray(True), result

    def postprocess(self, fn, y, aux, args, options, state: _State, tags, result):
        return y, aux, {"krylov": state.krylov}

    def _blank_record(self, y: PyTree[Array], dtype: Any) -> KrylovRecord:
        """No vectors yet: room for those of an inner loop, or for those at the result."""
        config, zeros = self.config, jax.tree.map(jnp.zeros_like, y)
        steps = _n_vectors(config, y) if config.n_krylov else config.n_inner
        stacked = jax.tree.map(lambda c: jnp.zeros((steps + 1, *c.shape), c.dtype), y)
        return KrylovRecord(
            vectors=None if _by_images(config) and not config.n_krylov else stacked,
            diagonal=jnp.ones(steps, dtype),
            off=jnp.zeros(steps, dtype),
            n=jnp.asarray(0),
            control=zeros if config.n_krylov or _of_own_hessian(config) else None,
            complete=jnp.asarray(False) if config.n_krylov else None,
        )

    def _last_record(
        self, y: PyTree[Array], residual: PyTree[Array], products: list[Callable], last: Array, *, dtype: Any
    ) -> KrylovRecord:
        """The Lanczos record of the Hessian at y, if that is the result: no vectors where more loops follow."""
        steps, (G, GT) = _n_vectors(self.config, y), products
        start = jax.tree.map(lambda v, c: v.astype(c.dtype), GT(residual), y)
        record = extended(None, lambda v: GT(G(v)), start, steps, jnp.where(last, steps, 0))
        diagonal, off = record.diagonal.astype(dtype), record.off.astype(dtype)
        complete = last & jnp.asarray(record.complete)
        return KrylovRecord(record.vectors, diagonal, off, record.n, y, complete)

    def _accept(self, state: _State, terms: CostTerms, norm: Array) -> Bool[Array, ""]:
        """Enough of a decrease, up to the rounding error of J; at the start anything finite."""
        before, now = state.aux.total, terms.total
        promised = self.config.globalisation.decrease * (state.length * state.slope).astype(now.dtype)
        rounding = ROUNDING * float(jnp.finfo(now.dtype).eps) * jnp.abs(before)
        decreased = (now <= before + promised + rounding) | (state.n_evaluations == 0)
        return decreased & jnp.isfinite(now) & jnp.isfinite(norm)

    def _inner_quadratic(
        self, problem: ControlSpaceProblem, control: PyTree[Array], residual: PyTree[Array]
    ) -> tuple[PyTree[Array], Callable, Callable]:
        """(b, G, Gᵀ) of the simpler model, with the residual of the full one."""
        _, _, G, GT = _simplified(problem, self.config).linearise_with_terms(control)
        return jax.tree.map(jnp.subtract, GT(residual), control), G, GT

    def _increment(
        self,
        problem: ControlSpaceProblem,
        state: _State,
        control: PyTree[Array],
        quadratic: tuple[PyTree[Array], Callable, Callable],
        limit: Array,
        n_outer: Array,
        small: Array,
    ) -> tuple[PyTree[Array], KrylovRecord, tuple[RitzPairs, ...]]:
        """dchi, what the inner solver saw, and the Ritz pairs known after it. `small` is the gradient norm to reach."""
        config = self.config
        b, G, GT = quadratic
        atol = jnp.minimum(config.cg_atol, WITHIN * small)
        options = {"rtol": config.cg_rtol, "atol": atol, "steps": config.n_inner, "limit": limit}
        options |= {"reorthogonalise": config.inner_solver.reorthogonalise}
        if not config.precondition_from_previous:
            space = _vectors(config, problem, control, b, G, GT)
            return (*conjugate_gradients(space, **options), ())
        solution, record = conjugate_gradients(
            ControlVectors(b, G, GT, *_chain(state.known), problem.observe.prior_part), **options
        )
        pairs = record.ritz_pairs()
        known = tuple(
            jax.tree.map(lambda new, old, now=(limit > 0) & (n_outer == i): jnp.where(now, new, old), pairs, before)
            for i, before in enumerate(state.known)
        )
        return solution, record, known


def _n_vectors(config: IncrementalConfig, control: PyTree[Array]) -> int:
    """As many as are asked for, or as there are."""
    return min(config.n_krylov, sum(leaf.size for leaf in jax.tree.leaves(control)))


def _by_images(config: IncrementalConfig) -> bool:
    return isinstance(config.inner_solver, DualCG) or not config.cvt


def _of_own_hessian(config: IncrementalConfig) -> bool:
    """Whether the Lanczos vectors are those of I + GᵀG of the problem, in control space."""
    return not (_by_images(config) or config.precondition_from_previous or config.inner_forward is not None)


def _chain(known: tuple[RitzPairs, ...]) -> tuple[Callable, Callable]:
    """S = P₁^{1/2} P₂^{1/2} ... and Sᵀ: the preconditioners of the outer loops so far, each symmetric."""

    def damp(v: PyTree[Array]) -> PyTree[Array]:
        for pairs in reversed(known):
            v = pairs.damp(v)
        return v

    def damp_transposed(v: PyTree[Array]) -> PyTree[Array]:
        for pairs in known:
            v = pairs.damp(v)
        return v

    return damp, damp_transposed


def _simplified(problem: ControlSpaceProblem, config: IncrementalConfig) -> ControlSpaceProblem:
    """The problem with the model of the increments."""
    maps = config.simplification
    observe = problem.observe
    window = observe.window if isinstance(observe, JointWindow) else observe
    if not isinstance(window, Window):
        raise TypeError(
            "IncrementalConfig: `inner_forward` replaces the model of a window without model errors; use it in "
            "IncrementalFourDVar or StrongFourDVar."
        )
    to_inner, to_state = (None, None) if maps is None else (maps.to_inner, maps.to_state)
    inner = InnerWindow.of(window, config.inner_forward, to_inner, to_state)
    inner = JointWindow(inner, observe.joint) if isinstance(observe, JointWindow) else inner
    return eqx.tree_at(lambda p: p.observe, problem, inner)


def _vectors(
    config: IncrementalConfig,
    problem: ControlSpaceProblem,
    control: PyTree[Array],
    b: PyTree[Array],
    G: Callable,
    GT: Callable,
) -> AbstractVectors:
    """The representation that the inner solver works on."""
    if _by_images(config) and not problem.observe.proper:
        raise ValueError(
            "IncrementalConfig: DualCG and `cvt=False` need a prior for every part of the control, which sub-windows "
            "side by side have only for the first; use LanczosCG() with cvt=True, or `parallel=False`."
        )
    if isinstance(config.inner_solver, DualCG):
        return ImageVectors.of(b, G, GT, lambda w: w)
    if config.cvt:
        return ControlVectors(b, G, GT, prior_part=problem.observe.prior_part)
    F, FT = (problem if config.inner_forward is None else _simplified(problem, config)).linearise_increment(control)
    half, transposed = problem.half, problem.half.transpose()
    L = lambda v: half.mv(cast_like(v, half.in_structure()))  # noqa: E731
    LT = lambda dz: cast_like(transposed.mv(cast_like(dz, half.out_structure())), control)  # noqa: E731
    return ImageVectors.of(b, L, LT, lambda dz: cast_like(FT(F(cast_like(dz, problem.background))), dz))
