"""Linear latent maps: a state as a mean and a combination of few fields.

    x = m + V z,     E(x) = argmin_z ‖x - m - V z‖²_W = (VᵀWV)⁻¹ VᵀW (x - m)

The columns of V are the functions of a basis: empirical ones, waves, bumps, wavelets. E is exact on the range of V; of
other states it takes the closest in range. With B_z = diag(variances) the background covariance is V B_z Vᵀ.
"""

import abc
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from vardax.covariances.diagonal import DiagonalCovariance
from vardax.latent.prior import LatentPrior
from vardax.types import ArrayData, concrete_values, float_array

__all__ = ["AbstractReducedBasis", "basis_variances"]


class AbstractReducedBasis(eqx.Module):
    """A `LatentMap` and a `ReducedBasis`: `nbasis` fields, with a prior variance for the coefficient of each.

    **To add one**: give it `mean` (of the decoded states) and `variances`, `expand` and `project`.
    """

    mean: eqx.AbstractVar[PyTree[Array]]
    variances: eqx.AbstractVar[Float[Array, "nbasis"]]

    @abc.abstractmethod
    def expand(self, z: Float[Array, "nbasis"]) -> PyTree[Array]:
        """V z, in the dtype of z."""

    @abc.abstractmethod
    def project(self, field: PyTree[Array]) -> Float[Array, "nbasis"]:
        """(VᵀWV)⁻¹ VᵀW field, in the dtype of the field."""

    @property
    def nbasis(self) -> int:
        return self.variances.shape[0]

    @property
    def latent_dim(self) -> int:
        return self.nbasis

    @property
    def state_signature(self) -> PyTree[jax.ShapeDtypeStruct]:
        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), self.mean)

    def decode(self, latent: Float[Array, "nbasis"]) -> PyTree[Array]:
        """m + V z."""
        return jax.tree.map(lambda m, v: m.astype(v.dtype) + v, self.mean, self.expand(latent))

    def encode(self, state: PyTree[Array]) -> Float[Array, "nbasis"]:
        """The z whose state is closest to `state`."""
        return self.project(jax.tree.map(lambda x, m: x - m.astype(x.dtype), state, self.mean))

    def operg(self, t: Any, X: Float[Array, "nbasis"], state: PyTree[Array] | None = None) -> PyTree[Array]:
        """The field of the coefficients X, added to `state` where one is given.

        The contract has the time t for bases that move; these stand still.
        """
        field = self.expand(X)
        return field if state is None else jax.tree.map(lambda x, v: x + v.astype(x.dtype), state, field)

    def prior_inv(self, X: Float[Array, "nbasis"]) -> Float[Array, "nbasis"]:
        """B_z⁻¹ X."""
        return X / self.variances.astype(X.dtype)

    def prior(self) -> LatentPrior:
        """N(0, diag(variances)): the background is the mean."""
        return LatentPrior(self, jnp.zeros_like(self.variances), DiagonalCovariance(self.variances))


def basis_variances(variances: ArrayData, nbasis: int, owner: str) -> Float[Array, "nbasis"]:
    """One positive variance for each function of a basis, from these or from one number."""
    variances = float_array(variances)
    if variances.ndim == 0:
        variances = jnp.broadcast_to(variances, (nbasis,))
    if variances.shape != (nbasis,):
        raise ValueError(f"{owner}: `variances` has shape {variances.shape}, expected ({nbasis},), or one number.")
    values = concrete_values(variances)
    if values is not None and not np.all(values > 0):
        raise ValueError(f"{owner}: {int(np.sum(~(values > 0)))} of `variances` are not positive.")
    return variances
