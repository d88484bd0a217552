"""Joint control: parameters of the model and of the operator against the dense formula of the augmented state."""

import dataclasses
import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vardax.covariances.dense import DenseCovariance
from vardax.covariances.diagonal import DiagonalCovariance
from vardax.cycle.smoother import VarSmootherCycle
from vardax.dynamics.discrete import DiscreteForward
from vardax.dynamics.lorenz96 import Lorenz96, simulate_lorenz96
from vardax.dynamics.rollout import rollout
from vardax.minimisers.gauss_newton import DualCG, IncrementalConfig
from vardax.minimisers.transforms import Exp
from vardax.models.biases import ForcingBias, ObservationBias
from vardax.models.digital_filter import DigitalFilter
from vardax.models.incremental_fourdvar import IncrementalFourDVar
from vardax.models.joint_control import JointControl
from vardax.models.strong_fourdvar import StrongFourDVar
from vardax.models.weak_fourdvar import WeakFourDVar
from vardax.obs_operators.callable import CallableObs
from vardax.obs_operators.linear import LinearObs
from vardax.obs_operators.point import PointObs
from vardax.types import Batch1D

X64 = jax.config.jax_enable_x64
CLOSE = {"rtol": 1e-6, "atol": 1e-7} if X64 else {"rtol": 2e-3, "atol": 2e-3}
TOL = 1e-9 if X64 else 1e-5
N, M, K, ENTRIES, SAMPLES = 4, 3, 2, 4, 2
RANDOM = np.random.default_rng(5)


def covariance(n, scale):
    root = RANDOM.normal(size=(n, n))
    return scale * (root @ root.T / n + 0.5 * np.eye(n))


A, H, P = np.linalg.qr(RANDOM.normal(size=(N, N)))[0], RANDOM.normal(size=(M, N)), RANDOM.normal(size=(N, K))
B, R, Q, C = covariance(N, 1.0), covariance(M, 0.3), covariance(N, 0.05), covariance(K, 0.5)
X_B, THETA_B = RANDOM.normal(size=N), RANDOM.normal(size=K)
Y = RANDOM.normal(size=(SAMPLES, ENTRIES, M))
Y[0, 1, 2] = Y[1, 0, 0] = np.nan


def forced(model, theta):
    """x -> A x + P theta: the parameters enter linearly."""
    return DiscreteForward(lambda x: model.step(x, 1.0) + jnp.asarray(P, x.dtype) @ theta, 1.0)


def build(method=StrongFourDVar, *options, joint="forcing", **slots):
    if isinstance(joint, str):
        joint = JointControl(THETA_B, DenseCovariance(C), forward=forced)
    forward = DiscreteForward(lambda x: jnp.asarray(A, x.dtype) @ x, 1.0)
    required = (forward, LinearObs(H), X_B, DenseCovariance(B), DenseCovariance(R))
    return method(*required, *options, **({"joint": joint, "tol": TOL} | slots))


BATCH = Batch1D.from_observations(Y)
LOOPS = IncrementalConfig(n_inner=40, cg_rtol=1e-12)
METHODS = {
    "strong": functools.partial(build, StrongFourDVar),
    "incremental": functools.partial(build, IncrementalFourDVar, LOOPS),
    "dual": functools.partial(build, IncrementalFourDVar, dataclasses.replace(LOOPS, inner_solver=DualCG())),
    "pairs": functools.partial(build, IncrementalFourDVar, dataclasses.replace(LOOPS, cvt=False)),
    "weak": functools.partial(build, WeakFourDVar, DenseCovariance(Q)),
    "sub-windows": functools.partial(build, WeakFourDVar, DenseCovariance(Q), sub_windows=3, parallel=True),
}
ERRORS = {"weak": ENTRIES - 1, "sub-windows": ENTRIES - 2}  # the last sub-window ends without a jump


def dense(sample, n_errors=0, mean=THETA_B):
    """(analysis, posterior covariance, gain of the prior mean) of (x_0, eta, theta) by the textbook formulas."""
    blocks = [B, *[Q] * n_errors, C]
    prior = np.zeros((sum(map(len, blocks)),) * 2)
    starts = np.cumsum([0, *map(len, blocks)])
    for start, block in zip(starts, blocks, strict=False):
        prior[start : start + len(block), start : start + len(block)] = block
    m = np.concatenate([X_B, np.zeros(len(prior) - N - K), mean])
    state, rows = np.eye(N, len(prior)), []
    for t in range(ENTRIES):
        if t:
            state = A @ state
            state[:, -K:] += P
            if t <= n_errors:
                state[:, starts[t] : starts[t + 1]] += np.eye(N)
        rows.append(H @ state)
    y = Y[sample].ravel()
    seen = np.isfinite(y)
    G, error = np.concatenate(rows)[seen], np.kron(np.eye(ENTRIES), R)[np.ix_(seen, seen)]
    gain = prior @ G.T @ np.linalg.inv(G @ prior @ G.T + error)
    return m + gain @ (y[seen] - G @ m), prior - gain @ G @ prior, np.eye(len(m)) - gain @ G


def flat(state, sample):
    return np.concatenate([np.ravel(leaf[sample]) for leaf in jax.tree.leaves(state)])


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_analysis_and_posterior_are_those_of_the_augmented_state(name):
    method = METHODS[name]()
    analysis, posterior = method.analyse(BATCH), method.posterior(BATCH)
    assert analysis.converged.all()
    theta = analysis.state[-1]
    assert theta.shape == (SAMPLES, K)
    std = posterior.std()
    for sample in range(SAMPLES):
        expected, P_a, _ = dense(sample, ERRORS.get(name, 0))
        np.testing.assert_allclose(flat(analysis.state, sample), expected, **CLOSE)
        np.testing.assert_allclose(flat(std, sample), np.sqrt(np.diag(P_a)), **CLOSE)
        terms = jax.tree.map(lambda a, i=sample: a[i], analysis.cost.last)
        gap = expected[-K:] - THETA_B
        np.testing.assert_allclose(terms.J_theta, 0.5 * gap @ np.linalg.solve(C, gap), rtol=1e-5 if X64 else 1e-2)
        gap = expected[:N] - X_B
        np.testing.assert_allclose(terms.J_b, 0.5 * gap @ np.linalg.solve(B, gap), rtol=1e-5 if X64 else 1e-2)
    unit = jax.tree.map(jnp.zeros_like, analysis.state)
    unit = (*unit[:-1], unit[-1].at[:, 0].set(1.0))
    np.testing.assert_allclose(flat(posterior.cov.mv(unit), 1), P_a[:, -K], **CLOSE)


def test_the_terms_of_the_cost_and_its_history_add_up():
    analysis = METHODS["strong"]().analyse(BATCH)
    last, steps = analysis.cost.last, int(analysis.n_iterations[0])
    np.testing.assert_allclose(last.total, last.J_b + last.J_o + last.J_theta, rtol=1e-5)
    np.testing.assert_array_equal(analysis.history.J_theta[0, 0], 0.0)  # the first iterate is the background
    np.testing.assert_allclose(jnp.min(analysis.history.total[0, :steps]), last.total[0], rtol=1e-5)
    assert jnp.all(last.J_theta > 0.01)


def test_values_of_the_prior_do_not_compile_again(count_compilations):
    method = METHODS["strong"]()
    method.analyse(BATCH)
    other = JointControl(THETA_B + 1, DenseCovariance(2 * C), forward=forced)
    with count_compilations() as compiled:
        method.with_(joint=other).analyse(BATCH)
    assert compiled.n == 0, compiled.names


@pytest.mark.slow
def test_the_prior_mean_may_differ_from_sample_to_sample():
    means = np.stack([THETA_B, THETA_B + 1])
    joint = JointControl(means, DenseCovariance(C), forward=forced)
    found = build(joint=joint).analyse(BATCH)
    for sample in range(SAMPLES):
        np.testing.assert_allclose(flat(found.state, sample), dense(sample, mean=means[sample])[0], **CLOSE)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["strong", "incremental"])
def test_the_gradient_with_respect_to_the_prior_mean_is_that_of_the_dense_formula(name):
    @jax.jit
    @functools.partial(jax.jacobian)
    def sensitivity(mean):
        joint = JointControl(mean, DenseCovariance(C), forward=forced)
        state = METHODS[name](joint=joint).analyse(BATCH).state
        return jnp.concatenate([state[0][1], state[1][1]])

    found = sensitivity(jnp.asarray(THETA_B))
    np.testing.assert_allclose(found, dense(1)[2][:, -K:], **CLOSE)


@pytest.mark.slow
def test_a_first_guess_is_a_state_or_the_tuple():
    """The parts that it leaves out start at their means: the first row of the history says so."""
    method, weak = METHODS["strong"](), METHODS["weak"]()
    for model, n_parts in ((method, 1), (weak, 2)):
        expected = model.analyse(BATCH)
        guess = expected.state[0] if n_parts == 1 else expected.state[:n_parts]
        found = model.analyse(BATCH, first_guess=guess)
        np.testing.assert_allclose(found.state[-1], expected.state[-1], **CLOSE)
        first, last = found.history, expected.cost.last
        np.testing.assert_allclose(first.J_b[:, 0], last.J_b, rtol=1e-5 if X64 else 1e-2)
        np.testing.assert_allclose(first.J_theta[:, 0], 0.0, **CLOSE)
        assert jnp.all(last.J_theta > 0.01)
        if model is weak:
            np.testing.assert_allclose(first.J_q[:, 0], last.J_q, rtol=1e-5 if X64 else 1e-2)


@pytest.mark.slow
def test_a_cycle_carries_the_state_and_starts_each_window_from_the_mean():
    method = METHODS["strong"](minimiser=None)
    forward = method.forward
    cycle = VarSmootherCycle(forward, method.obs_op, method, window=ENTRIES, stride=ENTRIES - 1, obs_source=Y[0])
    state, _ = cycle(X_B)
    np.testing.assert_allclose(state, method.analyse(BATCH).trajectory[0, -1], **CLOSE)


# -- a chaotic model ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("method", [StrongFourDVar, IncrementalFourDVar])
def test_the_forcing_of_lorenz_96_is_recovered(method):
    """Truth 8, prior 7.5 ± 0.5: found to a few hundredths, and the trajectory gains from it."""
    truth = np.asarray(simulate_lorenz96(jax.random.key(0), 20, n=20))
    noise = np.random.default_rng(0).normal(size=(21, 10))
    batch = Batch1D.from_observations((truth[:, ::2] + 0.2 * noise)[None])
    background = truth[0] + np.random.default_rng(1).normal(size=20)
    slots = (PointObs(np.arange(0, 20, 2)), background, DiagonalCovariance(np.ones(20)))
    slots += (DiagonalCovariance(np.full(10, 0.04)),)
    forcing = JointControl(7.5, 0.25, forward=lambda model, F: Lorenz96(20, forcing=F))
    options = {"config": IncrementalConfig(n_outer=15, n_inner=30)} if method is IncrementalFourDVar else {}
    joint = method(Lorenz96(20, forcing=7.5), *slots, joint=forcing, **options)
    found = joint.analyse(batch)
    without = joint.with_(joint=None).analyse(batch)
    assert found.converged.all()
    std = joint.posterior(batch).std()[1]
    assert std.shape == (1,)
    assert 0.005 < std[0] < 0.1
    assert abs(found.state[1][0] - 8.0) < min(3 * std[0], 0.1)
    error = lambda analysis: np.sqrt(np.mean((np.asarray(analysis.trajectory[0]) - truth) ** 2))  # noqa: E731
    assert error(found) < 0.5 * error(without)
    again = rollout(Lorenz96(20, forcing=found.state[1][0]), found.state[0][0], 20)
    np.testing.assert_allclose(again, found.trajectory[0], rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.x64
def test_primal_and_dual_iterates_are_the_same_with_biases_and_a_digital_filter():
    """The biases of OOPS' L95 (of the forcing, of the observations) and its J_c, two loops of five steps."""
    joint = {"model": ForcingBias(0.0, 0.5, where=lambda m: m.forcing), "observations": ObservationBias(0.0, 0.2)}
    slots = (Lorenz96(8, dt=0.05), PointObs(np.arange(0, 8, 2)), np.linspace(0, 8, 8), DiagonalCovariance(np.ones(8)))
    slots += (DiagonalCovariance(np.full(4, 0.3)),)
    batch = Batch1D.from_observations(np.random.default_rng(0).normal(size=(1, 5, 4)) + 3)
    found = {}
    for name, options in {"primal": {}, "dual": {"inner_solver": DualCG()}, "pairs": {"cvt": False}}.items():
        config = IncrementalConfig(n_outer=2, n_inner=5, cg_rtol=0.0, cg_atol=0.0, **options)
        method = IncrementalFourDVar(*slots, config, joint=joint, terms=DigitalFilter(4.0, 2.0))
        found[name] = method.analyse(batch)
    for other in ("dual", "pairs"):
        gap = jax.tree.map(lambda a, b: np.max(np.abs(a - b)), found["primal"].control, found[other].control)
        assert max(jax.tree.leaves(gap)) < 1e-10
    last = found["primal"].cost.last
    assert float(last.J_theta[0]) > 1e-3
    assert float(last.J_c[0]) > 1e-3


@pytest.mark.slow
def test_parameters_of_the_operator_and_positive_ones():
    """A gain of the instrument, positive by its transform: y = g x, g = 1.5 where x is known well."""
    gained = lambda operator, theta: CallableObs(lambda x: theta["gain"] * operator(x))  # noqa: E731
    gain = JointControl({"gain": 1.0}, 0.25, obs_op=gained, control_transform=Exp())
    slots = (DiscreteForward(lambda x: x, 1.0), LinearObs(np.eye(3)), np.array([1.0, 2.0, 3.0]))
    slots += (DiagonalCovariance(np.full(3, 1e-6)), DiagonalCovariance(np.full(3, 1e-3)))
    batch = Batch1D.from_observations(1.5 * np.broadcast_to(slots[2], (1, 5, 3)))
    state, theta = StrongFourDVar(*slots, joint=gain).analyse(batch).state
    np.testing.assert_allclose(theta["gain"], 1.5, atol=0.01)
    np.testing.assert_allclose(state[0], slots[2], atol=0.01)


@pytest.mark.x64
@pytest.mark.slow
def test_theta_does_not_decide_the_dtype_of_the_analysis():
    single = jax.tree.map(lambda a: a.astype(jnp.float32) if eqx.is_inexact_array(a) else a, build(joint=None))
    method = single.with_(joint=JointControl(THETA_B, C.diagonal(), forward=forced), tol=1e-4)
    analysis = method.analyse(Batch1D.from_observations(jnp.asarray(Y, jnp.float32)))
    assert [leaf.dtype for leaf in analysis.state] == [jnp.float32, jnp.float32]
    assert analysis.converged.all()


# -- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ((0.0, 1.0, {}), ValueError, "theta acts on nothing; give `forward`"),
        ((0.0, 1.0, {"forward": 3}), TypeError, "`forward` is int, expected a function of two"),
        (
            (np.zeros(3), DenseCovariance(C), {"forward": forced}),
            ValueError,
            r"shape \(3,\), expected \(2,\), on which",
        ),
        (({"a": 1.0}, DenseCovariance(C), {"forward": forced}), ValueError, "`mean` has the structure"),
        (({"a": 1.0}, {"b": 1.0}, {"forward": forced}), TypeError, "or a pytree of variances like `mean`"),
        ((0.0, -1.0, {"forward": forced}), ValueError, "`variance` must be finite and not negative"),
    ],
)
def test_a_joint_control_that_cannot_be_is_refused(arguments, error, words):
    mean, cov_op, hooks = arguments
    with pytest.raises(error, match=words):
        JointControl(mean, cov_op, **hooks)


def test_what_theta_makes_is_checked():
    with pytest.raises(ValueError, match="`joint` cannot make the model of theta from DiscreteForward"):
        build(joint=JointControl(0.0, 1.0, forward=lambda model, F: model.absent)).analyse(BATCH)
    with pytest.raises(TypeError, match="expected a model with `step"):
        build(joint=JointControl(0.0, 1.0, forward=lambda model, F: None)).analyse(BATCH)
    shorter = JointControl(0.0, 1.0, obs_op=lambda operator, b: CallableObs(lambda x: x[:2] + b))
    with pytest.raises(ValueError, match=r"`joint`: the predicted observations have shape \(4, 2\), expected \(4, 3\)"):
        build(joint=shorter).analyse(BATCH)
    with pytest.raises(ValueError, match="the `mean` of `joint` has 1 non-finite entries"):
        build(joint=JointControl(np.nan, 1.0, forward=forced)).analyse(BATCH)
    with pytest.raises(ValueError, match="1 entries of the `mean` of `joint` are outside the range"):
        build(joint=JointControl(-1.0, 1.0, forward=forced, control_transform=Exp())).analyse(BATCH)
