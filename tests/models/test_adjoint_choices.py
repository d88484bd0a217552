"""Every minimiser adjoint gives the gradient of the analysis that finite differences give.

The analysis is differentiated with respect to all that it depends on at once: B, R, the observations, the background
and a parameter of the model. Of the two samples the second is one whose first trial step blows up.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optimistix as optx
import pytest

from vardax.adjoints.direct import DirectAdjoint
from vardax.adjoints.k_step import KStepAdjoint
from vardax.covariances.dense import DenseCovariance
from vardax.covariances.diagonal import DiagonalCovariance
from vardax.dynamics.discrete import DiscreteForward
from vardax.models.strong_fourdvar import StrongFourDVar
from vardax.models.threedvar import ThreeDVar
from vardax.obs_operators.identity import MaskedIdentity
from vardax.types import Batch1D

pytestmark = [pytest.mark.slow, pytest.mark.x64]

N, STEPS = 3, 60
MINIMISER_ADJOINTS = [optx.ImplicitAdjoint(), optx.RecursiveCheckpointAdjoint(), DirectAdjoint(), KStepAdjoint(STEPS)]
TIGHT = {"tol": 1e-11, "max_steps": STEPS}


class Cubic(eqx.Module):
    """x -> x + dt a x³ - dt roll(x): inf within a window a little outside of where it is used."""

    a: jax.Array

    def __call__(self, x, dt):
        return x + dt * (self.a * x**3 - 0.3 * jnp.roll(x, 1))


class Bent(eqx.Module):
    """x -> x + a x³, what 3DVar observes."""

    a: jax.Array

    def __call__(self, x):
        return x + self.a * x**3


def parts():
    """All that the analysis depends on; the second sample is far from the background."""
    random = np.random.default_rng(3)
    y = 0.3 * random.normal(size=(2, 4, N)) + np.array([[[0.1]], [[0.9]]]) * np.array([1.0, -0.8, 0.6])
    y[0, 1, 2] = y[1, 2, 0] = np.nan
    return {
        "B": jnp.asarray(np.eye(N) + 0.3),
        "R": jnp.asarray([0.02, 0.03, 0.02]),
        "y": jnp.asarray(y),
        "background": jnp.full(N, 0.1),
        "a": jnp.asarray(0.5),
    }


def four_dvar(given, adjoint):
    method = StrongFourDVar(
        DiscreteForward(Cubic(given["a"]), 0.1),
        MaskedIdentity(),
        given["background"],
        DenseCovariance(given["B"]),
        DiagonalCovariance(given["R"]),
        minimiser_adjoint=adjoint,
        n_substeps=4,
        **TIGHT,
    )
    return method, Batch1D.from_observations(given["y"])


def three_dvar(given, adjoint):
    method = ThreeDVar(
        Bent(given["a"]),
        given["background"],
        DenseCovariance(given["B"]),
        DiagonalCovariance(given["R"]),
        optx.LevenbergMarquardt(1e-12, 1e-12),
        adjoint,
        **TIGHT,
    )
    return method, Batch1D.from_observations(given["y"][:, :1])


METHODS = {"StrongFourDVar": four_dvar, "ThreeDVar": three_dvar}


def analysed(name, adjoint):
    """(score of the analysis, its status), from all that it depends on."""

    def score(given):
        method, batch = METHODS[name](given, adjoint)
        analysis = method.analyse(batch)
        return jnp.sum(jnp.sin(2 * analysis.state) * jnp.arange(1.0, 1 + N)[None]), analysis

    return score


def directions():
    """One direction in each of the parts; that of B is symmetric, and missing observations stay missing."""
    random = np.random.default_rng(4)
    found = jax.tree.map(lambda leaf: jnp.asarray(random.normal(size=leaf.shape)), parts())
    found["B"] = found["B"] + found["B"].T
    return {
        name: {other: jnp.where(name == other, d, jnp.zeros_like(d)) for other, d in found.items()} for name in found
    }


def along(gradient, direction):
    products = jax.tree.map(lambda g, d: jnp.sum(jnp.where(jnp.isnan(g), 0.0, g) * d), gradient, direction)
    return float(jax.tree.reduce(jnp.add, products))


@pytest.fixture(scope="module")
def differences():
    """The slope of the score in every direction, by central differences of fourth order: noise 1e-10 over 1e-4."""

    def slope(score, direction, step=1e-4):
        at = lambda h: float(score(jax.tree.map(lambda p, d: p + h * d, parts(), direction))[0])  # noqa: E731
        return (8 * (at(step) - at(-step)) - (at(2 * step) - at(-2 * step))) / (12 * step)

    scores = {name: jax.jit(analysed(name, optx.ImplicitAdjoint())) for name in METHODS}
    return {name: {part: slope(score, d) for part, d in directions().items()} for name, score in scores.items()}


def test_the_second_sample_has_a_first_step_that_blows_up():
    method, batch = four_dvar(parts(), optx.ImplicitAdjoint())
    problem = method.problem(batch)
    zero = problem.zero_control()
    costs = problem.cost(-problem.gradient(zero))  # the first trial of L-BFGS
    assert not jnp.isfinite(costs[1])
    analysis = method.analyse(batch)
    assert analysis.converged.all()
    assert (analysis.history.total[1, 1:3] == analysis.history.total[1, 0]).all()  # rejected


@pytest.mark.parametrize("adjoint", MINIMISER_ADJOINTS, ids=lambda a: type(a).__name__)
@pytest.mark.parametrize("name", METHODS)
def test_the_gradient_of_the_analysis_is_the_limit_of_differences(name, adjoint, differences):
    gradient, analysis = jax.jit(jax.grad(analysed(name, adjoint), has_aux=True))(parts())
    assert analysis.converged.all()
    found = {part: along(gradient, direction) for part, direction in directions().items()}
    for part, expected in differences[name].items():
        np.testing.assert_allclose(found[part], expected, rtol=2e-5, atol=2e-6, err_msg=part)


def test_a_few_live_steps_of_a_fast_minimiser_are_near_the_right_gradient(differences):
    gradient, _ = jax.jit(jax.grad(analysed("ThreeDVar", KStepAdjoint(6)), has_aux=True))(parts())
    expected = np.array(list(differences["ThreeDVar"].values()))
    found = np.array([along(gradient, direction) for direction in directions().values()])
    assert np.linalg.norm(found - expected) < 1e-3 * np.linalg.norm(expected)
