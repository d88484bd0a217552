"""The Gaussian prior of classical assimilation, in the place of a learned one.

    cost(x) = ½‖x - x_b‖²_{B⁻¹} = ½‖residual(x)‖²,     residual(x) = Lᵀ B⁻¹ (x - x_b),     phi(x) = x_b

With it the cost of the learned methods is that of optimal interpolation and 3DVar, so that both can be compared at the
same minimum. The gradient is B⁻¹(x - x_b): unlike the methods that work in control space, this prior needs B⁻¹ itself,
and a descent is as slow as B and the observations are ill-conditioned.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
from jaxtyping import Array, Float, PyTree

from vardax.covariances.functions import as_covariance, half, inv_mv
from vardax.types import concrete_values, float_array

__all__ = ["GaussianPrior"]


class GaussianPrior(eqx.Module):
    """N(x_b, B): `mean` x_b, a state (an array or a pytree of arrays), and `cov_op` B on states of that structure.

    `cost` replaces ‖x - phi(x)‖² in the cost of a learned method. As a reconstruction, phi(x) is the mean: what the
    prior makes of any state. B⁻¹ is that of `vardax.covariances.inv_mv`: a formula where the covariance has one. A
    window of several times needs a mean and a covariance of the window, such as `RepeatedCovariance(B, n_time)`.

    The mean and the arrays of B are leaves, as everywhere: training leaves them alone where the optimiser is given the
    other leaves only.

    >>> from vardax.covariances.diagonal import DiagonalCovariance
    >>> prior = GaussianPrior(jnp.array([1.0, 0.0]), DiagonalCovariance([4.0, 1.0]))
    >>> float(prior.cost(jnp.array([3.0, 1.0])))
    1.0
    """

    mean: PyTree[Array]
    cov_op: lx.AbstractLinearOperator

    def __init__(self, mean: PyTree, cov_op: Any):
        self.mean = jax.tree.map(float_array, mean)
        self.cov_op = as_covariance("GaussianPrior", cov_op, "cov_op")
        found, expected = _shapes(self.mean), _shapes(self.cov_op.out_structure())
        if found != expected:
            raise ValueError(
                f"GaussianPrior: `mean` has shape {found}, expected {expected}, on which `cov_op` acts; for a window "
                "of n times with the same covariance take RepeatedCovariance(cov_op, n)."
            )
        known = [values for values in map(concrete_values, jax.tree.leaves(self.mean)) if values is not None]
        if bad := sum(int(np.sum(~np.isfinite(values))) for values in known):
            raise ValueError(f"GaussianPrior: `mean` has {bad} non-finite entries; it must be complete.")

    @property
    def state_signature(self) -> PyTree[jax.ShapeDtypeStruct]:
        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), self.mean)

    def with_mean(self, mean: PyTree) -> "GaussianPrior":
        """The same prior around another background: that of the next cycle."""
        return GaussianPrior(mean, self.cov_op)

    def __call__(self, x: PyTree[Array]) -> PyTree[Array]:
        """x_b, whatever x is, in the dtype of x."""
        self._check(x)
        return jax.tree.map(lambda m, leaf: m.astype(leaf.dtype), self.mean, x)

    def cost(self, x: PyTree[Array]) -> Float[Array, ""]:
        """½‖x - x_b‖²_{B⁻¹}, in the dtype of x."""
        gap, weighted = self._gap(x)
        terms = jax.tree.map(lambda v, g: jnp.sum(v.astype(g.dtype) * g), weighted, gap)
        return 0.5 * jax.tree.reduce(jnp.add, terms)

    def residual(self, x: PyTree[Array]) -> PyTree[Array]:
        """r = Lᵀ B⁻¹ (x - x_b) with B = L Lᵀ: ½‖r‖² is the cost, and its derivative a square root of B⁻¹, from which
        least-squares minimisers and posteriors take the Hessian. In the dtype of the state."""
        _, weighted = self._gap(x)
        dtype = jnp.result_type(*jax.tree.leaves(x))
        return jax.tree.map(lambda r: r.astype(dtype), half(self.cov_op).T.mv(weighted))

    def _gap(self, x: PyTree[Array]) -> tuple[PyTree[Array], PyTree[Array]]:
        """x - x_b in the dtype of x, and B⁻¹ of it in that of B."""
        self._check(x)
        gap = jax.tree.map(lambda leaf, m: leaf - m.astype(leaf.dtype), x, self.mean)
        field = jax.tree.map(lambda leaf, like: leaf.astype(like.dtype), gap, self.cov_op.in_structure())
        return gap, inv_mv(self.cov_op, field)

    def _check(self, x: PyTree[Array]) -> None:
        found, expected = _shapes(x), _shapes(self.mean)
        if found != expected:
            raise ValueError(f"GaussianPrior: the state has shape {found}, expected {expected}, that of `mean`.")


def _shapes(tree: PyTree) -> PyTree:
    return jax.tree.map(lambda leaf: tuple(jnp.shape(leaf)), tree)
