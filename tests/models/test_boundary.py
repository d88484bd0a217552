"""Bad input is refused at the boundary, before anything is compiled, by the words that help."""

import jax
import jax.numpy as jnp
import jaxtyping
import lineax as lx
import numpy as np
import optimistix as optx
import pytest

from vardax.covariances.dense import DenseCovariance
from vardax.covariances.diagonal import DiagonalCovariance
from vardax.models.optimal_interpolation import OptimalInterpolation
from vardax.models.threedvar import ThreeDVar
from vardax.obs_operators.callable import CallableObs
from vardax.obs_operators.identity import MaskedIdentity
from vardax.obs_operators.linear import LinearObs
from vardax.types import Batch1D, Batch2D, Observations


def refused(call, error, *words):
    """`call` raises `error`, and its message has all the `words`."""
    with pytest.raises(error) as caught:
        call()
    message = str(caught.value)
    for word in words:
        assert word in message, message
    for noise in ("XlaRuntimeError", "EqxRuntimeError", "dot_general", "lineax.linear_solve"):
        assert noise not in message


@pytest.fixture
def batch(name, numbers, make_batch):
    return make_batch(name, numbers)


@pytest.fixture
def model(name, numbers, build):
    return build(name, numbers)


@pytest.fixture
def without_type_checks():
    """The annotations are not checked at run time, as in a user's process."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def test_nothing_is_compiled_by_a_call_that_is_refused(name, model, batch, count_compilations):
    with count_compilations() as compiled, pytest.raises(ValueError, match="`obs_op`"):
        model.with_(obs_cov_op=DiagonalCovariance(np.ones(3)), prior_cov_op=DiagonalCovariance(np.ones(6)))(batch)
    assert "_analyse" not in str(compiled.names)


def test_what_is_no_batch_is_refused(name, model):
    words = (name, "`batch` is", "Batch1D", "from_observations")
    refused(lambda: model(jnp.ones((2, 3))), TypeError, *words)
    refused(lambda: model({}), TypeError, "dict", *words)
    refused(lambda: model([1.0]), TypeError, "a list of float", *words)
    refused(lambda: model([]), TypeError, *words)
    refused(lambda: model.problem(None), TypeError, *words)
    refused(lambda: list(model.iterate(None)), TypeError, *words)
    refused(lambda: model.posterior(None), TypeError, *words)


def test_observations_of_another_shape_are_refused(name, model, numbers):
    y = np.ones((2, 3, 5)) if name == "StrongFourDVar" else np.ones((2, 1, 5))
    expected = "(B, T+1, 3)" if name == "StrongFourDVar" else "(B, 3) or (B, 1, 3)"
    refused(lambda: model(Batch1D.from_observations(y)), ValueError, name, "`batch.input`", str(y.shape), expected)


@pytest.mark.parametrize("name", ["OptimalInterpolation", "ThreeDVar"])
def test_a_window_is_refused_with_the_method_for_it(name, model):
    refused(
        lambda: model(Batch1D.from_observations(np.ones((2, 4, 3)))), ValueError, "4 time entries", "StrongFourDVar"
    )


@pytest.mark.parametrize("name", ["StrongFourDVar"])
def test_a_single_time_without_its_axis_is_refused_by_a_window_method(name, model):
    refused(lambda: model(Batch1D.from_observations(np.ones((2, 3)))), ValueError, "(2, 3)", "(B, T+1, 3)")


def test_a_grid_for_a_vector_is_refused(name, model):
    refused(
        lambda: model(Batch2D.from_observations(np.ones((2, 1, 3, 3)))), ValueError, "`batch.input`", "(2, 1, 3, 3)"
    )


def test_a_covariance_that_is_none_is_refused(model, batch, without_type_checks):
    for slot in ("prior_cov_op", "obs_cov_op"):
        words = (f"`{slot}` is", "expected a covariance", "DenseCovariance", "DiagonalCovariance")
        refused(lambda slot=slot: model.with_(**{slot: np.eye(4)})(batch), TypeError, *words)


def test_a_rectangular_covariance_is_refused(name, model, batch):
    rectangular = lx.MatrixLinearOperator(jnp.ones((4, 3)))
    words = (name, "`prior_cov_op` maps shape (3,) to (4,)", "square")
    refused(lambda: model.with_(prior_cov_op=rectangular)(batch), ValueError, *words)


def test_an_observation_covariance_of_another_shape_is_refused(name, model, batch):
    words = (name, "`obs_cov_op` acts on shape (5,)", "(3,)")
    refused(lambda: model.with_(obs_cov_op=DiagonalCovariance(np.ones(5)))(batch), ValueError, *words)


def test_a_background_covariance_of_another_shape_is_refused(name, model, batch):
    refused(
        lambda: model.with_(prior_cov_op=DiagonalCovariance(np.ones(6)))(batch),
        ValueError,
        name,
        "(6,)",
        "`prior_cov_op`",
    )


def test_a_background_of_another_shape_is_refused(name, model, batch):
    words = (name, "prior_mean", "background", "(5,)", "(4,)", "(2, 4)", "2 samples")
    refused(lambda: model.with_(prior_mean=jnp.ones(5))(batch), ValueError, *words)
    refused(lambda: model.analyse(batch, background=jnp.ones(5)), ValueError, *words)
    refused(lambda: model.analyse(batch, background=jnp.ones((3, 4))), ValueError, "(3, 4)")


def test_a_background_of_another_structure_is_refused(name, model, batch):
    words = (name, "`prior_mean / background` has the structure", "that of the prior")
    refused(lambda: model.analyse(batch, background={"u": jnp.ones(4)}), ValueError, *words)


def test_a_start_of_another_shape_is_refused(name, model, batch):
    refused(lambda: model.analyse(batch, first_guess=jnp.ones(5)), ValueError, name, "`first_guess`", "(5,)", "(4,)")
    refused(lambda: model.analyse(batch, warm_start=jnp.ones((3, 4))), ValueError, name, "`warm_start`", "(3, 4)")


@pytest.mark.parametrize("name", ["ThreeDVar", "StrongFourDVar"])
def test_an_operator_that_does_not_fit_the_state_is_refused(name, model, batch):
    words = (name, "`obs_op` (LinearObs) cannot be applied to a state of shape (4,)", "`prior_cov_op`")
    refused(lambda: model.with_(obs_op=LinearObs(jnp.ones((3, 9))))(batch), ValueError, *words)


@pytest.mark.parametrize("name", ["ThreeDVar", "StrongFourDVar"])
def test_an_operator_that_gives_a_dictionary_is_refused(name, model, batch):
    words = (name, "`obs_op` gives dict, expected one array", "to_observation_operator()")
    refused(lambda: model.with_(obs_op=CallableObs(lambda x: {"a": x}))(batch), TypeError, *words)


@pytest.mark.parametrize("name", ["ThreeDVar", "StrongFourDVar"])
def test_a_minimiser_that_is_none_is_refused(name, model):
    refused(
        lambda: model.with_(minimiser=optx.BFGS), TypeError, "`minimiser` is BFGS (the class; make an instance of it)"
    )
    refused(lambda: model.with_(minimiser="BFGS"), TypeError, "`minimiser` is str", "optimistix.BFGS(", "GaussNewton(")
    refused(lambda: model.with_(minimiser=optx.Newton(1e-6, 1e-6)), TypeError, "`minimiser` is Newton")


@pytest.mark.parametrize("name", ["ThreeDVar", "StrongFourDVar"])
def test_an_adjoint_of_the_model_is_not_one_of_the_minimiser(name, model):
    import diffrax

    words = ("`minimiser_adjoint` is diffrax.BacksolveAdjoint", "optimistix.ImplicitAdjoint()", "`forward_adjoint`")
    refused(lambda: model.with_(minimiser_adjoint=diffrax.BacksolveAdjoint()), ValueError, "inner-solve layer", *words)
    refused(lambda: model.with_(minimiser_adjoint=None), ValueError, "Unrecognised adjoint spec", "`minimiser_adjoint`")


@pytest.mark.parametrize(
    ("option", "value"), [("tol", float("nan")), ("tol", -1.0), ("max_steps", 0), ("max_steps", -3)]
)
def test_options_out_of_their_range_are_refused(name, model, option, value):
    refused(lambda: model.with_(**{option: value}), ValueError, f"`{option}`", str(value))


@pytest.mark.parametrize("value", [0, -1])
def test_substeps_are_positive(build, numbers, make_batch, value):
    model, batch = build("StrongFourDVar", numbers, n_substeps=value), make_batch("StrongFourDVar", numbers)
    refused(lambda: model(batch), ValueError, "`n_substeps`", str(value))


def test_a_model_without_a_step_is_refused(build, numbers, make_batch):
    refused(
        lambda: build("StrongFourDVar", numbers, forward=lambda x: x)(make_batch("StrongFourDVar", numbers)),
        TypeError,
        "`forward`",
        "DiscreteForward",
    )


def test_points_and_their_operator_must_agree():
    obs = Observations(np.ones(3), 1.0, 0.0, np.zeros((3, 1)))
    model = ThreeDVar(MaskedIdentity(), jnp.zeros(4), DiagonalCovariance(np.ones(4)), DiagonalCovariance(np.ones(4)))
    refused(lambda: model([obs]), ValueError, "ThreeDVar", "`batch", "(1, 3)", "(B, 4)")
    two = Observations(np.ones(2), 1.0, 0.0, np.zeros((2, 1)))
    refused(lambda: model([obs, two]), ValueError, "[2, 3] points", "does not read their positions", "pad_to")


def test_a_nonlinear_operator_is_refused_with_the_method_for_it():
    cov = DiagonalCovariance(np.ones(3))
    words = ("OptimalInterpolation", "`obs_op` (CallableObs)", "not linear", "ThreeDVar")
    refused(lambda: OptimalInterpolation(CallableObs(jnp.sin), jnp.zeros(3), cov, cov), ValueError, *words)
    linear = OptimalInterpolation(MaskedIdentity(), jnp.zeros(3), cov, cov)
    refused(lambda: linear.with_(obs_op=CallableObs(jnp.sin)), ValueError, *words)
    batch = Batch1D.from_observations(np.ones((1, 3)))
    refused(lambda: linear.analyse(batch, obs_op=CallableObs(jnp.sin)), ValueError, *words)


def test_an_affine_operator_is_accepted():
    cov = DiagonalCovariance(np.ones(3))
    model = OptimalInterpolation(CallableObs(lambda x: 2 * x + 1), jnp.zeros(3), cov, cov)
    np.testing.assert_allclose(model(Batch1D.from_observations(np.full((1, 3), 6.0))), np.full((1, 3), 2.0), rtol=1e-6)


def test_a_large_correlated_R_is_refused_by_name():
    model = ThreeDVar(MaskedIdentity(), jnp.zeros(513), DiagonalCovariance(np.ones(513)), DenseCovariance(np.eye(513)))
    refused(lambda: model(Batch1D.from_observations(np.ones((1, 513)))), ValueError, "513", "512", "DiagonalCovariance")


def test_a_call_that_raises_changes_nothing(name, model, batch):
    before = jax.tree.leaves(model)
    with pytest.raises(ValueError, match="background"):
        model.analyse(batch, background=jnp.ones(7))
    assert all(a is b for a, b in zip(before, jax.tree.leaves(model), strict=True))
