"""The continuous adjoint: right up to the accuracy of the steps, for everything, in the memory of the trajectory."""

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vardax.dynamics import DiffraxForward, Lorenz63, Lorenz96, rollout, rollout_memory

BACKSOLVE, DIRECT = diffrax.BacksolveAdjoint(), diffrax.DirectAdjoint()
START = jnp.array([1.5, -1.5, 25.5])
WEIGHTS = np.random.default_rng(0).normal(size=(6, 3))


def forced(t, x, args):
    """Depends on time and on a parameter."""
    return args * jnp.stack([x[1], -jnp.sin(x[0]) + jnp.cos(3 * t), -0.1 * x[2] * x[0]])


def score(model, x0, adjoint, t0=0.3, n_substeps=2, increments=None):
    states = rollout(model, x0, 5, forward_adjoint=adjoint, t0=t0, n_substeps=n_substeps, increments=increments)
    return jnp.sum(jnp.sin(states) * jnp.asarray(WEIGHTS, states.dtype))


@pytest.mark.x64
@pytest.mark.parametrize(("dt", "reach"), [(0.02, 3e-4), (0.005, 1e-6)])
def test_the_gradient_is_as_good_as_the_steps_are(dt, reach):
    """Fourth-order steps: a quarter of the step, a 256th of the difference."""
    n_substeps = round(0.04 / dt)
    exact, found = (
        jax.grad(lambda x, a=adjoint: score(Lorenz63(dt=dt), x, a, n_substeps=n_substeps))(START)
        for adjoint in (DIRECT, BACKSOLVE)
    )
    difference = jnp.linalg.norm(found - exact) / jnp.linalg.norm(exact)
    assert 0 < difference < reach


@pytest.mark.x64
def test_everything_that_the_trajectory_depends_on_is_differentiated():
    increments = jnp.asarray(0.1 * np.random.default_rng(1).normal(size=(5, 3)))

    def by_all(adjoint):
        def run(x0, args, dt, t0, increments):
            model = DiffraxForward(forced, dt, args=args)
            return score(model, x0, adjoint, t0, increments=increments)

        point = (START / 10, jnp.asarray(0.8), jnp.asarray(0.02), jnp.asarray(0.3), increments)
        return jax.grad(run, argnums=(0, 1, 2, 3, 4))(*point)

    for found, exact in zip(by_all(BACKSOLVE), by_all(DIRECT), strict=True):
        np.testing.assert_allclose(found, exact, rtol=1e-7, atol=1e-9)


@pytest.mark.x64
def test_parameters_of_a_model_with_its_own_steps_are_differentiated():
    by_model = lambda adjoint: eqx.filter_grad(lambda m: score(m, START, adjoint))(Lorenz63(dt=0.002))  # noqa: E731
    found, exact = by_model(BACKSOLVE), by_model(DIRECT)
    for name in ("sigma", "rho", "beta"):
        np.testing.assert_allclose(getattr(found, name), getattr(exact, name), rtol=1e-6)


@pytest.mark.x64
def test_the_trajectory_is_the_models_own_to_the_last_bit():
    np.testing.assert_array_equal(*(rollout(Lorenz63(), START, 5, forward_adjoint=a) for a in (DIRECT, BACKSOLVE)))


def test_the_solver_of_the_specification_is_used():
    gradient = lambda adjoint: jax.grad(lambda x: score(Lorenz63(), x, adjoint))(START)  # noqa: E731
    exact = gradient(DIRECT)
    errors = [
        float(jnp.linalg.norm(gradient(diffrax.BacksolveAdjoint(solver=solver)) - exact))
        for solver in (diffrax.Euler(), diffrax.Tsit5())
    ]
    assert errors[0] > 30 * errors[1]


@pytest.mark.slow
@pytest.mark.x64
def test_adaptive_steps_backwards():
    spec = diffrax.BacksolveAdjoint(stepsize_controller=diffrax.PIDController(rtol=1e-9, atol=1e-9), max_steps=64)
    exact, found = (jax.grad(lambda x, a=a: score(Lorenz63(dt=0.002), x, a))(START) for a in (DIRECT, spec))
    np.testing.assert_allclose(found, exact, rtol=1e-6)


def kept(adjoint, n_substeps):
    """Temporary bytes of a compiled gradient, from XLA."""
    run = jax.jit(
        jax.grad(lambda x: jnp.sum(rollout(Lorenz96(400), x, 4, forward_adjoint=adjoint, n_substeps=n_substeps)))
    )
    return run.lower(jnp.ones(400)).compile().memory_analysis().temp_size_in_bytes


def test_memory_does_not_grow_with_the_steps_between_entries():
    short, long = kept(BACKSOLVE, 4), kept(BACKSOLVE, 64)
    assert long < 1.1 * short
    assert long < 0.1 * kept(DIRECT, 64)
    words = rollout_memory(Lorenz96(), jnp.ones(40), 4, forward_adjoint=BACKSOLVE, n_substeps=64)
    assert words.startswith("integrates the adjoint backwards: keeps the 5 entries (")


def test_goes_through_vmap_and_keeps_float32():
    states = jnp.stack([START, 0.9 * START]).astype(jnp.float32)
    gradient = jax.grad(lambda x: score(Lorenz63(), x, BACKSOLVE))
    together = jax.vmap(gradient)(states)
    assert together.dtype == jnp.float32
    np.testing.assert_allclose(together[1], gradient(states[1]), rtol=1e-3, atol=1e-4)


@pytest.mark.x64
def test_there_is_no_tangent_but_a_second_derivative():
    """Forward over reverse, as the gradient of an analysis takes it, differentiates the integration itself."""
    dx = jnp.array([0.3, -1.0, 0.6])
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(lambda x: score(Lorenz63(), x, BACKSOLVE), (START,), (dx,))
    products = [
        jax.jvp(jax.grad(lambda x, a=adjoint: score(Lorenz63(dt=0.002), x, a)), (START,), (dx,))[1]
        for adjoint in (BACKSOLVE, DIRECT)
    ]
    np.testing.assert_allclose(products[0], products[1], rtol=1e-6)
