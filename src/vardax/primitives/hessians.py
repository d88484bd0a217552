"""The curvature of a cost at its minimum, and the covariance that follows from it, as pure functions.

    laplace_covariance      v -> (∇²J(x*))⁻¹ v      by conjugate gradients on derivatives of ∇J
    gauss_newton_hessian    B⁻¹ + Σ_t (H_t'M_t')ᵀ R_t⁻¹ H_t'M_t'     from Lanczos vectors in control space

Neither builds a matrix. The second knows its inverse: the posterior covariance of `vardax.posterior`.
"""

from collections.abc import Callable
from typing import Any, cast

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, PyTree

from vardax.covariances.base import register_semidefinite
from vardax.covariances.functions import diagonal, half, inv_mv
from vardax.minimisers.conjugate_gradients import RelativeCG
from vardax.minimisers.lanczos import RitzPairs, combine
from vardax.minimisers.problem import BatchedProblem, cast_like, tree_dot
from vardax.minimisers.transforms import Identity
from vardax.minimisers.windows import Window
from vardax.posterior.covariance import PosteriorCovariance
from vardax.posterior.gauss_newton_hessian import GaussNewtonHessian
from vardax.posterior.inverses import KrylovInverse
from vardax.primitives.cost_functions import StrongConstraintCost, on_samples, posed

__all__ = ["GaussNewtonOperator", "gauss_newton_hessian", "laplace_covariance"]

SYMMETRIC = (lx.symmetric_tag, lx.positive_semidefinite_tag)


def laplace_covariance(
    x_star: PyTree[Array],
    cost_grad_fn: Callable[[PyTree[Array]], PyTree[Array]],
    B_inv_op: lx.AbstractLinearOperator,
    R_inv_op: lx.AbstractLinearOperator | None = None,
) -> lx.AbstractLinearOperator:
    """The inverse of the Hessian of a cost at its minimum, as an operator on states.

    `cost_grad_fn` is x -> ∇J(x); its derivative is the exact Hessian, second derivatives of model and operators
    included, and must be positive definite at `x_star`. A product is a solve by conjugate gradients to the square root
    of the precision, preconditioned by 1 / diag(B⁻¹), or 1 / (diag(B⁻¹) + diag(R⁻¹)) where `R_inv_op` acts on states
    (observations of all of the state). The preconditioner changes the number of steps and nothing else.

    >>> B_inv, R_inv = (lx.DiagonalLinearOperator(jnp.array(d)) for d in ([1.0, 2.0], [3.0, 8.0]))
    >>> P = laplace_covariance(jnp.zeros(2), lambda x: B_inv.mv(x) + R_inv.mv(x - 1.0), B_inv, R_inv)
    >>> P.mv(jnp.array([4.0, 10.0])).round(4).tolist()
    [1.0, 1.0]
    """
    structure = jax.eval_shape(lambda: x_star)
    _, product = jax.linearize(cost_grad_fn, x_star)
    hessian = lx.FunctionLinearOperator(product, structure, SYMMETRIC)
    curvature = diagonal(B_inv_op)
    if R_inv_op is not None and R_inv_op.in_structure() == structure:
        curvature = jax.tree.map(jnp.add, curvature, diagonal(R_inv_op))
    scale = jax.tree.map(lambda c: jnp.where(c > 0, jax.lax.rsqrt(jnp.where(c > 0, c, 1)), 1), curvature)
    scaled = lambda v: jax.tree.map(jnp.multiply, scale, v)  # noqa: E731
    even = lx.FunctionLinearOperator(lambda v: scaled(hessian.mv(scaled(v))), structure, SYMMETRIC)
    tolerance = float(np.sqrt(jnp.finfo(jax.tree.leaves(x_star)[0].dtype).eps))
    solver = RelativeCG(tolerance, max_steps=1000)

    def covary(v: PyTree[Array]) -> PyTree[Array]:
        return scaled(lx.linear_solve(even, scaled(v), solver, throw=False).value)

    return lx.FunctionLinearOperator(covary, structure, SYMMETRIC)


class GaussNewtonOperator(lx.AbstractLinearOperator):
    """B⁻¹ + W diag(λ - 1) Wᵀ, W = B⁻¹ B^{1/2} Z, on (B, *state): the Hessian that k Lanczos vectors know.

    It rises to the true Gauss-Newton Hessian with k. `inverse` is its inverse, which needs no B⁻¹.
    """

    inverse: PosteriorCovariance

    def mv(self, vector: PyTree[Array]) -> PyTree[Array]:
        """J'' v; applies B⁻¹."""
        return _hessian_product(self, vector)

    def as_matrix(self) -> Array:
        """The dense matrix, for small states."""
        structure = self.in_structure()
        flat, unravel = ravel_pytree(jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), structure))
        return jax.lax.map(lambda e: ravel_pytree(self.mv(unravel(e)))[0], jnp.eye(flat.size, dtype=flat.dtype))

    def transpose(self) -> "GaussNewtonOperator":
        return self

    def in_structure(self) -> PyTree[jax.ShapeDtypeStruct]:
        return self.inverse.in_structure()

    def out_structure(self) -> PyTree[jax.ShapeDtypeStruct]:
        return self.inverse.out_structure()


register_semidefinite(GaussNewtonOperator)


@eqx.filter_jit
def _hessian_product(hessian: GaussNewtonOperator, vector: PyTree[Array]) -> PyTree[Array]:
    P, inverse = hessian.inverse, cast(KrylovInverse, hessian.inverse.inverse)

    def one(problem: Any, pairs: RitzPairs, v: PyTree[Array]) -> PyTree[Array]:
        B, L = problem.covariance, problem.half
        weighted = inv_mv(B, cast_like(v, B.in_structure()))
        parts = jax.vmap(tree_dot, in_axes=(0, None))(pairs.vectors, L.transpose().mv(weighted))
        known = inv_mv(B, L.mv(combine((pairs.values - 1) * parts, pairs.vectors)))
        return jax.tree.map(lambda a, b, c: (a + b).astype(c.dtype), weighted, known, v)

    return P.problem.map_samples(one, inverse.pairs, vector)


def gauss_newton_hessian(
    x_star: PyTree[Array],
    batch: Any,
    forward: Any,
    obs_op: Any,
    B_op: lx.AbstractLinearOperator,
    R_op: lx.AbstractLinearOperator | None,
    n_krylov: int = 50,
    *,
    n_substeps: int = 1,
    n_steps: int | None = None,
) -> GaussNewtonOperator:
    """The Gauss-Newton Hessian of strong-constraint 4DVar, linearised at `x_star` ((*state) or (B, *state)).

    Masks, correlated R and the model are in it. It is exact when `n_krylov` reaches the number of observations, and
    below it for fewer vectors, so that its `inverse` lies between the posterior covariance and B.
    """
    cost = StrongConstraintCost(forward, obs_op, x_star, B_op, R_op, n_substeps=n_substeps, n_steps=n_steps)
    problem, control = _at(cost, batch)
    posterior = GaussNewtonHessian(n_krylov)
    return GaussNewtonOperator(posterior.covariance(problem, control))


@eqx.filter_jit
def _at(cost: StrongConstraintCost, batch: Any) -> tuple[BatchedProblem, PyTree[Array]]:
    """The problem with `x_star` in place of the background, which no second derivative sees, at the control zero."""
    structure = cost.prior_cov_op.out_structure()
    observe, observed = posed(cost, structure, batch, lambda samples: Window.of(cost, samples), window=True)
    states = on_samples(cost.prior_mean, structure, observed.value.shape[0])
    B = cost.prior_cov_op
    problem = BatchedProblem(states, observed, B, half(B), observe, transform=Identity())
    return problem, problem.zero_control()
