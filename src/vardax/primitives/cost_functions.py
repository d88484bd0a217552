"""The costs of the methods as objects: J(x, batch) in state space, with R restricted to what was observed.

    J(x) = ½‖x - x_b‖²_{B⁻¹} + ½‖y - H(x)‖²_{R⁻¹}                              BLUECost (H affine), ThreeDVarCost
    J(x_0) = ½‖x_0 - x_b‖²_{B⁻¹} + ½ Σ_t ‖y_t - H(M_t(x_0))‖²_{R⁻¹}            StrongConstraintCost
    J(x_0, eta) = ½‖x_0 - x_b‖²_{B⁻¹} + ½ Σ_t ‖y_t - H(x_t)‖²_{R⁻¹} + ½ Σ_{t>=1} ‖eta_t‖²_{Q⁻¹},
                  x_t = M_t(x_{t-1}) + eta_t                                    WeakConstraintCost
    J(dx) = ½‖x_ref + dx - x_b‖²_{B⁻¹} + ½ Σ_t ‖y_t - H(M_t(x_ref)) - (H M_t)' dx‖²_{R⁻¹}      IncrementalCost
    J(x) = obs_weight · ½‖y - H(x)‖²_{R⁻¹} + prior_weight · ‖x - phi(x)‖²        FourDVarNetCost

They are for looking at costs, for tests and for solvers of one's own. Unlike the methods they apply B⁻¹ and Q⁻¹
(`inv_mv`), so these must exist. Each is a `CostFunction`: `cost(x, batch)` sums over the samples of the batch; x (or
dx) is (B, *state), and the pair (B, *state), (B, T, *state) for `WeakConstraintCost`.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import optimistix as optx
from jaxtyping import Array, Float, PyTree

from vardax.covariances.functions import inv_mv
from vardax.covariances.repeated import RepeatedCovariance
from vardax.dynamics.adjoint_memory import check_tangents
from vardax.minimisers.free_state import FreeState, entry_of, obs_covariance, posed_state, prior_term, weighted
from vardax.minimisers.moments import AbstractTimeInterpolation, LinearInTime
from vardax.minimisers.observed import ObservedEntries, ObservedSamples, locate, read_samples, restrict_samples
from vardax.minimisers.penalties import penalty_costs
from vardax.minimisers.point_counts import as_points, of_one_count
from vardax.minimisers.problem import tree_dot
from vardax.minimisers.solver_config import SolverConfig
from vardax.minimisers.windows import Snapshot, WeakWindow, Window, starting
from vardax.obs_operators.linearisation import is_linear
from vardax.types import AbstractBatch

__all__ = [
    "BLUECost",
    "FourDVarNetCost",
    "IncrementalCost",
    "StrongConstraintCost",
    "ThreeDVarCost",
    "WeakConstraintCost",
    "on_samples",
    "posed",
]


class ThreeDVarCost(eqx.Module):
    """J_b + J_o at one time."""

    obs_op: Any
    prior_mean: PyTree[Array]
    prior_cov_op: lx.AbstractLinearOperator
    obs_cov_op: lx.AbstractLinearOperator | None

    def __call__(self, x: PyTree[Array], batch: Any, **kw: Any) -> Float[Array, ""]:
        return _state_cost(self, x, batch, lambda samples: Snapshot(self.obs_op), window=False)


class BLUECost(eqx.Module):
    """J_b + J_o with an affine operator: the quadratic whose minimum is the BLUE."""

    obs_op: Any
    prior_mean: PyTree[Array]
    prior_cov_op: lx.AbstractLinearOperator
    obs_cov_op: lx.AbstractLinearOperator | None

    def __check_init__(self) -> None:
        if not is_linear(self.obs_op, self.prior_cov_op.out_structure()):
            raise ValueError("BLUECost: `obs_op` is not linear; use ThreeDVarCost.")

    def __call__(self, x: PyTree[Array], batch: Any, **kw: Any) -> Float[Array, ""]:
        return _state_cost(self, x, batch, lambda samples: Snapshot(self.obs_op), window=False)


class StrongConstraintCost(eqx.Module):
    """J_b + J_o over a window, as a function of the state at its start."""

    forward: Any
    obs_op: Any
    prior_mean: PyTree[Array]
    prior_cov_op: lx.AbstractLinearOperator
    obs_cov_op: lx.AbstractLinearOperator | None
    forward_adjoint: Any = eqx.field(default=optx.RecursiveCheckpointAdjoint())
    n_substeps: int = eqx.field(static=True, default=1)
    n_steps: int | None = eqx.field(static=True, default=None)
    time_interpolation: AbstractTimeInterpolation = LinearInTime()

    def __call__(self, x: PyTree[Array], batch: Any, **kw: Any) -> Float[Array, ""]:
        return _state_cost(self, x, batch, lambda samples: Window.of(self, samples), window=True)


class WeakConstraintCost(eqx.Module):
    """J_b + J_o + J_q over a window, as a function of the state at its start and the model errors.

    `model_err_cov_op` is Q of one interval, or of all T on fields (T, *state).
    """

    forward: Any
    obs_op: Any
    prior_mean: PyTree[Array]
    prior_cov_op: lx.AbstractLinearOperator
    obs_cov_op: lx.AbstractLinearOperator | None
    model_err_cov_op: lx.AbstractLinearOperator
    forward_adjoint: Any = eqx.field(default=optx.RecursiveCheckpointAdjoint())
    n_substeps: int = eqx.field(static=True, default=1)
    n_steps: int | None = eqx.field(static=True, default=None)
    time_interpolation: AbstractTimeInterpolation = LinearInTime()

    def __call__(self, x: tuple[PyTree[Array], PyTree[Array]], batch: Any, **kw: Any) -> Float[Array, ""]:
        Q, n_errors = self.model_err_cov_op, jax.tree.leaves(x[1])[0].shape[1]
        if Q.out_structure() == self.prior_cov_op.out_structure():
            Q = RepeatedCovariance(Q, n_errors)

        def prior(x: tuple[PyTree[Array], PyTree[Array]]) -> Float[Array, ""]:
            state, errors = x
            return _background_term(self, state) + _half_square(errors, Q)

        observe = lambda samples: WeakWindow(Window.of(self, samples))  # noqa: E731
        return _summed_cost(self, x, batch, observe, prior, lambda h, x: h(x), window=True)


class IncrementalCost(eqx.Module):
    """The quadratic of an outer loop, as a function of the increment dx to the point of linearisation `x_ref`, (*state)
    or (B, *state); without it that is the background."""

    forward: Any
    obs_op: Any
    prior_mean: PyTree[Array]
    prior_cov_op: lx.AbstractLinearOperator
    obs_cov_op: lx.AbstractLinearOperator | None
    x_ref: PyTree[Array] | None = None
    forward_adjoint: Any = eqx.field(default=optx.RecursiveCheckpointAdjoint())
    n_substeps: int = eqx.field(static=True, default=1)
    n_steps: int | None = eqx.field(static=True, default=None)
    time_interpolation: AbstractTimeInterpolation = LinearInTime()

    def __check_init__(self) -> None:
        check_tangents(self.forward, self.forward_adjoint, "IncrementalCost")

    def __call__(self, x: PyTree[Array], batch: Any, **kw: Any) -> Float[Array, ""]:
        n_samples = jax.tree.leaves(x)[0].shape[0]
        reference = self.prior_mean if self.x_ref is None else self.x_ref
        pairs = (on_samples(reference, self.prior_cov_op.out_structure(), n_samples), x)

        def predicted(h: Callable, pair: tuple[PyTree[Array], PyTree[Array]]) -> Array:
            reference, dx = pair
            at_reference, change = jax.jvp(h, (reference,), (dx,))
            return at_reference + change

        prior = lambda pair: _background_term(self, jax.tree.map(jnp.add, *pair))  # noqa: E731
        return _summed_cost(self, pairs, batch, lambda s: Window.of(self, s), prior, predicted, window=True)


class FourDVarNetCost(eqx.Module):
    """The cost of a learned prior, J_b + J_o of a state at one time or of a whole window, with the weights of `config`.

    `obs_cov_op` is R; None takes the standard deviations that come with the observations, or else R = I.
    """

    prior: Any
    obs_op: Any
    config: SolverConfig = SolverConfig()
    obs_cov_op: lx.AbstractLinearOperator | None = None

    def __call__(self, x: PyTree[Array], batch: Any, **kw: Any) -> Float[Array, ""]:
        structure = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), x)
        has_time = isinstance(batch, AbstractBatch) and batch.input.ndim == len(batch.axes)
        state = posed_state(structure, self.obs_op, batch.input.shape[1:] if has_time else None)
        observe = lambda samples: FreeState(self.obs_op, n_steps=state.n_steps)  # noqa: E731
        samples = posed_samples(self, entry_of(state), batch, window=state.n_steps is not None)
        covariance = obs_covariance(self.obs_cov_op, samples)
        observed = weighted(restrict_samples(samples, covariance, "FourDVarNetCost"), self.config)
        term = prior_term(self.prior, self.config, centred=False)
        prior = lambda state: penalty_costs((term,), state, None)  # noqa: E731
        return _summed(observe(samples), observed, x, prior, lambda h, state: h(state))


def on_samples(tree: PyTree[Array], structure: PyTree, n_samples: int) -> PyTree[Array]:
    """A state as (B, *state), from (*state) or (B, *state)."""

    def one(leaf: Array, like: jax.ShapeDtypeStruct) -> Array:
        if jnp.shape(leaf) not in (like.shape, (n_samples, *like.shape)):
            raise ValueError(
                f"a state has shape {jnp.shape(leaf)}, expected {like.shape}, or {(n_samples, *like.shape)} for the "
                f"{n_samples} samples."
            )
        return jnp.broadcast_to(leaf, (n_samples, *like.shape))

    return jax.tree.map(one, tree, structure)


def _half_square(v: PyTree[Array], covariance: lx.AbstractLinearOperator) -> Float[Array, ""]:
    """½ vᵀ A⁻¹ v."""
    return 0.5 * tree_dot(v, inv_mv(covariance, v))


def _background_term(cost: Any, state: PyTree[Array]) -> Float[Array, ""]:
    return _half_square(jax.tree.map(jnp.subtract, state, cost.prior_mean), cost.prior_cov_op)


def _state_cost(cost: Any, x: PyTree[Array], batch: Any, observe: Callable, *, window: bool) -> Float[Array, ""]:
    """J_b + J_o of a state."""
    prior = lambda state: _background_term(cost, state)  # noqa: E731
    return _summed_cost(cost, x, batch, observe, prior, lambda h, state: h(state), window=window)


def posed(
    cost: Any, structure: PyTree, batch: Any, observe: Callable[[ObservedSamples], Any], *, window: bool
) -> tuple[Any, ObservedEntries]:
    """The map to predicted observations, and the observations with R restricted to them, stacked over the samples.

    `structure` is that of one state.
    """
    samples = posed_samples(cost, structure, batch, window=window)
    operator = observe(samples)
    return operator, restrict_samples(operator.place(samples), cost.obs_cov_op, type(cost).__name__)


def posed_samples(cost: Any, structure: PyTree, batch: Any, *, window: bool) -> ObservedSamples:
    """The observations, stacked over the samples, with operators bound to their positions."""
    owner = type(cost).__name__
    points = as_points(batch)
    if points is not None:
        batch = points = of_one_count(points, max(o.value.shape[0] for o in points), owner)
    bound = cost.obs_op if points is None or not hasattr(cost.obs_op, "at") else cost.obs_op.at(points[0])
    shape = eqx.filter_eval_shape(bound, structure).shape
    return locate(read_samples(batch, shape, window=window, owner=owner), cost.obs_op)


def _summed_cost(
    cost: Any,
    x: PyTree[Array],
    batch: Any,
    observe: Callable[[ObservedSamples], Any],
    prior: Callable[[PyTree[Array]], Array],
    predicted: Callable[[Callable, PyTree[Array]], Array],
    *,
    window: bool,
) -> Float[Array, ""]:
    """The prior terms of x and the misfit of `predicted(h, x)`, where h maps a state to predicted observations.

    `x` is stacked over the samples, whose costs are added.
    """
    operator, observed = posed(cost, cost.prior_cov_op.out_structure(), batch, observe, window=window)
    return _summed(operator, observed, x, prior, predicted)


def _summed(
    operator: Any,
    observed: ObservedEntries,
    x: PyTree[Array],
    prior: Callable[[PyTree[Array]], Array],
    predicted: Callable[[Callable, PyTree[Array]], Array],
) -> Float[Array, ""]:
    """The prior terms and the misfits of all samples, added."""

    def one(x: PyTree[Array], entries: ObservedEntries) -> Float[Array, ""]:
        at_start = starting(operator, entries.start)
        innovation = entries.innovation(predicted(lambda state: at_start(state, entries), x))
        misfit = jnp.sum(entries.cost_by_instrument(innovation, entries.whiten(innovation)))
        return prior(x) + misfit

    return jnp.sum(eqx.filter_vmap(one)(x, observed))
