"""A small positive definite operator, solved by the Cholesky factor of its matrix.

lineax's `Cholesky` asks an operator for its whole matrix at once: as many products side by side as it has columns, each
with all that the model keeps for it. `MappedCholesky` takes `COLUMN_BLOCK` columns at a time. Laid out by itself, the
matrix also leaves the layout of what happens inside the products alone: LAPACK wants columns, and XLA's CPU Fourier
transforms, which a covariance may be made of, fail on anything but rows.
"""

from typing import Any

import jax
import jax.numpy as jnp
import lineax as lx
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, PyTree

from vardax.minimisers.closed_form import COLUMN_BLOCK

__all__ = ["MappedCholesky"]


class MappedCholesky(lx.AbstractLinearSolver):
    """A x = b by the Cholesky factor of A, whose columns are found in blocks, for positive definite A.

    >>> A = lx.MatrixLinearOperator(jnp.array([[4.0, 2.0], [2.0, 3.0]]), lx.positive_semidefinite_tag)
    >>> lx.linear_solve(A, jnp.array([2.0, 3.0]), MappedCholesky()).value.round(4).tolist()
    [0.0, 1.0]
    """

    def init(self, operator: lx.AbstractLinearOperator, options: dict[str, Any]) -> Any:
        linear = lx.linearise(operator)
        zero, unravel = ravel_pytree(jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), operator.in_structure()))
        column = lambda unit: ravel_pytree(linear.mv(unravel(unit)))[0]  # noqa: E731
        rows = jax.lax.map(column, jnp.eye(zero.size, dtype=zero.dtype), batch_size=min(zero.size, COLUMN_BLOCK))
        matrix = jax.lax.optimization_barrier(rows.ravel()).reshape(rows.shape)
        return jnp.linalg.cholesky(0.5 * (matrix + matrix.T))

    def compute(
        self, state: Array, vector: PyTree[Array], options: dict[str, Any]
    ) -> tuple[PyTree[Array], lx.RESULTS, dict[str, Any]]:
        flat, unravel = ravel_pytree(vector)
        return unravel(jax.scipy.linalg.cho_solve((state, True), flat)), lx.RESULTS.successful, {}

    def transpose(self, state: Array, options: dict[str, Any]) -> tuple[Array, dict[str, Any]]:
        return state, options

    def conj(self, state: Array, options: dict[str, Any]) -> tuple[Array, dict[str, Any]]:
        return state, options

    def assume_full_rank(self) -> bool:
        return True
