"""ColumnRetrieval: hand-computed columns, sampling, kernels that come with the observations, gaps, what is refused."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vardax.covariances import DiagonalCovariance
from vardax.models import OptimalInterpolation
from vardax.obs_operators import ColumnRetrieval, CompositeObs, InterpObs, PointObs
from vardax.protocols import ObservationOperator
from vardax.types import Batch1D, Observations

LEVELS, MODEL = [1000.0, 500.0, 0.0], [0.0, 250.0, 500.0, 1000.0]
COLUMN = jnp.array([[6.0], [10.0], [1.0]])  # in 0-250, 250-500 and 500-1000
GRID = [np.arange(4.0), np.arange(5.0)]


def one(kernel, prior, levels=LEVELS, weights=(0.5, 0.5), model_levels=MODEL, **options):
    return ColumnRetrieval([kernel], [prior], [weights], [levels], model_levels=model_levels, **options)


@pytest.mark.parametrize(
    ("operator", "expected"),
    [
        (one([1.0, 1.0], [2.0, 4.0]), 0.5 * 1 + 0.5 * 8),  # the means of the layers are 1 and 8
        (one([0.0, 0.0], [2.0, 4.0]), 0.5 * 2 + 0.5 * 4),  # blind: the a priori
        (one([1.0, 0.5], [2.0, 4.0]), 0.5 * (2 + (1 - 2)) + 0.5 * (4 + 0.5 * (8 - 4))),
        (one([1.0, 0.5], [2.0, 4.0], weights=(0.2, 0.8)), 0.2 * 1 + 0.8 * 6),
        # Partial overlaps: 1000-400 holds 500 of the layer of 1 and 100 of that of 10.
        (one([1.0, 1.0], [0.0, 0.0], [1000.0, 400.0, 0.0]), 0.5 * 1500 / 600 + 0.5 * (150 * 10 + 250 * 6) / 400),
        # Beyond the model: 1100 to 1000 is below its lowest layer.
        (one([1.0, 1.0], [7.0, 0.0], [1100.0, 500.0, 0.0]), 0.5 * 1 + 0.5 * 8),
        (one([1.0, 1.0], [7.0, 0.0], [1100.0, 500.0, 0.0], outside="prior"), 0.5 * (500 * 1 + 100 * 7) / 600 + 0.5 * 8),
        (one([0.5, 1.0], [7.0, 0.0], [1100.0, 500.0, 0.0], outside="prior"), 0.5 * (7 + 0.5 * (2 - 7)) + 0.5 * 8),
        # A layer that the model does not reach at all, at the top.
        (one([1.0, 1.0], [2.0, 9.0], [200.0, 0.0, -100.0], outside="clamp"), 0.5 * 6 + 0.5 * 6),
        (one([1.0, 1.0], [2.0, 9.0], [200.0, 0.0, -100.0], outside="prior"), 0.5 * 6 + 0.5 * 9),
    ],
)
def test_hand_computed_columns(operator, expected):
    assert isinstance(operator, ObservationOperator)
    np.testing.assert_allclose(operator(COLUMN), [expected], rtol=1e-5)


@pytest.mark.parametrize("model_order", [1, -1])
@pytest.mark.parametrize("order", [1, -1])
def test_the_order_of_layers_does_not_matter(order, model_order):
    parts = ([1.0, 0.5], [2.0, 4.0], LEVELS, [0.3, 0.7])
    kernel, prior, levels, weights = (part[::order] for part in parts)
    operator = one(kernel, prior, levels, weights, MODEL[::model_order])
    np.testing.assert_allclose(operator(COLUMN[::model_order]), one(*parts)(COLUMN), rtol=1e-6)


def test_the_mask_of_what_reaches_beyond_the_model():
    parts = [[1.0, 1.0]] * 2, [[0.0, 0.0]] * 2, [[0.5, 0.5]] * 2, [[1000.0, 500.0, 0.0], [1100.0, 500.0, 0.0]]
    operator = ColumnRetrieval(*parts, model_levels=MODEL, outside="mask")
    np.testing.assert_array_equal(operator.mask, [1, 0])
    np.testing.assert_allclose(operator(jnp.tile(COLUMN, (1, 2))), [4.5, 0.0], rtol=1e-6)


def test_the_layers_of_the_model_follow_the_surface():
    """Hybrid levels a + b p_surface on a grid, sampled where the soundings are."""
    surface = np.array([[1000.0, 600.0], [1000.0, 800.0]])
    model_levels = np.array([0.0, 0.5, 1.0])[:, None, None] * surface
    state = jnp.stack([jnp.full((2, 2), 2.0), jnp.full((2, 2), 4.0)])
    interp = InterpObs([np.arange(2.0), np.arange(2.0)]).at(np.array([[0.0, 0.0], [0.0, 0.5], [0.5, 1.0]]))
    levels = np.tile([1000.0, 600.0, 0.0], (3, 1))
    parts = np.ones((3, 2)), np.zeros((3, 2)), np.tile([0.4, 0.6], (3, 1))
    operator = ColumnRetrieval(*parts, levels, interp, model_levels=model_levels)
    # Surface pressures 1000, 800, 700: the model's layers meet at 500, 400 and 350.
    below = np.array([4.0, 4.0, 4.0])
    above = np.array([(500 * 2 + 100 * 4) / 600, (400 * 2 + 200 * 4) / 600, (350 * 2 + 250 * 4) / 600])
    np.testing.assert_allclose(operator(state), 0.4 * below + 0.6 * above, rtol=1e-5)


def soundings(p=6, layers=3, seed=0):
    rng = np.random.default_rng(seed)
    levels = 1000.0 * (1 - np.arange(layers + 1) / layers) + rng.uniform(0, 20, (p, 1))
    parts = rng.uniform(0.3, 1.1, (p, layers)), rng.normal(3, 1, (p, layers)), rng.dirichlet(np.ones(layers), p)
    return dict(zip(("kernel", "prior", "weights", "levels"), (*parts, levels), strict=True))


def positions(p=6, seed=1):
    return np.random.default_rng(seed).uniform(0, 3, (p, 2))


def state(layers=5, seed=2):
    return jnp.asarray(np.random.default_rng(seed).normal(3.0, 1.0, (layers, 4, 5)))


MODEL_LEVELS = np.linspace(0.0, 1010.0, 6)


def test_kernels_and_positions_come_with_the_observations():
    parts, coords = soundings(), positions()
    observed = Observations(np.zeros(6), 1.0, 0.0, coords, aux=parts)
    waiting = ColumnRetrieval(interp=InterpObs(GRID), model_levels=MODEL_LEVELS)
    fixed = ColumnRetrieval(**parts, interp=InterpObs(GRID).at(coords), model_levels=MODEL_LEVELS)
    assert waiting.mask is None
    np.testing.assert_allclose(waiting.at(observed)(state()), fixed(state()), rtol=1e-6)
    own_kernels = ColumnRetrieval(**parts, interp=InterpObs(GRID), model_levels=MODEL_LEVELS)
    np.testing.assert_allclose(own_kernels.at(coords)(state()), fixed(state()), rtol=1e-6)
    assert set(fixed.aux) == set(parts)
    again = Observations(np.zeros(6), 1.0, 0.0, coords, aux=fixed.aux)
    np.testing.assert_allclose(waiting.at(again)(state()), fixed(state()), rtol=1e-6)


def test_columns_are_sampled_by_number_or_by_any_operator():
    parts, numbers = soundings(), np.array([0, 7, 7, 19, 3, 11])
    flat = state().reshape(5, 20)
    expected = ColumnRetrieval(**parts, model_levels=MODEL_LEVELS)(flat[:, numbers])
    entries = PointObs(np.arange(5)[:, None] * 20 + numbers[None])
    for interp in (numbers, entries, lambda x: x.reshape(5, 20)[:, numbers]):
        operator = ColumnRetrieval(**parts, interp=interp, model_levels=MODEL_LEVELS)
        np.testing.assert_allclose(operator(state()), expected, rtol=1e-6)
        assert operator.linearize(state()).T.mv(jnp.ones_like(expected)).shape == (5, 4, 5)
    observed = Observations(np.zeros(6), 1.0, 0.0, positions(), aux=parts | {"column": numbers})
    bound = ColumnRetrieval(model_levels=MODEL_LEVELS).at(observed)
    np.testing.assert_allclose(bound(state()), expected, rtol=1e-6)


def test_missing_kernels_positions_outside_and_invalid_entries_are_masked():
    parts, coords = soundings(), positions()
    parts["kernel"][1, 0], coords[2, 0] = np.nan, 99.0
    observed = Observations(np.zeros(6), 1.0, 0.0, coords, valid=[1, 1, 1, 0, 1, 1], aux=parts)
    operator = ColumnRetrieval(interp=InterpObs(GRID, outside="mask"), model_levels=MODEL_LEVELS).at(observed)
    np.testing.assert_array_equal(operator.mask, [1, 0, 0, 0, 1, 1])
    np.testing.assert_array_equal(operator(state())[1:4], 0.0)
    np.testing.assert_array_equal(operator.linearize(state()).as_matrix()[1:4], 0.0)
    gradient = jax.grad(lambda x: jnp.sum(operator(x) ** 2))(state())
    assert np.isfinite(gradient).all()


def dense_oi(operator, observed, mean, seen):
    """The textbook analysis from the matrix and the offset of the operator, with B = I."""
    H = np.asarray(operator.linearize(mean).as_matrix())[seen]
    innovation = (np.asarray(observed.value) - np.asarray(operator(mean)))[seen]
    R = np.diag(np.asarray(observed.error)[seen] ** 2)
    return np.asarray(mean).ravel() + H.T @ np.linalg.solve(H @ H.T + R, innovation)


def day(seed, count=6):
    rng = np.random.default_rng(seed)
    parts = soundings(count, seed=seed)
    parts["prior"][0, 1] = np.nan
    value = rng.normal(3, 0.5, count)
    return Observations(value, rng.uniform(0.1, 0.3, count), 0.0, positions(count, seed), aux=parts)


@pytest.mark.x64
def test_oi_with_the_kernels_of_each_day_is_the_dense_formula_and_compiles_once(count_compilations):
    operator = ColumnRetrieval(interp=InterpObs(GRID), model_levels=MODEL_LEVELS)
    method = OptimalInterpolation(operator, state(), DiagonalCovariance(np.ones((5, 4, 5))), None)
    for seed in (5, 6, 7):
        observed = day(seed)
        with count_compilations() as compiled:
            analysis = method.analyse([observed])
        assert seed == 5 or compiled.n == 0, compiled.names
        expected = dense_oi(operator.at(observed), observed, state(), np.arange(1, 6))
        np.testing.assert_allclose(analysis.state[0].ravel(), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.x64
@pytest.mark.slow
def test_samples_have_their_own_kernels():
    operator = ColumnRetrieval(interp=InterpObs(GRID), model_levels=MODEL_LEVELS)
    method = OptimalInterpolation(operator, state(), DiagonalCovariance(np.ones((5, 4, 5))), None)
    days = [day(5), day(6)]
    together = method([*days])
    for number, observed in enumerate(days):
        expected = dense_oi(operator.at(observed), observed, state(), np.arange(1, 6))
        np.testing.assert_allclose(together[number].ravel(), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.x64
@pytest.mark.slow
def test_the_analysis_is_differentiable_with_respect_to_the_kernels():
    """By central differences, also for a sounding with a gap."""
    observed, B = day(5), DiagonalCovariance(np.ones((5, 4, 5)))
    operator = ColumnRetrieval(interp=InterpObs(GRID), model_levels=MODEL_LEVELS)

    def total(kernel):
        bound = operator.at(eqx.tree_at(lambda o: o.aux["kernel"], observed, kernel))
        method = OptimalInterpolation(bound, state(), B, DiagonalCovariance(observed.error**2))
        return jnp.sum(method(Batch1D(observed.value[None], observed.valid[None])) ** 2)

    kernel = observed.aux["kernel"]
    gradient = jax.grad(total)(kernel)
    assert np.isfinite(gradient).all()
    direction = jnp.asarray(np.random.default_rng(0).standard_normal(kernel.shape))
    slope = (total(kernel + 1e-6 * direction) - total(kernel - 1e-6 * direction)) / 2e-6
    np.testing.assert_allclose(jnp.vdot(gradient, direction), slope, rtol=1e-6)


def test_a_variable_of_the_state_is_picked_first():
    parts = soundings()
    operator = CompositeObs(lambda x: x["ch4"], ColumnRetrieval(interp=InterpObs(GRID), model_levels=MODEL_LEVELS))
    observed = Observations(np.zeros(6), 1.0, 0.0, positions(), aux=parts)
    alone = ColumnRetrieval(interp=InterpObs(GRID), model_levels=MODEL_LEVELS).at(observed)
    found = operator.at(observed)({"ch4": state(), "wind": jnp.zeros(3)})
    np.testing.assert_allclose(found, alone(state()), rtol=1e-6)


WAITING = ColumnRetrieval(interp=InterpObs(GRID), model_levels=MODEL_LEVELS)


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: ColumnRetrieval(outside="error"), ValueError, "`outside` is 'error', expected 'clamp', 'prior' or"),
        (
            lambda: ColumnRetrieval(**soundings(), interp=np.ones(3)),
            TypeError,
            "expected an operator such as InterpObs",
        ),
        (lambda: WAITING(state()), ValueError, "it has no soundings yet; give it those of the observations"),
        (lambda: WAITING.linearize(state()), ValueError, "it has no soundings yet"),
        (
            lambda: WAITING.at(Observations(np.zeros(6), 1.0, 0.0, positions(), aux={"kern": np.ones(6)})),
            ValueError,
            r"neither the operator nor the observations have kernels \(their `aux` has \['kern'\]\)",
        ),
        (
            lambda: WAITING.at(Observations(np.zeros(6), 1.0, 0.0, positions(), aux={"kernel": np.ones((6, 2))})),
            ValueError,
            "`prior`, `weights`, `levels` of the soundings is missing",
        ),
        (
            lambda: ColumnRetrieval(**soundings(), interp=InterpObs(GRID).at(positions(4))),
            ValueError,
            "`interp` has 4 positions, expected 6, one per sounding",
        ),
        (
            lambda: ColumnRetrieval(**soundings(), interp=np.arange(6), model_levels=MODEL_LEVELS)(state(layers=4)),
            ValueError,
            r"columns of shape \(4, 6\) of the state, expected \(5, 6\): the 5 layers of `model_levels` at 6 soundings",
        ),
        (
            lambda: ColumnRetrieval(**soundings())(jnp.ones((4, 6))),
            ValueError,
            r"columns of shape \(4, 6\) of the state, expected \(3, 6\): the 3 layers of the retrieval at 6 soundings",
        ),
        (
            lambda: ColumnRetrieval(**soundings(), interp=np.full(6, 20)).check(jnp.ones((3, 4, 5))),
            ValueError,
            r"6 of 6 column numbers are out of range, expected 0 to 19 for a state of shape \(3, 4, 5\)",
        ),
        (
            lambda: ColumnRetrieval(**soundings(), model_levels=np.ones((6, 5)) * np.arange(6.0)[:, None]),
            ValueError,
            r"`interp` makes \(6, 5\) of `model_levels` \(6, 5\), expected \(6, 6\)",
        ),
    ],
)
def test_what_does_not_fit_is_refused(make, error, words):
    with pytest.raises(error, match=words):
        make()


def test_the_method_says_which_layers_do_not_fit():
    R = DiagonalCovariance(np.ones(6))
    operator = ColumnRetrieval(**soundings(), interp=np.arange(6), model_levels=MODEL_LEVELS)
    method = OptimalInterpolation(operator, state(4), DiagonalCovariance(np.ones((4, 4, 5))), R)
    with pytest.raises(
        ValueError, match=r"OptimalInterpolation: `obs_op` \(ColumnRetrieval\) cannot be applied.*\(4, 6\)"
    ):
        method(Batch1D.from_observations(np.ones((1, 6))))
