"""B from differences of forecasts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vardax.covariances.diffusion import DiffusionCovariance
from vardax.covariances.matern import MaternLinearOperator
from vardax.covariances.nmc import nmc_covariance
from vardax.covariances.scaled import ScaledCovariance
from vardax.types import Grid

SHAPE, N = (24, 28), 60
STD = 1 + np.linspace(0, 1, 24)[:, None] + 0.5 * np.sin(np.arange(28) / 4.0)[None, :]
LAND = np.ones(SHAPE, bool)
LAND[6:18, 12:15] = False


def forecasts(correlation=None, n=N):
    """Pairs of forecasts of a weather that changes, with independent errors of the same covariance and a drift."""
    truth = ScaledCovariance(STD, MaternLinearOperator(SHAPE, 3.0) if correlation is None else correlation)
    weather = 10 * jax.random.normal(jax.random.key(2), (n, *SHAPE))
    drift = jnp.broadcast_to(jnp.asarray(STD), weather.shape)
    return weather + truth.sample(jax.random.key(0), n), weather + truth.sample(jax.random.key(1), n) + drift


def test_it_recovers_deviations_and_lengths():
    B = nmc_covariance(forecasts())
    ratio = np.asarray(B.diagonal()) / STD**2
    effective = SHAPE[0] * SHAPE[1] / (np.pi * 3.0**2)  # independent patches of the domain
    assert abs(np.mean(ratio) - 1) < 3 * np.sqrt(2 / (N - 1) / effective)  # unbiased
    assert np.std(ratio) == pytest.approx(np.sqrt(2 / (N - 1)), rel=0.3)
    column = np.asarray(B.mv(jnp.zeros(SHAPE).at[12, 14].set(1.0)))
    scale = np.sqrt(np.asarray(B.diagonal()))
    rho = column / scale / scale[12, 14]
    expected = np.asarray(MaternLinearOperator(SHAPE, 3.0).mv(jnp.zeros(SHAPE).at[12, 14].set(1.0)))
    assert rho[12, 14] == pytest.approx(1.0, rel=1e-4)
    np.testing.assert_allclose(rho, expected, atol=0.06)


def test_both_forms_of_pairs_are_the_same_and_the_factor_is_one():
    first, second = forecasts(n=8)
    known = MaternLinearOperator(SHAPE, 3.0)
    as_two = nmc_covariance((first, second), correlation=known)
    as_one = nmc_covariance(jnp.stack([first, second], axis=1), correlation=known)
    np.testing.assert_allclose(as_two.diagonal(), as_one.diagonal(), rtol=1e-5)
    doubled = nmc_covariance((first, second), factor=1.0, correlation=known)
    np.testing.assert_allclose(doubled.diagonal(), 2 * as_two.diagonal(), rtol=1e-5)
    expected = 0.5 * np.var(np.asarray(first - second), axis=0, ddof=1)
    np.testing.assert_allclose(as_two.diagonal(), expected, rtol=1e-4)
    assert as_two.correlation is known


def test_land_has_no_variance_and_parts_the_waters():
    """Samples of a Matérn covariance of length 3; correlations are a half at the same distance, and go around land."""
    mask = LAND.copy()
    mask[:, 13] = False
    first, second = (jnp.where(jnp.asarray(mask)[None], part, jnp.nan) for part in forecasts())
    grid = Grid([np.arange(n) for n in SHAPE], mask=mask, periodic=(0, 1))
    B = nmc_covariance((first, second), grid)
    assert isinstance(B.correlation, DiffusionCovariance)
    assert np.all(np.asarray(B.diagonal())[~mask] == 0)
    samples = np.asarray(B.sample(jax.random.key(0), 2))
    assert np.all(np.isfinite(samples))
    assert np.all(samples[:, ~mask] == 0)
    rho = np.asarray(B.correlation.mv(jnp.zeros(SHAPE).at[12, 5].set(1.0)))
    distance = np.interp(0.5, rho[12, 5:12][::-1], np.arange(7)[::-1])
    assert distance == pytest.approx(3.0 * 0.98, rel=0.12)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (dict(forecast_pairs=np.ones((5, 3, 8))), r"`forecast_pairs` has shape \(5, 3, 8\), expected \(n, 2, \*grid\)"),
        (
            dict(forecast_pairs=(np.ones((5, 8)), np.ones((4, 8)))),
            r"has shapes \(5, 8\) and \(4, 8\), expected two equal",
        ),
        (
            dict(forecast_pairs=np.ones((1, 2, 8))),
            r"`forecast_pairs` has \(1,\) pairs of fields, expected at least two",
        ),
        (dict(forecast_pairs=np.ones((5, 2, 8)), grid=(9,)), r"forecasts have shape \(8,\), expected that of `grid`"),
        (dict(forecast_pairs=np.full((5, 2, 8), np.inf)), "40 differences at sea are not finite; mask those cells"),
        (dict(forecast_pairs=np.ones((5, 2, 8))), "differ by the same field, so there is no variance"),
        (dict(forecast_pairs=np.ones((5, 2, 8)), factor=0.0), "`factor` is 0.0, expected a positive number"),
    ],
)
def test_bad_arguments_are_refused(arguments, words):
    with pytest.raises(ValueError, match=words):
        nmc_covariance(**arguments)


def test_pairs_need_values():
    with pytest.raises(ValueError, match="`forecast_pairs` have no values while tracing"):
        jax.jit(lambda x: nmc_covariance(x).diagonal())(jnp.ones((3, 2, 8)))
