"""A lambda that changes at each call is compiled each time: the third time, a warning says where it is."""

import functools
import warnings

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest

from vardax.covariances.diagonal import DiagonalCovariance
from vardax.dynamics.discrete import DiscreteForward
from vardax.models import recompilation
from vardax.models.optimal_interpolation import OptimalInterpolation
from vardax.models.recompilation import RecompilationWarning, note_compilation
from vardax.models.strong_fourdvar import StrongFourDVar
from vardax.obs_operators.callable import CallableObs
from vardax.obs_operators.identity import MaskedIdentity
from vardax.types import Batch1D

N = 3
UNIT = DiagonalCovariance(jnp.ones(N))


@pytest.fixture(autouse=True)
def nothing_noted(monkeypatch):
    monkeypatch.setattr(recompilation, "_functions_of", type(recompilation._functions_of)())


def window_method(forward, obs_op=None):
    return StrongFourDVar(forward, MaskedIdentity() if obs_op is None else obs_op, jnp.zeros(N), UNIT, UNIT)


def noted(*methods, batch=None):
    """The warnings that the compilations of these methods bring."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for method in methods:
            note_compilation(method, batch)
    return [str(warning.message) for warning in caught]


def decaying(rate=0.9):
    return DiscreteForward(lambda x: rate * x, 1.0)


def test_a_new_lambda_in_each_call_is_named_once():
    """The real thing: analyses, each with a method of its own."""
    batch = Batch1D.from_observations(np.ones((1, N)))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(4):
            OptimalInterpolation(CallableObs(lambda x: 2 * x), jnp.zeros(N), UNIT, UNIT).analyse(batch)
    (warning,) = caught
    assert warning.category is RecompilationWarning
    assert warning.filename == __file__
    words = "OptimalInterpolation: compiled 3 times for the same shapes, because `obs_op.fn` was a new function"
    assert words in str(warning.message)
    assert "eqx.Module" in str(warning.message)


def test_a_method_that_is_kept_does_not_warn(count_compilations):
    batch = Batch1D.from_observations(np.ones((1, N)))
    model = OptimalInterpolation(CallableObs(lambda x: 2 * x), jnp.zeros(N), UNIT, UNIT)
    model.analyse(batch)
    with count_compilations() as compiled, warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(5):
            model.with_(prior_mean=jnp.ones(N)).analyse(batch)
    assert compiled.n == 0, compiled.names


@pytest.mark.parametrize(
    ("make", "path"),
    [
        (lambda rate: window_method(decaying(rate)), "forward.step_fn"),
        (lambda rate: window_method(DiscreteForward(functools.partial(lambda a, x: a * x, rate), 1.0)), None),
        (lambda rate: window_method(decaying(), CallableObs(lambda x: rate * x)), "obs_op.fn"),
    ],
    ids=["model", "partial", "operator"],
)
def test_the_field_is_named(make, path):
    messages = noted(*(make(0.5) for _ in range(4)))
    assert len(messages) == 1
    assert f"`{path}`" in messages[0] or path is None
    assert "forward.step_fn" in messages[0]


def test_an_object_without_an_equality_is_named_too():
    class Model:
        dt = 1.0

        def step(self, state, dt):
            return state

    assert "`forward`" in noted(*(window_method(Model()) for _ in range(3)))[0]
    function = lambda: lx.FunctionLinearOperator(lambda v: v, jax.ShapeDtypeStruct((N,), UNIT.dtype), lx.symmetric_tag)  # noqa: E731
    priors = (window_method(decaying()).with_(prior_cov_op=function()) for _ in range(3))
    assert "`prior_cov_op.fn" in noted(*priors)[0]


def test_what_has_to_be_compiled_is_no_reason_to_warn():
    kept = decaying()
    shapes = [jnp.ones(n) for n in range(1, 6)]
    assert not [message for shape in shapes for message in noted(window_method(decaying()), batch=shape)]
    assert not noted(*(window_method(DiscreteForward(kept.step_fn, dt)) for dt in (1.0, 0.5, 0.25, 0.125)))
    assert not noted(*(window_method(kept).with_(max_steps=n) for n in (10, 20, 30, 40)))
    others = (lambda x: x, lambda x: 2 * x, lambda x: 3 * x)
    assert not noted(*(window_method(DiscreteForward(step, 1.0)) for step in others))
    assert not noted(*[window_method(kept)] * 5)


def test_arrays_are_traced_and_no_reason_to_warn():
    class Decay(eqx.Module):
        rate: jax.Array

        def __call__(self, state):
            return self.rate * state

    assert not noted(*(window_method(DiscreteForward(Decay(jnp.asarray(r)), 1.0)) for r in (0.1, 0.2, 0.3, 0.4)))


def test_only_so_many_programs_are_remembered():
    for number in range(recompilation.REMEMBERED + 10):
        note_compilation(window_method(decaying()), jnp.ones(1), number)
    assert len(recompilation._functions_of) == recompilation.REMEMBERED
