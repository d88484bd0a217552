"""GaussianPlume: what is emitted is carried through every section, and 3D-Var finds the emission."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vardax.covariances.diagonal import DiagonalCovariance
from vardax.dynamics import GaussianPlume, rollout
from vardax.dynamics.gaussian_plume import Stability
from vardax.models.optimal_interpolation import OptimalInterpolation
from vardax.obs_operators.linearisation import is_linear
from vardax.protocols import ForwardModel, ObservationOperator
from vardax.types import Batch1D
from vardax.validation import observation_operator_test

SOURCE = [[0.0, 0.0, 20.0]]


def section(distance, direction=0.0, columns=False):
    """Receptors across a plume that blows in `direction`, `distance` downwind."""
    along, across = np.array([np.cos(direction), np.sin(direction)]), np.array([-np.sin(direction), np.cos(direction)])
    y = np.linspace(-1500.0, 1500.0, 601)
    ground = distance * along + y[:, None] * across
    if columns:
        return ground, y, None
    z = np.linspace(0.0, 1500.0, 601)
    points = np.concatenate([np.repeat(ground, z.size, axis=0), np.tile(z, y.size)[:, None]], axis=1)
    return points, y, z


@pytest.mark.x64
@pytest.mark.parametrize("stability", [Stability.B, Stability.D, Stability.F])
@pytest.mark.parametrize("direction", [0.0, 2.1])
def test_the_flux_through_every_section_is_the_emission(stability, direction):
    """∫∫ U C dy dz = Q: the ground reflects, nothing is lost."""
    wind = 4.0 * np.array([np.cos(direction), np.sin(direction)])
    for distance in (500.0, 2000.0):
        points, y, z = section(distance, direction)
        plume = GaussianPlume(SOURCE, points, wind, stability)
        field = np.asarray(plume(jnp.array([0.3]))).reshape(y.size, z.size)
        assert 4.0 * np.trapezoid(np.trapezoid(field, z, axis=1), y) == pytest.approx(0.3, rel=1e-3)


@pytest.mark.x64
def test_a_column_is_the_integral_over_height():
    points, y, z = section(1500.0)
    field = np.asarray(GaussianPlume(SOURCE, points, (3.0, 0.0))(jnp.array([1.0]))).reshape(y.size, z.size)
    columns = GaussianPlume(SOURCE, section(1500.0, columns=True)[0], (3.0, 0.0))(jnp.array([1.0]))
    np.testing.assert_allclose(columns, np.trapezoid(field, z, axis=1), rtol=1e-3, atol=1e-12)


def test_the_formula_at_one_point():
    """Class D, 1000 m downwind: σ_y = 76.3 m, σ_z = 37.9 m."""
    plume = GaussianPlume([[0.0, 0.0, 30.0]], [[1000.0, 50.0, 10.0]], (5.0, 0.0))
    sy, sz = 80 / np.sqrt(1.1), 60 / np.sqrt(2.5)
    vertical = np.exp(-(20.0**2) / (2 * sz**2)) + np.exp(-(40.0**2) / (2 * sz**2))
    expected = 2.0 / (2 * np.pi * 5 * sy * sz) * np.exp(-(50.0**2) / (2 * sy**2)) * vertical
    np.testing.assert_allclose(plume(jnp.array([2.0])), [expected], rtol=1e-5)


def test_nothing_is_upwind_and_gradients_are_finite_there():
    receptors = [[-100.0, 0.0, 2.0], [0.0, 50.0, 2.0], [300.0, 0.0, 2.0]]

    def seen(wind):
        return GaussianPlume(SOURCE, receptors, wind)(jnp.array([1.0]))

    np.testing.assert_array_equal(seen(jnp.array([4.0, 0.0]))[:2], 0.0)
    slopes = jax.jacobian(seen)(jnp.array([4.0, 0.0]))
    assert jnp.isfinite(slopes).all()
    np.testing.assert_array_equal(slopes[:2], 0.0)


def test_emissions_persist():
    plume = GaussianPlume(SOURCE * 2, [[100.0, 0.0]])
    assert isinstance(plume, ForwardModel)
    assert plume.state_signature.shape == (2,)
    np.testing.assert_array_equal(rollout(plume, jnp.array([1.0, 2.0]), 3), [[1.0, 2.0]] * 4)


def test_is_a_linear_observation_operator():
    plume = GaussianPlume([*SOURCE, [100.0, 30.0, 5.0]], np.random.default_rng(0).uniform(200, 900, size=(6, 3)))
    assert isinstance(plume, ObservationOperator)
    emissions = jnp.array([1.0, 2.0])
    assert is_linear(plume, emissions)
    np.testing.assert_allclose(plume.linearize(emissions).mv(emissions), plume(emissions), rtol=1e-6)
    report = observation_operator_test(plume, emissions)
    assert report, str(report)


def test_an_inversion_finds_the_emissions():
    """Two sources, a satellite's columns: the closed form of optimal interpolation, and the truth within its error."""
    sources = [[0.0, 0.0, 10.0], [400.0, 300.0, 10.0]]
    x, y = np.meshgrid(np.linspace(600, 3000, 10), np.linspace(-300, 600, 10))
    plume = GaussianPlume(sources, np.stack([x.ravel(), y.ravel()], axis=1), (4.0, 0.0))
    truth, noise = jnp.array([0.5, 0.2]), 2e-6
    y_obs = plume(truth) + noise * jnp.asarray(np.random.default_rng(1).normal(size=100), truth.dtype)
    method = OptimalInterpolation(
        plume, jnp.array([0.3, 0.3]), DiagonalCovariance(jnp.full(2, 0.04)), DiagonalCovariance(jnp.full(100, noise**2))
    )
    posterior = method.posterior(Batch1D.from_observations(y_obs[None]))
    assert (posterior.std()[0] < 0.05).all()
    assert (jnp.abs(posterior.mean[0] - truth) < 4 * posterior.std()[0]).all()


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"wind": (0.1, 0.0)}, ValueError, "`wind` is 0.1 m/s, expected at least 0.5 m/s: without wind"),
        ({"wind": (1.0, 0.0, 0.0)}, ValueError, r"`wind` has shape \(3,\), expected \(2,\)"),
        ({"sources": [[0.0, 0.0]]}, ValueError, r"`sources` has shape \(1, 2\), expected \(S, 3\)"),
        ({"receptors": [[0.0]]}, ValueError, r"`receptors` has shape \(1, 1\), expected \(p, 3\) for concentrations"),
        ({"stability": "D"}, TypeError, "`stability` is 'D', expected one of Stability.A"),
    ],
)
def test_bad_arguments_are_named(arguments, error, words):
    with pytest.raises(error, match=words):
        GaussianPlume(**{"sources": SOURCE, "receptors": [[100.0, 0.0]], **arguments})


def test_a_state_of_another_size_is_refused():
    with pytest.raises(ValueError, match=r"`state` has shape \(2,\), expected \(1,\): one emission rate per source"):
        GaussianPlume(SOURCE, [[100.0, 0.0]])(jnp.ones(2))
