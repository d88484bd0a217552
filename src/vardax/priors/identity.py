"""The prior that finds every state plausible: phi(x) = x, so that ‖x - phi(x)‖² = 0.

What is left of a variational cost are the observations. The baseline of the learned methods: with `IdentityGradMod` it
is gradient descent on the misfit.
"""

import equinox as eqx
from jaxtyping import Array, PyTree

__all__ = ["IdentityPrior"]


class IdentityPrior(eqx.Module):
    """phi(x) = x, for states of any structure.

    >>> IdentityPrior()(3.0)
    3.0
    """

    @property
    def state_signature(self) -> None:
        """Any state."""
        return None

    def __call__(self, x: PyTree[Array]) -> PyTree[Array]:
        return x
