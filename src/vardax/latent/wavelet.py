r"""Wavelets: a basis that is local in place and in scale.

    a_{j+1}(k) = Σ_i h(i) a_j(2k + i),     d_{j+1}(k) = Σ_i (-1)^i h(2p - 1 - i) a_j(2k + i)

on a periodic axis, repeated on a_{j+1}: averages and details at levels of twice the length. h has 2p taps and the
details of polynomials of degree below p vanish (Daubechies; p = 1 is Haar). The transform is orthogonal, so the inverse
is the transpose. Without the details of the finest levels it is a reduced basis. In several dimensions: products.

Reference: I. Daubechies, Orthonormal bases of compactly supported wavelets, Communications on Pure and Applied
Mathematics 41 (1988), 909-996.
"""

import math
from collections.abc import Sequence

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from vardax.dynamics.stepping import checked_count
from vardax.latent.basis import AbstractReducedBasis, basis_variances
from vardax.latent.separable import axis_product, axis_sizes, indices_of_products, per_axis
from vardax.types import ArrayData, Grid

__all__ = ["WaveletBasis", "daubechies"]

MOST_MOMENTS = 10
"""Beyond, the roots that the filter is made of lose their digits."""


class WaveletBasis(AbstractReducedBasis):
    """Periodic orthonormal wavelets of `levels` levels, without the `drop` finest.

    - `shape`: that of the field, or a `Grid`; every axis a multiple of 2^levels.
    - `levels`, `drop`: the same for all axes, or one for each; a field has 2^drop fewer numbers along an axis.
    - `moments`: p, the vanishing moments; 1 is Haar.
    - `variances`: of the coefficients, (nbasis,), or one number. `level` (nbasis, axes) says which is which.

    >>> basis = WaveletBasis(8, 2, drop=1, moments=1)
    >>> basis.nbasis, basis.level[:, 0].tolist()
    (4, [2, 2, 2, 2])
    """

    factors: tuple[Float[Array, "_ _"], ...]
    mean: Float[Array, "..."]
    variances: Float[Array, "nbasis"]
    levels: tuple[int, ...] = eqx.field(static=True)
    drop: tuple[int, ...] = eqx.field(static=True)

    def __init__(
        self,
        shape: int | Sequence[int] | Grid,
        levels: int | Sequence[int],
        *,
        drop: int | Sequence[int] = 0,
        moments: int = 2,
        variances: ArrayData = 1.0,
    ):
        sizes = axis_sizes(shape)
        self.levels, self.drop = (
            per_axis(value, len(sizes), name, "WaveletBasis") for value, name in ((levels, "levels"), (drop, "drop"))
        )
        taps = daubechies(moments)
        for n, J, dropped in zip(sizes, self.levels, self.drop, strict=True):
            if n % 2**J:
                raise ValueError(f"WaveletBasis: an axis has {n} cells, expected a multiple of 2^levels = {2**J}.")
            if dropped > J:
                raise ValueError(f"WaveletBasis: `drop` is {dropped}, expected at most `levels`, {J}.")
        self.factors = tuple(
            jnp.asarray(_wavelets(n, J, dropped, taps), jnp.result_type(float))
            for n, J, dropped in zip(sizes, self.levels, self.drop, strict=True)
        )
        self.mean = jnp.zeros(sizes, jnp.result_type(float))
        nbasis = math.prod(factor.shape[1] for factor in self.factors)
        self.variances = basis_variances(variances, nbasis, "WaveletBasis")

    @property
    def level(self) -> np.ndarray:
        """(nbasis, axes): the level along each axis, of each function; averages have that of the coarsest details."""
        sizes = [factor.shape[1] * 2**dropped for factor, dropped in zip(self.factors, self.drop, strict=True)]
        return indices_of_products(
            [_levels(n, J, dropped) for n, J, dropped in zip(sizes, self.levels, self.drop, strict=True)]
        )

    def expand(self, z: Float[Array, "nbasis"]) -> Float[Array, "..."]:
        return axis_product(self.factors, z.reshape([factor.shape[1] for factor in self.factors]))

    def project(self, field: Float[Array, "..."]) -> Float[Array, "nbasis"]:
        return axis_product(self.factors, field, transposed=True).ravel()


def daubechies(moments: int) -> np.ndarray:
    """The 2p taps of the filter with p vanishing moments and minimal phase, Σ h = √2.

    >>> daubechies(1).round(4).tolist()
    [0.7071, 0.7071]
    """
    p = checked_count(moments, "moments", "WaveletBasis", least=1)
    if p > MOST_MOMENTS:
        raise ValueError(f"WaveletBasis: `moments` is {p}, expected at most {MOST_MOMENTS}.")
    taps = np.ones(1)
    for _ in range(p):
        taps = np.convolve(taps, [1.0, 1.0])
    # |H|² has the factor P(y) = Σ_k C(p-1+k, k) y^k, y = (2 - z - 1/z) / 4: of each pair z, 1/z the one inside.
    y = np.roots([math.comb(p - 1 + k, k) for k in reversed(range(p))])
    root = np.sqrt((1 - 2 * y.astype(complex)) ** 2 - 1)
    z = np.where(np.abs(1 - 2 * y + root) < 1, 1 - 2 * y + root, 1 - 2 * y - root)
    taps = np.convolve(taps, np.real(np.poly(z))) if z.size else taps
    return taps * np.sqrt(2) / np.sum(taps)


def _wavelets(n: int, levels: int, drop: int, taps: np.ndarray) -> np.ndarray:
    """The wavelets of one axis as columns: averages of the coarsest level, then details from coarse to fine."""
    average, details = np.eye(n), []
    for level in range(1, levels + 1):
        size = average.shape[0]
        places = (2 * np.arange(size // 2)[:, None] + np.arange(taps.size)[None]) % size
        mirrored = taps[::-1] * (-1.0) ** np.arange(taps.size)
        low, high = (np.zeros((size // 2, size)) for _ in range(2))
        rows = np.broadcast_to(np.arange(size // 2)[:, None], places.shape)
        np.add.at(low, (rows, places), np.broadcast_to(taps, places.shape))
        np.add.at(high, (rows, places), np.broadcast_to(mirrored, places.shape))
        if level > drop:
            details.append(high @ average)
        average = low @ average
    return np.concatenate([average, *reversed(details)]).T


def _levels(n: int, levels: int, drop: int) -> np.ndarray:
    counts = [(levels, n // 2**levels), *((j, n // 2**j) for j in range(levels, drop, -1))]
    return np.concatenate([np.full(count, j) for j, count in counts])
