"""From an increment of the state back to control space: the shortest chi with B^{1/2} chi closest to it.

Only starts of an iteration and `cvt_transform` need this; no analysis applies an inverse of B. It is a least-squares
problem, since B^{1/2} may be rectangular (padding, ensembles) or singular: solved by singular values when B^{1/2} has
at most `EXACT_LIMIT` rows and columns, by conjugate gradients on the normal equations beyond.
"""

import jax
import jax.numpy as jnp
import lineax as lx
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, PyTree

from vardax.minimisers.conjugate_gradients import RelativeCG

__all__ = ["EXACT_LIMIT", "shortest_control"]

EXACT_LIMIT = 512
"""Sizes of control and state up to which the projection is exact."""


def shortest_control(half: lx.AbstractLinearOperator, increment: PyTree[Array], max_steps: int = 200) -> PyTree[Array]:
    """argmin ‖chi‖ among the minimisers of ‖B^{1/2} chi - increment‖."""
    if isinstance(half, lx.IdentityLinearOperator):
        return increment
    transposed = half.transpose()
    if max(half.in_size(), half.out_size()) <= EXACT_LIMIT:
        zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), half.in_structure())
        flat, unravel = ravel_pytree(zeros)
        columns = jax.vmap(lambda e: ravel_pytree(half.mv(unravel(e)))[0])(jnp.eye(flat.size, dtype=flat.dtype))
        dense = lx.MatrixLinearOperator(columns.T)
        return unravel(lx.linear_solve(dense, ravel_pytree(increment)[0], lx.SVD(), throw=False).value)
    normal = lx.FunctionLinearOperator(
        lambda v: transposed.mv(half.mv(v)), half.in_structure(), lx.positive_semidefinite_tag
    )
    eps = float(jnp.finfo(jax.tree.leaves(increment)[0].dtype).eps)
    solver = RelativeCG(10 * eps, max_steps=max_steps)
    return lx.linear_solve(normal, transposed.mv(increment), solver, throw=False).value
