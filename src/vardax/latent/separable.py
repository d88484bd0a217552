"""Fields as products of functions of one axis each: V = V_1 ⊗ V_2 ⊗ ..., with orthonormal columns.

    (V z)[i, j] = Σ_kl V_1[i, k] V_2[j, l] Z[k, l],      Z = z as an array (m_1, m_2)

V is never formed: a product costs one small matrix product along each axis.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from vardax.types import Grid, as_grid

__all__ = ["axis_product", "axis_sizes", "indices_of_products", "per_axis"]


def axis_sizes(shape_or_grid: int | Sequence[int] | Grid) -> tuple[int, ...]:
    """The number of cells along each axis."""
    return as_grid(shape_or_grid).shape


def per_axis(value: int | Sequence[int], n_axes: int, name: str, owner: str) -> tuple[int, ...]:
    """One whole number for each axis."""
    values = (value,) * n_axes if isinstance(value, int) else tuple(value)
    if len(values) != n_axes or any(not isinstance(v, int) or v < 0 for v in values):
        raise ValueError(f"{owner}: `{name}` is {value!r}, expected a whole number, or one for each of {n_axes} axes.")
    return values


def axis_product(
    factors: Sequence[Float[Array, "_ _"]], array: Float[Array, "..."], *, transposed: bool = False
) -> Array:
    """Every axis of `array` multiplied by its matrix, or by its transpose."""
    for axis, factor in enumerate(factors):
        matrix = (factor.T if transposed else factor).astype(array.dtype)
        product = jnp.tensordot(matrix, array, axes=(1, axis), precision=jax.lax.Precision.HIGHEST)
        array = jnp.moveaxis(product, 0, axis)
    return array


def indices_of_products(per_axis_values: Sequence[np.ndarray]) -> np.ndarray:
    """(nbasis, axes): the value that each factor of each product has, in the order of z."""
    return np.stack([grid.ravel() for grid in np.meshgrid(*per_axis_values, indexing="ij")], axis=-1)
