r"""Bumps: radial functions around centres, placed where detail is wanted.

    v_k(x) = f(|x - c_k| / radius),     E(x) = (VᵀWV)⁻¹ VᵀW x

f is `wendland` (zero beyond the radius, twice continuously differentiable) or `gaussian`, or any function of the scaled
distance. The functions overlap, so that encoding is a least-squares problem; its matrix, one row for each centre, is
factorised once. V is kept as a matrix of cells times centres.

Reference: H. Wendland, Piecewise polynomial, positive definite and compactly supported radial functions of minimal
degree, Advances in Computational Mathematics 4 (1995), 389-396.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from vardax.latent.basis import AbstractReducedBasis, basis_variances
from vardax.types import ArrayData, Grid, as_grid, concrete_values, float_array

__all__ = ["RadialBasis", "gaussian", "wendland"]


def wendland(r: Float[Array, "..."]) -> Float[Array, "..."]:
    """(1 - r)⁴ (4r + 1) within r < 1, and 0 beyond: positive definite in up to three dimensions.

    >>> wendland(jnp.array([0.0, 0.5, 2.0])).tolist()
    [1.0, 0.1875, 0.0]
    """
    return jnp.maximum(1 - r, 0) ** 4 * (4 * r + 1)


def gaussian(r: Float[Array, "..."]) -> Float[Array, "..."]:
    """exp(-r² / 2)."""
    return jnp.exp(-(r**2) / 2)


class RadialBasis(AbstractReducedBasis):
    """One function around each of `centres`.

    - `grid`: a `Grid` with axes, or a shape for unit spacing; periodic axes close, and cells off its mask have no part.
    - `centres`: (nbasis, axes), in the units of the grid's coordinates.
    - `radius`: one number, or one for each centre.
    - `kernel`: f, of the distance over the radius.

    >>> basis = RadialBasis(10, [[2.0], [7.0]], 3.0)
    >>> basis.decode(jnp.array([1.0, 2.0]))[jnp.array([2, 7])].tolist()
    [1.0, 2.0]
    """

    functions: Float[Array, "... nbasis"]
    weights: Float[Array, "..."]
    cholesky: Float[Array, "nbasis nbasis"]
    mean: Float[Array, "..."]
    variances: Float[Array, "nbasis"]

    def __init__(
        self,
        grid: int | Sequence[int] | Grid,
        centres: ArrayData,
        radius: ArrayData,
        *,
        kernel: Callable[[Array], Array] = wendland,
        variances: ArrayData = 1.0,
    ):
        grid, centres = as_grid(grid), float_array(centres)
        if grid.curvilinear:
            raise ValueError("RadialBasis: `grid` is curvilinear, expected one with an axis for each dimension.")
        if centres.ndim != 2 or centres.shape[1] != grid.ndim:
            raise ValueError(f"RadialBasis: `centres` has shape {centres.shape}, expected (nbasis, {grid.ndim}).")
        n = centres.shape[0]
        radii = basis_variances(radius, n, "RadialBasis (`radius`)")
        scaled = _distances(grid, centres) / radii.astype(centres.dtype).reshape(*[1] * grid.ndim, n)
        present = jnp.ones(grid.shape, bool) if grid.mask is None else grid.mask
        self.functions = jnp.where(present[..., None], kernel(scaled), jnp.zeros_like(scaled))
        self.weights = present.astype(self.functions.dtype)
        flat = self.functions.reshape(-1, n)
        self.cholesky = jnp.linalg.cholesky(jnp.matmul(flat.T, flat, precision=jax.lax.Precision.HIGHEST))
        self.mean = jnp.zeros(grid.shape, self.functions.dtype)
        self.variances = basis_variances(variances, n, "RadialBasis")
        if _dependent(flat):
            raise ValueError(
                f"RadialBasis: the functions of the {n} centres are not independent on the {flat.shape[0]} cells; take "
                "fewer centres, a smaller radius, or centres that lie on cells."
            )

    def expand(self, z: Float[Array, "nbasis"]) -> Float[Array, "..."]:
        return jnp.tensordot(self.functions.astype(z.dtype), z, axes=1)

    def project(self, field: Float[Array, "..."]) -> Float[Array, "nbasis"]:
        seen = jnp.where(self.weights > 0, field, jnp.zeros_like(field))
        right = jnp.tensordot(seen, self.functions.astype(field.dtype), axes=field.ndim)
        return jax.scipy.linalg.cho_solve((self.cholesky.astype(field.dtype), True), right)


def _dependent(functions: Float[Array, "cells nbasis"]) -> bool:
    """Whether VᵀV is singular in the precision of V, where its values are known."""
    values = concrete_values(functions)
    if values is None:
        return False
    spectrum = np.linalg.eigvalsh(values.T.astype(float) @ values.astype(float))
    return bool(spectrum[0] <= values.shape[1] * np.finfo(values.dtype).eps * spectrum[-1])


def _distances(grid: Grid, centres: Float[Array, "nbasis axes"]) -> Float[Array, "... nbasis"]:
    """From every cell to every centre, the short way round on periodic axes."""
    squares = jnp.zeros((*grid.shape, centres.shape[0]), centres.dtype)
    for axis, coordinate in enumerate(grid.coords):
        gap = jnp.abs(coordinate.astype(centres.dtype)[:, None] - centres[:, axis][None])
        if axis in grid.periodic:
            around = (grid.spacing[axis] * grid.shape[axis]).astype(centres.dtype)
            gap = jnp.minimum(gap % around, around - gap % around)
        shape = [1] * grid.ndim + [centres.shape[0]]
        shape[axis] = grid.shape[axis]
        squares = squares + jnp.broadcast_to(gap.reshape(shape) ** 2, squares.shape)
    return jnp.sqrt(squares)
