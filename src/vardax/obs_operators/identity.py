"""The state itself is observed, with gaps.

    y = m * x

The gaps m are data, not part of the operator: they come with the batch, and the control-space problem applies them.
So H is the identity, for any state.
"""

from typing import ClassVar

import equinox as eqx
import lineax as lx
from jaxtyping import Array, PyTree

from vardax.obs_operators.module_operator import structure_of

__all__ = ["MaskedIdentity"]


class MaskedIdentity(eqx.Module):
    """H(x) = x; which entries count is said by the mask of the batch.

    >>> MaskedIdentity()(3.0)
    3.0
    """

    linear_by_construction: ClassVar[bool] = True

    def __call__(self, state: PyTree[Array]) -> PyTree[Array]:
        return state

    def linearize(self, state: PyTree[Array]) -> lx.AbstractLinearOperator:
        return lx.IdentityLinearOperator(structure_of(state))
