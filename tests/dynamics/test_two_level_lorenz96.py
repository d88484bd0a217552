"""Two-level Lorenz-96 against an independent program in numpy, and against the one-level system without coupling."""

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import pytest

from vardax.dynamics import Lorenz96, TwoLevelLorenz96, rollout
from vardax.dynamics.two_level_lorenz96 import largest_stable_dt
from vardax.protocols import ForwardModel


def loop_tendency(X, Y, F, h, c, b):
    """The definition, index by index; Y is (K, J), and its circle goes through all K."""
    K, J = Y.shape
    circle = Y.ravel()
    dX, dY = np.zeros(K), np.zeros(K * J)
    for k in range(K):
        dX[k] = -X[k - 1] * (X[k - 2] - X[(k + 1) % K]) - X[k] + F - h * c / b * Y[k].sum()
    for i in range(K * J):
        after, beyond = circle[(i + 1) % (K * J)], circle[(i + 2) % (K * J)]
        dY[i] = -c * b * after * (beyond - circle[i - 1]) - c * circle[i] + h * c / b * X[i // J]
    return np.concatenate([dX, dY])


def numpy_run(state, K, J, parameters, dt, n_steps):
    def slope(x):
        return loop_tendency(x[:K], x[K:].reshape(K, J), *parameters)

    for _ in range(n_steps):
        k1 = slope(state)
        k2 = slope(state + dt / 2 * k1)
        k3 = slope(state + dt / 2 * k2)
        state = state + dt / 6 * (k1 + 2 * k2 + 2 * k3 + slope(state + dt * k3))
    return state


def start(K=8, J=8, seed=0):
    rng = np.random.default_rng(seed)
    return np.concatenate([5.0 + 3.0 * rng.normal(size=K), 0.3 * rng.normal(size=K * J)])


@pytest.mark.parametrize(("K", "J"), [(4, 1), (5, 3), (8, 8)])
def test_tendency_is_the_definition(K, J):
    x, parameters = start(K, J), (18.0, 0.9, 8.0, 9.0)
    found = TwoLevelLorenz96(K, J, *parameters).tendency(jnp.asarray(x))
    np.testing.assert_allclose(found, loop_tendency(x[:K], x[K:].reshape(K, J), *parameters), rtol=2e-4, atol=2e-4)


@pytest.mark.x64
def test_a_window_of_the_reference_setting_is_that_of_numpy():
    """K = 8, J = 8, F = 20, h = 1, c = b = 10; 40 steps of 0.005."""
    model = TwoLevelLorenz96()
    assert (model.K, model.J, model.n, model.dt) == (8, 8, 72, 0.005)
    found = rollout(model, jnp.asarray(start()), 1, n_substeps=40)[-1]
    np.testing.assert_allclose(found, numpy_run(start(), 8, 8, (20.0, 1.0, 10.0, 10.0), 0.005, 40), rtol=1e-10)


@pytest.mark.x64
def test_without_coupling_the_slow_level_is_lorenz_96():
    x = jnp.asarray(start())
    free = rollout(TwoLevelLorenz96(h=0.0), x, 10)
    np.testing.assert_allclose(free[:, :8], rollout(Lorenz96(8, 20.0, 0.005), x[:8], 10), rtol=1e-12)


@pytest.mark.x64
def test_advection_conserves_energy_and_coupling_exchanges_it():
    """d/dt ½ (Σ X² + Σ Y²) has neither advection nor coupling in it: -Σ X² + F Σ X - c Σ Y²."""
    model, x = TwoLevelLorenz96(), jnp.asarray(start())
    X, Y = model.slow(x), model.fast(x)
    expected = -jnp.sum(X**2) + 20.0 * jnp.sum(X) - 10.0 * jnp.sum(Y**2)
    np.testing.assert_allclose(jnp.vdot(x, model.tendency(x)), expected, rtol=1e-12)


def test_levels_are_taken_out_and_leading_axes_are_batches():
    model, x = TwoLevelLorenz96(4, 3), jnp.stack([jnp.arange(16.0), 0.1 * jnp.arange(16.0)])
    assert model.slow(x).shape == (2, 4)
    np.testing.assert_array_equal(model.fast(x)[0, 1], [7.0, 8.0, 9.0])
    np.testing.assert_allclose(model.tendency(x)[1], model.tendency(x[1]), rtol=1e-6)


def test_is_a_forward_model_whose_parameters_are_traced(count_compilations):
    assert isinstance(TwoLevelLorenz96(), ForwardModel)
    assert TwoLevelLorenz96().state_signature.shape == (72,)
    run = eqx.filter_jit(lambda model, x: model.step(x, model.dt))
    run(TwoLevelLorenz96(), jnp.ones(72))
    with count_compilations() as compiled:
        run(TwoLevelLorenz96(forcing=18.0, h=0.9), jnp.ones(72)).block_until_ready()
    assert compiled.n == 0, compiled.names
    assert TwoLevelLorenz96().step(jnp.ones(72, jnp.float32), 0.005).dtype == jnp.float32


@pytest.mark.parametrize(("forcing", "c"), [(10.0, 10.0), (20.0, 10.0), (20.0, 4.0), (40.0, 10.0)])
def test_largest_stable_step_stays_bounded(forcing, c):
    dt = largest_stable_dt(forcing, 1.0, c)
    model = TwoLevelLorenz96(forcing=forcing, c=c, dt=dt)
    assert np.all(np.isfinite(rollout(model, jnp.asarray(start(seed=1)), 1, n_substeps=5000)))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"K": 3}, "`K` is 3, expected an integer of at least 4, the stencil's points"),
        ({"J": 0}, "`J` is 0, expected an integer of at least 1"),
        ({"h": np.ones(2)}, r"`h` has shape \(2,\), expected a scalar"),
        ({"b": 0.0}, "`b` is 0, expected the ratio of the amplitudes"),
        ({"dt": 0.01}, "`dt` is 0.01, beyond the stability limit 0.0085 .* forcing 20, h 1, c 10"),
    ],
)
def test_bad_arguments_are_named(arguments, words):
    with pytest.raises(ValueError, match=words):
        TwoLevelLorenz96(**arguments)


def test_a_state_of_another_size_is_refused():
    with pytest.raises(ValueError, match=r"`state` has shape \(8,\), expected \(..., 72\)"):
        TwoLevelLorenz96().step(jnp.ones(8), 0.005)
