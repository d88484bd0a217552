"""The control-variable transform and the tangent-linear of a function.

chi = B^{-1/2} (x - x_b),      x = x_b + B^{1/2} chi,      B = B^{1/2} B^{T/2}
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array, PyTree

from vardax.minimisers.projection import shortest_control

__all__ = ["cvt_inverse", "cvt_transform", "tangent_linear"]


def cvt_transform(x: PyTree[Array], x_b: PyTree[Array], B_half_op: lx.AbstractLinearOperator) -> PyTree[Array]:
    """chi = B^{-1/2} (x - x_b); the shortest such chi where B^{1/2} is rectangular.

    Exact where B^{1/2} has at most 512 rows and columns, by conjugate gradients beyond. A very smooth B^{1/2}
    determines chi only up to directions that do not move x.
    """
    return shortest_control(B_half_op, jax.tree.map(jnp.subtract, x, x_b), max_steps=1000)


def cvt_inverse(chi: PyTree[Array], x_b: PyTree[Array], B_half_op: lx.AbstractLinearOperator) -> PyTree[Array]:
    """x = x_b + B^{1/2} chi."""
    return jax.tree.map(jnp.add, x_b, B_half_op.mv(chi))


def tangent_linear(fn: Callable[[PyTree[Array]], PyTree[Array]], x: PyTree[Array]) -> lx.AbstractLinearOperator:
    """fn'(x) as a lineax operator, linearised once; its transpose `.T` is the adjoint.

    >>> tangent_linear(jnp.sin, jnp.zeros(2)).mv(jnp.array([1.0, 2.0]))
    Array([1., 2.], dtype=float32)
    """
    _, tangent = jax.linearize(fn, x)
    return lx.FunctionLinearOperator(tangent, jax.eval_shape(lambda: x))
