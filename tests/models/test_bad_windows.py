"""Windows that do not fit, models that change what they are given, models that blow up: words, or a status."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vardax.covariances.diagonal import DiagonalCovariance
from vardax.dynamics.discrete import DiscreteForward
from vardax.models.incremental_fourdvar import IncrementalFourDVar
from vardax.models.strong_fourdvar import StrongFourDVar
from vardax.models.weak_fourdvar import WeakFourDVar
from vardax.obs_operators.identity import MaskedIdentity
from vardax.types import Batch1D, Status

N = 3
UNIT = DiagonalCovariance(jnp.ones(N))
METHODS = [StrongFourDVar, IncrementalFourDVar, WeakFourDVar]
every_method = pytest.mark.parametrize("method", METHODS, ids=lambda m: m.__name__)


def build(method, step, mean=0.5, **options):
    slots = (DiscreteForward(step, 0.1), MaskedIdentity(), jnp.full(N, mean), UNIT, UNIT)
    return method(*slots, *((UNIT,) if method is WeakFourDVar else ()), **options)


def window(value=1.0, entries=4):
    return Batch1D.from_observations(np.full((1, entries, N), value))


@every_method
@pytest.mark.parametrize(
    ("step", "error", "words"),
    [
        (lambda x: x[:-1], ValueError, r"returns shape \(2,\), expected \(3,\)"),
        (lambda x: x.astype(jnp.float16), TypeError, "returns dtype float16, expected float"),
        (lambda x: (x, x), TypeError, "returns the structure"),
    ],
    ids=["shape", "dtype", "structure"],
)
def test_a_model_that_changes_its_state_is_refused(method, step, error, words):
    with pytest.raises(error, match=words):
        build(method, step).analyse(window())


@every_method
def test_a_window_of_another_length_is_refused(method):
    with pytest.raises(ValueError, match="4 time entries, expected 7, because `n_steps` is 6"):
        build(method, lambda x: x, n_steps=6).analyse(window())


@pytest.mark.slow
@every_method
def test_a_background_that_blows_up_comes_back_finite_with_a_status(method):
    """The model overflows from wherever it starts, so that no state of the window has a cost."""
    analysis = build(method, lambda x: x * 1e30 * jnp.exp(jnp.abs(x) * 1e3), mean=5.0).analyse(window())
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((analysis.state, analysis.control)))
    assert Status(int(analysis.status[0])) is Status.NON_FINITE
    assert not analysis.converged.any()
    state = analysis.state[0] if method is WeakFourDVar else analysis.state
    np.testing.assert_array_equal(state, np.full((1, N), 5.0))


@pytest.mark.slow
@every_method
def test_a_trial_that_blows_up_leaves_the_last_finite_iterate(method):
    """Tame at the background, inf beyond 2, where the observations pull."""
    analysis = build(method, lambda x: jnp.where(jnp.abs(x) > 2, jnp.inf, x)).analyse(window(30.0))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((analysis.state, analysis.trajectory)))
    assert np.isfinite(analysis.cost.last.total).all()
    assert np.all(analysis.cost.last.total <= analysis.cost.first.total)
    assert not analysis.converged.any()
    assert Status(int(analysis.status[0])) is not Status.CONVERGED
