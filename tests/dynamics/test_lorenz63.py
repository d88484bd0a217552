"""Lorenz-63 against its definition, its fixed points, and scipy."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate

from vardax.dynamics import Lorenz63, rollout, simulate_lorenz63
from vardax.dynamics.lorenz63 import largest_stable_dt
from vardax.protocols import ForwardModel

START = np.array([1.508870, -1.531271, 25.46091])
"""The starting point of Sakov, Oliver and Bertino (2012)."""


def slope(t, x, sigma=10.0, rho=28.0, beta=8.0 / 3.0):
    return [sigma * (x[1] - x[0]), x[0] * (rho - x[2]) - x[1], x[0] * x[1] - beta * x[2]]


def test_tendency_is_the_definition():
    x = np.random.default_rng(0).normal(size=3) * 10
    model = Lorenz63(9.0, 30.0, 2.0)
    np.testing.assert_allclose(model.tendency(jnp.asarray(x)), slope(0, x, 9.0, 30.0, 2.0), rtol=1e-5)
    np.testing.assert_array_equal(model.vector_field(0.7, jnp.asarray(x), None), model.tendency(jnp.asarray(x)))


@pytest.mark.parametrize("rho", [0.5, 14.0, 28.0])
def test_fixed_points_stay(rho):
    """The origin always, and two more once the convection sets in (rho > 1)."""
    size = np.sqrt(8.0 / 3.0 * max(rho - 1.0, 0.0))
    for sign in (-1.0, 0.0, 1.0) if rho > 1 else (0.0,):
        point = jnp.array([sign * size, sign * size, (rho - 1.0) * abs(sign)])
        moved = rollout(Lorenz63(rho=rho), point, 10)[-1]
        np.testing.assert_allclose(moved, point, atol=1e-4)


@pytest.mark.x64
def test_one_unit_of_time_is_that_of_scipy():
    """scipy's eighth-order DOP853 at 1e-12; an independent program, its result also written down here."""
    reference = scipy.integrate.solve_ivp(slope, (0.0, 1.0), START, method="DOP853", rtol=1e-12, atol=1e-12).y[:, -1]
    np.testing.assert_allclose(reference, [2.7005369, 4.38871669, 16.69804483], atol=1e-7)
    found = rollout(Lorenz63(dt=0.0005), jnp.asarray(START), 1, n_substeps=2000)[-1]
    np.testing.assert_allclose(found, reference, rtol=1e-8)


@pytest.mark.x64
def test_step_converges_at_fourth_order():
    fine = rollout(Lorenz63(dt=0.0002), jnp.asarray(START), 1, n_substeps=500)[-1]
    errors = [
        float(jnp.linalg.norm(rollout(Lorenz63(dt=0.1 / n), jnp.asarray(START), 1, n_substeps=n)[-1] - fine))
        for n in (5, 10, 20)
    ]
    np.testing.assert_allclose(np.log2(np.array(errors[:-1]) / errors[1:]), 4.0, atol=0.3)


def test_is_a_forward_model_whose_parameters_are_traced(count_compilations):
    assert isinstance(Lorenz63(), ForwardModel)
    assert Lorenz63().state_signature.shape == (3,)
    run = eqx.filter_jit(lambda model, x: model.step(x, model.dt))
    run(Lorenz63(), jnp.ones(3))
    with count_compilations() as compiled:
        run(Lorenz63(rho=30.0), jnp.ones(3)).block_until_ready()
    assert compiled.n == 0, compiled.names


def test_leading_axes_are_batches_and_float32_stays():
    states = jnp.asarray(np.random.default_rng(1).normal(size=(2, 4, 3)), jnp.float32)
    together = Lorenz63().step(states, 0.01)
    assert together.dtype == jnp.float32
    np.testing.assert_allclose(together[1, 2], Lorenz63().step(states[1, 2], 0.01), rtol=1e-6)


@pytest.mark.parametrize("rho", [0.5, 14.0, 28.0, 100.0])
def test_largest_stable_step_stays_bounded(rho):
    dt = largest_stable_dt(10.0, rho, 8.0 / 3.0)
    assert np.all(np.isfinite(simulate_lorenz63(jax.random.key(1), 5, rho=rho, dt=dt, spin_up=5000)))


def test_steps_beyond_the_stability_limit_are_refused():
    with pytest.raises(ValueError, match=r"Lorenz63: `dt` is 0.1, beyond the stability limit 0.0876 .* rho 28"):
        Lorenz63(dt=0.1)
    with pytest.raises(ValueError, match="beyond the stability limit"):
        Lorenz63().step(jnp.ones(3), 0.2)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"sigma": np.ones(3)}, r"`sigma` has shape \(3,\), expected a scalar"),
        ({"dt": float("nan")}, "`dt` is nan, expected a finite time step"),
    ],
)
def test_bad_arguments_are_named(arguments, words):
    with pytest.raises(ValueError, match=words):
        Lorenz63(**arguments)


def test_a_state_of_another_size_is_refused():
    with pytest.raises(ValueError, match=r"`state` has shape \(2,\), expected \(..., 3\)"):
        Lorenz63().step(jnp.ones(2), 0.01)


def test_simulation_is_on_the_attractor():
    """Climatology: mean (0, 0, 23.5), standard deviations (7.9, 9.0, 8.6)."""
    states = simulate_lorenz63(jax.random.key(0), 20_000)
    assert states.shape == (20_001, 3)
    np.testing.assert_allclose(states[:, 2].mean(), 23.55, atol=0.3)
    np.testing.assert_allclose(states.std(axis=0), [7.9, 9.0, 8.6], atol=0.4)


def test_simulation_depends_on_the_key_only_and_compiles_once(count_compilations):
    first = simulate_lorenz63(jax.random.key(3), 5, spin_up=5)
    with count_compilations() as compiled:
        again, other = (simulate_lorenz63(jax.random.key(k), 5, spin_up=5) for k in (3, 4))
    assert compiled.n == 0, compiled.names
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    np.testing.assert_allclose(rollout(Lorenz63(), first[0], 5), first, rtol=1e-5)


@pytest.mark.parametrize("arguments", [{"n_steps": -1}, {"n_steps": 1, "spin_up": -1}])
def test_simulation_refuses_negative_counts(arguments):
    with pytest.raises(ValueError, match="is -1, expected an integer of at least 0"):
        simulate_lorenz63(jax.random.key(0), **arguments)
