"""From the periodogram of samples to the parameters of a Matérn covariance, θ = (log lengths, log σ).

    minimise  ½ Σ_k P/E + log E        score  s = ½ Σ_k (P − E)/E · ∂log E/∂θ        H = ½ Σ_k (∂log E/∂θ)(∂log E/∂θ)ᵀ

over the modes k, with E(θ) = E P (`vardax.covariances.periodogram`), by Fisher's scoring, θ ← θ + H⁻¹ s. Where the
ordinates of P are independent (no free edge, no land) this is the maximum of the exact likelihood, and H⁻¹ the variance
of the estimate. Otherwise the variance is H⁻¹ J H⁻¹ with J = Var s, estimated from fields that are drawn with θ.

`step` are the sizes of cells, `noise` the standard deviation of white noise on top: E = σ² E_1 + noise².
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Int, PRNGKeyArray

from vardax.covariances.periodogram import Window, expected_periodogram, periodogram, random_field

__all__ = ["MOST_STEPS", "Scored", "maximise_likelihood", "standard_errors"]

CANDIDATES = 16
"""How many lengths, from a third of a cell to the domain, are tried before scoring starts from the best of them."""

MOST_STEPS = 50
"""Most scoring steps."""

LONGEST_STEP = 0.7
"""The most that the logarithm of a parameter changes in a step: a factor of two."""

TOLERANCE = 1e-7
"""Scoring ends when no parameter changes by more than this part. In float32 rounding ends it before."""

SHORTEST_STEP = 1e-4
"""How short a scoring step is made, by fours, until the likelihood does not fall; a shorter one is not taken."""


class Scored(NamedTuple):
    """Parameters, (log lengths, log σ), with half the sum of P/E + log E, the last change, and how many there were."""

    theta: Float[Array, "parameters"]
    misfit: Float[Array, ""]
    change: Float[Array, ""]
    number: Int[Array, ""]


@functools.partial(jax.jit, static_argnames=("nu", "n_lengths"))
def maximise_likelihood(
    power: Array, nu: float, n_lengths: int, step: Array, noise: ArrayLike, window: Window
) -> Scored:
    """Fisher's scoring, from the best of some lengths.

    A step is shortened while the misfit rises. Near the minimum the predicted fall is less than the rounding of a sum
    over modes, and the misfit says nothing: steps are taken as they are, until they are short or no longer get shorter.
    """
    floor = _floor(power, window)
    domain = step * jnp.array(window.weights.shape, step.dtype)
    candidates = jnp.geomspace(jnp.min(step) / 3, jnp.max(domain), CANDIDATES)
    theta = _best_of(candidates, power, nu, n_lengths, step, noise, window)

    def misfit_of(theta: Array) -> Array:
        return _misfit(power, _expected(theta, nu, step, noise, window), window, floor)

    def move(state: tuple[Scored, Array]) -> tuple[Scored, Array]:
        scored, _ = state
        expected, slopes = _expected_and_slopes(scored.theta, nu, step, noise, window, floor)
        score = _score(power, expected, slopes, window, floor)
        full = jnp.linalg.solve(_information(slopes, window), score)
        change = jnp.clip(full, -LONGEST_STEP, LONGEST_STEP)
        rounding = 10 * jnp.finfo(power.dtype).eps * _misfit_size(power, expected, window, floor)
        invisible = full @ score < rounding

        def shorten(trial: tuple[Array, Array]) -> tuple[Array, Array]:
            shorter = trial[0] / 4
            return shorter, misfit_of(scored.theta + shorter * change)

        def too_long(trial: tuple[Array, Array]) -> Array:
            return ~(trial[1] <= scored.misfit + rounding) & ~invisible & (trial[0] > SHORTEST_STEP)

        length, misfit = jax.lax.while_loop(too_long, shorten, (one, misfit_of(scored.theta + change)))
        taken = jnp.where(invisible | (misfit <= scored.misfit + rounding), length, 0 * length)
        moved = Scored(scored.theta + taken * change, misfit, jnp.max(jnp.abs(taken * change)), scored.number + 1)
        settled = (taken == 0) | (moved.change < TOLERANCE) | invisible & (moved.change > scored.change / 2)
        return moved, ~settled & jnp.all(jnp.isfinite(moved.theta))

    def goes_on(state: tuple[Scored, Array]) -> Array:
        return state[1] & (state[0].number < MOST_STEPS)

    one = jnp.ones((), power.dtype)
    return jax.lax.while_loop(goes_on, move, (Scored(theta, misfit_of(theta), one, jnp.array(0)), jnp.array(True)))[0]


def _best_of(
    candidates: Array, power: Array, nu: float, n_lengths: int, step: Array, noise: ArrayLike, window: Window
) -> Float[Array, "parameters"]:
    """The most likely of some lengths, the same along all axes, each with the variance that goes with it."""
    floor = _floor(power, window)

    def attempt(length: Array) -> tuple[Array, Array]:
        shape = expected_periodogram(length / step, nu, window)
        signal = jnp.maximum(jnp.sum(window.multiplicity * (power - noise**2)), floor) / jnp.sum(
            window.multiplicity * shape
        )
        theta = jnp.append(jnp.full(n_lengths, jnp.log(length)), jnp.log(signal) / 2)
        return theta, _misfit(power, signal * shape + noise**2, window, floor)

    thetas, misfits = jax.lax.map(attempt, candidates)
    return thetas[jnp.argmin(misfits)]


@functools.partial(jax.jit, static_argnames=("nu", "independent"))
def standard_errors(
    theta: Array, nu: float, step: Array, noise: ArrayLike, window: Window, draws: Array, independent: bool
) -> Float[Array, "parameters"]:
    """Of θ estimated from one sample."""
    floor = _floor(_expected(theta, nu, step, noise, window), window)
    expected, slopes = _expected_and_slopes(theta, nu, step, noise, window, floor)
    inverse = jnp.linalg.inv(_information(slopes, window))
    if independent:
        return jnp.sqrt(jnp.diagonal(inverse))

    def score(draw: PRNGKeyArray) -> Array:
        field_key, noise_key = jax.random.split(draw)
        field = jnp.exp(theta[-1]) * random_field(field_key, _cells(theta, step), nu, window)
        field = field + noise * jax.random.normal(noise_key, field.shape, field.dtype)
        return _score(periodogram(field, window), expected, slopes, window, floor)

    scores = jax.lax.map(score, draws)
    return jnp.sqrt(jnp.diagonal(inverse @ jnp.cov(scores.T) @ inverse))


def _cells(theta: Array, step: Array) -> Float[Array, "axes"]:
    return jnp.exp(jnp.broadcast_to(theta[:-1], step.shape)) / step


def _expected(theta: Array, nu: float, step: Array, noise: ArrayLike, window: Window) -> Float[Array, "..."]:
    return jnp.exp(2 * theta[-1]) * expected_periodogram(_cells(theta, step), nu, window) + noise**2


def _expected_and_slopes(
    theta: Array, nu: float, step: Array, noise: ArrayLike, window: Window, floor: Array
) -> tuple[Float[Array, "..."], Float[Array, "... parameters"]]:
    """E, and ∂ log E / ∂θ on the last axis."""
    expected = _expected(theta, nu, step, noise, window)
    return expected, jax.jacfwd(_expected)(theta, nu, step, noise, window) / (expected + floor)[..., None]


def _floor(power: Array, window: Window) -> Float[Array, ""]:
    """A spectral density above that of rounding in transforms, added to P and E: the score keeps its mean of zero."""
    return 10 * jnp.finfo(power.dtype).eps * jnp.max(power)


def _misfit(power: Array, expected: Array, window: Window, floor: Array) -> Float[Array, ""]:
    expected = expected + floor
    return jnp.sum(window.multiplicity * ((power + floor) / expected + jnp.log(expected))) / 2


def _misfit_size(power: Array, expected: Array, window: Window, floor: Array) -> Float[Array, ""]:
    """The sum of the sizes of the terms of the misfit: its rounding is in proportion."""
    expected = expected + floor
    terms = (power + floor) / expected + jnp.abs(jnp.log(expected))
    return jnp.sum(window.multiplicity * terms) / 2


def _score(power: Array, expected: Array, slopes: Array, window: Window, floor: Array) -> Float[Array, "parameters"]:
    residual = window.multiplicity * (power - expected) / (expected + floor)
    return jnp.tensordot(residual, slopes, axes=power.ndim) / 2


def _information(slopes: Array, window: Window) -> Float[Array, "parameters parameters"]:
    axes = list(range(slopes.ndim - 1))
    return jnp.tensordot(window.multiplicity[..., None] * slopes, slopes, axes=(axes, axes)) / 2
