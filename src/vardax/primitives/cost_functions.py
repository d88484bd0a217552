"""The costs of the methods as objects: J(x, batch) in state space, with R restricted to what was observed.

    J(x) = ½‖x - x_b‖²_{B⁻¹} + ½‖y - H(x)‖²_{R⁻¹}                              BLUECost (H affine), ThreeDVarCost
    J(x_0) = ½‖x_0 - x_b‖²_{B⁻¹} + ½ Σ_t ‖y_t - H(M_t(x_0))‖²_{R⁻¹}            StrongConstraintCost

They are for looking at costs, for tests and for solvers of one's own. Unlike the methods they apply B⁻¹ (`inv_mv`), so
B must have one. Each is a `CostFunction`: `cost(x, batch)` sums over the samples of the batch; x is (B, *state).
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import optimistix as optx
from jaxtyping import Array, Float, PyTree

from vardax.covariances.functions import inv_mv
from vardax.minimisers.moments import AbstractTimeInterpolation, LinearInTime
from vardax.minimisers.observed import ObservedEntries, locate, read_samples, restrict_samples
from vardax.minimisers.point_counts import as_points, of_one_count
from vardax.minimisers.problem import Snapshot, Window, starting
from vardax.obs_operators.linearisation import is_linear

__all__ = ["BLUECost", "StrongConstraintCost", "ThreeDVarCost"]


class ThreeDVarCost(eqx.Module):
    """J_b + J_o at one time."""

    obs_op: Any
    prior_mean: PyTree[Array]
    prior_cov_op: lx.AbstractLinearOperator
    obs_cov_op: lx.AbstractLinearOperator | None

    def __call__(self, x: PyTree[Array], batch: Any, **kw: Any) -> Float[Array, ""]:
        return _summed_cost(self, x, batch, lambda samples: Snapshot(self.obs_op), window=False)


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
        return _summed_cost(self, x, batch, lambda samples: Snapshot(self.obs_op), window=False)


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
        return _summed_cost(self, x, batch, lambda samples: Window.of(self, samples), window=True)


def _summed_cost(cost: Any, x: PyTree[Array], batch: Any, observe: Any, *, window: bool) -> Float[Array, ""]:
    owner = type(cost).__name__
    points = as_points(batch)
    if points is not None:
        batch = points = of_one_count(points, max(o.value.shape[0] for o in points), owner)
    bound = cost.obs_op if points is None or not hasattr(cost.obs_op, "at") else cost.obs_op.at(points[0])
    shape = jax.eval_shape(bound, jax.tree.map(lambda leaf: leaf[0], x)).shape
    samples = locate(read_samples(batch, shape, window=window, owner=owner), cost.obs_op)
    operator = observe(samples)
    observed = restrict_samples(operator.place(samples), cost.obs_cov_op, owner)

    def one(state: PyTree[Array], entries: ObservedEntries) -> Float[Array, ""]:
        gap = jax.tree.map(jnp.subtract, state, cost.prior_mean)
        products = jax.tree.map(lambda a, b: jnp.sum(a * b), gap, inv_mv(cost.prior_cov_op, gap))
        innovation = entries.innovation(starting(operator, entries.start)(state, entries))
        misfit = jnp.sum(entries.cost_by_instrument(innovation, entries.whiten(innovation)))
        return 0.5 * jax.tree.reduce(jnp.add, products) + misfit

    return jnp.sum(eqx.filter_vmap(one)(x, observed))
