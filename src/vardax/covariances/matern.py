"""The Matérn covariance on a regular grid, matrix-free: smooth random fields at the cost of an FFT pair."""

import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, PRNGKeyArray

from vardax.covariances.base import AbstractCovariance, real_array
from vardax.covariances.correlations import matern_correlation, require_matern_smoothness
from vardax.covariances.restriction import DenseRestriction, require_restrictable, restrict_dense
from vardax.covariances.sizes import DENSE_LIMIT, require_dense_size
from vardax.covariances.spectral import (
    SpectralFactor,
    apply_spectrum,
    circulant_approximation,
    fast_size,
    matern_amplitude,
    spectral_mean,
)
from vardax.covariances.stochastic import conjugate_gradients, lanczos_logdet
from vardax.types import Grid, as_grid, concrete_values

__all__ = ["PADDED_LIMIT", "MaternLinearOperator"]

PADDED_LIMIT = 2**22
"""Number of cells of the padded box up to which a free boundary is padded by as much as it needs."""

PADDING_LENGTHS = 8
"""A free boundary is padded by this many length scales."""


class MaternLinearOperator(AbstractCovariance):
    """B = σ² ρ(d / length_scale): the Matérn covariance of fields on a regular 1-D, 2-D or 3-D grid.

    - `shape`: the shape of the fields, or a `Grid` with uniform spacing.
    - `length_scale`: a number, or one per axis, in the units of `spacing`. The correlation is that of
      `matern_correlation`: at one length it is 0.37 (ν = 1/2), 0.48 (3/2), 0.52 (5/2), 0.61 (∞).
    - `sigma`: the standard deviation, the same everywhere.
    - `nu`: 0.5, 1.5, 2.5, ... or infinity: how many derivatives the fields have.
    - `spacing`: distance between cells, a number or one per axis; a `Grid` brings its own.
    - `boundary`: `"periodic"`, `"free"`, or one of these per axis. By default a `Grid` says which axes are periodic, and
      a bare shape is periodic.
    - `padding`: cells added to each free axis; by default 8 lengths (see below).

    When to use it: B on a regular grid without land, at any size; `half` costs one real FFT pair and no matrix exists.
    When not: lengths that vary in space, or coasts.

    The variance is σ² in every cell, also on a free boundary. A free boundary is a crop of a larger periodic box, so the
    control of `half` has the shape `domain_shape`, and correlations across the whole domain are too large by the
    correlation at the distance of the padding: with 8 lengths at most 3e-4 (ν = 1/2), 2e-5 (3/2), 2e-6 (5/2). Where 8
    lengths would make the padded box larger than `PADDED_LIMIT` cells, each axis is padded by at most its own length;
    a warning then says how large that error is. While tracing, the lengths are not known, and each free axis is
    padded by its own length (three times that for small boxes).

    The spectrum is computed once, here. Its square root is the only leaf, so B is positive semidefinite whatever happens
    to the leaf; to fit `length_scale` or `sigma`, build the covariance inside the function that is differentiated.

    >>> MaternLinearOperator((4, 6), 2.0, sigma=3.0, boundary="free").diagonal().shape
    (4, 6)
    """

    amplitude: Float[Array, "..."]
    field_shape: tuple[int, ...] = eqx.field(static=True)
    domain_shape: tuple[int, ...] = eqx.field(static=True)
    """The shape of the periodic box: that of the fields, padded along free axes."""

    diagonal_matrix: ClassVar[bool] = False

    def __init__(
        self,
        shape: int | Sequence[int] | Grid,
        length_scale: ArrayLike | Sequence[ArrayLike],
        sigma: ArrayLike = 1.0,
        nu: float = 1.5,
        spacing: ArrayLike | Sequence[ArrayLike] = 1.0,
        boundary: str | Sequence[str] | None = None,
        *,
        padding: int | Sequence[int] | None = None,
        dtype: Any = None,
    ):
        grid = as_grid(shape)
        if grid.ndim > 3:
            raise ValueError(f"MaternLinearOperator: `shape` is {grid.shape}, expected one to three axes.")
        require_matern_smoothness("MaternLinearOperator", nu)
        free = _free_axes(shape, grid, boundary)
        dtype = _dtype(length_scale, sigma) if dtype is None else dtype
        spacing = _spacing(shape, grid, spacing)
        cells = _per_axis("length_scale", length_scale, grid.ndim, dtype) / _per_axis("spacing", spacing, grid.ndim, dtype)
        lengths = _known_lengths(length_scale, spacing, grid.shape)
        _require(_known(sigma), lambda s: 0 <= s < np.inf, "sigma", "a standard deviation, zero or positive")
        self.field_shape = grid.shape
        self.domain_shape = _padded_domain(grid.shape, free, lengths, padding, nu)
        self.amplitude = matern_amplitude(self.domain_shape, nu, cells, _scalar("sigma", sigma, dtype))

    @property
    def shape(self) -> tuple[int, ...]:
        return self.field_shape

    @property
    def dtype(self) -> Any:
        return self.amplitude.dtype

    def spectrum(self) -> Float[Array, "..."]:
        """The eigenvalues of B on the periodic box `domain_shape`, σ² included, in the layout of `jnp.fft.rfftn`.

        For a periodic covariance B = F⁻¹ diag(spectrum) F; for a free one the same on the box, cropped. This is what a
        spectral preconditioner or an isotropic power spectrum needs.
        """
        return self.amplitude**2

    def mv(self, vector: Float[ArrayLike, "..."]) -> Float[Array, "..."]:
        return apply_spectrum(self.spectrum(), self.field(vector), self.domain_shape, self.shape)

    def half(self) -> SpectralFactor:
        return SpectralFactor(self.amplitude, self.shape, self.domain_shape)

    def diagonal(self) -> Float[Array, "..."]:
        return jnp.full(self.shape, spectral_mean(self.spectrum(), self.domain_shape))

    def as_matrix(self) -> Float[Array, "n n"]:
        require_dense_size("MaternLinearOperator.as_matrix", self.in_size())
        lags = [np.abs(np.subtract.outer(np.arange(n), np.arange(n))) for n in self.shape]
        ndim = len(lags)
        spread = [np.expand_dims(lag, [k for k in range(2 * ndim) if k not in (a, ndim + a)]) for a, lag in enumerate(lags)]
        return self._row()[tuple(spread)].reshape(self.in_size(), self.in_size())

    def inv_mv(self, vector: Float[ArrayLike, "..."]) -> Float[Array, "..."]:
        """B⁻¹ v: exact on a periodic box, otherwise iterative.

        With a free boundary: conjugate gradients preconditioned by the inverse on the padded box, to a relative residual
        of √ε (1.5e-8 in float64, 3e-4 in float32). Eagerly a solve that does not get there raises `ValueError`; while
        tracing its result is NaN.
        """
        vector = self.field(vector)
        if self.domain_shape == self.shape:
            self._require_invertible("inv_mv")
            return apply_spectrum(1 / self.spectrum(), vector, self.domain_shape, self.shape)
        solution, residual = self._solve(vector)
        reached = residual <= 2 * self._tolerance()
        if not isinstance(reached, jax.core.Tracer) and not reached:
            raise ValueError(
                f"MaternLinearOperator.inv_mv: conjugate gradients stopped at a relative residual of {float(residual):.1e}, "
                f"expected {self._tolerance():.1e}: B is too ill-conditioned for {jnp.dtype(self.dtype).name}; work with "
                "`half`, use float64, or a smaller `nu`."
            )
        return jnp.where(reached, solution, jnp.nan)

    def logdet(self) -> Float[Array, ""]:
        """log|B|: exact on a periodic box, and up to `DENSE_LIMIT` cells; beyond, the mean of `logdet_estimate`."""
        if self.domain_shape == self.shape:
            self._require_invertible("logdet")
            return self.in_size() * spectral_mean(jnp.log(self.spectrum()), self.shape)
        if self.in_size() <= DENSE_LIMIT:
            return 2 * jnp.sum(jnp.log(jnp.diagonal(jnp.linalg.cholesky(self.as_matrix()))))
        return self.logdet_estimate(jax.random.key(0))[0]

    def logdet_estimate(
        self, key: PRNGKeyArray, *, n_probes: int = 16, n_steps: int = 40
    ) -> tuple[Float[Array, ""], Float[Array, ""]]:
        """(log|B|, its standard error) by stochastic Lanczos quadrature, from products with B.

        The quadrature sees only what is left of B after the periodic covariance closest to it, whose determinant is
        known: log|B| = log|C| + log|C^{-1/2} B C^{-1/2}|.
        """
        nearest = circulant_approximation(self._row(), self.domain_shape, self.shape)

        def whitened(vector: Array) -> Array:
            inner = apply_spectrum(1 / jnp.sqrt(nearest), vector, self.shape, self.shape)
            return apply_spectrum(1 / jnp.sqrt(nearest), self.mv(inner), self.shape, self.shape)

        rest, error = lanczos_logdet(whitened, self.in_structure(), key, n_probes=n_probes, n_steps=n_steps)
        return self.in_size() * spectral_mean(jnp.log(nearest), self.shape) + rest, error

    def restrict(self, mask: ArrayLike, *, std: Float[ArrayLike, "..."] | None = None) -> DenseRestriction:
        require_restrictable("MaternLinearOperator", self.in_size())
        return restrict_dense(self.as_matrix(), self.shape, mask, std)

    def _row(self) -> Float[Array, "..."]:
        """The covariance of the first cell of the box with every cell of it."""
        return jnp.fft.irfftn(self.spectrum(), s=self.domain_shape)

    def _tolerance(self) -> float:
        return float(jnp.finfo(self.dtype).eps) ** 0.5

    def _solve(self, vector: Array) -> tuple[Array, Array]:
        spectrum = self.spectrum()
        inverse = 1 / jnp.maximum(spectrum, jnp.finfo(self.dtype).eps * jnp.max(spectrum))

        def precondition(residual: Array) -> Array:
            return apply_spectrum(inverse, residual, self.domain_shape, self.shape)

        return conjugate_gradients(self.mv, vector, precondition, tol=self._tolerance(), max_steps=1000)

    def _require_invertible(self, what: str) -> None:
        values = concrete_values(self.amplitude)
        if values is not None and not np.all(values > 0):
            raise ValueError(
                f"MaternLinearOperator.{what}: {int(np.sum(values <= 0))} of {values.size} eigenvalues are zero to the "
                f"precision of {jnp.dtype(self.dtype).name}, so there is no inverse; work with `half`, use float64, or a "
                "smaller `nu`."
            )


def _free_axes(shape: Any, grid: Grid, boundary: str | Sequence[str] | None) -> tuple[bool, ...]:
    if boundary is None:
        periodic = grid.periodic if isinstance(shape, Grid) else range(grid.ndim)
        return tuple(axis not in periodic for axis in range(grid.ndim))
    kinds = (boundary,) * grid.ndim if isinstance(boundary, str) else tuple(boundary)
    if len(kinds) != grid.ndim or any(kind not in ("periodic", "free") for kind in kinds):
        raise ValueError(
            f"MaternLinearOperator: `boundary` is {boundary!r}, expected 'periodic' or 'free', or one of these for each of "
            f"the {grid.ndim} axes."
        )
    return tuple(kind == "free" for kind in kinds)


def _dtype(*parameters: ArrayLike | Sequence[ArrayLike]) -> Any:
    """The float dtype of the arrays among the parameters; numbers have none, and alone mean the default."""
    arrays = [x for x in jax.tree.leaves(parameters) if isinstance(x, jax.Array | np.ndarray)]
    dtypes = [jnp.asarray(x).dtype for x in arrays if not getattr(x, "weak_type", False)]
    floats = [dtype for dtype in dtypes if jnp.issubdtype(dtype, jnp.floating)]
    return jnp.promote_types(floats[0], floats[-1]) if floats else jnp.result_type(float)


def _scalar(name: str, x: ArrayLike, dtype: Any) -> Float[Array, ""]:
    array = real_array("MaternLinearOperator", name, x, dtype)
    if array.shape != ():
        raise ValueError(f"MaternLinearOperator: `{name}` has shape {array.shape}, expected one number for the whole field.")
    return array


def _per_axis(name: str, x: ArrayLike | Sequence[ArrayLike], ndim: int, dtype: Any) -> Float[Array, "axes"]:
    if isinstance(x, list | tuple):
        x = jnp.stack([_scalar(name, entry, dtype) for entry in x]) if len(x) else jnp.zeros(0)
    array = real_array("MaternLinearOperator", name, x, dtype)
    if array.shape not in ((), (ndim,)):
        raise ValueError(
            f"MaternLinearOperator: `{name}` has shape {array.shape}, expected one number, or {ndim}: one per axis."
        )
    return jnp.broadcast_to(array, (ndim,))


def _spacing(shape: Any, grid: Grid, spacing: Any) -> Any:
    """The distance between cells: what was given, or that of the Grid, which must be uniform."""
    if not isinstance(shape, Grid):
        return spacing
    if not (isinstance(spacing, int | float) and spacing == 1):
        raise ValueError("MaternLinearOperator: `spacing` comes with the Grid; leave it out.")
    for axis, sizes in enumerate([*map(_steps, grid.coords), *map(_known, grid.cell_size)]):
        if sizes is not None and sizes.size > 1 and np.ptp(sizes) > 1e-2 * np.max(np.abs(sizes)):
            raise ValueError(
                f"MaternLinearOperator: along axis {axis % grid.ndim} of the Grid the cells measure from "
                f"{np.min(np.abs(sizes)):.4g} to {np.max(np.abs(sizes)):.4g}, expected a uniform spacing (to 1 %)."
            )
    return [jnp.mean(size) if _known(size) is None else np.mean(_known(size)) for size in grid.cell_size]


def _steps(coords: Array) -> np.ndarray | None:
    values = _known(coords)
    return None if values is None else np.diff(values)


def _known(x: ArrayLike | Sequence[ArrayLike]) -> np.ndarray | None:
    """The values of `x` where they are known: they are under eager `grad`, and are not under `jit` or `vmap`."""
    if isinstance(x, list | tuple):
        entries = [_known(entry) for entry in x]
        return None if any(entry is None for entry in entries) else np.array(entries, float)
    return concrete_values(jax.lax.stop_gradient(x) if isinstance(x, jax.core.Tracer) else x)


def _require(values: np.ndarray | None, holds: Callable[[np.ndarray], Any], name: str, expected: str) -> None:
    if values is not None and not np.all(holds(values)):
        raise ValueError(f"MaternLinearOperator: `{name}` is {values}, expected {expected}.")


def _known_lengths(length_scale: Any, spacing: Any, shape: tuple[int, ...]) -> np.ndarray | None:
    """The lengths in cells, one per axis, where they are known, after a check of lengths and spacing."""
    lengths, steps = _known(length_scale), _known(spacing)
    _require(steps, lambda dx: (dx > 0) & np.isfinite(dx), "spacing", "positive numbers")
    _require(lengths, lambda length: length > 0, "length_scale", "positive numbers")
    if lengths is None or steps is None:
        return None
    cells = np.broadcast_to(lengths / steps, len(shape))
    for length, n in zip(cells, shape, strict=True):
        if n > 1 and not length <= n:
            raise ValueError(
                f"MaternLinearOperator: `length_scale` is {length:g} cells on an axis of {n}, beyond the domain; expected "
                "at most the length of the domain."
            )
    return cells


def _padded_domain(
    shape: tuple[int, ...],
    free: tuple[bool, ...],
    lengths: np.ndarray | None,
    padding: int | Sequence[int] | None,
    nu: float,
) -> tuple[int, ...]:
    """The shape of the periodic box that holds the fields and, along free axes, the padding."""
    if padding is not None:
        pads = (padding,) * len(shape) if isinstance(padding, int) else tuple(padding)
        if len(pads) != len(shape) or any(pad < 0 for pad in pads):
            raise ValueError(
                f"MaternLinearOperator: `padding` is {padding}, expected a number of cells, or {len(shape)}: one per axis."
            )
        return _box(shape, free, pads)
    if lengths is None:
        generous = _box(shape, free, tuple(3 * n for n in shape))
        return generous if math.prod(generous) <= 2**16 else _box(shape, free, shape)
    pads = tuple(math.ceil(PADDING_LENGTHS * length) for length in lengths)
    box = _box(shape, free, pads)
    if math.prod(box) <= PADDED_LIMIT:
        return box
    box = _box(shape, free, tuple(map(min, pads, shape)))
    _warn_of_wrapping(shape, free, box, lengths, nu)
    return box


def _box(shape: tuple[int, ...], free: tuple[bool, ...], pads: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(
        fast_size(n + pad) if is_free and n > 1 else n for n, is_free, pad in zip(shape, free, pads, strict=True)
    )


def _warn_of_wrapping(
    shape: tuple[int, ...], free: tuple[bool, ...], box: tuple[int, ...], lengths: np.ndarray, nu: float
) -> None:
    gaps = [(size - n + 1) / length for n, is_free, size, length in zip(shape, free, box, lengths, strict=True) if is_free]
    error = float(matern_correlation(min(gaps), nu))
    if error > 1e-3:
        warnings.warn(
            f"MaternLinearOperator: the free boundary is padded to {box} cells only (PADDED_LIMIT = {PADDED_LIMIT}); "
            f"correlations between opposite edges are too large by up to {error:.1e}. Give `padding` for more.",
            stacklevel=4,
        )
