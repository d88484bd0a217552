r"""Waves: the long ones of a periodic grid as a basis.

    v_0 = 1/√n,   v_{2k-1}(j) = √(2/n) cos(2π k j / n),   v_{2k}(j) = √(2/n) sin(2π k j / n),   k = 1 .. K < n/2

orthonormal on n cells; in several dimensions their products. With variances that fall with the wavenumber the prior is
a smooth homogeneous field.
"""

from collections.abc import Sequence

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from vardax.latent.basis import AbstractReducedBasis, basis_variances
from vardax.latent.separable import axis_product, axis_sizes, indices_of_products, per_axis
from vardax.types import ArrayData, Grid

__all__ = ["FourierBasis"]


class FourierBasis(AbstractReducedBasis):
    """All waves with wavenumbers up to `n_waves` along each axis of a periodic grid.

    - `shape`: that of the field, or a `Grid`.
    - `n_waves`: K, the same for all axes, or one for each; below half the number of cells.
    - `variances`: of the coefficients, (nbasis,), or one number. `wavenumbers` (nbasis, axes) says which is which.

    >>> basis = FourierBasis(16, 2)
    >>> basis.nbasis, basis.wavenumbers[:, 0].tolist()
    (5, [0, 1, 1, 2, 2])
    """

    factors: tuple[Float[Array, "_ _"], ...]
    mean: Float[Array, "..."]
    variances: Float[Array, "nbasis"]
    n_waves: tuple[int, ...] = eqx.field(static=True)

    def __init__(self, shape: int | Sequence[int] | Grid, n_waves: int | Sequence[int], *, variances: ArrayData = 1.0):
        sizes = axis_sizes(shape)
        self.n_waves = per_axis(n_waves, len(sizes), "n_waves", "FourierBasis")
        for n, K in zip(sizes, self.n_waves, strict=True):
            if n <= 2 * K:
                raise ValueError(f"FourierBasis: `n_waves` is {K} on an axis of {n} cells, expected below {n / 2:g}.")
        dtype = jnp.result_type(float)
        self.factors = tuple(jnp.asarray(_waves(n, K), dtype) for n, K in zip(sizes, self.n_waves, strict=True))
        self.mean = jnp.zeros(sizes, dtype)
        self.variances = basis_variances(variances, int(np.prod([2 * K + 1 for K in self.n_waves])), "FourierBasis")

    @property
    def wavenumbers(self) -> np.ndarray:
        """(nbasis, axes): waves along each axis, of each function."""
        return indices_of_products([(np.arange(2 * K + 1) + 1) // 2 for K in self.n_waves])

    def expand(self, z: Float[Array, "nbasis"]) -> Float[Array, "..."]:
        return axis_product(self.factors, z.reshape([factor.shape[1] for factor in self.factors]))

    def project(self, field: Float[Array, "..."]) -> Float[Array, "nbasis"]:
        return axis_product(self.factors, field, transposed=True).ravel()


def _waves(n: int, K: int) -> np.ndarray:
    """The orthonormal waves of one axis, as columns."""
    angle = 2 * np.pi * np.outer(np.arange(n), np.arange(1, K + 1)) / n
    pairs = np.sqrt(2 / n) * np.stack([np.cos(angle), np.sin(angle)], axis=-1)
    return np.concatenate([np.full((n, 1), n**-0.5), pairs.reshape(n, 2 * K)], axis=1)
