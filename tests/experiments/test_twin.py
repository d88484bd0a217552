"""A run in pieces is the run in one, is compiled once, and tells of its progress."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vardax.covariances.diagonal import DiagonalCovariance
from vardax.cycle.state import DAState
from vardax.dynamics.lorenz96 import Lorenz96
from vardax.experiments.twin import Row, assimilate, climatology_forward, posterior_spread, simulate
from vardax.models.optimal_interpolation import OptimalInterpolation
from vardax.models.strong_fourdvar import StrongFourDVar
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


def test_the_spread_is_that_of_the_posterior():
    """B = I and R = 0.5 I, all observed: P = I / 3."""
    twin = make_twin(12)
    estimate = assimilate(twin, row(twin))
    assert posterior_spread(twin, estimate, 2) == pytest.approx(np.sqrt(1 / 3), rel=1e-5)


def test_the_spread_of_a_window_is_that_of_its_end():
    twin = make_twin(12)
    model = StrongFourDVar(
        twin.forward, twin.obs_op, twin.first_guess, DiagonalCovariance(jnp.ones(N)), twin.obs_cov_op
    )
    estimate = assimilate(twin, Row("StrongFourDVar", "", twin.forward, model, takes_window=True))
    variances = []
    for start in estimate.history.analysis[:-1]:
        # The linear oracle at the background: (M Mᵀ)^-1 and R^-1 added.
        M = np.asarray(jax.jacobian(lambda x: twin.forward.step(x, twin.forward.dt))(jnp.asarray(start)))
        variances.append(np.diag(np.linalg.inv(np.linalg.inv(M @ M.T) + 2 * np.eye(N))))
    assert posterior_spread(twin, estimate, 1) == pytest.approx(np.sqrt(np.mean(variances)), rel=0.03)


def test_a_row_without_a_method_says_its_spread_itself():
    twin = make_twin(5)
    free = Row("climatology", "", climatology_forward(twin), spread=2.0)
    assert posterior_spread(twin, assimilate(twin, free), 1) == 2.0
