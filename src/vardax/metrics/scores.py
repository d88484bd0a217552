r"""How good an estimate is, and how sure that number is.

    rmse   = sqrt(mean (x - x_true)²)      one number per time: over the state only
    spread = sqrt(mean σ²)                 what rmse should be when the posterior standard deviation σ is right
    time mean ± 1.96 s sqrt(τ / n)         τ = 1 + 2 Σ ρ_k, the autocorrelation time of the series

Trajectories come in with time on the first axis, series of scores go out, and `time_mean` makes one number with its
confidence interval from each. Scores of one cycled run are correlated in time: taken as independent, their interval
would be too small by sqrt(τ).
"""

from collections.abc import Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from vardax.types import float_array

__all__ = ["TimeMean", "autocorrelation_time", "rmse", "spread", "time_mean"]

WINDOW = 5
"""The sum over lags ends at the first lag of at least this many autocorrelation times (Sokal 1997)."""

NORMAL_QUANTILE_95 = 1.959963984540054


def rmse(estimate: ArrayLike, truth: ArrayLike, axis: int | Sequence[int] | None = None) -> Float[Array, "..."]:
    """Root mean square difference over `axis` (all axes by default). A trajectory (T, *state) scores per time with its
    state axes.

    >>> rmse(jnp.array([[1.0, 1.0], [7.0, 1.0]]), jnp.zeros((2, 2)), axis=1).tolist()
    [1.0, 5.0]
    """
    difference = float_array(estimate) - float_array(truth)
    return jnp.sqrt(jnp.mean(difference**2, axis=all_or_axes(axis)))


def spread(std: ArrayLike, axis: int | Sequence[int] | None = None) -> Float[Array, "..."]:
    """Root mean square of the standard deviations over `axis`: the error that a posterior expects of itself.

    >>> float(spread(jnp.array([1.0, 7.0])))
    5.0
    """
    return jnp.sqrt(jnp.mean(float_array(std) ** 2, axis=all_or_axes(axis)))


def all_or_axes(axis: int | Sequence[int] | None) -> int | tuple[int, ...] | None:
    """`axis` as JAX takes it."""
    return axis if axis is None or isinstance(axis, int) else tuple(axis)


class TimeMean(eqx.Module):
    """A mean over time, its standard error, and the autocorrelation time of the series in steps."""

    value: Float[Array, "..."]
    standard_error: Float[Array, "..."]
    autocorrelation_time: Float[Array, "..."]

    @property
    def half_width(self) -> Float[Array, "..."]:
        """Half the 95 % confidence interval."""
        return NORMAL_QUANTILE_95 * self.standard_error

    def __str__(self) -> str:
        return f"{float(self.value):.4g} ± {float(self.half_width):.2g}"


def time_mean(series: ArrayLike) -> TimeMean:
    """Mean of a series (T,) with a standard error that allows for its autocorrelation.

    >>> print(time_mean(jnp.array([0.0, 2.0, 0.0, 2.0])))
    1 ± 0.98
    """
    return _time_mean(_series(series))


def autocorrelation_time(series: ArrayLike) -> Float[Array, ""]:
    """τ = 1 + 2 Σ ρ_k of a series (T,), in steps and at least 1: T / τ values count as independent.

    The sum ends at the first lag of at least 5 τ, beyond which the estimated correlations are noise. A series shorter
    than some 50 τ gives too small a value.

    Reference: A. Sokal, Monte Carlo methods in statistical mechanics: foundations and new algorithms (1997), section 3.
    """
    return _time_mean(_series(series)).autocorrelation_time


@jax.jit
def _time_mean(values: Float[Array, "T"]) -> TimeMean:
    tau = _summed_correlations(_autocorrelation(values))
    return TimeMean(jnp.mean(values), jnp.std(values) * jnp.sqrt(tau / values.shape[0]), tau)


def _summed_correlations(correlation: Float[Array, "T"]) -> Float[Array, ""]:
    """1 + 2 Σ ρ_k over the lags 1 .. W of Sokal's window, times 1 + (2 W + 1) / T for what the sample mean takes."""
    tau = 2 * jnp.cumsum(correlation) - 1  # ρ_0 = 1 is counted once
    enough = jnp.arange(tau.shape[0]).astype(tau.dtype) >= WINDOW * tau
    last = jnp.where(jnp.any(enough), jnp.argmax(enough), tau.shape[0] - 1)
    correction = 1 + (2 * last.astype(tau.dtype) + 1) / tau.shape[0]
    return jnp.maximum(tau[last] * correction, 1)


def _autocorrelation(values: Float[Array, "T"]) -> Float[Array, "T"]:
    """ρ_k = c_k / c_0 with c_k = Σ_t d_t d_{t+k} / T, by FFT; zero beyond lag 0 for a constant series."""
    n = values.shape[0]
    spectrum = jnp.fft.rfft(values - jnp.mean(values), 2 * n)
    covariance = jnp.fft.irfft(jnp.abs(spectrum) ** 2, 2 * n)[:n]
    variance = covariance[0]
    correlation = covariance / jnp.where(variance > 0, variance, 1)
    return correlation.at[0].set(1)


def _series(series: ArrayLike) -> Float[Array, "T"]:
    values = float_array(series)
    if values.ndim != 1 or values.shape[0] == 0:
        raise ValueError(f"`series` has shape {values.shape}, expected (T,): one value per time.")
    return values
