"""Crossing the intervals of a trajectory: against explicit loops, at uneven times, for models that depend on time."""

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import optimistix as optx
import pytest

from vardax.dynamics.discrete import DiscreteForward
from vardax.dynamics.lorenz96 import Lorenz96
from vardax.dynamics.neural_forward import NeuralForward
from vardax.priors.dynamical import checked_intervals
from vardax.priors.intervals import n_entries

RANDOM = np.random.default_rng(5)
T, N, STEPS = 5, 4, 3
X = RANDOM.normal(size=(T, N))
TS = np.array([1.0, 1.3, 1.4, 2.0, 2.1])
TIGHT = 1e-12 if jax.config.jax_enable_x64 else 1e-5


class Foreign:
    """A model of no package, whose step asks for dt and the time."""

    dt, state_signature = 0.1, None

    def step(self, state, dt, t0):
        return jax.tree.map(lambda leaf: leaf + dt * jnp.sin(leaf + t0), state)


def loop(x, start, length):
    """One interval of the foreign model by hand."""
    for k in range(STEPS):
        x = x + length * np.sin(x + start + k * length)
    return x


def intervals(forward=None, n_steps=STEPS, adjoint=None, t0=0.7):
    adjoint = optx.RecursiveCheckpointAdjoint() if adjoint is None else adjoint
    return checked_intervals(forward or Foreign(), n_steps, adjoint, t0, "Owner")


def starts_and_lengths(ts):
    if ts is None:
        return 0.7 + 0.1 * STEPS * np.arange(T - 1), np.full(T - 1, 0.1)
    return ts[:-1], np.diff(ts) / STEPS


@pytest.mark.parametrize("ts", [None, TS], ids=["steps of the model", "at times"])
def test_entry_by_entry_is_a_loop_over_the_entries(ts):
    run = intervals()
    found = run.entry_by_entry(jnp.asarray(X), run.checked_times(jnp.asarray(X), ts))
    starts, lengths = starts_and_lengths(ts)
    expected = [X[0], *(loop(x, *at) for x, *at in zip(X[:-1], starts, lengths, strict=True))]
    np.testing.assert_allclose(found, expected, rtol=TIGHT, atol=TIGHT)


@pytest.mark.parametrize("ts", [None, TS], ids=["steps of the model", "at times"])
def test_free_running_follows_from_the_first_entry(ts):
    run = intervals()
    found = run.free_running(jnp.asarray(X), run.checked_times(jnp.asarray(X), ts))
    expected = [X[0]]
    for at in zip(*starts_and_lengths(ts), strict=True):
        expected.append(loop(expected[-1], *at))
    np.testing.assert_allclose(found, expected, rtol=TIGHT, atol=TIGHT)


def test_a_state_may_be_a_pytree():
    run, tree = intervals(), {"a": jnp.asarray(X[:, :1]), "b": jnp.asarray(X[:, 1:])}
    for name in ("entry_by_entry", "free_running"):
        whole, parts = getattr(run, name)(jnp.asarray(X)), getattr(run, name)(tree)
        np.testing.assert_allclose(jnp.concatenate([parts["a"], parts["b"]], axis=1), whole, rtol=1e-6)


def test_one_entry_is_its_own_reconstruction():
    run, x = intervals(), jnp.asarray(X[:1])
    for ts in (None, jnp.zeros(1)):
        np.testing.assert_array_equal(run.entry_by_entry(x, ts), x)
        np.testing.assert_array_equal(run.free_running(x, ts), x)


def test_the_start_is_not_trained_and_the_times_are_those_of_the_state():
    gradient = jax.grad(lambda t0: jnp.sum(intervals(t0=t0).entry_by_entry(jnp.asarray(X))))(0.7)
    assert float(gradient) == 0
    x, run = jnp.asarray(X, "float32"), intervals()
    times = run.checked_times(x, TS + 1000)
    assert run.entry_by_entry(x).dtype == run.free_running(x, times).dtype == "float32"
    assert times.dtype == jnp.result_type(float)  # a difference of two times in single precision is not a step


ADJOINTS = {
    "direct": diffrax.DirectAdjoint(),
    "checkpoints": optx.RecursiveCheckpointAdjoint(checkpoints=2),
    "backsolve": diffrax.BacksolveAdjoint(),
}


@pytest.mark.slow
@pytest.mark.x64
def test_the_adjoints_agree():
    model, x = Lorenz96(N, 8.0, 0.01), jnp.asarray(X)
    ask = lambda adjoint: jax.grad(  # noqa: E731
        lambda s: jnp.sum((s - intervals(model, 2, adjoint).entry_by_entry(s)) ** 2)
    )(x)
    gradients = {name: ask(adjoint) for name, adjoint in ADJOINTS.items()}
    np.testing.assert_allclose(gradients["checkpoints"], gradients["direct"], rtol=1e-12)
    np.testing.assert_allclose(gradients["backsolve"], gradients["direct"], rtol=1e-4, atol=1e-4)


def test_bad_input_is_refused_in_words():
    x, run = jnp.asarray(X), intervals()
    with pytest.raises(ValueError, match=r"`ts` has shape \(3,\), expected \(5,\): one time for each entry"):
        run.checked_times(x, [0.0, 1.0, 2.0])
    with pytest.raises(
        ValueError, match="`ts` does not increase from each entry to the next .smallest difference -0.1"
    ):
        run.checked_times(x, [0.0, 1.0, 0.9, 2.0, 3.0])
    with pytest.raises(ValueError, match="expected .T, .state. with the same number T >= 1"):
        n_entries({"a": jnp.zeros((2, 3)), "b": jnp.zeros((3, 3))})
    with pytest.raises(ValueError, match="expected .T, .state."):
        n_entries(jnp.zeros((0, 3)))
    with pytest.raises(ValueError, match="`dt` is 0.2, beyond the stability limit"):
        intervals(Lorenz96(N)).checked_times(x, 0.6 * np.arange(T))
    with pytest.raises(ValueError, match="`dt` is 0.2, but the network predicts over 0.5"):
        intervals(NeuralForward(lambda s: s, 0.5)).checked_times(x, 0.6 * np.arange(T))
    backsolve = intervals(Lorenz96(N, 8.0, 0.01), adjoint=diffrax.BacksolveAdjoint())
    with pytest.raises(ValueError, match="BacksolveAdjoint, which runs steps of the model's own length only"):
        backsolve.checked_times(x, TS)
    with pytest.raises(ValueError, match="Owner: `n_steps` is 0, expected an integer of at least 1"):
        intervals(n_steps=0)
    with pytest.raises(ValueError, match=r"Owner: `t0` has shape \(2,\), expected a number"):
        intervals(t0=[0.0, 1.0])
    with pytest.raises(TypeError, match="`forward` is a function, expected a model with"):
        intervals(lambda s: s)
    with pytest.raises(ValueError, match="`forward_adjoint` is BacksolveAdjoint.*a discrete step has none"):
        intervals(DiscreteForward(lambda s: s, 1.0), adjoint=diffrax.BacksolveAdjoint())
