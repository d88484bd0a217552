"""B from differences of forecasts: the method of the National Meteorological Center (NMC).

    δ = x_48 − x_24        two forecasts for the same time, from analyses a day apart
    σ² = factor · var δ    in each cell, unbiased, the mean difference removed
    B = diag(σ) C diag(σ)  C: the correlation fitted to δ/σ

If the errors of the two forecasts had the same covariance and were independent, B would be half the covariance of δ:
the default `factor`. In truth the longer forecast has larger errors, and both have errors in common; `factor` is what
is tuned, for instance until innovations have the variance B and R give them.

Reference: Parrish and Derber (1992), The National Meteorological Center's spectral statistical-interpolation analysis
system, *Monthly Weather Review* 120.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array, ArrayLike, Bool, Float

from vardax.covariances.base import real_array
from vardax.covariances.box import known
from vardax.covariances.correlations import matern_correlation
from vardax.covariances.diagonal import safe_sqrt
from vardax.covariances.diffusion import DiffusionCovariance
from vardax.covariances.matern_fit import MaternFit, fit_matern
from vardax.covariances.normalisation import EXACT_LIMIT, Exact, Randomised
from vardax.covariances.scaled import ScaledCovariance
from vardax.types import Grid, as_grid

__all__ = ["nmc_covariance"]

OWNER = "nmc_covariance"
PATTERNS = 256
"""Of the `Randomised` normalisation of correlations on grids with land of more than `EXACT_LIMIT` cells of the sea."""


def nmc_covariance(
    forecast_pairs: ArrayLike | Sequence[ArrayLike],
    grid: int | Sequence[int] | Grid | None = None,
    *,
    factor: float = 0.5,
    correlation: lx.AbstractLinearOperator | None = None,
    **fit_options: Any,
) -> ScaledCovariance:
    """B from pairs of forecasts of different length that are valid at the same time.

    - `forecast_pairs`: (n, 2, *grid), or the two forecasts as two arrays (n, *grid). Standard deviations have a
      relative standard error of 1/√(2n): use at least some tens of pairs, far enough apart to be independent.
    - `grid`: a `Grid` or a shape, by default that of the forecasts. Its land has no variance, and what is there is
      ignored.
    - `factor`: B is this times the covariance of the differences.
    - `correlation`: a covariance of unit variance, if it is known. Otherwise `fit_matern` is given the differences in
      units of their standard deviations, with `fit_options` (`nu`, `isotropic`, `spacing`, `boundary`, ...). Without
      land the fitted Matérn covariance is taken. With land it is diffusion, around land, of the length at which the
      Gaussian falls to a half where the fitted correlation does.

    The grid must be uniform for the fit; on others give `correlation`, a `DiffusionCovariance` for instance.

    >>> from vardax.covariances.matern import MaternLinearOperator
    >>> truth = MaternLinearOperator(64, 4.0)
    >>> pairs = truth.sample(jax.random.key(1), 100).reshape(50, 2, 64)
    >>> nmc_covariance(pairs).diagonal().shape
    (64,)
    """
    if not factor > 0:
        raise ValueError(f"{OWNER}: `factor` is {factor}, expected a positive number.")
    differences = _differences(forecast_pairs)
    domain = differences.shape[1:] if grid is None else grid
    grid = as_grid(domain)
    sea = jnp.ones(grid.shape, bool) if grid.mask is None else grid.mask
    anomalies, deviation = _moments(_at_sea(differences, sea), sea)
    if known(jnp.max(deviation)) == 0:
        raise ValueError(f"{OWNER}: the forecasts of all pairs differ by the same field, so there is no variance.")
    if correlation is None:
        standardised = anomalies / jnp.where(deviation > 0, deviation, jnp.ones_like(deviation))[None]
        correlation = _correlation(fit_matern(standardised, domain, **fit_options), grid)
    return ScaledCovariance(factor**0.5 * deviation, correlation)


def _differences(forecast_pairs: ArrayLike | Sequence[ArrayLike]) -> Float[Array, "n ..."]:
    if isinstance(forecast_pairs, list | tuple) and len(forecast_pairs) == 2:
        first, second = (real_array(OWNER, "forecast_pairs", part) for part in forecast_pairs)
        if first.shape != second.shape:
            raise ValueError(
                f"{OWNER}: `forecast_pairs` has shapes {first.shape} and {second.shape}, expected two equal ones."
            )
        difference = first - second
    else:
        pairs = real_array(OWNER, "forecast_pairs", forecast_pairs)
        if pairs.ndim < 3 or pairs.shape[1] != 2:
            raise ValueError(
                f"{OWNER}: `forecast_pairs` has shape {pairs.shape}, expected (n, 2, *grid), or two arrays (n, *grid)."
            )
        difference = pairs[:, 0] - pairs[:, 1]
    if difference.ndim < 2 or difference.shape[0] < 2:
        raise ValueError(
            f"{OWNER}: `forecast_pairs` has {difference.shape[:1]} pairs of fields, expected at least two."
        )
    return difference


def _at_sea(differences: Float[Array, "n ..."], sea: Bool[Array, "..."]) -> Float[Array, "n ..."]:
    """The differences, zero on land, after a check."""
    if differences.shape[1:] != sea.shape:
        raise ValueError(
            f"{OWNER}: forecasts have shape {differences.shape[1:]}, expected that of `grid`, {sea.shape}."
        )
    sea = jnp.broadcast_to(sea[None], differences.shape)
    bad = known(jnp.sum(sea & ~jnp.isfinite(differences)))
    if bad is None:
        raise ValueError(f"{OWNER}: `forecast_pairs` have no values while tracing; estimate outside `jit` and `vmap`.")
    if bad:
        raise ValueError(f"{OWNER}: {int(bad)} differences at sea are not finite; mask those cells in `grid`.")
    return jnp.where(sea, differences, jnp.zeros_like(differences))


@jax.jit
def _moments(
    differences: Float[Array, "n ..."], sea: Bool[Array, "..."]
) -> tuple[Float[Array, "n ..."], Float[Array, "..."]]:
    """Differences less their mean, and their standard deviation, 0 on land."""
    anomalies = differences - jnp.mean(differences, axis=0, keepdims=True)
    variance = jnp.sum(anomalies**2, axis=0) / (differences.shape[0] - 1)
    return anomalies, safe_sqrt(jnp.where(sea, variance, jnp.zeros_like(variance)))


def _correlation(fit: MaternFit, grid: Grid) -> lx.AbstractLinearOperator:
    """The fitted correlation, around land where there is some."""
    if grid.mask is None or known(jnp.all(grid.mask)):
        return ScaledCovariance(1 / fit.sigma, fit.covariance)
    lengths = fit.length_scale * (_half_distance(fit.nu) / _half_distance(float("inf")))
    exact = int(jnp.sum(grid.mask)) <= EXACT_LIMIT
    return DiffusionCovariance(grid, lengths, Exact() if exact else Randomised(PATTERNS))


def _half_distance(nu: float) -> float:
    """The distance, in length scales, at which a Matérn correlation is a half; by bisection."""
    near, far = 0.0, 2.0
    for _ in range(40):
        middle = (near + far) / 2
        near, far = (middle, far) if float(matern_correlation(middle, nu)) > 0.5 else (near, middle)
    return near
