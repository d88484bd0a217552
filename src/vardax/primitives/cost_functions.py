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
from vardax.minimisers.observed import ObservedEntries, read_samples, restrict_samples
from vardax.minimisers.problem import Snapshot, Window
from vardax.obs_operators.linearisation import is_linear

__all__ = ["BLUECost", "StrongConstraintCost", "ThreeDVarCost"]


class ThreeDVarCost(eqx.Module):
    """J_b + J_o at one time."""

    obs_op: Any
    prior_mean: PyTree[Array]
    prior_cov_op: lx.AbstractLinearOperator
    obs_cov_op: lx.AbstractLinearOperator

    def __call__(self, x: PyTree[Array], batch: Any, **kw: Any) -> Float[Array, ""]:
        return _summed_cost(self, x, batch, lambda samples: Snapshot(self.obs_op), window=False)


class BLUECost(eqx.Module):
    """J_b + J_o with an affine operator: the quadratic whose minimum is the BLUE."""

    obs_op: Any
    prior_mean: PyTree[Array]
    prior_cov_op: lx.AbstractLinearOperator
    obs_cov_op: lx.AbstractLinearOperator

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
    obs_cov_op: lx.AbstractLinearOperator
    forward_adjoint: Any = eqx.field(default=optx.RecursiveCheckpointAdjoint())
    n_substeps: int = eqx.field(static=True, default=1)

    def __call__(self, x: PyTree[Array], batch: Any, **kw: Any) -> Float[Array, ""]:
        def observe(samples: Any) -> Window:
            t0 = 0.0 if samples.times is None else samples.times[0]
            return Window(self.forward, self.obs_op, self.forward_adjoint, t0, samples.n_entries - 1, self.n_substeps)

        return _summed_cost(self, x, batch, observe, window=True)


def _summed_cost(cost: Any, x: PyTree[Array], batch: Any, observe: Any, *, window: bool) -> Float[Array, ""]:
    owner = type(cost).__name__
    shape = jax.eval_shape(cost.obs_op, jax.tree.map(lambda leaf: leaf[0], x)).shape
    samples = read_samples(batch, shape, window=window, owner=owner)
    observed, operator = restrict_samples(samples, cost.obs_cov_op, owner), observe(samples)

    def one(state: PyTree[Array], entries: ObservedEntries) -> Float[Array, ""]:
        gap = jax.tree.map(jnp.subtract, state, cost.prior_mean)
        products = jax.tree.map(lambda a, b: jnp.sum(a * b), gap, inv_mv(cost.prior_cov_op, gap))
        innovation = entries.innovation(operator(state, entries))
        misfit = jnp.sum(entries.cost_by_instrument(innovation, entries.whiten(innovation)))
        return 0.5 * jax.tree.reduce(jnp.add, products) + misfit

    return jnp.sum(jax.vmap(one)(x, observed))
