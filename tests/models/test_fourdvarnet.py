"""4DVarNet: its cost and its steps against numpy, its limits against optimal interpolation, and what it starts from."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optimistix as optx
import pytest

from vardax import persist
from vardax.adjoints import DirectAdjoint, KStepAdjoint
from vardax.covariances import DenseCovariance, DiagonalCovariance
from vardax.cycle import DACycle, DAState, SmootherCycle
from vardax.dynamics import DiscreteForward
from vardax.grad_mod import ConvLSTMGradMod1D, IdentityGradMod
from vardax.minimisers import AnnealedStep
from vardax.models import FourDVarNet, Interpolated, Observed, OptimalInterpolation, SolverConfig, Zeros
from vardax.obs_operators import (
    CallableObs,
    InstrumentRegistry,
    InstrumentSpec,
    LinearObs,
    MaskedIdentity,
    MultiInstrumentFusion,
)
from vardax.primitives import FourDVarNetCost, variational_cost
from vardax.priors import DynamicalPrior, GaussianPrior, IdentityPrior, MLPAEPrior1D
from vardax.types import Batch1D, Batch2DMultivar, Batch3D, ConvergenceError, ConvergenceWarning, Status

X64 = jax.config.jax_enable_x64
TIGHT = {"rtol": 1e-9, "atol": 1e-9} if X64 else {"rtol": 2e-4, "atol": 2e-4}
N, M, ENTRIES, SAMPLES = 4, 3, 3, 2
RNG = np.random.default_rng(7)
H = RNG.normal(size=(M, N))
W = 0.5 * RNG.normal(size=(N, N))
Y = RNG.normal(size=(SAMPLES, ENTRIES, M))
Y[0, 0, 1] = Y[0, 2, 2] = Y[1, 1, 0] = np.nan
Y[1, 2] = np.nan
X = RNG.normal(size=(SAMPLES, ENTRIES, N))
ERRORS = RNG.uniform(0.5, 2.0, size=Y.shape)


def covariance(n):
    root = RNG.normal(size=(n, n))
    return root @ root.T / n + 0.4 * np.eye(n)


R, B = covariance(M), covariance(N)


class Tanh(eqx.Module):
    """A reconstruction with weights, of windows of any length: phi(x)_t = tanh(W x_t)."""

    weight: jax.Array

    def __call__(self, x):
        return jnp.tanh(x @ self.weight.astype(x.dtype).T)


class Half(eqx.Module):
    """phi(x) = x / 2, of anything."""

    def __call__(self, x):
        return jax.tree.map(lambda leaf: leaf / 2, x)


class Still(eqx.Module):
    """A modulator that does not move: the analysis is what it started from."""

    def __call__(self, grad, state, carry):
        return jax.tree.map(jnp.zeros_like, grad), carry


class Heavy(eqx.Module):
    """A learned modulator with a memory, m' = beta m + g and update -m'."""

    beta: jax.Array

    def init_carry(self, state):
        return jnp.zeros_like(state)

    def __call__(self, grad, state, carry):
        carry = self.beta * carry + grad
        return -carry, carry


class BreaksAfter(eqx.Module):
    """Steps of one, and not a number from the third step on, for samples that begin above zero."""

    def init_carry(self, state):
        return jnp.zeros((), jnp.int32)

    def __call__(self, grad, state, carry):
        broken = (carry >= 2) & (jnp.min(state) > 0)
        return jnp.where(broken, jnp.nan, jnp.ones_like(state)), carry + 1


def batch_of(y=Y, **fields):
    return Batch1D.from_observations(jnp.asarray(y), **fields)


def learned(**options):
    """A trained model in small: windows (ENTRIES, N), of which H x_t is observed."""
    signature = jax.ShapeDtypeStruct((ENTRIES, N), jnp.result_type(float))
    slots = {"prior": Tanh(jnp.asarray(W)), "obs_op": LinearObs(H), "grad_mod": Heavy(jnp.asarray(0.4))}
    slots |= {"config": SolverConfig(6, 0.1), "state_signature": signature}
    return FourDVarNet(**(slots | options))


def descending(problem_prior, obs_op, steepest, **options):
    """Gradient descent until the steps are nothing."""
    config = SolverConfig(4000, tol=1e-13 if X64 else 1e-7)
    return FourDVarNet(problem_prior, obs_op, IdentityGradMod(1.8 / steepest), config, **options)


# -- the cost --------------------------------------------------------------------------------------------------------


def observation_term(x, y, R, norm):
    """½‖m (y - H x)‖²_{R⁻¹} of one window, entry by entry; R is of one entry, (M, M), or of each."""
    total, count = 0.0, 0
    for t, seen in enumerate(np.isfinite(y)):
        gap = (y[t] - H @ x[t])[seen]
        total += 0.5 * gap @ np.linalg.solve((R if R.ndim == 2 else R[t])[np.ix_(seen, seen)], gap)
        count += seen.sum()
    return total / count if norm == "mean" else total


ERROR_KINDS = {
    "nothing known": (None, {}, lambda b: np.eye(M)),
    "deviations": (None, {"obs_err": jnp.asarray(ERRORS)}, lambda b: np.stack([np.diag(e**2) for e in ERRORS[b]])),
    "variances": (DiagonalCovariance([0.5, 1.0, 2.0]), {}, lambda b: np.diag([0.5, 1.0, 2.0])),
    "correlated": (DenseCovariance(R), {}, lambda b: R),
}


@pytest.mark.parametrize("norm", ["sum", "mean"])
@pytest.mark.parametrize("kind", ERROR_KINDS)
def test_the_cost_is_the_formula(kind, norm):
    obs_cov_op, fields, R_of = ERROR_KINDS[kind]
    config = SolverConfig(1, obs_weight=0.7, prior_weight=1.3, obs_norm=norm)
    cost = FourDVarNetCost(Tanh(jnp.asarray(W)), LinearObs(H), config, obs_cov_op)
    observed = [observation_term(X[b], Y[b], R_of(b), norm) for b in range(SAMPLES)]
    prior = [np.sum((x - np.tanh(x @ W.T)) ** 2) for x in X]
    found = eqx.filter_jit(cost)(jnp.asarray(X), batch_of(**fields))
    np.testing.assert_allclose(found, 0.7 * sum(observed) + 1.3 * sum(prior), rtol=TIGHT["rtol"])
    if kind == "correlated":
        model = learned(config=config, obs_cov_op=obs_cov_op, grad_mod=Still())
        first = model.analyse(batch_of(), first_guess=jnp.asarray(X)).cost.first
        np.testing.assert_allclose(first.J_o, 0.7 * np.array(observed), rtol=TIGHT["rtol"])
        np.testing.assert_allclose(first.J_b, 1.3 * np.array(prior), rtol=TIGHT["rtol"])
    elif norm == "sum" and obs_cov_op is None:  # the primitive knows no R
        value = variational_cost(
            jnp.asarray(X), batch_of(**fields), cost.prior, lambda x: x @ jnp.asarray(H).T, 0.7, 1.3
        )
        np.testing.assert_allclose(value, found, rtol=TIGHT["rtol"])


# -- the linear-Gaussian limit ---------------------------------------------------------------------------------------

WIDE = RNG.normal(size=(6, N))  # more observations than variables
SEEN = RNG.normal(size=(SAMPLES, 6))
SEEN[0, 2] = np.nan
R_WIDE = covariance(6)


def interpolated_optimally(sample, x_b, B):
    """(analysis, posterior covariance), by the formula that stays exact for a B of any size."""
    seen, inverse = np.isfinite(SEEN[sample]), np.linalg.inv(B)
    weighted = np.linalg.solve(R_WIDE[np.ix_(seen, seen)], WIDE[seen]).T
    covariance = np.linalg.inv(inverse + weighted @ WIDE[seen])
    return covariance @ (inverse @ x_b + weighted @ SEEN[sample, seen]), covariance


@pytest.fixture(scope="module")
def without_prior():
    """(alpha, the analyses step by step, the analysis) of gradient descent on the observations alone."""
    alpha = 1 / np.linalg.eigvalsh(WIDE.T @ np.linalg.solve(R_WIDE, WIDE))[-1]
    config = SolverConfig(8000, prior_weight=0.0, tol=1e-13 if X64 else 1e-6)
    model = FourDVarNet(
        IdentityPrior(), LinearObs(WIDE), IdentityGradMod(alpha), config, obs_cov_op=DenseCovariance(R_WIDE)
    )
    few = list(model.with_(config=SolverConfig(5, prior_weight=0.0)).iterate(batch_of(SEEN)))
    return alpha, few, model.analyse(batch_of(SEEN))


def test_without_a_prior_it_is_gradient_descent_on_the_observations(without_prior):
    alpha, few, _ = without_prior
    assert len(few) == 5
    for sample in range(SAMPLES):
        seen, x = np.isfinite(SEEN[sample]), np.zeros(N)
        G, S = WIDE[seen], R_WIDE[np.ix_(seen, seen)]
        for k in range(5):
            x = x + alpha * G.T @ np.linalg.solve(S, SEEN[sample, seen] - G @ x)
            np.testing.assert_allclose(few[k].state[sample], x, **TIGHT)
            assert int(few[k].n_iterations[sample]) == k + 1


@pytest.mark.x64
def test_without_a_prior_it_is_optimal_interpolation_for_a_diffuse_background_only(without_prior):
    analysis = without_prior[2]
    assert analysis.converged.all()
    distances = []
    for spread in (1.0, 1e3, 1e6, 1e9):
        pairs = [(analysis.state[b], interpolated_optimally(b, np.ones(N), spread * B)[0]) for b in range(SAMPLES)]
        distances.append(max(np.max(np.abs(found - expected)) for found, expected in pairs))
    assert distances[0] > 0.1  # nothing like it with a background that says something
    np.testing.assert_allclose(np.divide(distances[1:3], distances[2:]), 1e3, rtol=0.05)
    assert distances[-1] < 1e-8


@pytest.mark.x64
@pytest.mark.slow
def test_with_a_gaussian_prior_the_posterior_is_that_of_optimal_interpolation():
    steepest = np.linalg.eigvalsh(np.linalg.inv(B) + WIDE.T @ np.linalg.solve(R_WIDE, WIDE))[-1]
    prior = GaussianPrior(jnp.ones(N), DenseCovariance(B))
    posterior = descending(prior, LinearObs(WIDE), steepest, obs_cov_op=DenseCovariance(R_WIDE)).posterior(
        batch_of(SEEN)
    )
    for sample in range(SAMPLES):
        mean, expected = interpolated_optimally(sample, np.ones(N), B)
        np.testing.assert_allclose(posterior.std()[sample], np.sqrt(np.diag(expected)), rtol=1e-8)
        np.testing.assert_allclose(posterior.mean[sample], mean, atol=1e-9)
    draws = np.asarray(posterior.sample(jax.random.key(0), 4000))
    np.testing.assert_allclose(np.cov(draws[1].T), expected, atol=0.1 * np.max(np.diag(expected)))


# -- operators, states, models ---------------------------------------------------------------------------------------


@pytest.mark.x64
def test_the_operator_may_be_nonlinear():
    """At the analysis the gradient of the cost, written out, is zero."""
    cubic = CallableObs(lambda x: jnp.asarray(H) @ (x + 0.1 * x**3))
    prior = GaussianPrior(jnp.ones(N), DenseCovariance(0.3 * B))
    analysis = descending(prior, cubic, 70.0, obs_cov_op=DenseCovariance(R)).analyse(batch_of(Y[:, 0]))
    assert analysis.converged.all()
    for sample, x in enumerate(np.asarray(analysis.state)):
        seen = np.isfinite(Y[sample, 0])
        gap = (Y[sample, 0] - H @ (x + 0.1 * x**3))[seen]
        slope = (H * (1 + 0.3 * x**2))[seen]
        weighted = np.linalg.solve(R[np.ix_(seen, seen)], gap)
        np.testing.assert_allclose(np.linalg.solve(0.3 * B, x - 1), slope.T @ weighted, atol=1e-9)


@pytest.mark.x64
def test_several_instruments_are_fused_with_their_errors_and_weights():
    first = InstrumentSpec(LinearObs(H), None, DenseCovariance(R), "first")
    second = InstrumentSpec(LinearObs(WIDE[:2]), None, DiagonalCovariance([0.5, 2.0]), "second")
    fusion = MultiInstrumentFusion(InstrumentRegistry([first, second]), weights={"second": 3.0})
    prior = GaussianPrior(jnp.zeros(N), DenseCovariance(B))
    model = descending(prior, fusion.to_observation_operator(), 80.0, obs_cov_op=fusion.obs_cov_op)
    analysis = model.analyse(fusion.batch({"first": jnp.asarray(Y[:, 0]), "second": jnp.asarray(SEEN[:, 1:3])}))
    G, S = np.concatenate([H, WIDE[:2]]), np.zeros((5, 5))
    S[:3, :3], S[3:, 3:] = R, np.diag([0.5, 2.0]) / 3
    for sample in range(SAMPLES):
        y = np.concatenate([Y[sample, 0], SEEN[sample, 1:3]])
        seen = np.isfinite(y)
        gain = B @ G[seen].T @ np.linalg.inv(G[seen] @ B @ G[seen].T + S[np.ix_(seen, seen)])
        np.testing.assert_allclose(analysis.state[sample], gain @ y[seen], atol=1e-9)
    assert analysis.cost.last.J_o_by_instrument.shape == (SAMPLES, 2)


@pytest.mark.parametrize(("batch", "shape"), [(Batch2DMultivar, (2, 3, 2, 4, 3)), (Batch3D, (1, 3, 2, 3, 2))])
def test_fields_of_any_dimension_are_reconstructed(batch, shape):
    """½ m (y - x)² + w (x - x/2)² has its minimum at m y / (m + w/2), entry by entry."""
    y = RNG.normal(size=shape)
    y[RNG.random(shape) < 0.5] = np.nan
    model = FourDVarNet(Half(), MaskedIdentity(), IdentityGradMod(0.9), SolverConfig(60, prior_weight=0.5))
    analysis = model.analyse(batch.from_observations(jnp.asarray(y)))
    assert analysis.state.shape == analysis.trajectory.shape == shape
    # Where nothing was observed the minimum is 0, and what is left of the start has shrunk by 1 - 0.9 w/2 each time.
    np.testing.assert_allclose(analysis.state, np.nan_to_num(y) / 1.25, atol=1e-5)
    assert np.all(np.asarray(analysis.status) == Status.COMPLETED)


@pytest.mark.x64
def test_a_model_is_a_prior_whose_minimum_is_the_weak_constraint_one():
    """J = Σ_t ½‖m (y_t - x_t)‖² + w Σ_t ‖x_t - A x_{t-1}‖², solved as one linear system."""
    A, weight = np.linalg.qr(RNG.normal(size=(N, N)))[0], 2.0
    y = RNG.normal(size=(SAMPLES, ENTRIES, N))
    y[0, 1, 2] = y[1, 0, 0] = np.nan
    A_jax = jnp.asarray(A)
    prior = DynamicalPrior(DiscreteForward(lambda x: A_jax @ x, 1.0), 1)
    config = SolverConfig(3000, prior_weight=weight, tol=1e-13)
    model = FourDVarNet(prior, MaskedIdentity(), IdentityGradMod(0.1), config, forward_adjoint=DirectAdjoint())
    analysis = model.analyse(batch_of(y))
    jumps = np.zeros((2 * N, ENTRIES * N))
    for t in (1, 2):
        rows = slice((t - 1) * N, t * N)
        jumps[rows, t * N : (t + 1) * N], jumps[rows, (t - 1) * N : t * N] = np.eye(N), -A
    for sample in range(SAMPLES):
        mask = np.diag(np.isfinite(y[sample]).ravel().astype(float))
        expected = np.linalg.solve(mask + 2 * weight * jumps.T @ jumps, mask @ np.nan_to_num(y[sample]).ravel())
        np.testing.assert_allclose(analysis.state[sample].ravel(), expected, atol=1e-9)
    np.testing.assert_array_equal(analysis.trajectory, analysis.state)


# -- starts ----------------------------------------------------------------------------------------------------------


def test_the_iteration_starts_where_it_is_told_to():
    """With a modulator that does not move."""
    y = np.concatenate([Y, Y[..., :1]], axis=-1)  # of the state itself
    on_state = {"prior": Half(), "grad_mod": Still(), "config": SolverConfig(1)}
    model = FourDVarNet(obs_op=MaskedIdentity(), **on_state)
    batch = batch_of(y)
    given, one_time = jnp.asarray(X), jnp.asarray(X[:, 0])
    np.testing.assert_array_equal(model(batch), model.with_(start=Interpolated())(batch))
    np.testing.assert_allclose(model.with_(start=lambda batch: given)(batch), given, rtol=1e-6)
    np.testing.assert_array_equal(model.analyse(batch, background=given).state, given)
    spread = np.broadcast_to(one_time[:, None], X.shape)  # a background of one time is that of all entries
    np.testing.assert_array_equal(model.analyse(batch, background=one_time).state, spread)
    np.testing.assert_allclose(model.analyse(batch, first_guess=given).state, given, rtol=1e-6)
    earlier = model.analyse(batch, background=given)
    np.testing.assert_array_equal(model.analyse(batch, background=given, warm_start=earlier).state, given)
    # An explicit start beats the background, and a first guess beats both.
    both = model.with_(start=Zeros()).analyse(batch, background=given)
    np.testing.assert_allclose(both.state, 0.0, atol=1e-6)
    np.testing.assert_array_equal(learned(grad_mod=Still())(batch_of()), 0.0)


def test_it_may_start_from_another_analysis():
    """An optimal interpolation as the first state; a Gaussian prior starts at its mean without one."""
    mean = jnp.ones(N, jnp.result_type(float))
    prior, errors = GaussianPrior(mean, DenseCovariance(B)), DenseCovariance(R_WIDE)
    first = OptimalInterpolation(LinearObs(WIDE), mean, prior.cov_op, errors)
    model = FourDVarNet(prior, LinearObs(WIDE), Still(), SolverConfig(1), obs_cov_op=errors)
    np.testing.assert_array_equal(model(batch_of(SEEN)), np.ones((SAMPLES, N)))
    started = model.with_(start=first).analyse(batch_of(SEEN))
    np.testing.assert_allclose(started.state, first(batch_of(SEEN)), **TIGHT)
    # It is at the minimum of the same cost, where the gradient is nothing.
    np.testing.assert_allclose(started.gradient_norm, 0.0, atol=1e-9 if X64 else 1e-2)


# -- a trained model as a method -------------------------------------------------------------------------------------


@pytest.mark.parametrize("garbage", [np.nan, np.inf, -1e30])
def test_what_stands_at_missing_entries_does_not_matter_to_networks(garbage):
    model, observed = learned(), np.isfinite(Y)
    expected = model.analyse(batch_of())
    found = model.analyse(Batch1D(jnp.asarray(np.where(observed, Y, garbage)), observed))
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(a, b)


def test_samples_do_not_see_each_other_although_gradients_are_normalised():
    y = np.stack([1e3 * Y[0], Y[1]])
    np.testing.assert_allclose(learned()(batch_of(y))[1], learned()(batch_of())[1], **TIGHT)
    alone = learned().analyse_one(jnp.asarray(Y[1]))
    np.testing.assert_allclose(alone.state, learned()(batch_of())[1], **TIGHT)


def test_other_weights_and_data_do_not_compile_again(count_compilations):
    model = learned(obs_cov_op=DenseCovariance(R))
    trained = eqx.tree_at(lambda m: (m.prior.weight, m.grad_mod.beta), model, (jnp.asarray(-W), jnp.asarray(0.1)))
    other, errors = batch_of(Y[::-1]), DenseCovariance(2 * R)
    before = model(batch_of())
    with count_compilations() as compiled:
        after = trained(other)
        trained.analyse(other, obs_cov_op=errors)
    assert compiled.n == 0, compiled.names
    assert not np.allclose(before[::-1], after)


@pytest.mark.slow
@pytest.mark.x64
def test_gradients_with_respect_to_data_and_weights_are_those_of_differences():
    model, observed = learned(), np.isfinite(Y)

    @jax.jit
    def total(arrays):
        weight, y, errors = arrays
        changed = eqx.tree_at(lambda m: m.prior.weight, model, weight)
        return jnp.sum(jnp.sin(changed(Batch1D(y, observed, obs_err=errors))))

    at = (jnp.asarray(W), jnp.asarray(Y), jnp.asarray(ERRORS))
    slopes, h = jax.jit(jax.grad(total))(at), 1e-5
    for number, array in enumerate(at):
        direction = jnp.asarray(RNG.normal(size=array.shape))
        moved = [tuple(a + s * h * direction if n == number else a for n, a in enumerate(at)) for s in (1, -1)]
        found = jnp.vdot(slopes[number], direction)
        np.testing.assert_allclose(found, (total(moved[0]) - total(moved[1])) / (2 * h), rtol=1e-6)
    np.testing.assert_array_equal(slopes[1][~observed], 0.0)


@pytest.mark.parametrize("dtype", ["float32", pytest.param("float64", marks=pytest.mark.x64)])
def test_the_analysis_has_the_dtype_of_the_observations(dtype):
    model = learned(grad_mod=Heavy(jnp.asarray(0.4, dtype)), obs_op=LinearObs(jnp.asarray(H, dtype)))
    analysis = model.analyse(batch_of(Y.astype(dtype)))
    assert {leaf.dtype.name for leaf in jax.tree.leaves((analysis.state, analysis.cost, analysis.history))} == {dtype}


def test_a_window_without_observations_keeps_what_the_prior_makes_of_nothing():
    analysis = learned().analyse(batch_of(np.full_like(Y, np.nan)))
    np.testing.assert_array_equal(analysis.state, 0.0)  # tanh(W 0) = 0: the start is plausible, and nothing moves it
    np.testing.assert_array_equal(analysis.cost.last.total, 0.0)
    assert analysis.converged.all()
    mean = learned(config=SolverConfig(6, 0.1, obs_norm="mean")).analyse(batch_of(np.full_like(Y, np.nan)))
    np.testing.assert_array_equal(mean.state, 0.0)


def test_it_is_the_analysis_step_of_a_cycle():
    """A forecast is the background of a Gaussian prior; the window of a smoother ends in what the cycle carries on."""
    prior = GaussianPrior(jnp.zeros(N), DenseCovariance(B))
    steepest = np.linalg.eigvalsh(np.linalg.inv(B) + WIDE.T @ np.linalg.solve(R_WIDE, WIDE))[-1]
    model = descending(prior, LinearObs(WIDE), steepest, obs_cov_op=DenseCovariance(R_WIDE))
    forward = DiscreteForward(lambda x: 0.9 * x, 1.0)
    cycle = DACycle(forward, None, model.as_analysis_step(), obs_source=lambda i: jnp.asarray(SEEN[i]))
    state, da_state = jnp.ones(N, jnp.result_type(float)), DAState()
    for i in range(2):
        forecast = 0.9 * np.asarray(state)
        state, da_state = cycle(state, da_state)
        np.testing.assert_allclose(state, interpolated_optimally(i, forecast, B)[0], rtol=1e-3, atol=1e-3)
    window = learned(prior=DynamicalPrior(forward, 1))
    source = lambda k: jnp.asarray(Y[k // ENTRIES, k % ENTRIES])  # noqa: E731
    smoother = SmootherCycle(
        forward, None, window.as_analysis_step(), window=ENTRIES, stride=ENTRIES - 1, obs_source=source
    )
    end, _ = smoother(jnp.ones(N, jnp.result_type(float)), DAState())
    expected = window.analyse(batch_of(Y[:1]), background=jnp.ones(N, jnp.result_type(float)))
    np.testing.assert_allclose(end, expected.state[0, -1], **TIGHT)


def test_a_model_with_networks_comes_back_from_a_registry(tmp_path):
    config = SolverConfig(4, 0.1, rule=AnnealedStep(0.1), obs_norm="mean", compute_dtype="bfloat16")
    networks = MLPAEPrior1D(N, ENTRIES, 2), MaskedIdentity(), ConvLSTMGradMod1D(ENTRIES, 2)
    model = FourDVarNet(*networks, config, KStepAdjoint(2), start=Observed(), prior_mean=jnp.ones(N))
    assert eqx.tree_equal(persist.load(tmp_path, persist.save(model, tmp_path)), model)


# -- what goes wrong -------------------------------------------------------------------------------------------------


def test_a_network_that_gives_nan_is_stopped_at_the_last_finite_state():
    first = np.stack([np.ones((ENTRIES, N)), -5 * np.ones((ENTRIES, N))])  # only the first of them breaks
    model = learned(grad_mod=BreaksAfter(), config=SolverConfig(6, 0.1))
    analysis = model.analyse(batch_of(), first_guess=jnp.asarray(first))
    np.testing.assert_allclose(analysis.state, first + 0.1 * np.array([2, 6])[:, None, None], rtol=1e-5)
    np.testing.assert_array_equal(analysis.converged, [False, True])
    assert [Status(int(s)) for s in analysis.status] == [Status.NON_FINITE, Status.COMPLETED]
    always = model.with_(start=lambda batch: jnp.asarray(first), grad_mod=BreaksAfter())
    with pytest.warns(ConvergenceWarning, match="FourDVarNet: met a non-finite"):
        always(batch_of())
    with pytest.raises(ConvergenceError, match="FourDVarNet: met a non-finite"):
        always.with_(strict=True)(batch_of())


REFUSED = {
    "prior as a class": (lambda: learned(prior=Half), TypeError, "`prior` is .*expected a reconstruction, prior"),
    "modulator as a class": (lambda: learned(grad_mod=Heavy), TypeError, "`grad_mod` is .*expected a gradient modul"),
    "no steps": (lambda: SolverConfig(0), ValueError, "`n_steps` is 0, expected a whole number of at least 1"),
    "negative weight": (lambda: SolverConfig(prior_weight=-1.0), ValueError, "`prior_weight` is -1.0, expected"),
    "unknown setting": (lambda: SolverConfig(n_step=3), TypeError, "n_step"),
    "integers to compute in": (lambda: SolverConfig(compute_dtype="int32"), TypeError, "`compute_dtype` is int32"),
    "implicit and annealed": (
        lambda: learned(config=SolverConfig(3, rule=AnnealedStep(0.1)), solver_adjoint=optx.ImplicitAdjoint()),
        ValueError,
        r"`solver_adjoint` is ImplicitAdjoint, .*AnnealedStep no two steps are alike; use ConstantStep\(\)",
    ),
    "adjoint of no model": (
        lambda: learned(forward_adjoint=DirectAdjoint()),
        TypeError,
        "`forward_adjoint` is given, but the prior, Tanh, runs no model; DynamicalPrior does",
    ),
    "covariance of no Gaussian": (
        lambda: learned(prior_cov_op=DenseCovariance(B)),
        TypeError,
        "`prior_cov_op` is given, but the prior, Tanh, has no covariance",
    ),
    "start as an array": (lambda: learned(start=jnp.ones(3)), TypeError, "`start` is .*a state is a `first_guess`"),
    "observed start of something else": (
        lambda: learned(start=Interpolated())(batch_of()),
        ValueError,
        r"`start` is Interpolated\(\), which needs observations of the state itself",
    ),
    "start of another shape": (
        lambda: learned(start=lambda batch: jnp.ones((SAMPLES, ENTRIES, 9)))(batch_of()),
        ValueError,
        r"`start\(batch\)` has shape \(2, 3, 9\), expected \(3, 4\) or \(2, 3, 4\)",
    ),
    "observations of another shape": (
        lambda: learned()(batch_of(Y[..., :2])),
        ValueError,
        r"FourDVarNet: `batch.input` has shape \(2, 3, 2\), expected .*3.*`obs_op`",
    ),
    "another number of times": (
        lambda: learned()(batch_of(Y[:, :2])),
        ValueError,
        r"FourDVarNet: `batch.input` has 2 time entries, expected 3, as a state \(3, 4\) has",
    ),
    "prior of another state": (
        lambda: FourDVarNet(Tanh(jnp.asarray(W)), MaskedIdentity(), IdentityGradMod(0.1))(batch_of(Y)),
        ValueError,
        r"FourDVarNet: `prior` \(Tanh\) cannot be applied to a state of shape \(3, 3\): ",
    ),
    "prior that makes something else": (
        lambda: learned(prior=lambda x: x[:1])(batch_of(Y)),
        ValueError,
        r"`prior` \(function\) makes \(1, 4\) of a state of shape \(3, 4\), expected the same",
    ),
    "background of another shape": (
        lambda: learned().analyse(batch_of(), background=jnp.ones((SAMPLES, 7))),
        ValueError,
        r"background` has shape \(2, 7\), expected \(3, 4\) or \(2, 3, 4\)",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_bad_input_is_refused_in_words_before_anything_is_compiled(kind, count_compilations):
    call, error, words = REFUSED[kind]
    with count_compilations() as compiled, pytest.raises(error, match=words):
        call()
    assert not any("analyse" in name for name in compiled.names)
