"""The Gaussian posterior of a control-space problem.

At the analysis chi*, with G the derivative of the whitened prediction and S = dx/dchi:

    P = S (I + GᵀG)^{-1} Sᵀ

For an affine observation operator and model this is exact (the closed form of optimal interpolation, (B⁻¹ + HᵀR⁻¹H)⁻¹);
otherwise it is the Gauss-Newton form of Laplace's approximation. G is the true control-to-observation map: masks, R,
averaging in time and the model are in it. Nothing is dense but the smaller of the two normal matrices, when it has at
most `DENSE_LIMIT` rows; beyond, (I + GᵀG)^{-1} is a conjugate-gradient solve.

Samples are exact at any size: zeta = (I + GᵀG)^{-1} (xi_1 + Gᵀ xi_2) with white xi_1, xi_2 has covariance
(I + GᵀG)^{-1}. The diagonal is exact where the smaller side is dense, and the variance of `n_samples` samples beyond
(relative standard error of the standard deviation: 1 / sqrt(2 n_samples)), also where the variances of B are out of
reach (`BalancedCovariance` of a large state).
"""

import contextlib
import importlib.metadata
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from vardax.covariances.sizes import TooLarge
from vardax.minimisers.closed_form import COLUMN_BLOCK, NormalFactor, factorise, in_control_space, is_dense_case
from vardax.minimisers.conjugate_gradients import RelativeCG
from vardax.minimisers.problem import BatchedProblem, ControlSpaceProblem
from vardax.posterior.posterior import Posterior
from vardax.types import Analysis

__all__ = ["LaplaceCovariance", "PosteriorCovariance", "normal_factors"]


class _Iterative(eqx.Module):
    """(I + GᵀG)^{-1} by conjugate gradients, to the square root of the precision."""

    G: Callable
    GT: Callable
    prior_part: Callable

    def solve(self, v: PyTree[Array]) -> PyTree[Array]:
        normal = lambda u: jax.tree.map(jnp.add, self.prior_part(u), self.GT(self.G(u)))  # noqa: E731
        operator = lx.FunctionLinearOperator(normal, jax.eval_shape(lambda: v), lx.positive_semidefinite_tag)
        tolerance = float(np.sqrt(jnp.finfo(jax.tree.leaves(v)[0].dtype).eps))
        return lx.linear_solve(operator, v, RelativeCG(tolerance, max_steps=1000), throw=False).value


class PosteriorCovariance(lx.AbstractLinearOperator):
    """P as a lazy operator on (B, *state), block diagonal over the samples; on (*state) for one sample."""

    problem: BatchedProblem | ControlSpaceProblem
    control: PyTree[Array]
    cholesky: Float[Array, "B n n"] | None
    n_samples: int = eqx.field(static=True)

    def mv(self, vector: PyTree[Array]) -> PyTree[Array]:
        """P v = S (I + GᵀG)^{-1} Sᵀ v."""
        return _product(self, vector)

    def diagonal(self) -> PyTree[Array]:
        """The posterior variances, (B, *state)."""
        if self.cholesky is not None:
            with contextlib.suppress(TooLarge):
                return _exact_diagonal(self)
        draws = self.sample(jax.random.key(0), self.n_samples)
        axis = 1 if isinstance(self.problem, BatchedProblem) else 0
        return jax.tree.map(lambda s: jnp.mean(s**2, axis=axis), draws)

    def sample(self, key: PRNGKeyArray, n: int) -> PyTree[Array]:
        """n increments from N(0, P) for each sample: (B, n, *state)."""
        return _draw_increments(self, self._keys(key), n)

    def sample_states(self, key: PRNGKeyArray, n: int) -> PyTree[Array]:
        """n states around the analysis: (B, n, *state); drawn in control space, so a positive state stays positive."""
        return _draw_states(self, self._keys(key), n)

    def _keys(self, key: PRNGKeyArray) -> Array:
        return jax.random.split(key, self.problem.n_samples) if isinstance(self.problem, BatchedProblem) else key

    def views(self, fn: Callable, *arrays: PyTree[Array]) -> Any:
        """`fn(view, *arrays)` for every sample, linearised at its analysis."""

        def one(problem: ControlSpaceProblem, control: PyTree, cholesky: Array | None, *rest: PyTree) -> Any:
            return fn(_SampleView.at(problem, control, cholesky), *rest)

        return self.problem.map_samples(one, self.control, self.cholesky, *arrays)

    def as_matrix(self) -> Float[Array, "n n"]:
        """The dense matrix, for small states."""
        flat, unravel = ravel_pytree(jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), self.in_structure()))
        return jax.lax.map(lambda e: ravel_pytree(self.mv(unravel(e)))[0], jnp.eye(flat.size, dtype=flat.dtype))

    def transpose(self) -> "PosteriorCovariance":
        return self

    def in_structure(self) -> PyTree[jax.ShapeDtypeStruct]:
        return jax.eval_shape(lambda: self.problem.background)

    def out_structure(self) -> PyTree[jax.ShapeDtypeStruct]:
        return self.in_structure()


for _hook in (lx.linearise, lx.conj):
    _hook.register(PosteriorCovariance)(lambda operator: operator)

for _hook in (lx.is_symmetric, lx.is_positive_semidefinite):
    _hook.register(PosteriorCovariance)(lambda operator: True)

for _hook in (
    lx.is_diagonal,
    lx.is_tridiagonal,
    lx.is_lower_triangular,
    lx.is_upper_triangular,
    lx.is_negative_semidefinite,
    lx.has_unit_diagonal,
):
    _hook.register(PosteriorCovariance)(lambda operator: False)


class _SampleView(eqx.Module):
    """One sample linearised at its analysis."""

    problem: ControlSpaceProblem
    control: PyTree[Array]
    normal: NormalFactor | _Iterative
    G: Callable
    GT: Callable
    S: Callable
    ST: Callable

    @classmethod
    def at(cls, problem: ControlSpaceProblem, control: PyTree, cholesky: Array | None) -> "_SampleView":
        _, G, GT = problem.linearise(control)
        _, S = jax.linearize(problem.control_to_state, control)
        transposed = jax.linear_transpose(S, control)
        normal: NormalFactor | _Iterative = _Iterative(G, GT, problem.observe.prior_part)
        if cholesky is not None:
            normal = NormalFactor(G, GT, cholesky, in_control_space(problem))
        return cls(problem, control, normal, G, GT, S, lambda v: transposed(v)[0])

    def draw(self, key: PRNGKeyArray) -> PyTree[Array]:
        """zeta ~ N(0, (I + GᵀG)^{-1})."""
        for_control, for_residual = jax.random.split(key)
        flat, unravel = ravel_pytree(self.control)
        prior = unravel(jax.random.normal(for_control, flat.shape, flat.dtype))
        residual, as_residual = ravel_pytree(self.problem.zero_residual())
        noise = as_residual(jax.random.normal(for_residual, residual.shape, residual.dtype))
        return self.normal.solve(jax.tree.map(jnp.add, self.problem.observe.prior_part(prior), self.GT(noise)))

    def exact_diagonal(self, normal: NormalFactor) -> PyTree[Array]:
        """diag(P) by one product per row of the factorised side.

        Control space: the squares of S C^{-T} e_i, added. Observation space: diag(S Sᵀ) less those of S Gᵀ C^{-T} e_i.
        """
        size = normal.cholesky.shape[0]
        _, unravel = ravel_pytree(self.control)
        _, as_residual = ravel_pytree(self.problem.zero_residual())

        def column(unit: Array) -> PyTree[Array]:
            solved = jax.scipy.linalg.solve_triangular(normal.cholesky, unit, lower=True, trans=1)
            control = unravel(solved) if normal.in_control_space else self.GT(as_residual(solved))
            return jax.tree.map(jnp.square, self.S(control))

        units = jnp.eye(size, dtype=normal.cholesky.dtype)
        total = _sum_of(column, units)
        if normal.in_control_space:
            return total
        return jax.tree.map(jnp.subtract, self.problem.prior_variances(self.control), total)


@eqx.filter_jit
def _product(covariance: PosteriorCovariance, vector: PyTree[Array]) -> PyTree[Array]:
    return covariance.views(lambda view, v: view.S(view.normal.solve(view.ST(v))), vector)


@eqx.filter_jit
def _exact_diagonal(covariance: PosteriorCovariance) -> PyTree[Array]:
    return covariance.views(lambda view: view.exact_diagonal(view.normal))


@eqx.filter_jit
def _draw_increments(covariance: PosteriorCovariance, keys: Array, n: int) -> PyTree[Array]:
    return covariance.views(lambda view, k: _map_draws(lambda d: view.S(view.draw(d)), k, n), keys)


@eqx.filter_jit
def _draw_states(covariance: PosteriorCovariance, keys: Array, n: int) -> PyTree[Array]:
    def states(view: _SampleView, key: PRNGKeyArray) -> PyTree[Array]:
        around = lambda d: jax.tree.map(jnp.add, view.control, view.draw(d))  # noqa: E731
        return _map_draws(lambda d: view.problem.control_to_state(around(d)), key, n)

    return covariance.views(states, keys)


def _map_draws(fn: Callable, key: PRNGKeyArray, n: int) -> PyTree[Array]:
    """One draw after another: a solve each, so that no more than one is in memory."""
    return jax.lax.map(fn, jax.random.split(key, n))


def _sum_of(fn: Callable, rows: Array) -> PyTree[Array]:
    """Σ fn(row) over the rows, a block of rows at a time: never all results at once."""
    block = min(rows.shape[0], COLUMN_BLOCK)
    padded = jnp.pad(rows, ((0, -rows.shape[0] % block), (0, 0)))
    blocks = padded.reshape(-1, block, rows.shape[1])
    zero = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), jax.eval_shape(fn, rows[0]))

    def add(total: PyTree[Array], chunk: Array) -> tuple[PyTree[Array], None]:
        parts = jax.vmap(fn)(chunk)
        return jax.tree.map(lambda t, p: t + jnp.sum(p, axis=0), total, parts), None

    return jax.lax.scan(add, zero, blocks)[0]


class LaplaceCovariance(eqx.Module):
    """The posterior adapter of the variational methods: P at the analysis, as a lazy operator.

    `n_samples` is used only by `std()`, where neither normal matrix is small enough to factorise, or where the smaller
    one is that of the observations and B has no variances at this size.
    """

    n_samples: int = eqx.field(static=True, default=200)

    def __call__(self, analysis: Analysis | PyTree[Array], model: Any, batch: Any) -> Posterior:
        """The posterior of `model` (a method or its analysis step) at `analysis` (an `Analysis`, or its state)."""
        problem = model.problem(batch)
        return self.of_problem(analysis, problem, method=type(getattr(model, "method", model)).__name__)

    def of_problem(
        self, analysis: Analysis | PyTree[Array], problem: BatchedProblem | ControlSpaceProblem, *, method: str = ""
    ) -> Posterior:
        """The posterior of a problem that is at hand."""
        if isinstance(analysis, Analysis):
            control, state = analysis.control, analysis.state
        else:
            control, state = _control_of(problem, analysis), analysis
        covariance = PosteriorCovariance(problem, control, normal_factors(problem, control), self.n_samples)
        return Posterior(state, covariance, provenance=_provenance(analysis, self, method))


@eqx.filter_jit
def _control_of(problem: BatchedProblem | ControlSpaceProblem, state: PyTree[Array]) -> PyTree[Array]:
    return problem.map_samples(lambda sample, x: sample.control_of(x), state)


@eqx.filter_jit
def normal_factors(
    problem: BatchedProblem | ControlSpaceProblem, control: PyTree[Array]
) -> Float[Array, "B n n"] | None:
    """The Cholesky factor of the smaller normal matrix of each sample, where it is small enough."""

    def one(sample: ControlSpaceProblem, chi: PyTree[Array]) -> Array | None:
        if not is_dense_case(sample):
            return None
        _, G, GT = sample.linearise(chi)
        return factorise(sample, G, GT).cholesky

    return problem.map_samples(one, control)


def _provenance(analysis: Analysis | PyTree[Array], adapter: LaplaceCovariance, method: str) -> dict[str, Any]:
    record = {"method": method, "adapter": type(adapter).__name__}
    record |= {name: importlib.metadata.version(name) for name in ("vardax", "jax")}
    if isinstance(analysis, Analysis):
        record |= {"n_iterations": analysis.n_iterations, "converged": analysis.converged}
        record |= {"cost": analysis.cost.last.total, "n_instruments": analysis.cost.last.J_o_by_instrument.shape[-1]}
    return record
