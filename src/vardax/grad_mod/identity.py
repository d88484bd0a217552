"""The modulator that is not learned: the update is minus the gradient times a step size, u = -alpha g.

With it the learned solver is gradient descent with fixed steps, the baseline of everything that learns a step.
"""

from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from vardax.types import concrete_values

__all__ = ["IdentityGradMod"]


class IdentityGradMod(eqx.Module):
    """u = -alpha g, on states of any structure. It gives the step itself: `config.alpha` does not scale it.

    A number as `alpha` stays what it is; an array is trained with the rest of a model. On a quadratic cost the descent
    converges for alpha < 2 / (largest eigenvalue of the Hessian).

    >>> update, _ = IdentityGradMod(0.5)(jnp.array([2.0, -4.0]), jnp.zeros(2), None)
    >>> update.tolist()
    [-1.0, 2.0]
    """

    scaled_by_itself: ClassVar[bool] = True

    alpha: float | Float[Array, ""]

    def __init__(self, alpha: Any):
        found = concrete_values(alpha)
        if np.shape(alpha) != () or (found is not None and not (found > 0 and jnp.isfinite(found))):
            raise ValueError(f"IdentityGradMod: `alpha` is {alpha}, expected one positive number.")
        self.alpha = jnp.asarray(alpha, jnp.result_type(float)) if hasattr(alpha, "dtype") else float(alpha)

    def init_carry(self, state: PyTree[Array]) -> None:
        """Nothing is remembered."""
        return None

    def __call__(self, grad: PyTree[Array], state: PyTree[Array], carry: None) -> tuple[PyTree[Array], None]:
        return jax.tree.map(lambda g: -jnp.asarray(self.alpha).astype(g.dtype) * g, grad), carry
