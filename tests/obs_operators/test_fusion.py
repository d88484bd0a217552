"""MultiInstrumentFusion: masks, R_i and weights reach the analysis; every method against a dense formula."""

import jax
import jax.numpy as jnp
import numpy as np
import optimistix as optx
import pytest

from vardax.covariances import DenseCovariance, DiagonalCovariance
from vardax.dynamics import DiscreteForward
from vardax.models import OptimalInterpolation, StrongFourDVar, ThreeDVar
from vardax.obs_operators import (
    CallableObs,
    InstrumentRegistry,
    InstrumentSpec,
    InterpObs,
    LinearObs,
    MultiInstrumentFusion,
)
from vardax.types import Observations

RNG = np.random.default_rng(4)
N, TIMES = 5, 3
H1, H2 = RNG.standard_normal((4, N)), RNG.standard_normal((3, N))
ROOT, B_ROOT, A = RNG.standard_normal((4, 4)), RNG.standard_normal((N, N)), RNG.standard_normal((N, N)) / 2
R1, R2, B = ROOT @ ROOT.T + np.eye(4), np.array([0.5, 1.0, 2.0]), B_ROOT @ B_ROOT.T / N + np.eye(N)
MEAN = RNG.standard_normal(N)
MASK = np.array([[1, 1], [0, 1]])
WEIGHTS = {"tropomi": 0.4, "goes": 3.0}
Y1, Y2 = RNG.standard_normal((2, TIMES, 2, 2)), RNG.standard_normal((2, TIMES, 3))
Y1[0, 0, 0, 1] = Y1[1, 2, 1, 1] = Y2[0, 1, 0] = np.nan
Y2[1, 0] = np.nan  # the second sample has nothing from goes at the first time


def fusion(weights=WEIGHTS, goes=None):
    """`tropomi` is 2 x 2 with correlated errors and a dead pixel, `goes` is 3 with independent ones."""
    specs = [
        InstrumentSpec(LinearObs(H1.reshape(2, 2, N)), MASK, DenseCovariance(R1, shape=(2, 2)), "tropomi"),
        InstrumentSpec(LinearObs(H2) if goes is None else goes, None, DiagonalCovariance(R2), "goes"),
    ]
    return MultiInstrumentFusion(InstrumentRegistry(specs), weights)


def stacked(y1, y2):
    """(y, R) of one time as goes, tropomi; NaN where the dead pixel is."""
    y = np.concatenate([y2, np.where(MASK, y1, np.nan).ravel()])
    R = np.zeros((7, 7))
    R[:3, :3], R[3:, 3:] = np.diag(R2) / WEIGHTS["goes"], R1 / WEIGHTS["tropomi"]
    return y, R


def dense_analysis(G, y, R):
    seen = np.isfinite(y)
    G, y, R = G[seen], y[seen], R[np.ix_(seen, seen)]
    return MEAN + B @ G.T @ np.linalg.solve(G @ B @ G.T + R, y - G @ MEAN)


def dense_costs(residual, entries=1):
    """½ w_i rᵀ R_i⁻¹ r by instrument, from the residuals (entries, 7) with NaN where missing."""
    costs = np.zeros(2)
    for r in residual.reshape(entries, 7):
        for number, (part, R, name) in enumerate(((r[:3], np.diag(R2), "goes"), (r[3:], R1, "tropomi"))):
            seen = np.isfinite(part)
            costs[number] += 0.5 * WEIGHTS[name] * part[seen] @ np.linalg.solve(R[np.ix_(seen, seen)], part[seen])
    return costs


H = np.concatenate([H2, H1])
SLOTS = (MEAN, DenseCovariance(B))


@pytest.mark.x64
def test_oi_is_the_dense_formula_and_its_costs_are_those_of_the_instruments():
    fused = fusion()
    method = OptimalInterpolation(fused.to_observation_operator(), *SLOTS, fused.obs_cov_op)
    analysis = method.analyse(fused.batch({"tropomi": Y1[:, 0], "goes": Y2[:, 0]}))
    for sample in range(2):
        y, R = stacked(Y1[sample, 0], Y2[sample, 0])
        expected = dense_analysis(H, y, R)
        np.testing.assert_allclose(analysis.state[sample], expected, atol=1e-10)
        for costs, x in ((analysis.cost.first, MEAN), (analysis.cost.last, expected)):
            np.testing.assert_allclose(costs.J_o_by_instrument[sample], dense_costs(y - H @ x), atol=1e-9)
            np.testing.assert_allclose(costs.J_o[sample], dense_costs(y - H @ x).sum(), atol=1e-9)


@pytest.mark.x64
@pytest.mark.slow
def test_a_window_of_strong_fourdvar_is_the_dense_formula():
    fused = fusion()
    model = DiscreteForward(lambda x: jnp.asarray(A) @ x, dt=1.0)
    operator = fused.to_observation_operator()
    method = StrongFourDVar(model, operator, *SLOTS, fused.obs_cov_op, tol=1e-11)
    analysis = method.analyse(fused.batch({"tropomi": Y1, "goes": Y2}))
    G = np.concatenate([H @ np.linalg.matrix_power(A, t) for t in range(TIMES)])
    for sample in range(2):
        parts = [stacked(Y1[sample, t], Y2[sample, t]) for t in range(TIMES)]
        y, R = np.concatenate([y for y, _ in parts]), np.kron(np.eye(TIMES), parts[0][1])
        expected = dense_analysis(G, y, R)
        np.testing.assert_allclose(analysis.state[sample], expected, atol=1e-8)
        costs = dense_costs(y - G @ expected, TIMES)
        np.testing.assert_allclose(analysis.cost.last.J_o_by_instrument[sample], costs, atol=1e-8)


def nonlinear(x):
    return jnp.tanh(jnp.asarray(H2, x.dtype) @ x)


@pytest.mark.x64
@pytest.mark.slow
@pytest.mark.parametrize("minimiser", [None, optx.LevenbergMarquardt(1e-12, 1e-12)])
def test_3dvar_of_a_nonlinear_instrument_is_the_dense_optimum(minimiser):
    """x = x_b + B H'ᵀ R⁻¹ (y - H(x)) by Gauss-Newton in numpy."""
    fused = fusion(goes=CallableObs(nonlinear))
    options = {"minimiser": minimiser, "tol": 1e-10}
    method = ThreeDVar(fused.to_observation_operator(), *SLOTS, fused.obs_cov_op, **options)
    analysis = method.analyse(fused.batch({"tropomi": Y1[:, 0], "goes": Y2[:, 0]}))
    for sample in range(2):
        y, R = stacked(Y1[sample, 0], Y2[sample, 0])
        x = MEAN
        for _ in range(200):
            bent = np.tanh(H2 @ x)
            predicted = np.concatenate([bent, H1 @ x])
            J = np.concatenate([(1 - bent**2)[:, None] * H2, H1])
            x = 0.5 * x + 0.5 * dense_analysis(J, y - predicted + J @ x, R)
        np.testing.assert_allclose(analysis.state[sample], x, atol=1e-8)
        np.testing.assert_allclose(analysis.cost.last.J_o_by_instrument[sample], dense_costs(y - predicted), atol=1e-7)


def test_predictions_come_by_name():
    predicted = fusion()(jnp.asarray(MEAN))
    assert list(predicted) == ["goes", "tropomi"]
    np.testing.assert_allclose(predicted["goes"], H2 @ MEAN, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(predicted["tropomi"], MASK * (H1 @ MEAN).reshape(2, 2), rtol=1e-4, atol=1e-5)


def test_R_is_block_diagonal_and_divided_by_the_weights():
    np.testing.assert_allclose(fusion().obs_cov_op.as_matrix(), stacked(Y1[0, 0], Y2[0, 0])[1], rtol=1e-5)
    np.testing.assert_allclose(fusion(None).obs_cov_op.diagonal(), [*R2, *np.diag(R1)], rtol=1e-5)


@pytest.mark.x64
def test_a_weight_multiplies_the_cost_of_its_instrument_alone():
    costs = []
    for weights in (None, {"goes": 5.0}):
        fused = fusion(weights)
        method = OptimalInterpolation(fused.to_observation_operator(), *SLOTS, fused.obs_cov_op)
        costs.append(method.analyse(fused.batch({"tropomi": Y1[0, 0], "goes": Y2[0, 0]})).cost.first)
    ratio = costs[1].J_o_by_instrument[0] / costs[0].J_o_by_instrument[0]
    np.testing.assert_allclose(ratio, [5.0, 1.0], rtol=1e-12)


def test_new_weights_masks_and_errors_do_not_compile_again(count_compilations):
    first, second = fusion(), fusion({"tropomi": 2.0, "goes": 0.1})
    method = OptimalInterpolation(first.to_observation_operator(), *SLOTS, first.obs_cov_op)
    batch = first.batch({"tropomi": Y1[0, 0], "goes": Y2[0, 0]})
    method.analyse(batch)
    replaced = {"obs_op": second.to_observation_operator(), "obs_cov_op": second.obs_cov_op}
    with count_compilations() as compiled:
        method.analyse(batch, **replaced)
    assert compiled.n == 0, compiled.names


# -- batches -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("leading", "shape"), [((), (1, 7)), ((2,), (2, 7)), ((2, 3), (2, 3, 7))])
def test_a_batch_has_the_leading_axes_of_the_observations(leading, shape):
    y1, y2 = np.ones((*leading, 2, 2)), 2 * np.ones((*leading, 3))
    batch = fusion().batch({"tropomi": y1, "goes": y2})
    assert batch.input.shape == shape
    assert batch.n_instruments == 2
    np.testing.assert_array_equal(batch.instrument, np.broadcast_to([0, 0, 0, 1, 1, 1, 1], shape))
    np.testing.assert_array_equal(batch.input, np.broadcast_to([2, 2, 2, 1, 1, 1, 1], shape))


@pytest.mark.parametrize("day", [{"goes": [1.0, np.nan, 3.0]}, {"goes": [1.0, np.nan, 3.0], "tropomi": None}])
def test_an_instrument_that_is_not_named_is_missing(day):
    batch = fusion().batch(day)
    np.testing.assert_array_equal(batch.mask, [[1, 0, 1, 0, 0, 0, 0]])


def test_flatten_and_unflatten_are_inverse():
    fused, values = fusion(), {"tropomi": jnp.asarray(Y1), "goes": jnp.asarray(Y2)}
    back = fused.unflatten(fused.flatten(values))
    for name, array in values.items():
        np.testing.assert_array_equal(back[name], array)


def test_times_reach_the_batch():
    batch = fusion().batch({"goes": np.ones((1, 3, 3))}, times=[0.0, 6.0, 12.0])
    np.testing.assert_array_equal(batch.times, [0.0, 6.0, 12.0])


# -- positions that are new each day -----------------------------------------------------------------------------------

GRID = [np.arange(float(N))]


def stations_and_image():
    """Stations read their positions and bring their errors, an image has places and an R of its own."""
    stations = InstrumentSpec(InterpObs(GRID), None, None, "stations")
    return MultiInstrumentFusion(
        [stations, InstrumentSpec(LinearObs(H2), None, DiagonalCovariance(R2), "image")], {"stations": 4.0}
    )


def day(seed):
    rng = np.random.default_rng(seed)
    return Observations(
        rng.standard_normal(4), rng.uniform(0.1, 1, 4), 0.0, rng.uniform(0, N - 1, (4, 1)), valid=[1, 1, 0, 1]
    )


@pytest.mark.x64
def test_positions_and_errors_of_each_day_enter_with_the_observations(count_compilations):
    fused = stations_and_image()
    for number, seed in enumerate((1, 2)):
        points, image = day(seed), RNG.standard_normal(3)
        today = fused.at({"stations": points})
        batch = today.batch({"stations": points, "image": image})
        method = OptimalInterpolation(today.to_observation_operator(), *SLOTS, today.obs_cov_op)
        with count_compilations() as compiled:
            analysis = method.analyse(batch)
        assert number == 0 or compiled.n == 0, compiled.names
        sampled = np.stack([np.interp(points.coords[:, 0], GRID[0], unit) for unit in np.eye(N)], axis=1)
        y = np.concatenate([image, np.where(points.valid, points.value, np.nan)])
        R = np.diag(np.concatenate([R2, np.asarray(points.error) ** 2 / 4.0]))
        expected = dense_analysis(np.concatenate([H2, sampled]), y, R)
        np.testing.assert_allclose(analysis.state[0], expected, atol=1e-10)


@pytest.mark.x64
def test_errors_of_observations_replace_the_deviations_of_a_correlated_R():
    R = np.array([[1.0, 0.6, 0.0], [0.6, 1.0, 0.6], [0.0, 0.6, 2.0]])
    fused = MultiInstrumentFusion([InstrumentSpec(InterpObs(GRID), None, DenseCovariance(R), "track")], {"track": 2.0})
    points = Observations([1.0, 2.0, 0.5], [0.3, 0.4, 0.5], 0.0, [[0.5], [1.5], [3.0]])
    today = fused.at({"track": points})
    method = OptimalInterpolation(today.to_observation_operator(), *SLOTS, today.obs_cov_op)
    ratio = np.asarray(points.error) / np.sqrt(np.diag(R))
    sampled = np.stack([np.interp(points.coords[:, 0], GRID[0], unit) for unit in np.eye(N)], axis=1)
    expected = dense_analysis(sampled, np.asarray(points.value), R * np.outer(ratio, ratio) / 2.0)
    np.testing.assert_allclose(method(today.batch({"track": points}))[0], expected, atol=1e-10)


def test_an_instrument_without_observations_adds_nothing():
    """Zero observations are a count like any other."""
    empty = InstrumentSpec(LinearObs(np.zeros((0, N))), None, DiagonalCovariance(np.zeros(0)), "a")
    full = InstrumentSpec(LinearObs(H2), None, DiagonalCovariance(R2), "b")
    states = []
    for specs in ([empty, full], [full]):
        fused = MultiInstrumentFusion(specs)
        method = OptimalInterpolation(fused.to_observation_operator(), *SLOTS, fused.obs_cov_op)
        analysis = method.analyse(fused.batch({"b": [1.0, 2.0, 3.0]}))
        states.append(analysis.state)
    np.testing.assert_allclose(*states, rtol=1e-6)


WAITING = MultiInstrumentFusion([InstrumentSpec(InterpObs(GRID), instrument_id="stations")])


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: fusion({"goess": 1.0}), ValueError, "`weights`: there is no instrument 'goess'.*Did you mean 'goes'"),
        (lambda: fusion({"goes": 0.0}), ValueError, "weight of 'goes' is 0.0, expected one positive number; to ignore"),
        (lambda: fusion({"goes": [1.0, 2.0]}), ValueError, r"weight of 'goes' is \[1.0, 2.0\], expected one positive"),
        (lambda: MultiInstrumentFusion([]), ValueError, "`entries` is empty"),
        (lambda: fusion().batch({"tropomy": Y1}), ValueError, "batch: there is no instrument.*Did you mean 'tropomi'"),
        (lambda: fusion().at({"goes": Y2}), TypeError, "at: 'goes' has ndarray, expected Observations"),
        (lambda: fusion().batch({}), ValueError, "batch: there are observations of no instrument"),
        (lambda: fusion().batch({"goes": None}), ValueError, "the observations have no values"),
        (lambda: fusion().batch(Y2), TypeError, "batch: the observations are ndarray, expected a dictionary"),
        (
            lambda: fusion().batch({"goes": np.ones((2, 4))}),
            ValueError,
            r"observations of 'goes' have shape \(2, 4\), expected \(3,\), or that after an axis of samples",
        ),
        (
            lambda: fusion().batch({"goes": np.ones((2, 3)), "tropomi": np.ones((3, 2, 2))}),
            ValueError,
            r"leading axes \{'goes': \(2,\), 'tropomi': \(3,\)\}, expected the same for all",
        ),
        (lambda: fusion().unflatten(np.ones(6)), ValueError, r"shape \(6,\), expected \(\.\.\., 7\)"),
        (lambda: WAITING.obs_cov_op, ValueError, "instrument 'stations' has no `R_op`.*`fusion.at`"),
        (lambda: WAITING.batch({"stations": np.ones(3)}), ValueError, "instrument 'stations' has no `R_op`"),
        (
            lambda: (
                MultiInstrumentFusion(
                    [
                        InstrumentSpec(LinearObs(H2), None, DiagonalCovariance(R2.astype(np.float32)), "a"),
                        InstrumentSpec(LinearObs(H2), None, DiagonalCovariance(R2.astype(np.float16)), "b"),
                    ]
                ).obs_cov_op
            ),
            ValueError,
            r"the `R_op` of the instruments have the dtypes \{'a': 'float32', 'b': 'float16'\}, expected one",
        ),
    ],
)
def test_what_does_not_fit_is_refused(make, error, words):
    with pytest.raises(error, match=words):
        make()


def test_weights_may_be_traced():
    def first_cost(weight):
        fused = fusion({"goes": weight})
        method = OptimalInterpolation(fused.to_observation_operator(), *SLOTS, fused.obs_cov_op)
        return method.analyse(fused.batch({"tropomi": Y1[0, 0], "goes": Y2[0, 0]})).cost.first.J_o_by_instrument[0, 0]

    slope = jax.grad(first_cost)(2.0)
    np.testing.assert_allclose(slope, first_cost(1.0), rtol=1e-4)
