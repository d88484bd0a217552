"""Length scales, standard deviation and smoothness of a Matérn covariance, estimated from samples.

    samples -> periodogram, through a window that knows edges and land -> maximum of a likelihood of its modes

The window is in `periodogram`, the likelihood and its standard errors in `scoring`.

Reference: Guillaumin, Sykulski, Olhede and Simons (2022), The debiased spatial Whittle likelihood, *Journal of the
Royal Statistical Society B* 84.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, PRNGKeyArray

from vardax.covariances.base import real_array
from vardax.covariances.box import free_axes, known, per_axis, require_values, spacing_of
from vardax.covariances.correlations import require_matern_smoothness
from vardax.covariances.matern import MaternLinearOperator
from vardax.covariances.periodogram import mean_periodogram, window_of
from vardax.covariances.scoring import MOST_STEPS, Scored, maximise_likelihood, standard_errors
from vardax.types import Grid, as_grid

__all__ = ["MaternFit", "fit_matern"]

OWNER = "fit_matern"


class MaternFit(NamedTuple):
    """What `fit_matern` found, and the standard errors of it.

    `length_scale` is one number, or one per axis; `covariance` is the fitted covariance on the grid of the samples.
    """

    length_scale: Float[Array, "..."]
    sigma: Float[Array, ""]
    nu: float
    length_scale_error: Float[Array, "..."]
    sigma_error: Float[Array, ""]
    covariance: MaternLinearOperator


def fit_matern(
    samples: ArrayLike,
    grid: int | Sequence[int] | Grid | None = None,
    *,
    nu: float | Sequence[float] = 1.5,
    isotropic: bool = True,
    spacing: ArrayLike | Sequence[ArrayLike] = 1.0,
    boundary: str | Sequence[str] | None = None,
    noise: ArrayLike = 0.0,
    n_simulations: int = 100,
    key: PRNGKeyArray | None = None,
) -> MaternFit:
    """The Matérn covariance of which `samples` (n, *grid) are draws, with standard errors.

    - `samples`: fields of mean zero, such as differences of forecasts or members less their mean.
    - `grid`: a `Grid`, whose mask is respected and whose spacing must be uniform, or a shape (by default that of the
      samples); with `spacing` and `boundary` as for `MaternLinearOperator`, periodic unless said otherwise.
    - `nu`: the smoothness, or several of which the most likely one is taken.
    - `isotropic`: one length for all axes, or one for each.
    - `noise`: the standard deviation of white noise in the samples, which is not part of the covariance. Fields that
      are very smooth need it: a spectrum that levels off at noise looks like a short length otherwise.
    - `n_simulations`: how many fields, drawn with `key`, the standard errors are estimated from, where there are free
      edges or land.

    One sample is enough if it spans many lengths: the relative error of a length is roughly the inverse root of the
    number of lengths (squared, cubed) in all samples. It is eager: the result is checked, and is not differentiable.

    >>> truth = MaternLinearOperator((64, 64), 4.0, sigma=2.0)
    >>> fit = fit_matern(truth.sample(jax.random.key(0), 3))
    >>> bool(abs(fit.length_scale - 4.0) < 3 * fit.length_scale_error), fit.covariance.shape
    (True, (64, 64))
    """
    domain = jnp.shape(samples)[1:] if grid is None else grid
    grid = as_grid(domain)
    samples = _fields(samples, grid)
    step = per_axis(OWNER, "spacing", spacing_of(OWNER, domain, grid, spacing), grid.ndim, samples.dtype)
    free = free_axes(OWNER, domain, grid, boundary)
    window = window_of(_sea(grid), free, samples.dtype)
    smoothness, power = _smoothness(nu), mean_periodogram(samples, window)
    n_lengths, noise = 1 if isotropic else grid.ndim, _noise(noise, samples.dtype)
    fits = {one: maximise_likelihood(power, one, n_lengths, step, noise, window) for one in smoothness}
    best = min(fits, key=lambda one: float(fits[one].misfit))
    _require_estimate(fits[best], step, grid.shape)
    independent = not any(free) and bool(jnp.all(window.weights == 1))
    draws = jax.random.split(jax.random.key(0) if key is None else key, 1 if independent else n_simulations)
    errors = standard_errors(fits[best].theta, best, step, noise, window, draws, independent) / len(samples) ** 0.5
    values = jnp.exp(fits[best].theta)
    lengths, length_errors = (x[0] if isotropic else x[:-1] for x in (values, values * errors))
    covariance = MaternLinearOperator(domain, lengths, values[-1], best, spacing, boundary)
    return MaternFit(lengths, values[-1], best, length_errors, values[-1] * errors[-1], covariance)


def _fields(samples: ArrayLike, grid: Grid) -> Float[Array, "n ..."]:
    """The samples, zero on land, after a check."""
    array = real_array(OWNER, "samples", samples)
    if array.shape[1:] != grid.shape or array.ndim == 0 or array.shape[0] < 1:
        raise ValueError(f"{OWNER}: `samples` has shape {array.shape}, expected (n, *grid) with grid {grid.shape}.")
    sea = jnp.broadcast_to(_sea(grid)[None], array.shape)
    bad = known(jnp.sum(sea & ~jnp.isfinite(array)))
    if bad is None:
        raise ValueError(f"{OWNER}: `samples` have no values while tracing; fit outside `jit`, `vmap` and `grad`.")
    if bad:
        raise ValueError(f"{OWNER}: {int(bad)} values of `samples` at sea are not finite; mask them in the Grid.")
    return jnp.where(sea, array, jnp.zeros_like(array))


def _sea(grid: Grid) -> Array:
    return jnp.ones(grid.shape, bool) if grid.mask is None else grid.mask


def _noise(noise: ArrayLike, dtype: Any) -> Float[Array, ""]:
    array = real_array(OWNER, "noise", noise, dtype)
    require_values(OWNER, "noise", known(array), lambda value: value >= 0, "a standard deviation, not negative")
    return array


def _smoothness(nu: float | Sequence[float]) -> list[float]:
    several = [float(nu)] if isinstance(nu, float | int) else [float(one) for one in nu]
    if not several:
        raise ValueError(f"{OWNER}: `nu` is empty, expected a number or several to choose from.")
    for one in several:
        require_matern_smoothness(OWNER, one)
    return several


def _require_estimate(fit: Scored, step: Array, shape: tuple[int, ...]) -> None:
    """Raise `ValueError` where there is no estimate."""
    theta, domain = np.asarray(fit.theta, float), np.asarray(step, float) * np.asarray(shape)
    if not np.all(np.isfinite(theta)):
        raise ValueError(f"{OWNER}: `samples` do not vary, so they have no length scale.")
    if np.any(np.exp(theta[:-1]) > domain):
        raise ValueError(
            f"{OWNER}: the length scale comes out as {np.exp(theta[:-1])}, beyond the domain ({domain}); remove the "
            "mean and trends of `samples`, or give them on a larger domain."
        )
    if not float(fit.change) < 1e-2:
        raise ValueError(
            f"{OWNER}: scoring did not settle in {MOST_STEPS} steps (last change {float(fit.change):.1g}); `samples` "
            "do not look like this covariance: try another `nu`, or a `noise`."
        )
