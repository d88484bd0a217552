"""Biases of the model and of the observations: what they add, and what is estimated of them."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vardax.covariances.dense import DenseCovariance
from vardax.covariances.diagonal import DiagonalCovariance
from vardax.dynamics.diffrax_forward import DiffraxForward
from vardax.dynamics.discrete import DiscreteForward
from vardax.dynamics.lorenz96 import Lorenz96
from vardax.dynamics.rollout import rollout
from vardax.minimisers.closed_form import closed_form_analysis
from vardax.minimisers.gauss_newton import IncrementalConfig
from vardax.models.biases import ForcingBias, InstrumentBias, ObservationBias
from vardax.models.incremental_fourdvar import IncrementalFourDVar
from vardax.models.joint_controls import as_joint_control
from vardax.models.strong_fourdvar import StrongFourDVar
from vardax.obs_operators.linear import LinearObs
from vardax.types import Batch1D

X64 = jax.config.jax_enable_x64
CLOSE = {"rtol": 1e-6, "atol": 1e-7} if X64 else {"rtol": 2e-3, "atol": 2e-3}
STATE = jnp.asarray(np.random.default_rng(0).normal(size=8) + 4)


def after(model, state=STATE, n_steps=20):
    return rollout(model, state, n_steps)[-1]


def test_a_forcing_bias_is_added_at_each_step():
    model = ForcingBias(0.0, 1.0).model(DiscreteForward(lambda x, dt: 2 * x, 0.5), jnp.asarray(3.0))
    np.testing.assert_allclose(after(model, jnp.ones(2), 2), 4.0 + 2 * 1.5 + 1.5)
    field = ForcingBias(np.zeros(2), 1.0).model(DiscreteForward(lambda x: x, 0.5), jnp.array([0.0, 2.0]))
    np.testing.assert_allclose(after(field, jnp.ones(2), 2), [1.0, 3.0])
    assert model.state_signature is None


def test_a_forcing_bias_is_the_forcing_of_the_model_to_first_order():
    """On Lorenz-96, beside the bias in the forcing itself (`where`), which is what a scalar model bias of OOPS is."""
    gap = {}
    for dt in (0.02, 0.01):
        model, bias = Lorenz96(8, dt=dt), jnp.asarray(0.5)
        inside = ForcingBias(0.0, 1.0, where=lambda m: m.forcing).model(model, bias)
        np.testing.assert_allclose(inside.forcing, 8.5)
        n_steps = round(0.4 / dt)
        exact = after(inside, n_steps=n_steps)
        gap[dt] = np.max(np.abs(after(ForcingBias(0.0, 1.0).model(model, bias), n_steps=n_steps) - exact))
        assert np.max(np.abs(exact - after(model, n_steps=n_steps))) > 0.1
    assert gap[0.02] < 0.02
    assert 1.6 < gap[0.02] / gap[0.01] < 2.4


def test_a_biased_model_may_depend_on_time_be_a_pytree_or_a_vector_field():
    in_time = DiscreteForward(lambda x, dt, *, t0: x + dt * t0, 1.0)
    model = ForcingBias(0.0, 1.0).model(in_time, jnp.asarray(10.0))
    np.testing.assert_allclose(rollout(model, jnp.zeros(1), 3, t0=5.0)[-1], 5 + 6 + 7 + 30)
    tree = DiscreteForward(lambda s: s, 1.0)
    state, bias = {"a": jnp.zeros(2), "b": jnp.zeros(())}, {"a": jnp.array([1.0, 2.0]), "b": jnp.asarray(3.0)}
    found = rollout(ForcingBias(bias, 1.0).model(tree, bias), state, 2)
    np.testing.assert_allclose(found["a"][-1], [2.0, 4.0])
    np.testing.assert_allclose(found["b"][-1], 6.0)
    one = rollout(ForcingBias(0.0, 1.0).model(tree, jnp.asarray(1.0)), state, 2)
    np.testing.assert_allclose(one["a"][-1], 2.0)
    field = ForcingBias(0.0, 1.0).model(DiffraxForward(lambda t, y, args: -y, 0.1), jnp.asarray(1.0))
    np.testing.assert_allclose(after(field, jnp.zeros(1), 1), 0.1, rtol=1e-6)


# -- estimation, against the dense formula ---------------------------------------------------------------------------

N, M, ENTRIES, DT = 3, 4, 5, 0.5
RANDOM = np.random.default_rng(7)
A = np.linalg.qr(RANDOM.normal(size=(N, N)))[0]
H, X_B = RANDOM.normal(size=(M, N)), RANDOM.normal(size=N)
ROOT = RANDOM.normal(size=(M, M))
R, B = 0.1 * (ROOT @ ROOT.T + np.eye(M)), 0.5 * np.eye(N) + 0.2
Y = RANDOM.normal(size=(1, ENTRIES, M))
Y[0, 2, 1] = np.nan
INSTRUMENT = np.broadcast_to(np.array([0, 0, 1, 1]), Y.shape)
BATCH = Batch1D.from_observations(Y, instrument=INSTRUMENT)


def build(joint, method=StrongFourDVar, **options):
    forward = DiscreteForward(lambda x: jnp.asarray(A, x.dtype) @ x, DT)
    slots = (forward, LinearObs(H), X_B, DenseCovariance(B), DenseCovariance(R))
    return method(*slots, joint=joint, tol=1e-9 if X64 else 1e-5, **options)


def dense(columns, mean, variances):
    """theta by the textbook formula, from the derivative of the predictions (ENTRIES, M, k) with respect to it."""
    G = np.stack([H @ np.linalg.matrix_power(A, t) for t in range(ENTRIES)])
    G = np.concatenate([G, columns], axis=2).reshape(ENTRIES * M, -1)
    prior = np.zeros((len(G[0]), len(G[0])))
    prior[:N, :N], prior[N:, N:] = B, np.diag(variances)
    seen = np.isfinite(Y.ravel())
    G, error, m = G[seen], np.kron(np.eye(ENTRIES), R)[np.ix_(seen, seen)], np.concatenate([X_B, mean])
    return (m + prior @ G.T @ np.linalg.solve(G @ prior @ G.T + error, Y.ravel()[seen] - G @ m))[N:]


def forcing_column():
    """d(prediction)/db of a scalar forcing bias."""
    sums = [np.zeros(N)]
    for _ in range(1, ENTRIES):
        sums.append(A @ sums[-1] + DT * np.ones(N))
    return np.stack([H @ s for s in sums])[:, :, None]


COLUMNS = {
    "scalar": (ObservationBias(0.2, 0.3), np.ones((ENTRIES, M, 1)), [0.2], [0.3]),
    "entry": (ObservationBias(np.zeros(M), 0.3), np.tile(np.eye(M), (ENTRIES, 1, 1)), np.zeros(M), np.full(M, 0.3)),
    "instrument": (
        InstrumentBias(np.zeros(2), np.array([0.3, 0.1])),
        np.tile(np.repeat(np.eye(2), 2, axis=0), (ENTRIES, 1, 1)),
        np.zeros(2),
        [0.3, 0.1],
    ),
    "forcing": (ForcingBias(0.1, 0.4), forcing_column(), [0.1], [0.4]),
}


@pytest.mark.parametrize("name", COLUMNS)
def test_a_bias_is_what_the_dense_formula_says(name):
    joint, columns, mean, variances = COLUMNS[name]
    solve = eqx.filter_jit(lambda problem: problem.map_samples(lambda one: closed_form_analysis(one, 1e-6)))
    theta = solve(build(joint).problem(BATCH)).state[1]
    np.testing.assert_allclose(np.ravel(theta[0]), dense(columns, mean, variances), **CLOSE)


@pytest.mark.slow
def test_model_and_observation_bias_together_with_a_simpler_inner_model():
    """The two of OOPS' L95 in one control; the identity as inner model takes H alone, and dt b per interval."""
    joint = {"model": ForcingBias(0.0, 0.4), "observations": ObservationBias(0.0, 0.3)}
    found = build(joint, IncrementalFourDVar, config=IncrementalConfig(cg_rtol=1e-12)).analyse(BATCH)
    theta = dense(np.concatenate([forcing_column(), np.ones((ENTRIES, M, 1))], axis=2), np.zeros(2), [0.4, 0.3])
    np.testing.assert_allclose(found.state[1]["model"][0], theta[0], **CLOSE)
    np.testing.assert_allclose(found.state[1]["observations"][0], theta[1], **CLOSE)
    fgat = IncrementalConfig(n_outer=1, cg_rtol=1e-12, inner_forward=DiscreteForward(lambda x: x, DT))
    step = build(joint, IncrementalFourDVar, config=fgat).analyse(BATCH)
    inner = [H @ np.concatenate([np.eye(N), t * DT * np.ones((N, 1))], axis=1) for t in range(ENTRIES)]
    G = np.concatenate([np.stack(inner), np.ones((ENTRIES, M, 1))], axis=2).reshape(ENTRIES * M, -1)
    prior = np.diag([0.0] * N + [0.4, 0.3])
    prior[:N, :N] = B
    seen = np.isfinite(Y.ravel())
    d = (Y[0] - np.stack([H @ np.linalg.matrix_power(A, t) @ X_B for t in range(ENTRIES)])).ravel()[seen]
    S = G[seen] @ prior @ G[seen].T + np.kron(np.eye(ENTRIES), R)[np.ix_(seen, seen)]
    increment = prior @ G[seen].T @ np.linalg.solve(S, d)
    np.testing.assert_allclose(step.state[0][0], X_B + increment[:N], **CLOSE)
    np.testing.assert_allclose(step.state[1]["model"][0], increment[N], **CLOSE)


# -- bad input -------------------------------------------------------------------------------------------------------


def test_biases_of_the_wrong_shape_are_refused():
    with pytest.raises(ValueError, match=r"the bias has shape \(2,\), expected \(\), \(4,\) \(one entry\) or \(5, 4\)"):
        build(ObservationBias(np.zeros(2), 0.3)).analyse(BATCH)
    with pytest.raises(ValueError, match=r"there are biases of shape \(3,\) and 2 instruments"):
        build(InstrumentBias(np.zeros(3), 0.3)).analyse(BATCH)
    with pytest.raises(ValueError, match="observations say theirs by `instrument=`"):
        build(InstrumentBias(np.zeros(1), 0.3)).analyse(Batch1D.from_observations(Y))
    with pytest.raises(ValueError, match=r"ForcingBias: the bias has shape \(2,\), expected \(\) or \(3,\)"):
        build(ForcingBias(np.zeros(2), 0.3)).analyse(BATCH)
    with pytest.raises(ValueError, match="`joint` cannot make the model of theta from DiscreteForward"):
        build(ForcingBias(0.0, 0.3, where=lambda model: model.forcing)).analyse(BATCH)


@pytest.mark.parametrize("joint", [3.0, [], {"a": 1}, DiagonalCovariance([1.0])])
def test_what_is_no_joint_control_is_refused(joint):
    with pytest.raises(TypeError, match=r"expected JointControl\(...\), ForcingBias\(...\), ObservationBias\(...\)"):
        as_joint_control(joint)
