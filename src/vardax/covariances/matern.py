"""The Matérn covariance on a regular grid, matrix-free: smooth random fields at the cost of an FFT pair."""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, PRNGKeyArray

from vardax.covariances.base import AbstractCovariance, real_array
from vardax.covariances.box import (
    common_dtype,
    free_axes,
    known,
    known_lengths,
    padded_box,
    per_axis,
    require_values,
    spacing_of,
)
from vardax.covariances.correlations import require_matern_smoothness
from vardax.covariances.restriction import DenseRestriction, require_restrictable, restrict_dense
from vardax.covariances.sizes import DENSE_LIMIT, require_dense_size
from vardax.covariances.spectral import (
    SpectralFactor,
    apply_spectrum,
    circulant_approximation,
    matern_amplitude,
    spectral_mean,
)
from vardax.covariances.stochastic import conjugate_gradients, lanczos_logdet
from vardax.types import Grid, as_grid, concrete_values, is_traced

__all__ = ["MaternLinearOperator"]


class MaternLinearOperator(AbstractCovariance):
    """B = σ² ρ(d / length_scale): the Matérn covariance of fields on a regular 1-D, 2-D or 3-D grid.

    - `shape`: the shape of the fields, or a `Grid` with uniform spacing.
    - `length_scale`: a number, or one per axis, in the units of `spacing`; at most the length of the domain. The
      correlation is `matern_correlation`: at one length it is 0.37 (ν = 1/2), 0.48 (3/2), 0.52 (5/2), 0.61 (∞).
    - `sigma`: the standard deviation, the same everywhere.
    - `nu`: 0.5, 1.5, 2.5, ... or infinity: how many derivatives the fields have.
    - `spacing`: distance between cells, a number or one per axis; a `Grid` brings its own.
    - `boundary`: `"periodic"`, `"free"`, or one of these per axis. By default a `Grid` says which axes are periodic,
      and a bare shape is periodic.
    - `padding`: cells added to each free axis; by default 8 lengths (see below).

    When to use it: B on a regular grid without coasts, at any size; `half` costs one real FFT pair, and no matrix
    exists. When not: lengths that vary in space, or land.

    The variance is σ² in every cell, also on a free boundary. A free boundary is a crop of a larger periodic box, so
    the control of `half` has the shape `domain_shape`, and correlations across the whole domain are too large by the
    correlation at the distance of the padding: with 8 lengths at most 4e-4 (ν = 1/2), 2e-5 (3/2), 3e-6 (5/2). Where 8
    lengths would make the padded box larger than `PADDED_LIMIT` cells, each axis is padded by at most its own length; a
    warning then says how large that error is. Under `jit` and `vmap` the lengths are not known, and each free axis is
    padded by its own length (three times that for small boxes).

    The spectrum is computed once, here. Its square root is the only leaf, so B is positive semidefinite whatever
    happens to the leaf; to fit `length_scale` or `sigma`, build the covariance inside the function that is
    differentiated.

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
        owner, grid = "MaternLinearOperator", as_grid(shape)
        if grid.ndim > 3:
            raise ValueError(f"{owner}: `shape` is {grid.shape}, expected one to three axes.")
        require_matern_smoothness(owner, nu)
        dtype = common_dtype(length_scale, sigma) if dtype is None else dtype
        spacing = spacing_of(owner, shape, grid, spacing)
        steps = per_axis(owner, "spacing", spacing, grid.ndim, dtype)
        cells = per_axis(owner, "length_scale", length_scale, grid.ndim, dtype) / steps
        lengths = known_lengths(owner, length_scale, spacing, grid.shape)
        free = free_axes(owner, shape, grid, boundary)
        self.field_shape = grid.shape
        self.domain_shape = padded_box(owner, grid.shape, free, lengths, padding, nu)
        self.amplitude = matern_amplitude(self.domain_shape, nu, cells, _deviation(owner, sigma, dtype))

    def in_structure(self) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(self.field_shape, self.amplitude.dtype)

    def spectrum(self) -> Float[Array, "..."]:
        """The eigenvalues of B on the periodic box `domain_shape`, σ² included, in the layout of `jnp.fft.rfftn`.

        A periodic covariance is B = F⁻¹ diag(spectrum) F; a free one is the same on the box, cropped. This is what a
        spectral preconditioner or an isotropic power spectrum needs.
        """
        return self.amplitude**2

    def mv(self, vector: ArrayLike) -> Float[Array, "..."]:
        return apply_spectrum(self.spectrum(), self.field(vector), self.domain_shape, self.shape)

    def half(self) -> SpectralFactor:
        return SpectralFactor(self.amplitude, self.shape, self.domain_shape)

    def diagonal(self) -> Float[Array, "..."]:
        return jnp.full(self.shape, spectral_mean(self.spectrum(), self.domain_shape))

    def as_matrix(self) -> Float[Array, "n n"]:
        require_dense_size("MaternLinearOperator.as_matrix", self.in_size())
        lags = []
        for axis, n in enumerate(self.shape):
            lag = np.abs(np.subtract.outer(np.arange(n), np.arange(n)))
            others = [k for k in range(2 * len(self.shape)) if k not in (axis, axis + len(self.shape))]
            lags.append(np.expand_dims(lag, others))
        return self._row()[tuple(lags)].reshape(self.in_size(), self.in_size())

    def inv_mv(self, vector: ArrayLike) -> Float[Array, "..."]:
        """B⁻¹ v: exact on a periodic box, otherwise iterative.

        With a free boundary: conjugate gradients preconditioned by the inverse on the padded box, to a relative
        residual of √ε (1.5e-8 in float64, 3e-4 in float32). Eagerly a solve that does not get there raises
        `ValueError`; while tracing its result is NaN.
        """
        field = self.field(vector)
        if self.domain_shape == self.shape:
            self._require_invertible("inv_mv")
            return apply_spectrum(1 / self.spectrum(), field, self.domain_shape, self.shape)
        solution, residual = _solve(self, field, self._tolerance())
        reached = residual <= 2 * self._tolerance()
        if not is_traced(reached) and not reached:
            raise ValueError(
                f"MaternLinearOperator.inv_mv: conjugate gradients stopped at a relative residual of "
                f"{float(residual):.1e}, expected {self._tolerance():.1e}: B is too ill-conditioned for "
                f"{self.dtype.name}; work with `half`, use float64, or a smaller `nu`."
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
        self, key: PRNGKeyArray, *, n_probes: int = 32, n_steps: int = 40
    ) -> tuple[Float[Array, ""], Float[Array, ""]]:
        """(log|B|, its standard error) by stochastic Lanczos quadrature, from products with B.

        The quadrature sees only what is left of B after the periodic covariance C closest to it, whose determinant is
        known: log|B| = log|C| + log|C^{-1/2} B C^{-1/2}|.
        """
        nearest = circulant_approximation(self._row(), self.domain_shape, self.shape)

        def whitened(vector: Array) -> Array:
            inner = apply_spectrum(1 / jnp.sqrt(nearest), vector, self.shape, self.shape)
            return apply_spectrum(1 / jnp.sqrt(nearest), self.mv(inner), self.shape, self.shape)

        rest, error = lanczos_logdet(whitened, self.in_structure(), key, n_probes=n_probes, n_steps=n_steps)
        return self.in_size() * spectral_mean(jnp.log(nearest), self.shape) + rest, error

    def restrict(
        self, mask: ArrayLike | Sequence[Any], *, std: ArrayLike | Sequence[Any] | None = None
    ) -> DenseRestriction:
        require_restrictable("MaternLinearOperator", self.in_size())
        return restrict_dense(self.as_matrix(), self.shape, mask, std)

    def between_cells(self) -> Callable[[tuple[Array, ...], tuple[Array, ...]], Array]:
        """(a, b) -> B between cells a and b: for each axis an array of indices, broadcast against each other."""
        row = self._row()

        def covariance(a: tuple[Array, ...], b: tuple[Array, ...]) -> Array:
            lags = tuple(jnp.abs(i - j) for i, j in zip(a, b, strict=True))
            return row.at[lags].get(mode="promise_in_bounds")

        return covariance

    def _row(self) -> Float[Array, "..."]:
        """The covariance of the first cell of the box with every cell of it."""
        return jnp.fft.irfftn(self.spectrum(), s=self.domain_shape)

    def _tolerance(self) -> float:
        return float(jnp.finfo(self.dtype).eps) ** 0.5

    def _require_invertible(self, what: str) -> None:
        values = concrete_values(self.amplitude)
        if values is not None and not np.all(values > 0):
            raise ValueError(
                f"MaternLinearOperator.{what}: {int(np.sum(values <= 0))} of {values.size} eigenvalues are zero to the "
                f"precision of {self.dtype.name}, so there is no inverse; work with `half`, use float64, or a smaller "
                "`nu`."
            )


@eqx.filter_jit
def _solve(covariance: MaternLinearOperator, vector: Array, tol: float) -> tuple[Array, Array]:
    """Conjugate gradients, preconditioned by the inverse on the padded box."""
    spectrum = covariance.spectrum()
    inverse = 1 / jnp.maximum(spectrum, jnp.finfo(spectrum.dtype).eps * jnp.max(spectrum))

    def precondition(residual: Array) -> Array:
        return apply_spectrum(inverse, residual, covariance.domain_shape, covariance.shape)

    return conjugate_gradients(covariance.mv, vector, precondition, tol=tol, max_steps=1000)


def _deviation(owner: str, sigma: ArrayLike, dtype: Any) -> Float[Array, ""]:
    array = real_array(owner, "sigma", sigma, dtype)
    if array.shape != ():
        raise ValueError(f"{owner}: `sigma` has shape {array.shape}, expected one number for the whole field.")
    require_values(
        owner, "sigma", known(sigma), lambda s: (s >= 0) & (s < np.inf), "a standard deviation, not negative"
    )
    return array
