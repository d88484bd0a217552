"""What every method does alike: batches, overrides, `with_`, samples, transformations, warnings, dtypes, gradients."""

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import optimistix as optx
import pytest

from vardax.covariances.dense import DenseCovariance
from vardax.covariances.diagonal import DiagonalCovariance
from vardax.dynamics.discrete import DiscreteForward
from vardax.minimisers.problem import BatchedProblem
from vardax.obs_operators.callable import CallableObs
from vardax.obs_operators.linear import LinearObs
from vardax.types import Analysis, Batch1D, ConvergenceError, ConvergenceWarning, Status

pytestmark = pytest.mark.slow  # compiles many programs

X64 = jax.config.jax_enable_x64
TIGHT = {"rtol": 1e-5, "atol": 1e-5} if X64 else {"rtol": 5e-3, "atol": 5e-3}
DERIVATIVE = {"rtol": 2e-6, "atol": 1e-7}
ITERATIVE = ["ThreeDVar", "StrongFourDVar"]
iterative = pytest.mark.parametrize("name", ITERATIVE)


def stacked(dense, name, numbers, **changes):
    return np.stack([dense(name, numbers, sample, **changes)[0] for sample in range(2)])


# -- the analysis ----------------------------------------------------------------------------------------------------


def test_the_analysis_is_that_of_the_dense_formula(name, numbers, build, make_batch, dense):
    analysis = build(name, numbers).analyse(make_batch(name, numbers))
    np.testing.assert_allclose(analysis.state, stacked(dense, name, numbers), **TIGHT)
    for sample in range(2):
        np.testing.assert_allclose(analysis.cost.last.total[sample], dense(name, numbers, sample)[2], **TIGHT)
    assert analysis.converged.all()
    assert (analysis.status == Status.CONVERGED).all()


def test_a_call_returns_the_state_of_the_analysis(name, numbers, build, make_batch):
    model, batch = build(name, numbers), make_batch(name, numbers)
    assert eqx.tree_equal(model(batch), model.analyse(batch).state)


def test_the_cost_is_never_above_that_of_the_background(name, numbers, build, make_batch):
    analysis = build(name, numbers).analyse(make_batch(name, numbers))
    assert (analysis.cost.last.total <= analysis.cost.first.total).all()


def test_only_a_window_has_a_trajectory(name, numbers, build, make_batch):
    analysis = build(name, numbers).analyse(make_batch(name, numbers))
    if name == "StrongFourDVar":
        assert analysis.trajectory.shape == (2, 3, 4)
        np.testing.assert_allclose(analysis.trajectory[:, 0], analysis.state)
        np.testing.assert_allclose(
            analysis.trajectory[:, 1], analysis.state @ numbers.A.T.astype(analysis.state.dtype), **TIGHT
        )
    else:
        assert analysis.trajectory is None


@pytest.mark.parametrize("name", ["OptimalInterpolation", "ThreeDVar"])
def test_the_time_axis_of_a_single_time_may_be_left_out(name, numbers, build):
    model, y = build(name, numbers), jnp.asarray(numbers.y[:, :1])
    with_axis, without = (model(Batch1D.from_observations(a)) for a in (y, y[:, 0]))
    np.testing.assert_allclose(with_axis, without, rtol=1e-12)


def test_a_background_is_for_all_samples_or_one_for_each(name, numbers, build, make_batch, dense):
    model, batch = build(name, numbers), make_batch(name, numbers)
    shared = model.analyse(batch, background=jnp.asarray(numbers.background[0])).state
    np.testing.assert_allclose(shared, stacked(dense, name, numbers, background=numbers.background[0]), **TIGHT)
    each = model.analyse(batch, background=jnp.asarray(numbers.background)).state
    for sample in range(2):
        expected = dense(name, numbers, sample, background=numbers.background[sample])[0]
        np.testing.assert_allclose(each[sample], expected, **TIGHT)


def test_a_missing_sample_keeps_its_background(name, numbers, build, make_batch):
    numbers.y[1] = np.nan
    analysis = build(name, numbers).analyse(make_batch(name, numbers))
    np.testing.assert_allclose(analysis.state[1], numbers.mean, rtol=1e-6)
    np.testing.assert_allclose(analysis.cost.last.total[1], 0.0)
    assert analysis.converged.all()


def test_a_missing_entry_of_a_correlated_R_is_marginalised(name, build, numbers):
    """Two variables, correlation 0.5, the second missing, B = R-variance = 1, y = 2, x_b = 0: 1.0, not 1.143."""
    unit = DenseCovariance(jnp.eye(2))
    slots = {"obs_op": LinearObs(jnp.eye(2)), "prior_mean": jnp.zeros(2), "prior_cov_op": unit}
    if name == "StrongFourDVar":
        slots["forward"] = DiscreteForward(lambda x: x, dt=1.0)
    model = build(name, numbers, obs_cov_op=DenseCovariance(jnp.array([[1.0, 0.5], [0.5, 1.0]])), **slots)
    analysis = model.analyse(Batch1D.from_observations(jnp.array([[[2.0, jnp.nan]]])))
    np.testing.assert_allclose(analysis.state, [[1.0, 0.0]], atol=1e-6)


def test_the_errors_of_the_batch_replace_the_deviations_of_R(name, numbers, build, make_batch, dense):
    sd = np.array([0.3, 1.5, 0.7])
    spread = np.sqrt(np.diag(numbers.R))
    rescaled = numbers.R * np.outer(sd / spread, sd / spread)
    shape = make_batch(name, numbers).input.shape
    batch = make_batch(name, numbers, obs_err=np.broadcast_to(sd, shape))
    analysis = build(name, numbers).analyse(batch)
    np.testing.assert_allclose(analysis.state, stacked(dense, name, numbers, R=rescaled), **TIGHT)


def test_the_observation_cost_is_split_by_instrument(name, numbers, build, make_batch):
    shape = make_batch(name, numbers).input.shape
    batch = make_batch(name, numbers, instrument=np.broadcast_to([0, 2, 2], shape))
    model = build(name, numbers)
    analysis, whole = model.analyse(batch), model.analyse(make_batch(name, numbers))
    assert analysis.cost.last.J_o_by_instrument.shape == (2, 3)
    assert analysis.history.J_o.shape[-1] == 3
    np.testing.assert_allclose(analysis.cost.last.J_o, whole.cost.last.J_o, **TIGHT)
    np.testing.assert_allclose(analysis.cost.last.J_o_by_instrument[:, 1], 0.0)
    np.testing.assert_allclose(analysis.state, whole.state, **TIGHT)


# -- slots and overrides ---------------------------------------------------------------------------------------------


def test_an_override_is_the_same_as_another_slot(name, numbers, other_numbers, build, make_batch, dense):
    model, batch = build(name, numbers), make_batch(name, numbers)
    overrides = {
        "background": jnp.asarray(other_numbers.mean),
        "prior_cov_op": DenseCovariance(jnp.asarray(other_numbers.B)),
        "obs_cov_op": DenseCovariance(jnp.asarray(other_numbers.R)),
        "obs_op": LinearObs(jnp.asarray(other_numbers.H)),
    }
    changes = {"background": other_numbers.mean, "B": other_numbers.B, "R": other_numbers.R, "H": other_numbers.H}
    before = model(batch)
    for slot, change in (("background", "background"), ("prior_cov_op", "B"), ("obs_cov_op", "R"), ("obs_op", "H")):
        analysis = model.analyse(batch, **{slot: overrides[slot]})
        expected = stacked(dense, name, numbers, **{change: changes[change]})
        np.testing.assert_allclose(analysis.state, expected, **TIGHT)
        replaced = model.with_(**{"prior_mean" if slot == "background" else slot: overrides[slot]})
        np.testing.assert_allclose(replaced(batch), expected, **TIGHT)
    assert eqx.tree_equal(model(batch), before)


def test_an_unknown_slot_is_refused_with_the_nearest_name(name, numbers, build):
    with pytest.raises(TypeError, match=r"with_: unknown slot `obs_opp`; it has .*Did you mean `obs_op`\?"):
        build(name, numbers).with_(obs_opp=None)


def test_with_nothing_is_the_same_method(name, numbers, build):
    model = build(name, numbers)
    assert eqx.tree_equal(model.with_(), model)


# -- compilation -----------------------------------------------------------------------------------------------------


def test_a_second_call_with_other_values_does_not_compile(
    name, numbers, other_numbers, build, make_batch, count_compilations
):
    model, batch = build(name, numbers), make_batch(name, numbers)
    other, other_batch = build(name, other_numbers), make_batch(name, other_numbers)
    background = jnp.asarray(other_numbers.background)
    first = model(batch)
    model.analyse(batch, background=jnp.asarray(numbers.background))
    with count_compilations() as compiled:
        second = other(other_batch)
        other.analyse(other_batch, background=background)
    assert compiled.n == 0, compiled.names
    assert not np.allclose(first, second)


def test_a_replaced_slot_does_not_compile(name, numbers, other_numbers, build, make_batch, count_compilations):
    model, batch = build(name, numbers), make_batch(name, numbers)
    new = build(name, other_numbers)
    model(batch)
    with count_compilations() as compiled:
        replaced = model.with_(prior_mean=new.prior_mean, prior_cov_op=new.prior_cov_op, obs_cov_op=new.obs_cov_op)
        replaced(batch)
    assert compiled.n == 0, compiled.names


def test_numpy_slots_are_traced_too(name, numbers, other_numbers, build, make_batch, count_compilations):
    batch = make_batch(name, numbers)
    model = build(name, numbers).with_(prior_mean=numbers.mean)
    model(batch)
    with count_compilations() as compiled:
        model.with_(prior_mean=other_numbers.mean)(batch)
    assert compiled.n == 0, compiled.names


# -- samples and transformations -------------------------------------------------------------------------------------


def test_an_array_with_gaps_is_one_sample(name, numbers, build, make_batch):
    model, batch = build(name, numbers), make_batch(name, numbers)
    y = jnp.asarray(numbers.y[0] if name == "StrongFourDVar" else numbers.y[0, 0])
    np.testing.assert_allclose(model.analyse_one(y).state, model(batch)[0], **TIGHT)


def test_a_method_works_under_jit_and_scan(name, numbers, build, make_batch):
    model, batch = build(name, numbers), make_batch(name, numbers)
    expected = model(batch)
    np.testing.assert_allclose(eqx.filter_jit(lambda m, b: m(b))(model, batch), expected, **TIGHT)

    def cycle(background, _):
        analysis = model.analyse(batch, background=background)
        return analysis.state, analysis

    last, analyses = jax.lax.scan(cycle, jnp.asarray(numbers.background), None, length=2)
    assert isinstance(analyses, Analysis)
    assert analyses.state.shape == (2, 2, 4)
    np.testing.assert_allclose(analyses.state[1], last)


def test_a_method_is_built_under_jit(name, numbers, build, make_batch):
    batch = make_batch(name, numbers)

    @jax.jit
    def analysis(H, variances):
        model = build(name, numbers, obs_op=LinearObs(H), prior_cov_op=DiagonalCovariance(variances))
        return model(batch)

    H, variances = jnp.asarray(numbers.H), jnp.ones(4)
    expected = build(name, numbers, obs_op=LinearObs(H), prior_cov_op=DiagonalCovariance(variances))(batch)
    np.testing.assert_allclose(analysis(H, variances), expected, **TIGHT)


def test_equal_calls_give_equal_bits(name, numbers, build, make_batch):
    model, batch = build(name, numbers), make_batch(name, numbers)
    assert eqx.tree_equal(model(batch), model(batch))


# -- what does not converge ------------------------------------------------------------------------------------------


@iterative
def test_a_cap_truncates_with_one_warning(name, numbers, build, make_batch, recwarn):
    model, batch = build(name, numbers, max_steps=2), make_batch(name, numbers)
    with pytest.warns(ConvergenceWarning, match=rf"{name}: stopped at max_steps") as caught:
        state = model(batch)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    assert jnp.isfinite(state).all()


@iterative
def test_analyse_and_jit_are_silent(name, numbers, build, make_batch):
    model, batch = build(name, numbers, max_steps=2), make_batch(name, numbers)
    analysis = model.analyse(batch)
    assert not analysis.converged.any()
    assert (analysis.status == Status.MAX_STEPS).all()
    assert "max_steps" in analysis.message()
    eqx.filter_jit(model)(batch)


@iterative
def test_strict_raises_instead(name, numbers, build, make_batch):
    model, batch = build(name, numbers, max_steps=2, strict=True), make_batch(name, numbers)
    for call in (model, model.analyse, model.posterior):
        with pytest.raises(ConvergenceError, match=rf"{name}: stopped at max_steps"):
            call(batch)
    eqx.filter_jit(model)(batch)
    build(name, numbers, strict=True)(batch)


@iterative
def test_a_first_guess_changes_the_start_and_not_the_analysis(name, numbers, build, make_batch):
    model, batch = build(name, numbers), make_batch(name, numbers)
    guess = jnp.asarray(numbers.background)
    analysis, posed = model.analyse(batch, first_guess=guess), model.problem(batch)
    np.testing.assert_allclose(analysis.state, model(batch), rtol=1e-3, atol=1e-4 if X64 else 5e-3)
    started = np.stack([posed.map_samples(lambda p, x: p.cost(p.control_of(x)), guess)])[0]
    np.testing.assert_allclose(analysis.cost.first.total, started, **TIGHT)


@iterative
def test_a_warm_start_takes_an_analysis_or_its_control(name, numbers, build, make_batch):
    model, batch = build(name, numbers), make_batch(name, numbers)
    first = model.analyse(batch)
    for start in (first, first.control):
        again = model.analyse(batch, warm_start=start)
        assert (again.n_iterations <= 2).all()
        np.testing.assert_allclose(again.state, first.state, **TIGHT)


def test_two_starts_are_one_too_many(name, numbers, build, make_batch):
    model, batch = build(name, numbers), make_batch(name, numbers)
    with pytest.raises(ValueError, match=r"give `first_guess` \(a state\) or `warm_start` \(an Analysis\), not both"):
        model.analyse(batch, first_guess=jnp.zeros(4), warm_start=jnp.zeros(4))


# -- numbers ---------------------------------------------------------------------------------------------------------


def test_what_comes_out_has_the_dtype_of_what_goes_in(name, numbers, build, make_batch, dense):
    dtype = jnp.float32
    model, batch = build(name, numbers, dtype), make_batch(name, numbers, dtype)
    analysis = model.analyse(batch)
    floats = [leaf for leaf in jax.tree.leaves(analysis) if jnp.issubdtype(leaf.dtype, jnp.inexact)]
    assert {leaf.dtype for leaf in floats} == {jnp.dtype(dtype)}
    assert model.posterior(batch).std().dtype == dtype
    assert analysis.converged.all()
    np.testing.assert_allclose(analysis.state, stacked(dense, name, numbers), rtol=5e-3, atol=5e-3)


def test_no_analysis_applies_an_inverse_of_a_covariance(name, numbers, build, make_batch, monkeypatch):
    def refuse(*_):
        raise AssertionError("an analysis asked for an inverse or a determinant")

    for cls in (DenseCovariance, DiagonalCovariance):
        monkeypatch.setattr(cls, "inv_mv", refuse)
        monkeypatch.setattr(cls, "logdet", refuse)
    model, batch = build(name, numbers, max_steps=499), make_batch(name, numbers)
    model(batch)
    model.posterior(batch).std()
    *_, _ = model.iterate(batch)


def test_a_background_with_gaps_is_refused(name, numbers, build, make_batch):
    batch, holes = make_batch(name, numbers), jnp.array([0.0, jnp.nan, jnp.inf, 0.0])
    message = rf"{name}: the background \(`prior_mean`\) has 2 non-finite entries"
    model = build(name, numbers)
    for call in (
        lambda: build(name, numbers, prior_mean=holes)(batch),
        lambda: model.analyse(batch, background=holes),
        lambda: model.posterior(batch, background=holes),
        lambda: list(model.with_(prior_mean=holes).iterate(batch)),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_a_traced_background_with_gaps_gives_a_status_and_no_exception(name, numbers, build, make_batch):
    model, batch = build(name, numbers), make_batch(name, numbers)
    analysis = jax.jit(lambda x_b: model.analyse(batch, background=x_b))(jnp.full(4, jnp.nan))
    assert (analysis.status == Status.NON_FINITE).all()
    assert not analysis.converged.any()


# -- what a state and a covariance may be ----------------------------------------------------------------------------


def test_a_state_may_be_a_dictionary(name, numbers, build):
    prior = lx.DiagonalLinearOperator({"u": jnp.array([1.0, 4.0]), "c": jnp.array([0.25])})
    mean = {"u": jnp.array([0.5, -0.5]), "c": jnp.array([2.0])}
    both = CallableObs(lambda x: jnp.concatenate([x["u"], x["c"]]))
    slots = {"obs_op": both, "prior_mean": mean, "prior_cov_op": prior, "obs_cov_op": DiagonalCovariance(jnp.ones(3))}
    if name == "StrongFourDVar":
        slots["forward"] = DiscreteForward(lambda x: x, dt=1.0)
    model = build(name, numbers, **slots)
    batch = Batch1D.from_observations(jnp.array([[[1.0, jnp.nan, 3.0]], [[0.0, 1.0, jnp.nan]]]))
    analysis = model.analyse(batch)
    np.testing.assert_allclose(analysis.state["u"], [[0.75, -0.5], [0.25, 0.7]], atol=1e-4)
    np.testing.assert_allclose(analysis.state["c"], [[2.2], [2.0]], atol=1e-4)
    std = model.posterior(batch).std()
    np.testing.assert_allclose(std["u"][0], np.sqrt([0.5, 4.0]), rtol=1e-4)
    np.testing.assert_allclose(std["c"][0], np.sqrt([0.2]), rtol=1e-4)
    draws = model.posterior(batch).sample(jax.random.key(0), 3)
    assert draws["u"].shape == (2, 3, 2)


@pytest.mark.parametrize(
    "make",
    [
        lambda B: lx.MatrixLinearOperator(B, lx.positive_semidefinite_tag),
        lambda B: lx.FunctionLinearOperator(
            lambda v: B @ v, jax.ShapeDtypeStruct((4,), B.dtype), lx.positive_semidefinite_tag
        ),
        lambda B: lx.TaggedLinearOperator(DenseCovariance(B), lx.positive_semidefinite_tag),
        lambda B: 0.5 * (DenseCovariance(B) + DenseCovariance(B)),
    ],
    ids=["matrix", "function", "tagged", "scaled sum"],
)
@pytest.mark.parametrize("name", ["OptimalInterpolation", "ThreeDVar"])
def test_any_lineax_operator_is_a_background_covariance(name, numbers, build, make_batch, dense, make):
    model = build(name, numbers, prior_cov_op=make(jnp.asarray(numbers.B)))
    np.testing.assert_allclose(model(make_batch(name, numbers)), stacked(dense, name, numbers), **TIGHT)


@pytest.mark.parametrize(
    "make",
    [
        lambda X: lx.MatrixLinearOperator(X) @ lx.MatrixLinearOperator(X).T,
        lambda X: lx.MatrixLinearOperator(X @ X.T, lx.positive_semidefinite_tag),
        lambda X: DenseCovariance(X @ X.T),
    ],
    ids=["X Xᵀ", "matrix", "dense"],
)
@pytest.mark.parametrize("name", ["OptimalInterpolation", "ThreeDVar"])
def test_a_singular_background_covariance_keeps_the_analysis_in_its_range(
    name, numbers, build, make_batch, dense, make
):
    X = numbers.background.T
    model = build(name, numbers, prior_cov_op=make(jnp.asarray(X)))
    np.testing.assert_allclose(model(make_batch(name, numbers)), stacked(dense, name, numbers, B=X @ X.T), **TIGHT)


def test_every_sample_may_have_its_own_problem(name, numbers, build, make_batch):
    posed = build(name, numbers).problem(make_batch(name, numbers))
    assert isinstance(posed, BatchedProblem)
    control = jnp.ones((2, 4))
    assert posed.cost(control).shape == (2,)
    assert posed.gradient(control).shape == (2, 4)
    assert posed.hessian_product(control, control).shape == (2, 4)
    assert posed.control_to_state(control).shape == (2, 4)


# -- posterior and analysis step -------------------------------------------------------------------------------------


def test_the_posterior_is_that_of_the_dense_formula(name, numbers, build, make_batch, dense):
    posterior = build(name, numbers).posterior(make_batch(name, numbers))
    for sample in range(2):
        mean, cov, _ = dense(name, numbers, sample)
        np.testing.assert_allclose(posterior.mean[sample], mean, **TIGHT)
        np.testing.assert_allclose(posterior.std()[sample], np.sqrt(np.diag(cov)), **TIGHT)
    assert posterior.sample(jax.random.key(1), 5).shape == (2, 5, 4)


def test_the_posterior_takes_the_overrides_of_the_analysis(name, numbers, other_numbers, build, make_batch, dense):
    posterior = build(name, numbers).posterior(
        make_batch(name, numbers),
        background=jnp.asarray(other_numbers.mean),
        prior_cov_op=DenseCovariance(jnp.asarray(other_numbers.B)),
    )
    mean, cov, _ = dense(name, numbers, 0, background=other_numbers.mean, B=other_numbers.B)
    np.testing.assert_allclose(posterior.mean[0], mean, **TIGHT)
    np.testing.assert_allclose(posterior.std()[0], np.sqrt(np.diag(cov)), **TIGHT)


def test_an_analysis_step_starts_from_the_forecast(name, numbers, build, dense):
    model = build(name, numbers)
    step, forecast = model.as_analysis_step(), jnp.asarray(numbers.background[0])
    window = name == "StrongFourDVar"
    obs = [jnp.asarray(y) for y in numbers.y[0]] if window else jnp.asarray(numbers.y[0, 0])
    result = step(forecast, obs, obs_op=None, obs_err_cov=None)
    expected = dense(name, numbers, 0, background=numbers.background[0])[0]
    carried = np.linalg.matrix_power(numbers.A, 2) @ expected if window else expected
    assert result.shape == forecast.shape
    np.testing.assert_allclose(result, carried, **TIGHT)


def test_an_analysis_step_uses_the_operator_and_the_errors_that_it_is_given(name, numbers, other_numbers, build, dense):
    step, forecast = build(name, numbers).as_analysis_step(), jnp.asarray(numbers.background[0])
    window = name == "StrongFourDVar"
    obs = [jnp.asarray(y) for y in numbers.y[0]] if window else jnp.asarray(numbers.y[0, 0])
    given = {
        "obs_op": LinearObs(jnp.asarray(other_numbers.H)),
        "obs_err_cov": DenseCovariance(jnp.asarray(other_numbers.R)),
    }
    expected = dense(name, numbers, 0, background=numbers.background[0], H=other_numbers.H, R=other_numbers.R)[0]
    carried = np.linalg.matrix_power(numbers.A, 2) @ expected if window else expected
    np.testing.assert_allclose(step(forecast, obs, **given), carried, **TIGHT)


# -- derivatives -----------------------------------------------------------------------------------------------------


def parameters(numbers):
    """The values whose influence on the analysis is checked: data, background, B and R by their square roots."""
    return {
        "y": jnp.asarray(np.nan_to_num(numbers.y)),
        "background": jnp.asarray(numbers.mean),
        "B": jnp.linalg.cholesky(jnp.asarray(numbers.B)),
        "R": jnp.linalg.cholesky(jnp.asarray(numbers.R)),
    }


ADJOINTS = {"implicit": optx.ImplicitAdjoint(), "checkpointed": optx.RecursiveCheckpointAdjoint()}


def score_of(name, numbers, build, **options):
    """A scalar of the analysis as a function of `parameters`; the gaps stay where they are."""
    model, gaps = build(name, numbers, **options), jnp.isnan(jnp.asarray(numbers.y))
    weights = jnp.arange(1.0, 5.0)

    @jax.jit
    def score(values):
        y = jnp.where(gaps, jnp.nan, values["y"])
        analysis = model.analyse(
            Batch1D.from_observations(y if name == "StrongFourDVar" else y[:, :1]),
            background=values["background"],
            prior_cov_op=DenseCovariance(values["B"] @ values["B"].T),
            obs_cov_op=DenseCovariance(values["R"] @ values["R"].T),
        )
        return jnp.sum(jnp.sin(analysis.state) * weights[None])

    return score


@pytest.mark.x64
@pytest.mark.parametrize(
    ("name", "adjoint"),
    [("OptimalInterpolation", None), *(("ThreeDVar", adjoint) for adjoint in ADJOINTS)],
)
def test_gradients_of_the_analysis_are_the_limits_of_differences(name, adjoint, numbers, build):
    """A nonlinear operator where there may be one, so that the optimum depends on everything in earnest."""
    options = {}
    if adjoint is not None:
        H = jnp.asarray(numbers.H)
        options = {"obs_op": CallableObs(lambda x: H @ x + 0.1 * (H @ x) ** 2), "tol": 1e-11}
        options |= {
            "minimiser": optx.GaussNewton(1e-12, 1e-12),
            "minimiser_adjoint": ADJOINTS[adjoint],
            "max_steps": 60,
        }
    score, values = score_of(name, numbers, build, **options), parameters(numbers)
    gradient = jax.grad(score)(values)
    random, step = np.random.default_rng(0), 1e-5
    for key in values:
        direction = jnp.asarray(random.normal(size=values[key].shape))
        if key in "BR":
            direction = jnp.tril(direction)
        moved = [score(values | {key: values[key] + sign * step * direction}) for sign in (1, -1)]
        difference = (moved[0] - moved[1]) / (2 * step)
        np.testing.assert_allclose(jnp.sum(gradient[key] * direction), difference, **DERIVATIVE, err_msg=key)


def test_gaps_have_no_influence(name, numbers, build):
    gradient = jax.grad(score_of(name, numbers, build))(parameters(numbers))
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
    assert (np.asarray(gradient["y"])[np.isnan(numbers.y)] == 0).all()
