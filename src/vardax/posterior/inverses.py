"""Three forms of C = (I + GᵀG)⁻¹, the posterior covariance of the control of one sample.

    `DenseInverse`     the Cholesky factor of the smaller of I + GᵀG and I + GGᵀ: exact
    `KrylovInverse`    I - Z (1 - 1/λ) Zᵀ from Lanczos vectors: between the truth and the prior, without products
    `IterativeInverse` a conjugate-gradient solve for each product: exact products and samples at any size

Each gives products, samples, the variances of f' C f'ᵀ, and the information gain ½ log|I + GᵀG| in nats: how much the
entropy of the control fell. `Linearised` is one sample at its analysis: the derivative of the quantity f that is asked
about, and G where the form needs it.
"""

import abc
from collections.abc import Callable
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from vardax.covariances.sizes import TooLarge
from vardax.covariances.stochastic import lanczos_logdet
from vardax.minimisers.closed_form import COLUMN_BLOCK, NormalFactor, in_control_space
from vardax.minimisers.conjugate_gradients import RelativeCG
from vardax.minimisers.lanczos import RitzPairs
from vardax.minimisers.problem import ControlSpaceProblem
from vardax.posterior.quantities import AbstractQuantity

__all__ = ["AbstractInverse", "DenseInverse", "IterativeInverse", "KrylovInverse", "Linearised"]

PROBES, PROBE_STEPS = 16, 40
"""Random vectors, and Lanczos steps for each, of a log-determinant by products."""


class Linearised:
    """One sample at its analysis: f', its transpose, and G and Gᵀ where they are asked for."""

    def __init__(self, problem: ControlSpaceProblem, control: PyTree, quantity: AbstractQuantity, products: bool):
        self.problem, self.control, self.quantity = problem, control, quantity
        self.mean, self.S = jax.linearize(lambda chi: quantity(problem, chi), control)
        transposed = jax.linear_transpose(self.S, control)
        self.ST = lambda v: transposed(v)[0]
        self.G, self.GT = problem.linearise(control)[1:] if products else (_nothing, _nothing)

    def prior_variances(self) -> PyTree[Array]:
        """diag(f' f'ᵀ)."""
        return self.quantity.prior_variances(self.problem, self.control)

    def white_control(self, key: PRNGKeyArray) -> PyTree[Array]:
        return _white(self.control, key)

    def white_residual(self, key: PRNGKeyArray) -> PyTree[Array]:
        return _white(self.problem.zero_residual(), key)


def _nothing(v: PyTree[Array]) -> PyTree[Array]:
    raise AssertionError("this form of the inverse has no products with G")


def _white(like: PyTree[Array], key: PRNGKeyArray) -> PyTree[Array]:
    flat, unravel = ravel_pytree(like)
    return unravel(jax.random.normal(key, flat.shape, flat.dtype))


class AbstractInverse(eqx.Module):
    """C of one sample; stacked on a leading axis for a batch."""

    needs_products: eqx.AbstractClassVar[bool]

    @abc.abstractmethod
    def solve(self, at: Linearised, v: PyTree[Array]) -> PyTree[Array]:
        """C v."""

    @abc.abstractmethod
    def draw(self, at: Linearised, key: PRNGKeyArray) -> PyTree[Array]:
        """zeta ~ N(0, C)."""

    @abc.abstractmethod
    def variances(self, at: Linearised) -> PyTree[Array]:
        """diag(f' C f'ᵀ); raises `TooLarge` where only samples tell."""

    @abc.abstractmethod
    def information_gain(self, at: Linearised) -> Float[Array, ""]:
        """½ log|I + GᵀG|."""


def _perturbed(inverse: AbstractInverse, at: Linearised, key: PRNGKeyArray) -> PyTree[Array]:
    """C (xi_1 + Gᵀ xi_2) with white xi_1, xi_2: its covariance is C (I + GᵀG) C = C."""
    for_control, for_residual = jax.random.split(key)
    prior = at.problem.observe.prior_part(at.white_control(for_control))
    observed = at.GT(at.white_residual(for_residual))
    return inverse.solve(at, jax.tree.map(jnp.add, prior, observed))


class DenseInverse(AbstractInverse):
    """By the Cholesky factor of the smaller normal matrix."""

    needs_products: ClassVar[bool] = True

    cholesky: Float[Array, "... n n"]

    def _factor(self, at: Linearised) -> NormalFactor:
        return NormalFactor(at.G, at.GT, self.cholesky, in_control_space(at.problem))

    def solve(self, at: Linearised, v: PyTree[Array]) -> PyTree[Array]:
        return self._factor(at).solve(v)

    def draw(self, at: Linearised, key: PRNGKeyArray) -> PyTree[Array]:
        return _perturbed(self, at, key)

    def variances(self, at: Linearised) -> PyTree[Array]:
        """By one product per row of the factorised side.

        Control space: the squares of f' L^{-T} e_i, added.
        Observation space: diag(f' f'ᵀ) less those of f' Gᵀ L^{-T} e_i.
        """
        small = in_control_space(at.problem)
        _, unravel = ravel_pytree(at.control)
        _, as_residual = ravel_pytree(at.problem.zero_residual())

        def column(unit: Array) -> PyTree[Array]:
            solved = jax.scipy.linalg.solve_triangular(self.cholesky, unit, lower=True, trans=1)
            return jax.tree.map(jnp.square, at.S(unravel(solved) if small else at.GT(as_residual(solved))))

        units = jnp.eye(self.cholesky.shape[0], dtype=self.cholesky.dtype)
        if small:
            return _sum_of(column, units)
        return jax.tree.map(jnp.subtract, at.prior_variances(), _sum_of(column, units))

    def information_gain(self, at: Linearised) -> Float[Array, ""]:
        """Exact: the determinants of I + GᵀG and I + GGᵀ are equal."""
        return jnp.sum(jnp.log(jnp.diagonal(self.cholesky)))


class KrylovInverse(AbstractInverse):
    """By orthonormal vectors and eigenvalues of I + GᵀG (`vardax.minimisers.galerkin`); the identity beyond them.

    Variances and samples are those of the covariance that the vectors give, exactly.
    """

    needs_products: ClassVar[bool] = False

    pairs: RitzPairs

    def solve(self, at: Linearised, v: PyTree[Array]) -> PyTree[Array]:
        return self.pairs.solve(v)

    def draw(self, at: Linearised, key: PRNGKeyArray) -> PyTree[Array]:
        return self.pairs.damp(at.white_control(key))

    def variances(self, at: Linearised) -> PyTree[Array]:
        """diag(f' f'ᵀ) less (1 - 1/λ) (f' z)² of each vector."""

        def less(total: PyTree[Array], pair: tuple[Array, PyTree[Array]]) -> tuple[PyTree[Array], None]:
            value, z = pair
            return jax.tree.map(lambda t, s: t - (1 - 1 / value).astype(s.dtype) * s**2, total, at.S(z)), None

        return jax.lax.scan(less, at.prior_variances(), (self.pairs.values, self.pairs.vectors))[0]

    def information_gain(self, at: Linearised) -> Float[Array, ""]:
        """A lower bound, which rises with each further vector."""
        return 0.5 * jnp.sum(jnp.log(self.pairs.values))


class IterativeInverse(AbstractInverse):
    """By conjugate gradients, to the square root of the precision."""

    needs_products: ClassVar[bool] = True

    def solve(self, at: Linearised, v: PyTree[Array]) -> PyTree[Array]:
        operator = lx.FunctionLinearOperator(
            lambda u: _normal(at, u), jax.eval_shape(lambda: v), lx.positive_semidefinite_tag
        )
        tolerance = float(np.sqrt(jnp.finfo(jax.tree.leaves(v)[0].dtype).eps))
        return lx.linear_solve(operator, v, RelativeCG(tolerance, max_steps=1000), throw=False).value

    def draw(self, at: Linearised, key: PRNGKeyArray) -> PyTree[Array]:
        return _perturbed(self, at, key)

    def variances(self, at: Linearised) -> PyTree[Array]:
        raise TooLarge("The posterior variances of a problem with two large sides come from samples.")

    def information_gain(self, at: Linearised) -> Float[Array, ""]:
        """By stochastic Lanczos quadrature with `PROBES` random vectors: an estimate, usually good to a few percent."""
        flat, unravel = ravel_pytree(at.control)
        product = lambda v: ravel_pytree(_normal(at, unravel(v)))[0]  # noqa: E731
        start = jax.ShapeDtypeStruct(flat.shape, flat.dtype)
        value, _ = lanczos_logdet(product, start, jax.random.key(0), n_probes=PROBES, n_steps=PROBE_STEPS)
        return 0.5 * value


def _normal(at: Linearised, v: PyTree[Array]) -> PyTree[Array]:
    """(I + GᵀG) v."""
    return jax.tree.map(jnp.add, at.problem.observe.prior_part(v), at.GT(at.G(v)))


def _sum_of(fn: Callable[[Array], Any], rows: Array) -> PyTree[Array]:
    """Σ fn(row) over the rows, a block of rows at a time: never all results at once."""
    block = min(rows.shape[0], COLUMN_BLOCK)
    padded = jnp.pad(rows, ((0, -rows.shape[0] % block), (0, 0)))
    blocks = padded.reshape(-1, block, rows.shape[1])
    zero = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), jax.eval_shape(fn, rows[0]))

    def add(total: PyTree[Array], chunk: Array) -> tuple[PyTree[Array], None]:
        parts = jax.vmap(fn)(chunk)
        return jax.tree.map(lambda t, p: t + jnp.sum(p, axis=0), total, parts), None

    return jax.lax.scan(add, zero, blocks)[0]
