"""Advection-diffusion against the exact Fourier solution, with mass to the last digit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vardax.dynamics import AdvectionDiffusion1D, rollout
from vardax.dynamics.advection_diffusion import largest_stable_dt
from vardax.protocols import ForwardModel


def exact(model, speed, diffusivity, wave, time):
    """Cell means of exp(-κ k² t) sin(k (x - u t))."""
    k = 2 * np.pi * wave / model.length
    damped = np.exp(-diffusivity * k**2 * time) * np.sinc(wave / model.n)
    return damped * np.sin(k * (np.asarray(model.x) - speed * time))


@pytest.mark.x64
@pytest.mark.parametrize("speed", [1.5, -0.8])
def test_waves_travel_and_decay_as_in_the_exact_solution(speed):
    """Third order in the size of the cells for advection."""
    errors = []
    for n in (32, 64, 128):
        model = AdvectionDiffusion1D(n, speed, 2e-3, length=2.0, dt=0.4 / n)
        found = rollout(model, jnp.asarray(exact(model, speed, 2e-3, 2, 0.0)), 1, n_substeps=n)[-1]
        errors.append(np.abs(found - exact(model, speed, 2e-3, 2, 0.4)).max())
    np.testing.assert_allclose(np.log2(np.array(errors[:-1]) / errors[1:]), 3.0, atol=0.25)
    assert errors[-1] < 1e-3


@pytest.mark.x64
def test_pure_diffusion_is_second_order():
    errors = []
    for n in (16, 32):
        model = AdvectionDiffusion1D(n, 0.0, 0.01, dt=0.02)
        found = rollout(model, jnp.asarray(exact(model, 0.0, 0.01, 1, 0.0)), 1, n_substeps=50)[-1]
        errors.append(np.abs(found - exact(model, 0.0, 0.01, 1, 1.0)).max())
    np.testing.assert_allclose(errors[0] / errors[1], 4.0, rtol=0.1)


@pytest.mark.x64
def test_each_wave_of_the_grid_is_amplified_as_the_scheme_says():
    """exp(2πi wave j / n) is an eigenvector: R(λ dt) with λ of the stencil and R of Runge-Kutta."""
    n, u, kappa, dt = 12, 0.7, 1e-3, 0.03
    model, theta = AdvectionDiffusion1D(n, u, kappa, dt=dt), 2 * np.pi * np.arange(n) / n
    shift = lambda k: np.exp(1j * k * theta)  # noqa: E731
    face = (-shift(-1) + 5 + 2 * shift(1)) / 6
    rates = -u * n * face * (1 - shift(-1)) + kappa * n**2 * (shift(1) - 2 + shift(-1))
    z = rates * dt
    amplification = 1 + z + z**2 / 2 + z**3 / 6 + z**4 / 24
    matrix = np.asarray(jax.jacobian(lambda c: model.step(c, dt))(jnp.zeros(n)))
    np.testing.assert_allclose(np.fft.fft(matrix[:, 0]), amplification, atol=1e-13)


@pytest.mark.x64
def test_mass_is_conserved_and_grows_by_the_source():
    rng = np.random.default_rng(0)
    fields = {"velocity": rng.normal(size=20), "diffusivity": 0.01 * rng.random(20)}
    start = jnp.asarray(rng.random(20))
    closed = rollout(AdvectionDiffusion1D(20, **fields, dt=0.005), start, 40)
    np.testing.assert_allclose(jnp.sum(closed, axis=1), jnp.sum(start), rtol=1e-13)
    fed = rollout(AdvectionDiffusion1D(20, **fields, source=np.arange(20.0), dt=0.005), start, 40)
    np.testing.assert_allclose(jnp.sum(fed[-1]), jnp.sum(start) + 40 * 0.005 * 190, rtol=1e-12)


def test_is_a_linear_forward_model_that_keeps_the_dtype():
    model = AdvectionDiffusion1D(10, 1.0, 1e-3)
    assert isinstance(model, ForwardModel)
    assert model.state_signature.shape == (10,)
    a, b = (jnp.asarray(np.random.default_rng(k).normal(size=(2, 10)), jnp.float32) for k in (0, 1))
    together = model.step(2 * a + b, 0.005)
    assert together.dtype == jnp.float32
    np.testing.assert_allclose(together, 2 * model.step(a, 0.005) + model.step(b, 0.005), atol=1e-5)
    np.testing.assert_array_equal(model.vector_field(1.0, a, None), model.tendency(a))


@pytest.mark.parametrize(("speed", "kappa"), [(1.0, 0.0), (-1.0, 1e-3), (0.3, 0.05)])
def test_the_stability_limit_is_one(speed, kappa):
    """At the limit no wave grows, and for a single process 10 % beyond, one does."""
    n, z = 24, lambda rate, dt: rate * dt
    dt = largest_stable_dt(speed, kappa, 1 / n)
    matrix = np.asarray(jax.jacobian(lambda c: AdvectionDiffusion1D(n, speed, kappa, dt=dt).step(c, dt))(jnp.zeros(n)))
    assert np.abs(np.fft.fft(matrix[:, 0])).max() < 1 + 1e-5
    if kappa == 0:
        theta = 2 * np.pi * np.arange(n) / n
        face = (-np.exp(-1j * theta) + 5 + 2 * np.exp(1j * theta)) / 6
        w = z(-speed * n * face * (1 - np.exp(-1j * theta)), 1.1 * dt)
        assert np.abs(1 + w + w**2 / 2 + w**3 / 6 + w**4 / 24).max() > 1.01


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"dt": 0.1}, r"`dt` is 0.1, beyond the stability limit 0.0174 .* speed 1, .* cells of 0.01 \(CFL\)"),
        ({"diffusivity": 0.1}, "beyond the stability limit .* diffusivity 0.1"),
        ({"dt": -0.001}, "`dt` is -0.001, expected a positive number: the upwind scheme"),
        ({"diffusivity": -1.0}, "`diffusivity` is -1 somewhere, expected no negative number"),
        ({"velocity": np.ones(3)}, r"`velocity` has shape \(3,\), expected \(\) or \(100,\)"),
        ({"n": 3}, "`n` is 3, expected an integer of at least 4"),
        ({"length": 0.0}, "`length` is 0.0, expected a positive number"),
    ],
)
def test_bad_arguments_are_named(arguments, words):
    with pytest.raises(ValueError, match=words):
        AdvectionDiffusion1D(**arguments)


def test_a_state_of_another_size_is_refused():
    with pytest.raises(ValueError, match=r"`state` has shape \(8,\), expected \(..., 100\)"):
        AdvectionDiffusion1D().step(jnp.ones(8), 0.005)
