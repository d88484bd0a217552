r"""Incremental 4DVar as pure functions: the quadratic of an outer loop, its inner solution, and the whole iteration.

    J(dx) = ½‖x_ref + dx - x_b‖²_{B⁻¹} + ½ Σ_{t=0..T} ‖m_t (d_t - H'_t M'_t ... M'_1 dx)‖²_{R⁻¹}

x_b is the background, which never changes; x_ref is the point of linearisation, the latest iterate of the outer loops;
d_t = y_t - H_t(M_t(x_ref)) are the departures there. The tangent-linear model and operators come as tuples of lineax
operators, M'_1 .. M'_T one for each interval and H'_0 .. H'_T one for each entry, the same for all samples.

These functions take inverses of B and R and work on states; they are for reading, for teaching and for outer loops of
one's own. `incremental_outer` and `IncrementalFourDVar` work on the control and need no inverse of B.

Courtier, P., Thepaut, J.-N. and Hollingsworth, A. (1994). A strategy for operational implementation of 4D-Var, using an
incremental approach. QJRMS 120, 1367-1387.
"""

from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import optimistix as optx
from jaxtyping import Array, ArrayLike, Float, PyTree

from vardax.covariances.functions import half
from vardax.minimisers.gauss_newton import GaussNewtonKrylov, IncrementalConfig
from vardax.minimisers.lanczos import AbstractVectors, conjugate_gradients
from vardax.minimisers.minimise import minimise
from vardax.minimisers.observed import read_samples
from vardax.minimisers.problem import BatchedProblem, tree_dot
from vardax.minimisers.transforms import Identity
from vardax.minimisers.windows import Window
from vardax.primitives.cost_functions import StrongConstraintCost, on_samples, posed
from vardax.primitives.costs import quadratic_form

__all__ = ["gauss_newton_inner", "incremental_cost", "incremental_outer"]


def incremental_cost(
    dx: PyTree[Array],
    x_b: PyTree[Array],
    batch: Any,
    forward_lin: Sequence[lx.AbstractLinearOperator],
    obs_op_lin: Sequence[lx.AbstractLinearOperator],
    B_inv_op: lx.AbstractLinearOperator,
    R_inv_op: lx.AbstractLinearOperator,
    x_ref: PyTree[Array] | None = None,
    *,
    prediction: Float[Array, "B E ..."] | None = None,
) -> Float[Array, ""]:
    """J(dx), summed over the samples of `batch`. `dx`, `x_b` and `x_ref` are (*state) or (B, *state).

    `x_ref` is x_b unless given. `prediction` holds H_t(M_t(x_ref)) for each entry, (B, T+1, *obs); without it the
    linear operators predict from x_ref, which is the same where model and operators are linear. `R_inv_op` is R⁻¹ of
    one complete entry: with gaps and a correlated R, use `IncrementalCost`, which marginalises them.
    """
    operators = (tuple(forward_lin), tuple(obs_op_lin), B_inv_op, R_inv_op)
    quadratic, dx = _quadratics("incremental_cost", dx, x_b, batch, *operators, x_ref, prediction)
    return jnp.sum(eqx.filter_vmap(_Quadratic.cost, in_axes=(_per_sample(quadratic), 0))(quadratic, dx))


def gauss_newton_inner(
    dx0: PyTree[Array],
    x_b: PyTree[Array],
    batch: Any,
    forward_lin: Sequence[lx.AbstractLinearOperator],
    obs_op_lin: Sequence[lx.AbstractLinearOperator],
    B_inv_op: lx.AbstractLinearOperator,
    R_inv_op: lx.AbstractLinearOperator,
    n_inner: int,
    cg_atol: float,
    cg_rtol: float,
    x_ref: PyTree[Array] | None = None,
    *,
    prediction: Float[Array, "B E ..."] | None = None,
) -> PyTree[Array]:
    """dx (B, *state) after at most `n_inner` steps of conjugate gradients on `incremental_cost`, from `dx0`.

    The iteration is in state space, without a preconditioner: each iterate is the minimum of J over a Krylov space of
    the Hessian B⁻¹ + Σ_t M'ᵀH'ᵀR⁻¹H'M'. It stops where ‖∇J(dx)‖ <= max(cg_atol, cg_rtol ‖∇J(dx0)‖) and never raises.
    """
    operators = (tuple(forward_lin), tuple(obs_op_lin), B_inv_op, R_inv_op)
    quadratic, dx0 = _quadratics("gauss_newton_inner", dx0, x_b, batch, *operators, x_ref, prediction)
    return _inner(quadratic, dx0, int(n_inner), float(cg_atol), float(cg_rtol))


def incremental_outer(
    x0: PyTree[Array],
    batch: Any,
    forward: Any,
    obs_op: Any,
    B_op: lx.AbstractLinearOperator,
    R_op: lx.AbstractLinearOperator | None,
    config: IncrementalConfig = IncrementalConfig(),  # noqa: B008  (an immutable value)
    *,
    x_b: PyTree[Array] | None = None,
    n_substeps: int = 1,
    n_steps: int | None = None,
    forward_adjoint: Any = optx.RecursiveCheckpointAdjoint(),  # noqa: B008
) -> PyTree[Array]:
    """The window start x_0* (B, *state) after the outer and inner loops of `config`: what `IncrementalFourDVar` finds.

    The first linearisation is at `x0`, (*state) or (B, *state), which is also the background unless `x_b` is given.
    """
    background = x0 if x_b is None else x_b
    cost = StrongConstraintCost(
        forward, obs_op, background, B_op, R_op, forward_adjoint, n_substeps=n_substeps, n_steps=n_steps
    )
    return _outer(cost, batch, None if x_b is None else x0, config)


class _Quadratic(eqx.Module):
    """J(dx) of one sample: `departure` is d_t, zero where nothing was observed, `gap` is x_ref - x_b."""

    gap: PyTree[Array]
    departure: Float[Array, "E ..."]
    mask: Float[Array, "E ..."]
    forward_lin: tuple[lx.AbstractLinearOperator, ...]
    obs_op_lin: tuple[lx.AbstractLinearOperator, ...]
    B_inv_op: lx.AbstractLinearOperator
    R_inv_op: lx.AbstractLinearOperator

    def cost(self, dx: PyTree[Array]) -> Float[Array, ""]:
        """J(dx)."""
        seen = _along(self.forward_lin, self.obs_op_lin, dx)
        misfit = jnp.where(self.mask != 0, self.departure - seen, jnp.zeros_like(self.departure))
        observations = jax.vmap(lambda entry: quadratic_form(entry, self.R_inv_op))(misfit)
        return quadratic_form(jax.tree.map(jnp.add, self.gap, dx), self.B_inv_op) + jnp.sum(observations)


class _States(AbstractVectors):
    """Increments of the state, with A the Hessian of J."""

    b: PyTree[Array]
    A: Callable

    def right_hand_side(self) -> PyTree[Array]:
        return self.b

    def curve(self, v: PyTree[Array]) -> PyTree[Array]:
        return self.A(v)

    def step(self, r: PyTree[Array], length: Array, curved: PyTree[Array]) -> PyTree[Array]:
        return jax.tree.map(lambda a, c: a - length.astype(c.dtype) * c, r, curved)

    def dot(self, u: PyTree[Array], v: PyTree[Array]) -> Float[Array, ""]:
        return tree_dot(u, v)

    def control(self, v: PyTree[Array]) -> PyTree[Array]:
        return v

    def stacked_controls(self, basis: PyTree[Array]) -> PyTree[Array]:
        return basis


def _along(forward_lin: tuple, obs_op_lin: tuple, v: PyTree[Array]) -> Float[Array, "E ..."]:
    """(H'_0 v, H'_1 M'_1 v, ...)."""
    seen = [obs_op_lin[0].mv(v)]
    for M, H in zip(forward_lin, obs_op_lin[1:], strict=True):
        v = M.mv(v)
        seen.append(H.mv(v))
    return jnp.stack(seen)


def _quadratics(
    owner: str,
    dx: PyTree[Array],
    x_b: PyTree[Array],
    batch: Any,
    forward_lin: tuple,
    obs_op_lin: tuple,
    B_inv_op: lx.AbstractLinearOperator,
    R_inv_op: lx.AbstractLinearOperator,
    x_ref: PyTree[Array] | None,
    prediction: ArrayLike | None,
) -> tuple[_Quadratic, PyTree[Array]]:
    """The quadratics of all samples, stacked, and dx of each."""
    if len(obs_op_lin) != len(forward_lin) + 1:
        raise ValueError(
            f"{owner}: `forward_lin` has {len(forward_lin)} operators and `obs_op_lin` {len(obs_op_lin)}, expected one "
            "of `forward_lin` for each interval and one of `obs_op_lin` for each entry, one more."
        )
    samples = read_samples(batch, obs_op_lin[0].out_structure().shape, window=True, owner=owner)
    if samples.n_entries != len(obs_op_lin):
        raise ValueError(
            f"{owner}: `batch.input` has {samples.n_entries} time entries, expected {len(obs_op_lin)}, the number of "
            "operators in `obs_op_lin`."
        )
    n, structure = samples.value.shape[0], B_inv_op.in_structure()
    dx, x_b = (on_samples(tree, structure, n) for tree in (dx, x_b))
    reference = x_b if x_ref is None else on_samples(x_ref, structure, n)
    if prediction is None:
        prediction = jax.vmap(lambda x: _along(forward_lin, obs_op_lin, x))(reference)
    elif jnp.shape(prediction) != samples.value.shape:
        raise ValueError(f"{owner}: `prediction` has shape {jnp.shape(prediction)}, expected {samples.value.shape}.")
    gap = jax.tree.map(jnp.subtract, reference, x_b)
    departure = jnp.where(samples.mask != 0, samples.value - prediction, jnp.zeros_like(samples.value))
    return _Quadratic(gap, departure, samples.mask, forward_lin, obs_op_lin, B_inv_op, R_inv_op), dx


def _per_sample(quadratic: _Quadratic) -> Any:
    """The axes of a stack of quadratics: what differs between samples, and the operators, which do not."""
    shared = jax.tree.map(lambda _: None, quadratic)
    own = lambda q: (q.gap, q.departure, q.mask)  # noqa: E731
    return eqx.tree_at(own, shared, jax.tree.map(lambda _: 0, own(quadratic)), is_leaf=lambda x: x is None)


@eqx.filter_jit
def _inner(quadratic: _Quadratic, dx0: PyTree[Array], steps: int, atol: float, rtol: float) -> PyTree[Array]:
    def one(quadratic: _Quadratic, start: PyTree[Array]) -> PyTree[Array]:
        gradient, A = jax.linearize(jax.grad(quadratic.cost), start)
        space = _States(jax.tree.map(jnp.negative, gradient), A)
        step, _ = conjugate_gradients(
            space, steps=steps, limit=jnp.asarray(steps), rtol=rtol, atol=atol, reorthogonalise=True
        )
        return jax.tree.map(jnp.add, start, step)

    return eqx.filter_vmap(one, in_axes=(_per_sample(quadratic), 0))(quadratic, dx0)


@eqx.filter_jit
def _outer(cost: StrongConstraintCost, batch: Any, x0: PyTree[Array] | None, config: IncrementalConfig) -> PyTree:
    structure = cost.prior_cov_op.out_structure()
    observe, observed = posed(cost, structure, batch, lambda samples: Window.of(cost, samples), window=True)
    n = observed.value.shape[0]
    background = on_samples(cost.prior_mean, structure, n)
    problem = BatchedProblem(
        background, observed, cost.prior_cov_op, half(cost.prior_cov_op), observe, transform=Identity()
    )

    def one(sample: Any, start: PyTree[Array] | None) -> PyTree[Array]:
        control = None if start is None else sample.control_of(start)
        solver, adjoint = GaussNewtonKrylov(config=config), optx.ImplicitAdjoint()
        return minimise(sample, solver, adjoint, tol=None, max_steps=config.max_evaluations, start=control).state

    return problem.map_samples(one, None if x0 is None else on_samples(x0, structure, n))
