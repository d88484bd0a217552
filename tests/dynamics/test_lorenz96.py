"""Lorenz-96 against its definition, and against the numbers of JCSDA OOPS."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vardax.dynamics import Lorenz96, rollout, simulate_lorenz96
from vardax.dynamics.lorenz96 import advection, largest_stable_dt
from vardax.protocols import ForwardModel


def loop_tendency(x, forcing):
    """The definition, index by index."""
    n = len(x)
    return np.array([(x[(i + 1) % n] - x[i - 2]) * x[i - 1] - x[i] + forcing for i in range(n)])


def test_tendency_is_the_definition():
    x = np.random.default_rng(0).standard_normal(7)
    np.testing.assert_allclose(Lorenz96(7, 3.0).tendency(jnp.asarray(x)), loop_tendency(x, 3.0), rtol=1e-4, atol=1e-5)


@pytest.mark.x64
@pytest.mark.parametrize(
    ("index", "value", "steps", "minimum", "maximum", "mean"),
    [
        (9, 9.0, 16, 6.5589469828665576, 9.2781169031407753, 8.0114870375908573),
        (19, 7.0, 48, -5.2310406392601312, 15.276437168335866, 6.4563081299850511),
    ],
)
def test_reproduces_the_l95_runs_of_oops(index, value, steps, minimum, maximum, mean):
    """JCSDA/oops, l95/test: truth and background runs, F = 8, dt = 0.0125."""
    state = rollout(Lorenz96(dt=0.0125), jnp.full(40, 8.0).at[index].set(value), steps)[-1]
    found = [float(state.min()), float(state.max()), float(state.mean())]
    np.testing.assert_allclose(found, [minimum, maximum, mean], rtol=1e-9)


@pytest.mark.x64
def test_step_converges_at_fourth_order():
    x = 8.0 + jnp.sin(jnp.arange(40.0))
    fine = rollout(Lorenz96(dt=0.0005), x, 100)[-1]
    errors = [float(jnp.linalg.norm(rollout(Lorenz96(dt=0.05 / n), x, n)[-1] - fine)) for n in (2, 4, 8)]
    np.testing.assert_allclose(np.log2(errors[0] / errors[1]), 4.0, atol=0.4)
    np.testing.assert_allclose(np.log2(errors[1] / errors[2]), 4.0, atol=0.4)


@pytest.mark.x64
@pytest.mark.parametrize("n", [4, 5, 40])
def test_hand_written_derivative_is_the_jacobian_of_the_definition(n):
    rng = np.random.default_rng(1)
    x, dx, dy = (jnp.asarray(rng.standard_normal(n)) for _ in range(3))
    tangent = jax.jvp(advection, (x,), (dx,))[1]
    central = (loop_tendency(x + 1e-6 * dx, 0.0) - loop_tendency(x - 1e-6 * dx, 0.0)) / 2e-6 + np.asarray(dx)
    np.testing.assert_allclose(tangent, central, atol=1e-8)
    (back,) = jax.vjp(advection, x)[1](dy)
    np.testing.assert_allclose(jnp.vdot(tangent, dy), jnp.vdot(dx, back), rtol=1e-12)


@pytest.mark.x64
def test_second_derivatives_are_exact():
    rng = np.random.default_rng(2)
    x, v, w = (jnp.asarray(rng.standard_normal(6)) for _ in range(3))
    cost = lambda x: jnp.vdot(w, advection(x))  # noqa: E731
    rolled = lambda x: jnp.vdot(w, (jnp.roll(x, -1) - jnp.roll(x, 2)) * jnp.roll(x, 1))  # noqa: E731
    product = jax.jvp(jax.grad(cost), (x,), (v,))[1]
    np.testing.assert_allclose(product, jax.hessian(rolled)(x) @ v, atol=1e-13)
    reverse = jax.grad(lambda x: jnp.vdot(jax.grad(cost)(x), v))(x)
    np.testing.assert_allclose(reverse, product, atol=1e-13)


@pytest.mark.x64
def test_step_adjoint_identity_and_taylor():
    model, rng = Lorenz96(), np.random.default_rng(3)
    x, dx, dy = (jnp.asarray(rng.standard_normal(40)) for _ in range(3))
    step = lambda x: model.step(x, model.dt)  # noqa: E731
    value, tangent = jax.jvp(step, (x,), (dx,))
    (back,) = jax.vjp(step, x)[1](dy)
    np.testing.assert_allclose(jnp.vdot(tangent, dy), jnp.vdot(dx, back), rtol=1e-12)
    remainders = [float(jnp.linalg.norm(step(x + s * dx) - value - s * tangent)) for s in (1e-2, 1e-3, 1e-4)]
    np.testing.assert_allclose(np.array(remainders[:-1]) / np.array(remainders[1:]), 100.0, rtol=0.05)


def test_leading_axes_and_vmap_are_batches():
    model = Lorenz96(8)
    states = jnp.asarray(np.random.default_rng(4).standard_normal((2, 3, 8)))
    expected = jnp.stack([jnp.stack([model.step(x, model.dt) for x in row]) for row in states])
    np.testing.assert_allclose(model.step(states, model.dt), expected, rtol=1e-5, atol=1e-6)
    mapped = jax.vmap(jax.vmap(lambda x: model.step(x, model.dt)))(states)
    np.testing.assert_allclose(mapped, expected, rtol=1e-5, atol=1e-6)
    gradient = jax.vmap(jax.grad(lambda x: jnp.sum(model.step(x, model.dt) ** 2)))(states[0])
    assert gradient.shape == (3, 8)


def test_float32_stays_float32_whatever_the_forcing_is_in():
    state = jnp.ones(40, jnp.float32)
    assert Lorenz96().step(state, 0.05).dtype == jnp.float32
    assert Lorenz96(dt=jnp.asarray(0.05)).step(state, jnp.asarray(0.05)).dtype == jnp.float32


def test_is_a_forward_model_whose_forcing_is_traced(count_compilations):
    assert isinstance(Lorenz96(), ForwardModel)
    assert Lorenz96(7).state_signature.shape == (7,)
    run = eqx.filter_jit(lambda model, x: model.step(x, model.dt))
    run(Lorenz96(), jnp.ones(40))
    with count_compilations() as compiled:
        run(Lorenz96(forcing=9.0), jnp.ones(40)).block_until_ready()
    assert compiled.n == 0, compiled.names


def test_forcing_may_be_a_field_and_be_differentiated():
    model = Lorenz96(8, jnp.arange(8.0))
    by_forcing = eqx.filter_grad(lambda m: jnp.sum(m.tendency(jnp.zeros(8))))(model)
    np.testing.assert_array_equal(by_forcing.forcing, 1.0)


@pytest.mark.parametrize("forcing", [-8.0, 0.0, 4.0, 8.0, 32.0])
def test_largest_stable_step_stays_bounded(forcing):
    dt = largest_stable_dt(forcing)
    states = simulate_lorenz96(jax.random.key(1), 10, forcing=forcing, dt=dt, spin_up=5000)
    assert np.all(np.isfinite(states))


def test_steps_beyond_the_stability_limit_are_refused():
    with pytest.raises(ValueError, match=r"Lorenz96: `dt` is 0.1, beyond the stability limit 0.0955 .* forcing 8"):
        Lorenz96(dt=0.1)
    with pytest.raises(ValueError, match="beyond the stability limit"):
        Lorenz96().step(jnp.ones(40), 0.2)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"n": 3}, "`n` is 3, expected an integer of at least 4"),
        ({"forcing": np.ones(3)}, r"`forcing` has shape \(3,\), expected \(\) or \(40,\)"),
        ({"dt": 0.0}, "`dt` is 0.0, expected a finite time step"),
    ],
)
def test_bad_arguments_are_named(arguments, words):
    with pytest.raises(ValueError, match=words):
        Lorenz96(**arguments)


def test_a_state_of_another_size_is_refused():
    with pytest.raises(ValueError, match=r"`state` has shape \(39,\), expected \(..., 40\)"):
        Lorenz96().step(jnp.ones(39), 0.05)


def test_simulation_is_on_the_attractor():
    """Climatology of F = 8: mean 2.3, standard deviation 3.6 (DAPPER states 3.6)."""
    states = simulate_lorenz96(jax.random.key(0), 2000)
    assert states.shape == (2001, 40)
    np.testing.assert_allclose(states.mean(), 2.34, atol=0.15)
    np.testing.assert_allclose(states.std(), 3.64, atol=0.15)


def test_simulation_is_a_trajectory_of_the_model():
    states = simulate_lorenz96(jax.random.key(0), 5, n=10, spin_up=20, dtype=jnp.float32)
    assert states.dtype == jnp.float32
    np.testing.assert_allclose(rollout(Lorenz96(10), states[0], 5), states, rtol=1e-4, atol=1e-4)


def test_simulation_depends_on_the_key_only_and_compiles_once(count_compilations):
    first = simulate_lorenz96(jax.random.key(3), 5, spin_up=5)
    with count_compilations() as compiled:
        again, other = (simulate_lorenz96(jax.random.key(k), 5, spin_up=5) for k in (3, 4))
    assert compiled.n == 0, compiled.names
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize("arguments", [{"n_steps": -1}, {"n_steps": 1, "spin_up": -1}])
def test_simulation_refuses_negative_counts(arguments):
    with pytest.raises(ValueError, match="is -1, expected an integer of at least 0"):
        simulate_lorenz96(jax.random.key(0), **arguments)
