"""A run in pieces is the run in one, is compiled once, and tells of its progress."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vardax.covariances.diagonal import DiagonalCovariance
from vardax.cycle.state import DAState
from vardax.dynamics.lorenz96 import Lorenz96
from vardax.experiments.twin import Row, assimilate, simulate
from vardax.models.optimal_interpolation import OptimalInterpolation
from vardax.obs_operators.identity import MaskedIdentity

N = 6


def make_twin(n_cycles):
    return simulate(
        jax.random.key(0),
        Lorenz96(N),
        MaskedIdentity(),
        DiagonalCovariance(jnp.full(N, 0.5)),
        first_guess=jnp.ones(N),
        x0_variance=0.1,
        n_cycles=n_cycles,
    )


def row(twin):
    model = OptimalInterpolation(twin.obs_op, twin.first_guess, DiagonalCovariance(jnp.ones(N)), twin.obs_cov_op)
    return Row("OptimalInterpolation", "", twin.forward, model)


@pytest.mark.parametrize("n_cycles", [3, 23])
def test_pieces_make_the_whole(n_cycles):
    twin, heard = make_twin(n_cycles), []
    estimate = assimilate(twin, row(twin), heard.append)
    cycle = row(twin).cycle(twin.observations, n_cycles)
    state, da_state = cycle(twin.first_guess, DAState())
    np.testing.assert_allclose(estimate.history.analysis, da_state.extras["history"].analysis, rtol=1e-5)
    assert estimate.history.analysis.shape == (n_cycles, N)
    assert sum(heard) >= n_cycles
    assert estimate.compile_seconds >= 0
    assert estimate.run_seconds > 0


def test_a_run_compiles_its_cycle_once(count_compilations):
    twin = make_twin(40)
    with count_compilations() as compiled:
        assimilate(twin, row(twin))
    assert sum("_scan" in name for name in compiled.names) == 1
