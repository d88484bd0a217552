"""Any differentiable function as an observation operator: y = fn(x).

Its tangent is `jax.linearize` of the function at the state, its adjoint the transpose of that.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import lineax as lx
from jaxtyping import Array, PyTree

from vardax.obs_operators.module_operator import structure_of

__all__ = ["CallableObs"]


class CallableObs(eqx.Module):
    """H(x) = fn(x), for a function or an `eqx.Module` with parameters; the state may be a pytree.

    >>> H = CallableObs(lambda state: state["u"] ** 2)
    >>> H.linearize({"u": jax.numpy.array([3.0])}).mv({"u": jax.numpy.array([1.0])}).tolist()
    [6.0]
    """

    fn: Callable[..., Any]

    def __init__(self, fn: Any):
        if not callable(fn):
            raise TypeError(f"CallableObs: `fn` is {fn!r}, expected a function of the state.")
        self.fn = fn

    def __call__(self, state: PyTree[Array]) -> PyTree[Array]:
        return self.fn(state)

    def linearize(self, state: PyTree[Array]) -> lx.AbstractLinearOperator:
        _, tangent = jax.linearize(self.fn, state)
        return lx.FunctionLinearOperator(tangent, structure_of(state))
