"""Every exported method takes scattered observations, and finds what the dense formula says.

The state is a field on a grid that closes around in longitude and has land; samples have different numbers of points
with errors of their own, gaps and two instruments; in a window each point has its own time. A method joins by being
exported from `vardax.models`.
"""

import functools
import inspect

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optimistix as optx
import pytest

import vardax.models
from vardax.covariances import DenseCovariance, DiagonalCovariance, RepeatedCovariance
from vardax.dynamics import DiscreteForward
from vardax.grad_mod import IdentityGradMod
from vardax.latent import LatentPrior
from vardax.minimisers import IncrementalConfig, NearestInTime
from vardax.models import (
    AbstractAnalysisMethod,
    FourDVarNet,
    OptimalInterpolation,
    SolverConfig,
    StrongFourDVar,
    ThreeDVar,
)
from vardax.obs_operators import InterpObs
from vardax.primitives import identity_latent_map
from vardax.priors import GaussianPrior, IdentityPrior
from vardax.types import Grid, Observations

EXPORTED = [getattr(vardax.models, name) for name in vardax.models.__all__]
METHODS = [
    cls
    for cls in EXPORTED
    if isinstance(cls, type) and issubclass(cls, AbstractAnalysisMethod) and cls is not AbstractAnalysisMethod
    and FourDVarNet not in cls.__bases__  # FourDVarNet1D ... only set defaults
    and {"prior_cov_op", "obs_cov_op"} <= set(inspect.signature(cls).parameters)
]  # fmt: skip
FAST = (OptimalInterpolation, ThreeDVar, StrongFourDVar)
every_method = pytest.mark.parametrize(
    "method", [pytest.param(m, marks=[] if m in FAST else pytest.mark.slow, id=m.__name__) for m in METHODS]
)
every_fast_method = pytest.mark.parametrize("method", FAST, ids=lambda m: m.__name__)

LATITUDE, LONGITUDE = np.array([-20.0, 0.0, 20.0]), np.arange(0.0, 360.0, 90.0)
SEA = np.ones((3, 4), bool)
SEA[1, 2] = False
X64 = jax.config.jax_enable_x64
N, N_STEPS, DT, START = 12, 2, 0.5, (10.0, 20.0)


def random_covariance(rng, n, scale=1.0):
    factor = rng.normal(size=(n, n))
    return scale * (factor @ factor.T / n + 0.3 * np.eye(n))


RNG = np.random.default_rng(0)
M = 0.8 * np.eye(N) + 0.15 * RNG.normal(size=(N, N))
B, Q = random_covariance(RNG, N), random_covariance(RNG, N, 0.1)
X_B = RNG.normal(size=(2, N))
COUNTS = (9, 6)
# Gradient descent converges with steps below 2 over the largest eigenvalue of the Hessian; this is more than that.
STEEPEST = np.linalg.eigvalsh(np.linalg.inv(B))[-1] + COUNTS[0] / 0.3**2 / 3
LEARNED = SolverConfig(6000, tol=1e-13 if X64 else 1e-7)


@functools.cache
def sample_points(which, p=None, seed=0):
    """Points of sample `which`, across the seam and beside land, at times all over the window; two do not count."""
    rng, p = np.random.default_rng((seed, which)), COUNTS[which] if p is None else p
    value = rng.normal(size=p)
    value[1] = np.nan
    return Observations(
        value,
        rng.uniform(0.3, 1.0, p),
        START[which] + rng.uniform(0, N_STEPS * DT, p),
        np.stack([rng.uniform(-20, 20, p), rng.uniform(-180, 180, p)], axis=-1),
        instrument=rng.integers(0, 2, p),
        valid=np.arange(p) != 2,
        start=START[which],
        n_instruments=2,
    )


class Times(eqx.Module):
    """x -> M x on the ravelled field."""

    matrix: jax.Array

    def __call__(self, state):
        return (self.matrix @ state.ravel()).reshape(state.shape)


def build(method, **options):
    parameters, same = inspect.signature(method).parameters, identity_latent_map(N)
    learned, latent = "grad_mod" in parameters, "latent_map" in parameters
    mean, covariance = jnp.asarray(X_B[0].reshape(3, 4)), DenseCovariance(B, shape=(3, 4))
    recipes = {
        "forward": DiscreteForward(Times(jnp.asarray(M)), DT),
        "obs_op": InterpObs(Grid([LATITUDE, LONGITUDE], mask=SEA, periodic=(1,))),
        "prior_mean": None if learned else mean,
        "prior_cov_op": None if learned else covariance,
        "latent_map": same,
        "prior": LatentPrior(same, mean, covariance) if latent else GaussianPrior(mean, covariance),
        "grad_mod": IdentityGradMod(1 / STEEPEST),
        "obs_cov_op": None,
        "model_err_cov_op": DenseCovariance(Q, shape=(3, 4)),
        "minimiser": optx.GaussNewton(1e-11, 1e-11) if X64 else optx.GaussNewton(1e-5, 1e-5),
        "config": LEARNED if learned else IncrementalConfig(n_outer=4, n_inner=40, cg_rtol=1e-13, cg_atol=1e-13),
        "n_steps": N_STEPS if "forward" in parameters else None,
        "tol": 1e-10 if X64 else None,
    }
    slots = {name: recipe for name, recipe in recipes.items() if name in parameters}
    return method(**(slots | {name: value for name, value in options.items() if name in parameters}))


def takes_window(method):
    return "forward" in inspect.signature(method).parameters


def sampling_row(latitude, longitude):
    """The weights of one position: bilinear, around the globe, without land."""
    row, column = min(int((latitude + 20) // 20), 1), int((longitude % 360) // 90)
    u, v = (latitude + 20) / 20 - row, (longitude % 360) / 90 - column
    weights = np.zeros((3, 4))
    for i, wi in ((row, 1 - u), (row + 1, u)):
        for j, wj in ((column, 1 - v), ((column + 1) % 4, v)):
            weights[i, j] += wi * wj * SEA[i, j]
    return weights.ravel() / weights.sum()


def dense(method, obs, x_b, between="linear"):
    """(x_0*, J by instrument at x_0*), by the textbook formula on the points that count."""
    with_error = "model_err_cov_op" in inspect.signature(method).parameters
    prior = np.kron(np.diag([1.0, 0, 0]), B) + np.kron(np.diag([0, 1.0, 1.0]), Q) if with_error else B
    seen = np.flatnonzero(np.asarray(obs.valid))
    G = []
    for i in seen:
        place = (float(obs.time[i]) - float(obs.start)) / DT if takes_window(method) else 0.0
        moments = [(round(place), 1.0)]
        if between == "linear":
            moments = [(int(place), 1 - place % 1), (int(place) + 1, place % 1)]
        row = sampling_row(*np.asarray(obs.coords[i], float))
        blocks = np.zeros((3 if with_error else 1, N))
        for entry, weight in moments:
            for k in range(blocks.shape[0]):
                if k <= entry:
                    blocks[k] += weight * row @ np.linalg.matrix_power(M, entry - k)
        G.append(blocks.ravel())
    G, R, y = np.array(G), np.diag(np.asarray(obs.error, float)[seen] ** 2), np.asarray(obs.value, float)[seen]
    mean = np.concatenate([x_b, np.zeros(prior.shape[0] - N)])
    best = mean + prior @ G.T @ np.linalg.solve(G @ prior @ G.T + R, y - G @ mean)
    misfit = 0.5 * (y - G @ best) ** 2 / np.diag(R)
    return best[:N], np.bincount(np.asarray(obs.instrument)[seen], misfit, minlength=2)


def state_of(analysis):
    return analysis.state[0] if isinstance(analysis.state, tuple) else analysis.state


@every_method
def test_the_analysis_is_the_dense_formula(method):
    """Two samples with different counts, windows that start at different times, and two instruments in the cost."""
    analysis = build(method).analyse([sample_points(0), sample_points(1)], background=X_B.reshape(2, 3, 4))
    for which in range(2):
        state, by_instrument = dense(method, sample_points(which), X_B[which])
        np.testing.assert_allclose(state_of(analysis)[which].ravel(), state, atol=1e-8 if X64 else 1e-3)
        np.testing.assert_allclose(
            analysis.cost.last.J_o_by_instrument[which], by_instrument, rtol=1e-7 if X64 else 1e-2
        )


@pytest.mark.slow
@every_method
def test_one_sample_is_its_own_batch(method):
    model = build(method)
    together, alone = model.analyse([sample_points(0)]), model.analyse_one(sample_points(0))
    np.testing.assert_allclose(state_of(alone), state_of(together)[0], rtol=1e-6, atol=1e-8)
    single = model.analyse(sample_points(0))
    np.testing.assert_array_equal(state_of(single), state_of(together))


@pytest.mark.slow
@every_fast_method
def test_thirty_days_compile_at_most_three_times(method, count_compilations):
    """30 counts within a factor of four, given as they are."""
    model, counts = build(method), [20 + 2 * day for day in range(30)]
    days = [sample_points(0, p, seed=p) for p in counts]
    with count_compilations() as compiled:
        states = [state_of(model.analyse([day])) for day in days]
    assert all(np.all(np.isfinite(state)) for state in states)
    assert sum("_analyse" in name for name in compiled.names) <= 3, compiled.names
    with count_compilations() as again:
        for day in days[::7]:
            model.analyse([day])
    assert again.n == 0, again.names


@pytest.mark.slow
@every_fast_method
def test_the_posterior_of_scattered_points_is_exact(method):
    posterior = build(method).posterior([sample_points(0)])
    obs, columns = sample_points(0), []
    # The analysis is linear in the background: its derivative is I - K G, and (I - K G) B is the posterior.
    for unit in np.eye(N):
        columns.append(dense(method, obs, X_B[0] + unit)[0] - dense(method, obs, X_B[0])[0])
    expected = np.sqrt(np.diag(np.stack(columns, axis=1) @ B))
    np.testing.assert_allclose(posterior.std()[0].ravel(), expected, rtol=1e-6 if X64 else 1e-3)


@pytest.mark.x64
@every_method
def test_the_analysis_step_of_a_cycle_takes_points(method):
    step = build(method).as_analysis_step()
    forecast = jnp.asarray(X_B[0].reshape(3, 4))
    state, _ = dense(method, sample_points(0), X_B[0])
    analysis = step.analyse(forecast, sample_points(0))
    np.testing.assert_allclose(state_of(analysis).ravel(), state, atol=1e-8)
    with pytest.raises(TypeError, match="a list of Observations, expected one Observations with all points"):
        step(forecast, [sample_points(0), sample_points(1)])


@pytest.mark.x64
@pytest.mark.slow
@every_fast_method
def test_gradients_with_respect_to_the_points_are_the_limits_of_differences(method):
    obs, rng, model = sample_points(0), np.random.default_rng(3), build(method)
    leaves = lambda o: (o.coords, o.time, o.value, o.error)  # noqa: E731

    @jax.jit
    def score(arrays):
        return jnp.sum(jnp.sin(model([eqx.tree_at(leaves, obs, arrays)])))

    gradients, h = jax.jit(jax.grad(score))(leaves(obs)), 1e-4
    for number, size in enumerate((1.0, 0.1, 0.1, 0.1)):
        direction = size * jnp.asarray(rng.normal(size=leaves(obs)[number].shape))
        step = lambda by, k=number, d=direction: tuple(a + by * d if n == k else a for n, a in enumerate(leaves(obs)))  # noqa: E731
        difference = (score(step(h)) - score(step(-h))) / (2 * h)
        np.testing.assert_allclose(jnp.vdot(gradients[number], direction), difference, rtol=1e-5, atol=1e-9)
        assert (abs(float(difference)) > 1e-4) == (number != 1 or takes_window(method))


@pytest.mark.x64
def test_a_trajectory_may_be_read_at_the_nearest_entry():
    model = build(StrongFourDVar, time_interpolation=NearestInTime())
    state, _ = dense(StrongFourDVar, sample_points(0), X_B[0], between="nearest")
    np.testing.assert_allclose(model([sample_points(0)])[0].ravel(), state, atol=1e-8)


@pytest.mark.x64
@pytest.mark.slow
def test_a_learned_method_estimates_a_window_at_its_entries():
    """x = (x_0, x_1, x_2) with a background and B for all of them, seen by points that lie between them in time."""
    mean = np.stack([X_B[0], X_B[1], X_B[0]])
    prior = GaussianPrior(mean.reshape(3, 3, 4), RepeatedCovariance(DenseCovariance(B, shape=(3, 4)), 3))
    model = build(FourDVarNet, prior=prior, n_steps=N_STEPS, interval=DT)
    analysis = model.analyse([sample_points(0), sample_points(1)])
    for which in range(2):
        obs, G = sample_points(which), []
        seen = np.flatnonzero(np.asarray(obs.valid))
        for i in seen:
            place = (float(obs.time[i]) - START[which]) / DT
            weight = np.maximum(1 - np.abs(place - np.arange(3)), 0)
            G.append(np.outer(weight, sampling_row(*np.asarray(obs.coords[i], float))).ravel())
        G, prior_covariance = np.array(G), np.kron(np.eye(3), B)
        S = G @ prior_covariance @ G.T + np.diag(np.asarray(obs.error, float)[seen] ** 2)
        innovation = np.asarray(obs.value, float)[seen] - G @ mean.ravel()
        expected = mean.ravel() + prior_covariance @ G.T @ np.linalg.solve(S, innovation)
        np.testing.assert_allclose(analysis.state[which].ravel(), expected, atol=1e-8)
    with pytest.raises(ValueError, match=r"`n_steps` is 3, expected a state of 4 entries, found \(3, 3, 4\)"):
        model.with_(n_steps=3)([sample_points(0)])
    with pytest.raises(ValueError, match="the prior, IdentityPrior, works on any; give `state_signature="):
        build(FourDVarNet, prior=IdentityPrior())([sample_points(0)])


@pytest.mark.x64
def test_substeps_are_steps_within_an_interval():
    """Two steps to an interval: the same window in half as many intervals, read at its entries only."""
    times = START[0] + DT * np.array([0.0, 2.0, 2.0, 0.0, 2.0, 0.0, 2.0, 2.0, 0.0])
    obs = eqx.tree_at(lambda o: o.time, sample_points(0), jnp.asarray(times))
    coarse, fine = build(StrongFourDVar, n_steps=1, n_substeps=2), build(StrongFourDVar)
    np.testing.assert_allclose(coarse([obs]), fine([obs]), atol=1e-9)


@pytest.mark.x64
def test_a_model_that_depends_on_time_starts_at_each_window_start():
    def forced(state, dt, *, t0):
        return state + dt * jnp.cos(t0)

    model = build(StrongFourDVar, forward=DiscreteForward(forced, DT))
    analysis = model.analyse([sample_points(0), sample_points(1)])
    for which in range(2):
        path, t = [np.asarray(analysis.state[which])], START[which]
        for _ in range(N_STEPS):
            path.append(path[-1] + DT * np.cos(t))
            t += DT
        np.testing.assert_allclose(analysis.trajectory[which], path, atol=1e-12)


def test_a_correlated_R_has_a_row_for_each_point():
    obs, rng = sample_points(1), np.random.default_rng(4)
    R = random_covariance(rng, COUNTS[1])
    model = build(OptimalInterpolation, obs_cov_op=DenseCovariance(R))
    seen = np.flatnonzero(np.asarray(obs.valid))
    H = np.stack([sampling_row(*np.asarray(obs.coords[i], float)) for i in seen])
    spread = np.asarray(obs.error, float) / np.sqrt(np.diag(R))
    R = (R * np.outer(spread, spread))[np.ix_(seen, seen)]
    gain = B @ H.T @ np.linalg.inv(H @ B @ H.T + R)
    expected = X_B[0] + gain @ (np.asarray(obs.value, float)[seen] - H @ X_B[0])
    np.testing.assert_allclose(model([obs])[0].ravel(), expected, atol=1e-8 if X64 else 1e-4)
    with pytest.raises(ValueError, match=r"\[6, 9\] points, and `obs_cov_op` is not diagonal"):
        model([sample_points(0), sample_points(1)])
    with pytest.raises(ValueError, match=r"`obs_cov_op` acts on shape \(6,\), expected \(9,\)"):
        model([sample_points(0)])


def test_a_diagonal_R_may_be_for_more_points_than_there_are():
    with_R = build(OptimalInterpolation, obs_cov_op=DiagonalCovariance(np.full(16, 7.0)))
    np.testing.assert_allclose(
        with_R([sample_points(0)]), build(OptimalInterpolation)([sample_points(0)]), rtol=1e-4, atol=1e-5
    )


def moved(**fields):
    obs = sample_points(0)
    return eqx.tree_at(lambda o: [getattr(o, name) for name in fields], obs, [jnp.asarray(v) for v in fields.values()])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda: moved(time=np.where(np.arange(9) > 6, 99.0, 10.0)),
            r"StrongFourDVar: 2 of 7 observations were made outside the window \[10, 11\], the first is number 7 at "
            r"time 99; `observations.window\(t0, t1\)`",
        ),
        (
            lambda: moved(coords=np.where(np.arange(18).reshape(9, 2) == 0, 60.0, 1.0)),
            r"InterpObs: 1 of 7 observations are outside the grid \[-20, 20\] x \[0, 270\], the first is number 0 at "
            r"\(60, 1\)",
        ),
        (
            lambda: moved(coords=np.tile([[0.0, 180.0]], (9, 1))),
            r"7 of 7 observations are outside the grid .*; 7 of them are on land, without a corner at sea",
        ),
    ],
)  # fmt: skip
def test_points_that_the_window_does_not_hold_are_counted(change, words):
    with pytest.raises(ValueError, match=words):
        build(StrongFourDVar)([change()])


def test_a_window_of_scattered_points_needs_its_length():
    with pytest.raises(ValueError, match=r"StrongFourDVar: scattered Observations do not say .* give `n_steps`"):
        build(StrongFourDVar, n_steps=None)([sample_points(0)])


def test_what_is_no_model_is_refused():
    with pytest.raises(TypeError, match="`forward` is a function, expected a model with"):
        build(StrongFourDVar, forward=lambda x: x)([moved(time=np.full(9, 10.0))])


def test_while_tracing_points_outside_the_window_are_masked():
    model, late = build(StrongFourDVar), moved(time=np.where(np.arange(9) > 6, 99.0, 10.3))
    without = moved(time=np.full(9, 10.3), valid=np.where(np.arange(9) > 6, 0.0, np.asarray(late.valid)))
    found = jax.jit(lambda o: model([o]))(late)
    np.testing.assert_allclose(found, model([without]), rtol=1e-4, atol=1e-5)


def test_a_window_without_points_keeps_the_background():
    nothing = sample_points(0).window(-2.0, -1.0)
    analysis = build(StrongFourDVar).analyse([nothing])
    np.testing.assert_allclose(analysis.state[0].ravel(), X_B[0], rtol=1e-6)
    assert float(analysis.cost.last.total[0]) == 0.0
    assert analysis.converged.all()
