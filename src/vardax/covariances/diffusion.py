"""Correlation by diffusion on a masked grid: B = L Lᵀ, where L spreads white noise as heat spreads, around land.

    ∂u/∂t = ½ ∇·(Λ ∇u) over one unit of time, no flux into land:   u -> exp(−A) u

A point of heat becomes a Gaussian exp(−½ rᵀ Λ⁻¹ r), Λ the squared length scales; where they vary, or where there is
land, something like it. In matrices, with the cell volumes V,

    L = D V^{-1/2} P,     P = V^{1/2} exp(−A/2) V^{-1/2} = Pᵀ,     D = diag(σ_i √V_i / √Σ_j P_ij²)

so that B = D V^{-1/2} P² V^{-1/2} D has the diagonal σ². A is in `stencil`, the exponential in `chebyshev`, the sum in
`normalisation`.

Reference: Weaver and Courtier (2001), Correlation modelling on the sphere using a generalized diffusion equation,
*Quarterly Journal of the Royal Meteorological Society* 127; Weaver and Mirouze (2013), On the diffusion equation and
its application to isotropic and anisotropic correlation modelling in variational assimilation, *ibid.* 139.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from vardax.covariances.base import AbstractCovariance, real_array
from vardax.covariances.box import common_dtype, known
from vardax.covariances.by_products import (
    inverse_by_products,
    logdet_by_products,
    matrix_by_products,
    restrict_by_products,
)
from vardax.covariances.chebyshev import TRUNCATION, ChebyshevExponential, needed_steps
from vardax.covariances.factors import AbstractFactor, require_structure
from vardax.covariances.lengths import (
    Reach,
    cell_sizes,
    cell_volume,
    length_matrix,
    reach_in_cells,
    require_lengths,
    squared_lengths,
    summary,
)
from vardax.covariances.normalisation import AbstractNormalisation, Exact
from vardax.covariances.restriction import DenseRestriction
from vardax.covariances.stencil import Stencil, diffusion_stencil
from vardax.types import Grid, as_grid

__all__ = ["MOST_STEPS", "DiffusionCovariance", "DiffusionFactor"]

MOST_STEPS = 10_000
"""The most steps that a product takes without being asked to."""


class DiffusionCovariance(AbstractCovariance):
    """B = σ_i σ_j ρ_ij with correlations by diffusion: land, lengths that vary or depend on direction, any geometry.

    - `grid`: a `Grid` of one to three axes, or a shape. Its `mask` is the sea, its `cell_size` and `area` the geometry
      (orthogonal axes), which `Grid.latlon` knows for a sphere. Nothing flows through an edge that is not periodic; a
      bare shape has such edges.
    - `length_scale`: a number, one number or field per axis, a field, or symmetric matrices (d, d), one or in every
      cell, whose eigenvectors are the directions of their eigenvalues, the lengths. In the units of `cell_size`; at
      most the length of the domain. It is the length of `MaternLinearOperator` with ν = ∞: exp(−d²/(2 length²)).
    - `normalisation`: `Exact()`, or `Randomised(n)` for large grids.
    - `sigma`: the standard deviation, a number or a field. Land has none.
    - `steps`: products with the diffusion operator in L. By default as many as make the result independent of them to
      `TRUNCATION`; they grow in proportion to the length in cells (44 for ten cells in two dimensions). While tracing
      (`jit`, `vmap`) lengths have no values, so `steps` must be given, and if too few the covariance is NaN.

    When to use it: B in the ocean, or wherever land, fronts or topography shape correlations. When not: on regular
    grids without coasts `MaternLinearOperator` is faster, exact and has a choice of smoothness.

    There is no correlation between waters that land separates, and around land it follows the way by sea. Close to a
    coast, and where lengths vary, correlations are not exactly Gaussian; lengths should vary slowly over one length.
    An isolated cell has its variance and no correlations. Fields are as smooth as with a Gaussian correlation; where
    that is too smooth, a sum of two covariances, 0.7 B₁ + 0.3 B₂ with a longer and a shorter length, is rougher.

    The control has the shape of the field. Variances are σ² exactly, or with `Randomised` to within
    `normalisation_error`. Gradients with respect to lengths and σ flow through the construction.

    >>> strait = jnp.ones((6, 9), bool).at[:, 4].set(False)
    >>> B = DiffusionCovariance(Grid([jnp.arange(6.0), jnp.arange(9.0)], mask=strait), 2.0)
    >>> float(jnp.max(jnp.abs(B.mv(jnp.zeros((6, 9)).at[3, 3].set(1.0))[:, 5:])))
    0.0
    """

    deviation: Float[Array, "..."]
    norm: Float[Array, "..."]
    smoothing: ChebyshevExponential
    normalisation_error: Float[Array, ""]
    """How far variances are from σ², relatively and in root mean square, as measured by `Randomised`; 0 for `Exact`."""

    def __init__(
        self,
        grid: int | Sequence[int] | Grid,
        length_scale: ArrayLike | Sequence[Any],
        normalisation: Any = Exact(),  # noqa: B008
        *,
        sigma: ArrayLike = 1.0,
        steps: int | None = None,
        dtype: Any = None,
    ):
        owner, grid = "DiffusionCovariance", as_grid(grid)
        if grid.ndim > 3:
            raise ValueError(f"{owner}: `grid` has shape {grid.shape}, expected one to three axes.")
        if not isinstance(normalisation, AbstractNormalisation):
            raise TypeError(f"{owner}: `normalisation` is {normalisation!r}, expected `Exact()` or `Randomised(n)`.")
        dtype = common_dtype(length_scale, sigma) if dtype is None else dtype
        mask = jnp.ones(grid.shape, bool) if grid.mask is None else grid.mask
        sizes = cell_sizes(owner, grid, mask, dtype)
        lengths = length_matrix(owner, length_scale, mask, dtype)
        medium, numbers = _medium(lengths, sizes, cell_volume(grid, sizes, mask), mask, grid.periodic)
        require_lengths(owner, numbers, len(lengths) > grid.ndim, grid.shape)
        self.smoothing = ChebyshevExponential(medium.stencil, medium.bound, _steps(owner, medium.bound, steps))
        rows, self.normalisation_error = normalisation.variances(self.smoothing, mask, medium.reach, grid.periodic)
        self.deviation, self.norm = _scales(_sigma(owner, sigma, grid.shape, dtype), rows, mask)

    @property
    def diagonal_matrix(self) -> bool:
        return False

    @property
    def steps(self) -> int:
        """How many products with the diffusion operator `half` costs."""
        return self.smoothing.steps

    def in_structure(self) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(self.deviation.shape, self.deviation.dtype)

    def mv(self, vector: ArrayLike) -> Float[Array, "..."]:
        factor = self.half()
        return factor.mv(factor.transpose_mv(self.field(vector)))

    def half(self) -> "DiffusionFactor":
        return DiffusionFactor(self.deviation * self.norm, self.smoothing)

    def diagonal(self) -> Float[Array, "..."]:
        """σ² at sea, 0 on land; the variances of L Lᵀ are these to within `normalisation_error`."""
        return self.deviation**2

    def as_matrix(self) -> Float[Array, "n n"]:
        return matrix_by_products(self)

    def inv_mv(self, vector: ArrayLike) -> Float[Array, "..."]:
        """B⁻¹ v, where it exists: without land, and for lengths below two or three cells."""
        field = self.field(vector)
        self._require_invertible("inv_mv")
        return inverse_by_products(self, field)

    def logdet(self) -> Float[Array, ""]:
        """log|B|, where it exists: see `inv_mv`."""
        self._require_invertible("logdet")
        return logdet_by_products(self)

    def restrict(
        self, mask: ArrayLike | Sequence[Any], *, std: ArrayLike | Sequence[Any] | None = None
    ) -> DenseRestriction:
        return restrict_by_products(self, mask, std)

    def _require_invertible(self, what: str) -> None:
        n_zero, bound = known(jnp.sum(self.deviation == 0)), known(self.smoothing.bound)
        if bound is not None and np.exp(-bound / 2) < 100 * TRUNCATION:
            raise ValueError(
                f"DiffusionCovariance.{what}: with lengths of several cells B has eigenvalues down to "
                f"{np.exp(-bound):.0e}, smaller than its square root resolves; work with `half`, or add a small "
                "variance, `B + DiagonalCovariance(...)`."
            )
        if n_zero is not None and n_zero > 0:
            raise ValueError(
                f"DiffusionCovariance.{what}: the variance of {int(n_zero)} cells is zero (on land), so there is no "
                "inverse; work with `half`."
            )


class DiffusionFactor(AbstractFactor):
    """L = diag(amplitude) P: spread white noise by diffusion. The control has the shape of the field."""

    amplitude: Float[Array, "..."]
    smoothing: ChebyshevExponential

    def mv(self, vector: Float[Array, "..."]) -> Float[Array, "..."]:
        require_structure("DiffusionFactor", "control", vector, self.in_structure())
        return self.amplitude * self.smoothing.mv(vector)

    def transpose_mv(self, vector: Float[Array, "..."]) -> Float[Array, "..."]:
        require_structure("DiffusionFactor", "field", vector, self.out_structure())
        return self.smoothing.mv(self.amplitude * vector)

    def in_structure(self) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(self.amplitude.shape, self.amplitude.dtype)

    def out_structure(self) -> jax.ShapeDtypeStruct:
        return self.in_structure()


def _steps(owner: str, bound: Float[Array, ""], steps: int | None) -> int:
    """The steps asked for, if they are enough, or as many as are needed."""
    value = known(bound)
    if steps is not None and not (isinstance(steps, int) and steps >= 1):
        raise ValueError(f"{owner}: `steps` is {steps!r}, expected a number of products, at least 1.")
    if value is None:
        if steps is None:
            raise ValueError(
                f"{owner}: `length_scale` has no value while tracing, so the number of products cannot be read from "
                "it; pass `steps`, for instance the `steps` of a covariance built outside with the longest lengths."
            )
        return steps
    needed = needed_steps(float(value))
    if steps is None and needed > MOST_STEPS:
        raise ValueError(
            f"{owner}: `length_scale` needs {needed} steps, more than MOST_STEPS = {MOST_STEPS}: somewhere cells are "
            "much smaller than lengths. Mask such cells (around a pole), use a coarser grid, or pass `steps`."
        )
    if steps is not None and steps < needed:
        raise ValueError(f"{owner}: `steps` is {steps}, expected at least {needed} for this `length_scale`.")
    return needed if steps is None else steps


class _Medium(NamedTuple):
    """What heat spreads in: the operator, the bound of its spectrum, and the lengths in cells."""

    stencil: Stencil
    bound: Float[Array, ""]
    reach: tuple[Reach, ...]


@functools.partial(jax.jit, static_argnames="periodic")
def _medium(lengths: Any, sizes: Any, volume: Any, mask: Array, periodic: tuple[int, ...]) -> tuple[_Medium, dict]:
    squares = squared_lengths(lengths)
    stencil, bound = diffusion_stencil(squares, sizes, volume, mask, periodic)
    return _Medium(stencil, bound, reach_in_cells(squares, sizes)), summary(lengths, sizes, volume, mask)


@jax.jit
def _scales(sigma: Array, rows: Array, mask: Array) -> tuple[Array, Array]:
    """σ at sea and 0 on land; 1/√rows."""
    return jnp.where(mask, sigma, jnp.zeros_like(rows)), 1 / jnp.sqrt(rows)


def _sigma(owner: str, sigma: ArrayLike, shape: tuple[int, ...], dtype: Any) -> Float[Array, "..."]:
    array = real_array(owner, "sigma", sigma, dtype)
    if array.shape not in ((), shape):
        raise ValueError(f"{owner}: `sigma` has shape {array.shape}, expected a number or {shape}.")
    values = known(array)
    if values is not None and not np.all((values >= 0) & (values < np.inf)):
        bad = int(np.sum(~((values >= 0) & (values < np.inf))))
        raise ValueError(
            f"{owner}: `sigma` must be finite and not negative; found {bad} of {values.size} entries that are not "
            f"(smallest {values.min():g})."
        )
    return jnp.broadcast_to(array, shape)
