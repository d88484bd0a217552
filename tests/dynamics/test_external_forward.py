"""A numpy model in 4DVar: the same answers as its JAX twin, and what is missing is named when it is needed."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optimistix
import pytest

from vardax.covariances.dense import DenseCovariance
from vardax.covariances.diagonal import DiagonalCovariance
from vardax.dynamics import DiscreteForward, ExternalForward, rollout
from vardax.models.strong_fourdvar import StrongFourDVar
from vardax.obs_operators.identity import MaskedIdentity
from vardax.posterior.laplace import LaplaceCovariance
from vardax.protocols import ForwardModel
from vardax.types import Batch1D

RANDOM = np.random.default_rng(0)
A = RANDOM.normal(size=(3, 3))
X = jnp.asarray(RANDOM.normal(size=3))
STATES = jnp.stack([X, 0.5 * X])
CLOSE = {"rtol": 1e-12, "atol": 1e-14} if jax.config.jax_enable_x64 else {"rtol": 1e-4, "atol": 1e-5}


def step(x, dt):
    return x + dt * np.sin(A @ x)


def tangent(x, dx, dt):
    return dx + dt * np.cos(A @ x) * (A @ dx)


def adjoint(x, a, dt):
    return a + dt * A.T @ (np.cos(A @ x) * a)


EXTERNAL = ExternalForward(step, tangent, adjoint, dt=0.2)
TWIN = DiscreteForward(lambda x, dt: x + dt * jnp.sin(jnp.asarray(A, x.dtype) @ x), 0.2)


def score(model, x):
    return jnp.sum(jnp.sin(rollout(model, x, 3)) * jnp.arange(1.0, 4.0, dtype=x.dtype)[None])


def linearised(model, x):
    """The gradient through `linearize` and its transpose, which Gauss-Newton takes."""
    one, slope = jax.linearize(lambda x: score(model, x), x)
    return jax.linear_transpose(slope, x)(jnp.ones_like(one))[0]


DERIVATIVES = {
    "value": lambda model: score(model, X),
    "gradient": lambda model: jax.grad(lambda x: score(model, x))(X),
    "compiled gradient": lambda model: jax.jit(jax.grad(lambda x: score(model, x)))(X),
    "tangent": lambda model: jax.jvp(lambda x: score(model, x), (X,), (2 * X,))[1],
    "linearise and transpose": lambda model: linearised(model, X),
    "value of many": lambda model: jax.vmap(lambda x: score(model, x))(STATES),
    "gradient of many": lambda model: jax.vmap(jax.grad(lambda x: score(model, x)))(STATES),
    "tangent of many": lambda model: jax.vmap(lambda x: jax.jvp(lambda y: score(model, y), (x,), (X,))[1])(STATES),
    "linearise many": lambda model: jax.vmap(lambda x: linearised(model, x))(STATES),
    "rematerialised": lambda model: jax.grad(
        lambda x: jnp.sum(
            rollout(model, x, 4, forward_adjoint=optimistix.RecursiveCheckpointAdjoint(checkpoints=2)) ** 2
        )
    )(X),
}


@pytest.mark.parametrize("name", DERIVATIVES)
def test_every_kind_of_derivative_is_that_of_the_twin(name):
    np.testing.assert_allclose(DERIVATIVES[name](EXTERNAL), DERIVATIVES[name](TWIN), **CLOSE)


def strong(forward, **options):
    B = DenseCovariance(0.4 * np.eye(3) + 0.1)
    return StrongFourDVar(
        forward, MaskedIdentity(), np.full(3, 0.3), B, DiagonalCovariance(np.full(3, 0.1)), n_substeps=2, **options
    )


def window():
    y = np.random.default_rng(1).normal(size=(2, 4, 3))
    y[0, 2, 1] = np.nan
    return Batch1D.from_observations(y)


@pytest.mark.slow
@pytest.mark.parametrize("minimiser", [None, optimistix.GaussNewton(1e-8, 1e-8)], ids=["L-BFGS", "Gauss-Newton"])
def test_4dvar_with_a_numpy_model_is_4dvar_with_its_twin(minimiser):
    options = {"minimiser": minimiser, "tol": 1e-8 if jax.config.jax_enable_x64 else 1e-4, "max_steps": 60}
    ours, twin = (strong(forward, **options).analyse(window()) for forward in (EXTERNAL, TWIN))
    assert ours.converged.all()
    close = {"rtol": 1e-6, "atol": 1e-7} if jax.config.jax_enable_x64 else {"rtol": 2e-2, "atol": 2e-3}
    np.testing.assert_allclose(ours.state, twin.state, **close)
    np.testing.assert_allclose(ours.trajectory, twin.trajectory, **close)


@pytest.mark.slow
def test_the_posterior_is_that_of_the_twin():
    ours, twin = (
        LaplaceCovariance()(method.analyse(window()), method, window()).std()
        for method in map(strong, (EXTERNAL, TWIN))
    )
    np.testing.assert_allclose(ours, twin, rtol=1e-3)


@pytest.mark.slow
def test_an_adjoint_alone_is_enough_for_gradients():
    model = ExternalForward(step, adjoint=adjoint, dt=0.2)
    np.testing.assert_allclose(DERIVATIVES["gradient of many"](model), DERIVATIVES["gradient of many"](TWIN), **CLOSE)
    assert strong(model).analyse(window()).state.shape == (2, 3)


def test_a_tangent_alone_is_enough_for_forward_mode():
    model = ExternalForward(step, tangent, dt=0.2)
    np.testing.assert_allclose(DERIVATIVES["tangent"](model), DERIVATIVES["tangent"](TWIN), **CLOSE)


def test_a_model_without_either_can_be_run():
    model = ExternalForward(step, dt=0.2)
    assert isinstance(model, ForwardModel)
    assert model.tangent is None
    assert model.adjoint is None
    np.testing.assert_allclose(rollout(model, X, 3), rollout(TWIN, X, 3), **CLOSE)


@pytest.mark.parametrize(
    ("given", "name", "words"),
    [
        ({}, "gradient", "`adjoint` is missing, and the adjoint model is needed here .* `adjoint\\(state, costate\\)`"),
        ({"tangent": tangent}, "gradient of many", "`adjoint` is missing"),
        ({"tangent": tangent}, "linearise and transpose", "`adjoint` is missing"),
        ({}, "tangent", "`tangent` is missing, and the tangent-linear model is needed here .* L-BFGS"),
        ({"adjoint": adjoint}, "tangent of many", "`tangent` is missing"),
    ],
)
def test_what_is_missing_is_named_when_it_is_needed(given, name, words):
    with pytest.raises(ValueError, match=f"ExternalForward: {words}"):
        DERIVATIVES[name](ExternalForward(step, dt=0.2, **given))


def test_what_is_missing_in_a_method_is_named():
    with pytest.raises(ValueError, match="ExternalForward: `adjoint` is missing"):
        strong(ExternalForward(step, dt=0.2)).analyse(window())
    with pytest.raises(ValueError, match="ExternalForward: `tangent` is missing"):
        strong(ExternalForward(step, adjoint=adjoint, dt=0.2), minimiser=optimistix.GaussNewton(1e-6, 1e-6)).analyse(
            window()
        )


def test_second_derivatives_and_those_by_dt_are_refused_with_the_reason():
    with pytest.raises(ValueError, match="a second derivative is asked for, and `adjoint` is known at a state only"):
        jax.jvp(jax.grad(lambda x: score(EXTERNAL, x)), (X,), (X,))
    with pytest.raises(ValueError, match="the derivative with respect to `dt` is not known"):
        jax.grad(lambda dt: jnp.sum(EXTERNAL.step(X, dt)))(jnp.asarray(0.2))


def test_trees_in_float32_with_time_stay_so_and_may_be_overwritten():
    def driven(state, dt, *, t0):
        state["x"] += dt * state["v"]  # the caller's own arrays
        state["v"] -= dt * np.cos(t0).astype(np.float64)
        return state

    state = {"x": jnp.ones(2, jnp.float32), "v": jnp.ones(2, jnp.float32)}
    states = rollout(ExternalForward(driven, dt=0.5), state, 2, t0=1.0)
    assert {leaf.dtype for leaf in jax.tree.leaves(states)} == {jnp.dtype("float32")}
    np.testing.assert_allclose(states["v"][:, 0], [1.0, 1 - 0.5 * np.cos(1.0), 1 - 0.5 * (np.cos(1.0) + np.cos(1.5))])
    np.testing.assert_array_equal(state["x"], 1.0)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [(lambda x: x[1:], r"`step` returned shape \(2,\), expected \(3,\)"), (lambda x: (x, x), "returned the structure")],
)
def test_a_step_that_returns_something_else_says_so(wrong, words):
    with pytest.raises(Exception, match=f"ExternalForward: .*{words}|{words}"):
        jax.block_until_ready(rollout(ExternalForward(wrong), X, 1))


def test_a_second_window_does_not_compile_and_another_function_is_another_model(count_compilations):
    run = eqx.filter_jit(lambda model, x: model.step(x, model.dt))
    first, other = run(EXTERNAL, X), 2 * X
    with count_compilations() as compiled:
        run(ExternalForward(step, tangent, adjoint, dt=0.2), other).block_until_ready()
    assert compiled.n == 0, compiled.names
    assert not np.allclose(run(ExternalForward(lambda x, dt: x - dt, dt=0.2), X), first)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"step": None}, "`step` is None, expected a function"),
        ({"tangent": 3}, r"`tangent` is 3, expected a function \(state, vector\)"),
        ({"adjoint": lambda x: x}, "`adjoint` has the signature"),
    ],
)
def test_bad_arguments_are_named(arguments, words):
    with pytest.raises(TypeError, match=words):
        ExternalForward(**{"step": step, **arguments})
