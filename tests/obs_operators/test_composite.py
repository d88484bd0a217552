"""CompositeObs: the order of operators, chain rule, positions, masks that are passed on, and what is refused."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vardax.covariances import BlockDiagonalCovariance, DiagonalCovariance
from vardax.models import OptimalInterpolation, ThreeDVar
from vardax.obs_operators import (
    AveragingKernel,
    CallableObs,
    CompositeObs,
    InterpObs,
    LinearObs,
    PointObs,
    interp_obs_from_coords,
    is_linear,
)
from vardax.protocols import ObservationOperator
from vardax.types import Batch1D, Observations

RNG = np.random.default_rng(2)
F, G = RNG.standard_normal((4, 6)), RNG.standard_normal((2, 4))
X = RNG.standard_normal(6)
GRID = [np.arange(6.0)]


def points(coords, valid=None, value=0.0):
    p = len(coords)
    return Observations(np.full(p, value), 0.5, 0.0, np.reshape(coords, (p, 1)).astype(float), valid=valid)


def test_the_first_operator_gets_the_state():
    composed, state = CompositeObs(LinearObs(F), jnp.sin, LinearObs(G)), jnp.asarray(X)
    assert isinstance(composed, ObservationOperator)
    np.testing.assert_allclose(composed(state), G @ np.sin(F @ X), rtol=1e-5, atol=1e-6)


@pytest.mark.x64
def test_the_tangent_is_the_chain_rule():
    composed, state = CompositeObs(LinearObs(F), jnp.sin, LinearObs(G)), jnp.asarray(X)
    expected = G @ np.diag(np.cos(F @ X)) @ F
    linear = composed.linearize(state)
    np.testing.assert_allclose(linear.as_matrix(), expected, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(linear.T.as_matrix(), expected.T, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(jax.jacobian(composed)(state), expected, rtol=1e-12, atol=1e-14)


def test_the_operators_own_tangents_are_used():
    class Rounded(eqx.Module):
        """Steps, linearised as if it were smooth."""

        def __call__(self, state):
            return jnp.round(state)

        def linearize(self, state):
            return jnp.eye(state.size, dtype=state.dtype)

    composed = CompositeObs(Rounded(), LinearObs(F))
    np.testing.assert_allclose(composed.linearize(jnp.asarray(X)).as_matrix(), F, rtol=1e-5)


def test_a_variable_of_a_pytree_is_picked_and_sampled():
    composed = CompositeObs(lambda state: state["T"], InterpObs(GRID)).at(points([0.5, 4.0]))
    state = {"T": jnp.arange(6.0) ** 2, "u": jnp.zeros(3)}
    np.testing.assert_allclose(composed(state), [0.5, 16.0])
    gradient = composed.linearize(state).T.mv(jnp.ones(2))
    np.testing.assert_allclose(gradient["T"], [0.5, 0.5, 0, 0, 1, 0])
    np.testing.assert_array_equal(gradient["u"], 0.0)


def test_linear_parts_are_recognised_before_positions_are_known():
    structure = {"T": jax.ShapeDtypeStruct((6,), jnp.result_type(float))}
    picked = lambda state: state["T"]  # noqa: E731
    assert is_linear(CompositeObs(picked, InterpObs(GRID), lambda values: 2 * values + 1), structure)
    assert not is_linear(CompositeObs(picked, InterpObs(GRID), jnp.tanh), structure)
    assert not is_linear(CompositeObs(lambda state: state["T"] ** 2, InterpObs(GRID)), structure)
    assert CompositeObs(InterpObs(GRID), LinearObs(G)).linear_by_construction
    assert not CompositeObs(InterpObs(GRID), jnp.tanh).linear_by_construction


def test_oi_of_a_pytree_with_scattered_observations_of_one_variable():
    """The analysis of the variable that is seen is the dense formula; the other one stays what it was."""
    places = np.array([0.5, 3.0, 4.25])
    H = np.array([np.interp(places, GRID[0], unit) for unit in np.eye(6)]).T
    B = BlockDiagonalCovariance({"T": DiagonalCovariance(np.full(6, 2.0)), "u": DiagonalCovariance(np.ones(3))})
    operator = CompositeObs(lambda state: 2 * state["T"], InterpObs(GRID))
    method = OptimalInterpolation(operator, {"T": np.zeros(6), "u": np.ones(3)}, B, None)
    analysis = method([points(places, value=1.0)])
    expected = 2.0 * (2 * H).T @ np.linalg.solve(8.0 * H @ H.T + 0.25 * np.eye(3), np.ones(3))
    np.testing.assert_allclose(analysis["T"][0], expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(analysis["u"][0], 1.0)


def logarithm(**options):
    return CompositeObs(InterpObs(GRID, **options), jnp.log)


def test_what_is_masked_does_not_reach_the_operators_that_follow():
    """log(0) at a position without weight would make the gradient NaN."""
    operator = logarithm(outside="mask").at(points([-3.0, 1.5, 2.0, 9.0], valid=[1, 1, 0, 1]))
    state = jnp.arange(1.0, 7.0)
    np.testing.assert_array_equal(operator.mask, [0, 1, 0, 0])
    np.testing.assert_allclose(operator(state), [0, np.log(2.5), 0, 0], rtol=1e-6)
    gradient = jax.grad(lambda x: jnp.sum(operator(x)))(state)
    np.testing.assert_allclose(gradient, [0, 0.2, 0.2, 0, 0, 0], rtol=1e-6)
    np.testing.assert_allclose(operator.linearize(state).T.mv(jnp.ones(4)), gradient, rtol=1e-6)


def test_nothing_seen_is_finite_too():
    operator = logarithm(outside="mask").at(points([-3.0, 9.0]))
    gradient = jax.grad(lambda x: jnp.sum(operator(x)))(jnp.arange(1.0, 7.0))
    np.testing.assert_array_equal(gradient, 0.0)


@pytest.mark.slow
def test_gaps_do_not_change_the_analysis():
    """Observations that are not valid, or outside, against the same observations without them."""
    B, mean = DiagonalCovariance(np.full(6, 0.1)), np.full(6, 2.0)
    all_of_them = Observations(
        [0.9, 5.0, 1.1, 7.0], 0.1, 0.0, [[0.5], [1.0], [3.5], [99.0]], valid=[True, False, True, True]
    )
    two = Observations([0.9, 1.1], 0.1, 0.0, [[0.5], [3.5]]).pad_to(4)
    analyses = [ThreeDVar(logarithm(outside="mask"), mean, B, None)([each]) for each in (all_of_them, two)]
    np.testing.assert_allclose(*analyses, rtol=1e-4)
    assert np.isfinite(analyses[0]).all()


def footprints(**options):
    """Two observations, each the mean of two positions."""
    coords = np.array([[0.5], [1.5], [3.0], [4.0]]) + options.pop("shift", 0.0)
    means = AveragingKernel(np.repeat(np.eye(2) / 2, 2, axis=1), 0.0)
    return CompositeObs(interp_obs_from_coords(GRID, coords, **options), means)


def test_positions_that_are_all_seen_may_be_mixed():
    state = jnp.arange(6.0)
    operator = footprints()
    np.testing.assert_allclose(operator(state), [1.0, 3.5], rtol=1e-6)
    method = OptimalInterpolation(operator, np.zeros(6), DiagonalCovariance(np.ones(6)), DiagonalCovariance(np.ones(2)))
    H = np.asarray(operator.linearize(state).as_matrix(), float)
    y = np.array([1.0, 2.0])
    expected = H.T @ np.linalg.solve(H @ H.T + np.eye(2), y)
    np.testing.assert_allclose(method(Batch1D.from_observations(y[None]))[0], expected, rtol=1e-4)


@pytest.mark.parametrize("rest", [AveragingKernel(np.ones((2, 4)), 0.0), lambda values: jnp.cumsum(values)])
def test_mixing_positions_of_which_some_are_masked_is_refused(rest):
    operator = CompositeObs(interp_obs_from_coords(GRID, [[-9.0], [1.0], [2.0], [3.0]], outside="mask"), rest)
    with pytest.raises(ValueError, match="operator 0 masks 1 of 4 positions, and the operators after it mix positions"):
        operator.check(jnp.zeros(6))
    R = DiagonalCovariance(np.ones(operator(jnp.ones(6)).shape))
    with pytest.raises(ValueError, match="cannot be said which observations are missing"):
        ThreeDVar(operator, np.zeros(6), DiagonalCovariance(np.ones(6)), R)(
            Batch1D.from_observations(np.ones((1, R.shape[0])))
        )


def test_mixing_with_gaps_predicts_nan_where_nothing_can_be_raised():
    operator = footprints(shift=2.0, outside="mask")
    assert np.isnan(jax.jit(lambda op, x: op(x))(operator, jnp.ones(6))).all()


def test_a_composition_may_be_composed():
    inner = CompositeObs(InterpObs(GRID), jnp.exp)
    outer = CompositeObs(lambda x: 0.1 * x, inner, jnp.log)
    assert outer.mask is None
    bound, state = outer.at(points([0.5, 4.0])), jnp.arange(6.0)
    np.testing.assert_allclose(bound(state), [0.05, 0.4], rtol=1e-5)
    np.testing.assert_array_equal(bound.mask, 1.0)
    bound.check(state)


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: CompositeObs(), ValueError, "no operators were given, expected at least one"),
        (
            lambda: CompositeObs([jnp.sin]),
            TypeError,
            r"operator 0 is list.*one by one: CompositeObs\(\*ops\)",
        ),
        (lambda: CompositeObs(jnp.sin, 3.0), TypeError, "operator 1 is float, expected an observation operator"),
        (
            lambda: CompositeObs(lambda x: x[:4], PointObs([5])).check(jnp.zeros(6)),
            ValueError,
            "1 of 1 `indices` are out of range",
        ),
    ],
)
def test_what_is_no_composition_is_refused(make, error, words):
    with pytest.raises(error, match=words):
        make()


def test_an_operator_that_does_not_fit_is_named_by_the_method():
    operator = CompositeObs(CallableObs(lambda x: x[:3]), LinearObs(G))
    with pytest.raises(ValueError, match=r"LinearObs: the matrix has shape \(2, 4\), which does not fit"):
        ThreeDVar(operator, np.zeros(6), DiagonalCovariance(np.ones(6)), DiagonalCovariance(np.ones(2)))(
            Batch1D.from_observations(np.ones((1, 2)))
        )
