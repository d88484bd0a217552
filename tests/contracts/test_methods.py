"""What every method owes its user, whichever method it is: run on all that `vardax.models` exports.

A method joins by being exported. Its constructor slots say which twin problem it gets: a window where there is a
`forward`, one time otherwise. A required slot without a recipe fails here and asks for one.
"""

import dataclasses
import functools
import inspect
import re

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import optimistix as optx
import pytest

import vardax.models
from vardax.covariances import DenseCovariance, DiagonalCovariance
from vardax.dynamics import DiscreteForward, Lorenz96, rollout
from vardax.grad_mod import IdentityGradMod
from vardax.latent import LatentPrior
from vardax.models import AbstractAnalysisMethod, FourDVarNet, SolverConfig
from vardax.obs_operators import CallableObs, LinearObs, PointObs
from vardax.primitives import identity_latent_map
from vardax.priors import GaussianPrior
from vardax.protocols import AnalysisStep
from vardax.types import Analysis, Batch1D, ConvergenceError, ConvergenceWarning, Status
from vardax.validation import gradient_test

pytestmark = pytest.mark.slow  # every method or solver compiles its own programs

EXPORTED = [getattr(vardax.models, name) for name in vardax.models.__all__]
METHODS = [
    cls
    for cls in EXPORTED
    if isinstance(cls, type) and issubclass(cls, AbstractAnalysisMethod) and cls is not AbstractAnalysisMethod
    and FourDVarNet not in cls.__bases__  # FourDVarNet1D ... only set defaults
]  # fmt: skip
ITERATIVE = [cls for cls in METHODS if cls.iterative]
# A learned solver makes the steps that it was taught, wherever they lead.
DESCENDING = [cls for cls in METHODS if cls is not FourDVarNet]

every_method = pytest.mark.parametrize("method", METHODS, ids=lambda cls: cls.__name__)
every_descending_method = pytest.mark.parametrize("method", DESCENDING, ids=lambda cls: cls.__name__)
every_iterative_method = pytest.mark.parametrize("method", ITERATIVE, ids=lambda cls: cls.__name__)
DTYPES = ["float32", pytest.param("float64", marks=pytest.mark.x64)]

N, SAMPLES, INTERVALS = 12, 4, 3
OBSERVED = np.arange(0, N, 2)
SIGMA_B, SIGMA_O = 0.6, 0.2


# Enough iterations to converge, for methods whose default is to truncate.
CONFIGS = {vardax.models.IncrementalFourDVar: vardax.models.IncrementalConfig(n_outer=12)}


def background_covariance():
    d = np.abs(np.subtract.outer(np.arange(N), np.arange(N)))
    return SIGMA_B**2 * np.exp(-np.minimum(d, N - d) / 1.5)


# The largest eigenvalue of the Hessian of the cost where nothing is missing: gradient descent may step by 2 over it.
STEEPEST = np.linalg.eigvalsh(np.linalg.inv(background_covariance()))[-1] + SIGMA_O**-2


def slots_of(method):
    """Constructor arguments: (required, all)."""
    parameters = inspect.signature(method).parameters
    return [name for name, p in parameters.items() if p.default is p.empty], list(parameters)


def stopping(method, **limits):
    """`tol` and `max_steps`, which for a learned method are settings of its solver."""
    if "grad_mod" not in slots_of(method)[1]:
        return limits
    settings = {"max_steps": 2000, "tol": 1e-6} | limits
    return {"config": SolverConfig(settings["max_steps"], tol=settings["tol"])}


def takes_window(method):
    return "forward" in slots_of(method)[1]


def state_of(analysis):
    """The state, for methods that return the pair (state, model errors) as well."""
    return analysis.state[0] if isinstance(analysis.state, tuple) else analysis.state


@dataclasses.dataclass(frozen=True)
class Twin:
    """A truth, a background with errors of covariance B, observations of every second variable with gaps."""

    method: type
    dtype: str
    truth: np.ndarray  # (SAMPLES, N) at the control time
    background: np.ndarray  # (SAMPLES, N)
    y: np.ndarray  # (SAMPLES, entries, observed), NaN where missing

    def build(self, **options):
        """The method with its slots filled; `options` go to those slots that it has."""
        cast = lambda x: jnp.asarray(x, self.dtype)  # noqa: E731
        required, known = slots_of(self.method)
        mean, B = cast(self.background[0]), DenseCovariance(cast(background_covariance()))
        recipes = {
            "forward": lambda: Lorenz96(N, dt=0.02),
            "obs_op": lambda: PointObs(OBSERVED),
            "prior_mean": lambda: mean,
            "prior_cov_op": lambda: B,
            "obs_cov_op": lambda: DiagonalCovariance(cast(np.full(OBSERVED.size, SIGMA_O**2))),
            "model_err_cov_op": lambda: DiagonalCovariance(cast(np.full(N, 1e-3))),
            "latent_map": lambda: identity_latent_map(N),
            "prior": lambda: (
                LatentPrior(identity_latent_map(N), mean, B) if "latent_map" in known else GaussianPrior(mean, B)
            ),
            "grad_mod": lambda: IdentityGradMod(1.8 / STEEPEST),
            "solver_adjoint": lambda: optx.ImplicitAdjoint(),
        }
        required += ["obs_cov_op", "solver_adjoint"] if "grad_mod" in known else []
        missing = set(required) - set(recipes) - set(options)
        assert not missing, f"{self.method.__name__} needs a recipe for {missing}"
        slots = {name: recipes[name]() for name in required if name not in options}
        slots |= {"config": CONFIGS[self.method]} if self.method in CONFIGS else {}
        limits = {name: options.pop(name) for name in ("tol", "max_steps") if name in options}
        options = stopping(self.method, **limits) | options
        return self.method(**(slots | {name: value for name, value in options.items() if name in known}))

    def batch(self, y=None):
        return Batch1D.from_observations(jnp.asarray(self.y if y is None else y, self.dtype))

    @functools.cached_property
    def xb(self):
        return jnp.asarray(self.background, self.dtype)


@functools.cache
def twin(method, dtype="float32", seed=0):
    rng = np.random.default_rng(seed)
    model, entries = Lorenz96(N, dt=0.02), INTERVALS + 1 if takes_window(method) else 1
    starts = jnp.asarray(8 + rng.standard_normal((SAMPLES, N)), jnp.float32)
    truth = np.asarray(jax.vmap(lambda x: rollout(model, x, 300)[-1])(starts), np.float64)
    window = jax.vmap(lambda x: rollout(model, x, entries - 1))(jnp.asarray(truth, jnp.float32))
    y = np.asarray(window, np.float64)[..., OBSERVED] + SIGMA_O * rng.standard_normal((SAMPLES, entries, OBSERVED.size))
    y[rng.random(y.shape) < 0.15] = np.nan
    errors = rng.standard_normal((SAMPLES, N)) @ np.linalg.cholesky(background_covariance()).T
    return Twin(method, dtype, truth, truth + errors, y)


def leaves_equal(a, b):
    return all(bitwise(x) == bitwise(y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def bitwise(x):
    return np.asarray(x).shape, np.asarray(x).dtype, np.asarray(x).tobytes()


# ---------------------------------------------------------------------------------------------------------------------
# The analysis is good


@every_method
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_analysis_improves_on_the_background(method, dtype):
    case = twin(method, dtype)
    analysis = case.build().analyse(case.batch(), background=case.xb)
    assert bool(np.all(analysis.converged)), analysis.message()
    first, last = np.asarray(analysis.cost.first.total), np.asarray(analysis.cost.last.total)
    assert first.shape == last.shape == (SAMPLES,)
    assert np.all(last < first)
    rmse = lambda x: np.sqrt(np.mean((np.asarray(x, np.float64) - case.truth) ** 2))  # noqa: E731
    assert rmse(state_of(analysis)) < 0.8 * rmse(case.background)


@every_method
def test_the_cost_is_the_cost_of_the_problem(method):
    case = twin(method)
    model = case.build(prior_mean=case.xb)
    analysis, problem = model.analyse(case.batch()), model.problem(case.batch())
    np.testing.assert_allclose(problem.cost(analysis.control), analysis.cost.last.total, rtol=1e-4)
    np.testing.assert_allclose(problem.cost(problem.zero_control()), analysis.cost.first.total, rtol=1e-4)
    last = analysis.cost.last
    np.testing.assert_allclose(last.total, last.J_b + last.J_o + last.J_q, rtol=1e-5)


@every_descending_method
def test_a_truncated_run_is_never_worse_than_the_background(method):
    """Also one that starts far away: then the background itself is the better analysis."""
    case = twin(method)
    model = case.build(prior_mean=case.xb, max_steps=2, tol=1e-12)
    problem = model.problem(case.batch())
    background = np.asarray(problem.cost(problem.zero_control()))
    away = case.xb + 5 * jnp.asarray(np.random.default_rng(2).standard_normal(case.xb.shape), case.dtype)
    for first_guess in (case.xb, away):  # one program for both
        analysis = model.analyse(case.batch(), first_guess=first_guess)
        assert np.all(np.asarray(analysis.cost.last.total) <= background * (1 + 1e-6))
        assert np.all(np.isfinite(state_of(analysis)))


@every_method
def test_the_problem_passes_the_gradient_test(method):
    case = twin(method, jnp.result_type(float).name)
    report = gradient_test(case.build(prior_mean=case.xb), batch=case.batch())
    assert report, str(report)
    assert {"mask, cost", "mask, gradient", "Hessian = 1 + GᵀG"} <= {row.name for row in report.rows}


@every_method
def test_the_posterior_is_surer_than_the_background(method):
    case = twin(method)
    posterior = case.build().posterior(case.batch(), background=case.xb)
    std = np.asarray(posterior.std()[0] if isinstance(posterior.std(), tuple) else posterior.std())
    assert std.shape == (SAMPLES, N)
    assert np.all(std <= SIGMA_B * (1 + 1e-4))
    assert np.all(np.mean(std, axis=1) < 0.9 * SIGMA_B)
    draws = posterior.sample(jax.random.key(0), 5)
    assert (draws[0] if isinstance(draws, tuple) else draws).shape == (SAMPLES, 5, N)
    assert leaves_equal(draws, posterior.sample(jax.random.key(0), 5))


# ---------------------------------------------------------------------------------------------------------------------
# Missing observations


@every_method
@pytest.mark.parametrize("dtype", DTYPES)
def test_without_observations_the_analysis_is_the_background(method, dtype):
    case = twin(method, dtype)
    analysis = case.build().analyse(case.batch(np.full_like(case.y, np.nan)), background=case.xb)
    np.testing.assert_array_equal(state_of(analysis), case.xb)
    np.testing.assert_array_equal(analysis.cost.last.total, np.zeros(SAMPLES))
    assert bool(np.all(analysis.converged))


@every_method
@pytest.mark.parametrize("garbage", [np.nan, np.inf, -1e30, 0.0])
def test_what_stands_at_missing_entries_does_not_matter(method, garbage):
    case = twin(method)
    observed = np.isfinite(case.y)
    model = case.build(prior_mean=case.xb)
    expected = model.analyse(case.batch())
    filled = jnp.asarray(np.where(observed, case.y, garbage), case.dtype)
    found = model.analyse(Batch1D(filled, observed))
    assert leaves_equal(found.state, expected.state)
    assert leaves_equal(found.cost.last, expected.cost.last)


@every_method
@pytest.mark.parametrize("kind", [bool, int, float])
def test_a_mask_is_bool_int_or_float(method, kind):
    case = twin(method)
    observed = np.isfinite(case.y)
    model = case.build(prior_mean=case.xb)
    values = jnp.asarray(np.where(observed, case.y, 0), case.dtype)
    assert leaves_equal(model(Batch1D(values, observed.astype(kind))), model(case.batch()))


@every_method
def test_samples_do_not_see_each_other(method):
    case = twin(method)
    model, y = case.build(), case.y.copy()
    y[0] = np.nan
    y[1] *= 50
    changed = state_of(model.analyse(case.batch(y), background=case.xb))
    alone = state_of(model.analyse(case.batch(), background=case.xb))
    np.testing.assert_allclose(changed[2:], alone[2:], atol=5e-3)
    np.testing.assert_array_equal(changed[0], case.xb[0])


# ---------------------------------------------------------------------------------------------------------------------
# JAX


@every_method
def test_a_method_is_deterministic(method):
    case = twin(method)
    model = case.build()
    first, second = (model.analyse(case.batch(), background=case.xb) for _ in range(2))
    assert leaves_equal(first, second)


@every_method
def test_one_sample_is_a_sample_of_the_batch_and_goes_through_vmap_and_jit(method):
    case = twin(method)
    model, batch = case.build(), case.batch()
    y = jnp.asarray(case.y if takes_window(method) else case.y[:, 0], case.dtype)
    one = lambda y, background: state_of(model.analyse_one(y, background=background))  # noqa: E731
    together = state_of(model.analyse(batch, background=case.xb))
    np.testing.assert_allclose(jax.jit(jax.vmap(one))(y, case.xb), together, atol=5e-3)
    sample = model.analyse_one(batch.sample(2), background=case.xb[2])
    np.testing.assert_allclose(state_of(sample), together[2], atol=5e-3)
    assert sample.n_iterations.shape == ()


@every_method
@pytest.mark.x64
def test_the_gradient_of_the_analysis_is_that_of_differences(method):
    """Also where observations are missing: there it is zero, and no NaN spreads from there."""
    case = twin(method, "float64")
    B, y = jnp.asarray(background_covariance()), jnp.asarray(case.y)

    def total(p):
        """A smooth number made of the analysis, as a function of perturbations p of everything that goes into it."""
        model = case.build(
            prior_mean=case.xb + p["background"],
            prior_cov_op=DenseCovariance(B * (1 + p["scale of B"])),
            obs_cov_op=DiagonalCovariance(SIGMA_O**2 * (1 + p["variances of R"])),
            tol=1e-11,
            max_steps=2000,
        )
        return jnp.sum(jnp.sin(state_of(model.analyse(Batch1D.from_observations(y + p["observations"])))))

    start = {
        "observations": jnp.zeros(y.shape),
        "background": jnp.zeros(case.xb.shape),
        "variances of R": jnp.zeros(OBSERVED.size),
        "scale of B": jnp.zeros(()),
    }
    slope = jax.grad(total)(start)
    for name, zero in start.items():
        direction = jnp.asarray(np.random.default_rng(5).standard_normal(zero.shape))
        ahead, behind = (total({**start, name: zero + sign * 1e-4 * direction}) for sign in (1, -1))
        found = jnp.sum(slope[name] * direction)
        np.testing.assert_allclose(found, (ahead - behind) / 2e-4, rtol=1e-5, atol=1e-7, err_msg=name)
    np.testing.assert_array_equal(np.asarray(slope["observations"])[np.isnan(case.y)], 0.0)


@every_method
def test_new_data_do_not_compile_again(method, count_compilations):
    """Background, B, R, observations and masks are traced: other values of the same shapes run the same program."""
    case, other = twin(method), twin(method, seed=1)
    model = case.build(prior_mean=case.xb)
    batches = [case.batch(), other.batch()]
    B = DenseCovariance(jnp.asarray(1.3 * background_covariance(), case.dtype))
    R = DiagonalCovariance(jnp.full(OBSERVED.size, 0.5, case.dtype))
    xb = other.xb
    H = PointObs(OBSERVED + 1)
    model.analyse(batches[0])
    model(batches[0])
    model.analyse(batches[0], background=case.xb)
    with count_compilations() as compiled:
        for batch in batches:
            model(batch)
            model.analyse(batch, background=xb)
            model.analyse(batch, prior_cov_op=B, obs_cov_op=R, obs_op=H)
            changed = model.with_(prior_mean=xb, prior_cov_op=B, obs_cov_op=R, obs_op=H)
            changed(batch)
    assert compiled.n == 0, compiled.names
    assert compiled.n_traces == 0


@every_method
def test_a_first_call_compiles_few_programs(method, count_compilations):
    """One program for the analysis; the others are a handful of tiny conversions."""
    case = twin(method)
    model, batch = case.build(prior_mean=case.xb), case.batch()
    jax.clear_caches()
    with count_compilations() as compiled:
        model(batch)
    assert sum(name not in ("", "None") and "analyse" in name for name in compiled.names) <= 1, compiled.names
    assert compiled.n <= 8, compiled.names


# ---------------------------------------------------------------------------------------------------------------------
# Dtypes, structures, inputs


@every_method
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_analysis_has_the_dtype_of_its_inputs(method, dtype):
    case = twin(method, dtype)
    analysis = case.build().analyse(case.batch(), background=case.xb)
    parts = (analysis.state, analysis.control, analysis.cost, analysis.history, analysis.trajectory)
    found = {leaf.dtype.name for leaf in jax.tree.leaves(parts)}
    assert found == {dtype}
    assert jnp.issubdtype(analysis.status.dtype, jnp.integer)


@every_method
def test_the_analysis_keeps_the_batch_axis(method):
    case = twin(method)
    analysis = case.build().analyse(case.batch(), background=case.xb)
    assert isinstance(analysis, Analysis)
    assert state_of(analysis).shape == (SAMPLES, N)
    assert analysis.converged.shape == analysis.n_iterations.shape == analysis.status.shape == (SAMPLES,)
    assert leaves_equal(case.build(prior_mean=case.xb)(case.batch()), analysis.state)
    if takes_window(method):
        assert analysis.trajectory.shape == (SAMPLES, INTERVALS + 1, N)
        np.testing.assert_allclose(analysis.trajectory[:, 0], state_of(analysis), atol=1e-6)


@every_method
def test_the_users_arrays_are_left_alone_and_numpy_is_welcome(method):
    case = twin(method)
    arrays = [case.y.astype(case.dtype), case.background.astype(case.dtype), np.isfinite(case.y).astype(case.dtype)]
    y, background, mask = (array.copy() for array in arrays)
    found = case.build().analyse(Batch1D(y, mask), background=background)
    for array, original in zip((y, background, mask), arrays, strict=True):
        np.testing.assert_array_equal(array, original)
    expected = case.build().analyse(case.batch(), background=case.xb)
    np.testing.assert_allclose(state_of(found), state_of(expected), atol=1e-6)


def pytree_twin(method):
    """The same small linear problem on a dictionary of arrays and on a vector."""
    rng = np.random.default_rng(3)
    variances = {"u": np.linspace(0.5, 2.0, 5), "v": np.array([[1.0, 0.3], [0.2, 2.0]])}
    mean = {"u": rng.standard_normal(5), "v": rng.standard_normal((2, 2))}
    cast = lambda tree: jax.tree.map(lambda x: jnp.asarray(x, "float32"), tree)  # noqa: E731
    flat = lambda tree: jnp.concatenate([tree["u"], tree["v"].ravel()])  # noqa: E731
    back = lambda x: {"u": x[:5], "v": x[5:].reshape(2, 2)}  # noqa: E731
    A = cast(rng.standard_normal((4, 9)))
    M = cast(0.9 * np.eye(9) + 0.1 * rng.standard_normal((9, 9)))
    y = rng.standard_normal((2, 3 if takes_window(method) else 1, 4))
    y[0, 0, 1] = np.nan
    shared = {"obs_cov_op": DiagonalCovariance(jnp.full(4, 0.5, "float32"))}
    trees = {
        "forward": DiscreteForward(lambda s: back(M @ flat(s)), 1.0),
        "obs_op": CallableObs(lambda s: A @ flat(s)),
        "prior_mean": cast(mean),
        "prior_cov_op": lx.DiagonalLinearOperator(cast(variances)),
        "model_err_cov_op": lx.DiagonalLinearOperator(jax.tree.map(lambda v: 0.1 * v, cast(variances))),
    }
    vectors = {
        "forward": DiscreteForward(lambda x: M @ x, 1.0),
        "obs_op": LinearObs(A),
        "prior_mean": flat(cast(mean)),
        "prior_cov_op": DiagonalCovariance(flat(cast(variances))),
        "model_err_cov_op": DiagonalCovariance(0.1 * flat(cast(variances))),
    }
    for slots in (trees, vectors):
        slots["latent_map"] = identity_latent_map(9)
        mean, B = slots["prior_mean"], slots["prior_cov_op"]
        slots["prior"] = (
            LatentPrior(slots["latent_map"], mean, B) if "latent_map" in slots_of(method)[0] else GaussianPrior(mean, B)
        )
        slots["grad_mod"] = IdentityGradMod(1.8 / (1 / 0.2 + np.linalg.norm(A, 2) ** 2 / 0.5))
    required = slots_of(method)[0]
    shared |= stopping(method)
    required += ["obs_cov_op", "config"] if "grad_mod" in required else []
    build = lambda slots: method(**{k: v for k, v in {**shared, **slots}.items() if k in required})  # noqa: E731
    batch = Batch1D.from_observations(jnp.asarray(y, "float32"))
    return build(trees), build(vectors), batch, flat, cast(variances)


@every_method
def test_a_state_may_be_a_pytree(method):
    on_trees, on_vectors, batch, flat, variances = pytree_twin(method)
    found, expected = on_trees.analyse(batch), on_vectors.analyse(batch)
    assert state_of(found)["u"].shape == (2, 5)
    assert state_of(found)["v"].shape == (2, 2, 2)
    np.testing.assert_allclose(jax.vmap(flat)(state_of(found)), state_of(expected), atol=2e-3)
    std = on_trees.posterior(batch).std()
    std = std[0] if isinstance(std, tuple) else std
    for name, variance in variances.items():
        assert np.all(np.asarray(std[name]) <= np.sqrt(np.asarray(variance))[None] * (1 + 1e-4))


# ---------------------------------------------------------------------------------------------------------------------
# Overrides, starts, convergence


@every_method
def test_an_override_is_the_method_with_that_slot(method):
    case = twin(method)
    model = case.build()
    B = DenseCovariance(jnp.asarray(0.5 * background_covariance(), case.dtype))
    R = DiagonalCovariance(jnp.full(OBSERVED.size, 0.3, case.dtype))
    overrides = {"prior_cov_op": B, "obs_cov_op": R, "obs_op": PointObs(OBSERVED + 1)}
    found = model.analyse(case.batch(), background=case.xb, **overrides)
    expected = model.with_(prior_mean=case.xb, **overrides).analyse(case.batch())
    assert leaves_equal(found.state, expected.state)
    assert not leaves_equal(found.state, model.analyse(case.batch(), background=case.xb).state)


@every_method
def test_with_returns_another_method_and_leaves_this_one(method):
    case = twin(method)
    model = case.build()
    before = jax.tree.leaves(model)
    other = model.with_(prior_mean=case.xb[1], **stopping(method, tol=1e-3))
    assert type(other) is method
    assert other.tol == 1e-3
    assert leaves_equal(model, before)
    assert leaves_equal(model.with_(), model)


@every_method
def test_starts_change_the_number_of_iterations_and_not_the_analysis(method):
    case = twin(method)
    model = case.build()
    cold = model.analyse(case.batch(), background=case.xb)
    starts = {"warm_start": cold, "first_guess": cold.state}
    for name, start in starts.items():
        warm = model.analyse(case.batch(), background=case.xb, **{name: start})
        np.testing.assert_allclose(state_of(warm), state_of(cold), atol=5e-3)
        assert bool(np.all(warm.converged))
        if method.iterative:
            assert np.all(np.asarray(warm.n_iterations) < np.asarray(cold.n_iterations)), name


@every_iterative_method
def test_not_converged_is_never_silent(method):
    case = twin(method)
    model = case.build(prior_mean=case.xb, max_steps=2, tol=1e-12)
    analysis = model.analyse(case.batch())
    assert not np.any(analysis.converged)
    assert np.all(np.asarray(analysis.status) == Status.MAX_STEPS)
    assert "max_steps" in analysis.message()
    with pytest.warns(ConvergenceWarning, match=f"{method.__name__}: .*max_steps") as caught:
        model(case.batch())
    assert len(caught) == 1
    strict = model.with_(strict=True)
    for call in (strict, strict.analyse):
        with pytest.raises(ConvergenceError, match=f"{method.__name__}: .*max_steps"):
            call(case.batch())


@every_method
def test_a_converged_analysis_is_silent_and_strict_lets_it_through(method):
    case = twin(method)
    model = case.build(prior_mean=case.xb, strict=True)  # warnings are errors here
    assert leaves_equal(model(case.batch()), model.analyse(case.batch()).state)


@every_iterative_method
def test_the_history_tells_the_run(method):
    case = twin(method)
    analysis = case.build().analyse(case.batch(), background=case.xb)
    total, steps = np.asarray(analysis.history.total), np.asarray(analysis.n_iterations)
    for sample in range(SAMPLES):
        recorded = total[sample][np.isfinite(total[sample])]
        assert recorded.size >= steps[sample]
        np.testing.assert_allclose(recorded[0], analysis.cost.first.total[sample], rtol=1e-4)
        assert np.min(recorded) >= analysis.cost.last.total[sample] * (1 - 1e-4)
        norm = np.asarray(analysis.history.gradient_norm[sample])
        np.testing.assert_array_equal(np.isfinite(norm), np.isfinite(total[sample]))


@every_method
def test_iterate_ends_where_analyse_does_and_can_be_resumed(method):
    case = twin(method)
    model = case.build(prior_mean=case.xb)
    steps = list(model.iterate(case.batch()))
    assert all(isinstance(step, Analysis) for step in steps)
    np.testing.assert_allclose(state_of(steps[-1]), state_of(model.analyse(case.batch())), atol=5e-3)
    costs = np.array([np.asarray(step.cost.last.total) for step in steps])
    assert np.all(np.diff(costs, axis=0) <= 1e-3 * costs[:-1])
    resumed = list(model.iterate(case.batch(), warm_start=steps[len(steps) // 2]))
    np.testing.assert_allclose(state_of(resumed[-1]), state_of(steps[-1]), atol=5e-3)
    assert len(resumed) <= len(steps)


@every_method
def test_a_method_is_the_analysis_step_of_a_cycle(method):
    case = twin(method)
    model = case.build()
    step = model.as_analysis_step()
    assert isinstance(step, AnalysisStep)
    entries = [jnp.asarray(entry, case.dtype) for entry in case.y[0]]
    found = step(case.xb[0], entries if takes_window(method) else entries[0], obs_op=None, obs_err_cov=None)
    expected = model.analyse_one(jnp.asarray(case.y[0], case.dtype), background=case.xb[0])
    assert found.shape == (N,)
    assert found.dtype == case.xb.dtype
    end = expected.trajectory[-1] if takes_window(method) else state_of(expected)
    np.testing.assert_allclose(found, end, atol=5e-3)
    R = DiagonalCovariance(jnp.full(OBSERVED.size, 1e6, case.dtype))
    ignored = step(case.xb[0], entries if takes_window(method) else entries[0], obs_op=None, obs_err_cov=R)
    forecast = rollout(Lorenz96(N, dt=0.02), case.xb[0], len(entries) - 1)[-1]
    np.testing.assert_allclose(ignored, forecast, atol=1e-2)


# ---------------------------------------------------------------------------------------------------------------------
# Unusable input


def bad_inputs(case):
    """(what to call, the error, its words) for one twin."""
    model, batch = case.build(), case.batch()
    wide = case.batch(np.concatenate([case.y, case.y], axis=-1))
    small = DenseCovariance(jnp.eye(5, dtype=case.dtype))
    return {
        "observations of another shape": (
            lambda: model(wide),
            ValueError,
            rf"{type(model).__name__}: `batch.input` has shape \(4, \d, 12\), expected .*6.*`obs_op`",
        ),
        "no batch": (lambda: model(case.y), TypeError, "`batch` is ndarray, expected Batch1D.*from_observations"),
        "background of another shape": (
            lambda: model.analyse(batch, background=case.xb[:, :5]),
            ValueError,
            r"background` has shape \(4, 5\), expected \(12,\) or \(4, 12\)",
        ),
        "background for other samples": (
            lambda: model.analyse(batch, background=case.xb[:3]),
            ValueError,
            r"background` has shape \(3, 12\), expected \(12,\) or \(4, 12\)",
        ),
        "background of another structure": (
            lambda: model.analyse(batch, background={"u": case.xb}),
            ValueError,
            "background` has the structure .*'u'.*, expected",
        ),
        "incomplete background": (
            lambda: model.analyse(batch, background=case.xb.at[0, 3].set(jnp.nan)),
            ValueError,
            "the background .*has 1 non-finite entries; it must be complete",
        ),
        "B of another shape": (
            lambda: model.analyse(batch, prior_cov_op=small),
            ValueError,
            r"(prior_mean|background|prior_cov_op|obs_op).*\(5,\)",
        ),
        "R of another shape": (
            lambda: model.analyse(batch, obs_cov_op=small),
            ValueError,
            r"`obs_cov_op` acts on shape \(5,\), expected \(6,\)",
        ),
        "B as a matrix": (
            lambda: model.analyse(batch, prior_cov_op=np.eye(N)),
            TypeError,
            "`prior_cov_op` is ndarray, expected a covariance.*DenseCovariance",
        ),
        "R as variances": (
            lambda: model.analyse(batch, obs_cov_op=np.ones(6)),
            TypeError,
            "`obs_cov_op` is ndarray, expected a covariance.*DiagonalCovariance",
        ),
        "operator of another state": (
            lambda: model.analyse(batch, obs_op=PointObs([0, 50, 2, 3, 4, 5])),
            ValueError,
            r"(`obs_op`|`indices`) .*state of shape \(12,\)",
        ),
        "two starts": (
            lambda: model.analyse(batch, first_guess=case.xb, warm_start=case.xb),
            ValueError,
            "`first_guess` .*or `warm_start`.*not both",
        ),
        "first guess of another shape": (
            lambda: model.analyse(batch, first_guess=case.xb[:, :3]),
            ValueError,
            r"`first_guess` has shape \(4, 3\), expected",
        ),
        "warm start of another shape": (
            lambda: model.analyse(batch, warm_start=case.xb[:, :3]),
            ValueError,
            r"`warm_start` has (shape \(4, 3\)|the structure .*), expected",
        ),
        "unknown slot": (
            lambda: model.with_(prior_men=case.xb),
            TypeError,
            r"unknown slot `prior_men`.*Did you mean `prior_mean`\?",
        ),
        "unknown override": (lambda: model.analyse(batch, bakground=case.xb), TypeError, "bakground"),
    }


BAD_INPUTS = list(bad_inputs(twin(METHODS[0])))


@every_method
@pytest.mark.parametrize("kind", BAD_INPUTS)
def test_bad_input_is_refused_in_words_before_anything_is_compiled(method, kind, count_compilations):
    call, error, words = bad_inputs(twin(method))[kind]
    with count_compilations() as compiled, pytest.raises(error) as caught:
        call()
    assert re.search(words, str(caught.value)), str(caught.value)
    assert not any("analyse" in name for name in compiled.names), compiled.names


@every_method
def test_the_number_of_times_has_to_fit_the_method(method):
    case = twin(method)
    if takes_window(method):
        with pytest.raises(ValueError, match=r"`batch.input` has shape \(4, 6\), expected \(B, T\+1, "):
            case.build()(case.batch(case.y[:, 0]))
    else:
        several = np.concatenate([case.y, case.y], axis=1)
        with pytest.raises(ValueError, match="2 time entries, expected 1; use StrongFourDVar"):
            case.build()(case.batch(several))


@pytest.mark.parametrize(
    "method", [cls for cls in METHODS if "minimiser" in slots_of(cls)[1]], ids=lambda cls: cls.__name__
)
def test_a_minimiser_is_an_instance_of_optimistix(method):
    for wrong in (optx.BFGS, "BFGS"):
        with pytest.raises(TypeError, match="`minimiser` is .*expected an optimistix minimiser"):
            twin(method).build(minimiser=wrong)


@every_method
def test_a_method_comes_back_from_a_registry(method, comes_back):
    comes_back(twin(method).build)
