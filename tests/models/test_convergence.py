"""A posterior is refused where the analysis is not the minimum, by a message that says why and what to do."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vardax.covariances.diagonal import DiagonalCovariance
from vardax.dynamics.discrete import DiscreteForward
from vardax.minimisers.gauss_newton import IncrementalConfig
from vardax.models.incremental_fourdvar import IncrementalFourDVar
from vardax.models.threedvar import ThreeDVar
from vardax.obs_operators.callable import CallableObs
from vardax.types import Batch1D, ConvergenceError, ConvergenceWarning

N = 3
B, R = DiagonalCovariance(np.ones(N)), DiagonalCovariance(np.full(N, 0.01))
BATCH = Batch1D.from_observations(np.array([[4.0, 1.0, -3.0], [1.0, 8.0, 1.0]]))
CURVED = CallableObs(lambda x: x + 0.3 * x**3)
STOPPED = ThreeDVar(CURVED, np.ones(N), B, R, max_steps=2)


def test_an_analysis_that_did_not_converge_has_no_posterior():
    words = (
        r"ThreeDVar.posterior: 2 of 2 analyses did not converge \(status MAX_STEPS\).*raise `max_steps`.*`force=True`"
    )
    with pytest.raises(ConvergenceError, match=words):
        STOPPED.posterior(BATCH)


def test_force_takes_it_as_it_is():
    posterior = STOPPED.posterior(BATCH, force=True)
    assert not posterior.provenance["converged"].any()
    assert np.all(np.isfinite(posterior.std()))


def test_a_cost_that_is_not_finite_has_no_posterior():
    model = ThreeDVar(CallableObs(lambda x: jnp.sqrt(x)), np.full(N, -1.0), B, R)
    words = r"status NON_FINITE.*look for what makes the model or the operator non-finite"
    with pytest.raises(ConvergenceError, match=words):
        model.posterior(BATCH)


def incremental(config, obs_op=CURVED):
    return IncrementalFourDVar(DiscreteForward(lambda x: x, 1.0), obs_op, np.ones(N), B, R, config)


WINDOW = Batch1D.from_observations(np.asarray(BATCH.input)[:, None])


@pytest.mark.slow
def test_an_incremental_method_stops_by_design():
    """After its loops, with J lowered: the warning of the analysis, and the posterior around it."""
    with pytest.warns(ConvergenceWarning, match="stopped at max_steps"):
        posterior = incremental(IncrementalConfig(n_outer=1)).posterior(WINDOW)
    assert np.all(posterior.std() < 1.0)
    assert not posterior.provenance["converged"].any()


@pytest.mark.slow
def test_one_that_got_nowhere_is_refused():
    never = CallableObs(lambda x: jnp.where(jnp.abs(x - 1.0) < 1e-9, x, 1e3 * (1 + x**2)))
    with pytest.raises(ConvergenceError, match=r"allow more loops in `config`, because none lowered the cost"):
        incremental(IncrementalConfig(), never).posterior(WINDOW)


def test_under_tracing_there_is_nothing_to_refuse():
    std = jax.jit(lambda b: STOPPED.posterior(b).std())(BATCH)
    assert std.shape == (2, N)
