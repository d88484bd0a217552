"""Scattered observations of several instruments in one list: each entry by its own operator, kernels and gaps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vardax.covariances import DiagonalCovariance
from vardax.dynamics import DiscreteForward
from vardax.models import OptimalInterpolation, StrongFourDVar
from vardax.obs_operators import (
    ColumnRetrieval,
    CompositeObs,
    InstrumentSpec,
    InterpObs,
    LinearObs,
    MultiInstrumentFusion,
)
from vardax.types import Observations

GRID = [np.arange(4.0), np.arange(5.0)]
LAYERS, MODEL_LEVELS = 3, np.array([0.0, 300.0, 700.0, 1000.0])
X = np.random.default_rng(0).normal(2.0, 0.3, (LAYERS, 4, 5))


def surface(outside="error"):
    return CompositeObs(lambda state: state[-1], InterpObs(GRID, outside=outside))


def fusion(weights=None, near=None):
    columns = ColumnRetrieval(interp=InterpObs(GRID), model_levels=MODEL_LEVELS)
    specs = [
        InstrumentSpec(surface() if near is None else near, instrument_id="stations"),
        InstrumentSpec(columns, instrument_id="columns"),
    ]
    return MultiInstrumentFusion(specs, weights)


def stations(p, seed=1, **fields):
    rng = np.random.default_rng(seed)
    return Observations(rng.normal(2, 0.3, p), rng.uniform(0.1, 0.2, p), 0.0, rng.uniform(0, 3, (p, 2)), **fields)


def soundings(p, seed=2, layers=2):
    rng = np.random.default_rng(seed)
    aux = {
        "kernel": rng.uniform(0.5, 1.0, (p, layers)),
        "prior": rng.normal(2.0, 0.1, (p, layers)),
        "weights": np.full((p, layers), 1 / layers),
        "levels": np.tile(np.linspace(1000.0, 0.0, layers + 1), (p, 1)),
    }
    return stations(p, seed, aux=aux)


def test_each_entry_is_predicted_by_its_own_instrument():
    near, far = stations(3), soundings(4)
    joined = fusion().observations({"stations": near, "columns": far})
    np.testing.assert_array_equal(joined.instrument, [0, 0, 0, 0, 1, 1, 1])  # columns come first by name
    assert joined.n_instruments == 2
    operator, state = fusion().to_observation_operator().at(joined), jnp.asarray(X)
    alone = [spec.obs_op.at(points)(state) for spec, points in zip(fusion().registry, (far, near), strict=True)]
    np.testing.assert_allclose(operator(state), np.concatenate(alone), rtol=1e-6)
    np.testing.assert_array_equal(operator.mask, 1.0)


@pytest.mark.x64
def test_the_tangent_is_the_jacobian():
    curved = fusion(near=CompositeObs(surface(), jnp.log))
    joined = curved.observations({"stations": stations(3), "columns": soundings(4)})
    operator, state = curved.to_observation_operator().at(joined), jnp.asarray(X)
    jacobian = jax.jacobian(operator)(state).reshape(7, -1)
    assert np.isfinite(jacobian).all()  # log is never taken where the other instrument looks
    np.testing.assert_allclose(operator.linearize(state).as_matrix(), jacobian, rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(operator.linearize(state).T.as_matrix(), jacobian.T, rtol=1e-12, atol=1e-15)


def test_gaps_of_all_kinds_are_masked():
    far = soundings(4)
    kernel = np.array(far.aux["kernel"])
    kernel[1, 0] = np.nan
    far = Observations(far.value, far.error, 0.0, far.coords, aux=dict(far.aux) | {"kernel": kernel})
    near = stations(3, valid=[1, 0, 1])
    near = Observations(near.value, near.error, 0.0, near.coords.at[2].set(-9.0), valid=near.valid)
    seen_by = fusion(near=surface(outside="mask"))
    operator = seen_by.to_observation_operator().at(seen_by.observations({"stations": near, "columns": far}))
    np.testing.assert_array_equal(operator.mask, [1, 0, 1, 1, 1, 0, 0])
    np.testing.assert_array_equal(operator(jnp.asarray(X))[jnp.array([1, 5, 6])], 0.0)


@pytest.mark.slow
@pytest.mark.x64
def test_the_analysis_is_the_dense_formula_and_new_counts_of_each_do_not_compile(count_compilations):
    """Weights reach the errors, costs are those of each instrument."""
    weights = {"columns": 0.25}
    fused = fusion(weights)
    B = DiagonalCovariance(np.full(X.shape, 0.1))
    method = OptimalInterpolation(fused.to_observation_operator(), X, B, None)
    days = [
        {"stations": stations(3), "columns": soundings(4)},
        {"stations": stations(5, seed=7), "columns": soundings(2, seed=8)},
        {"columns": soundings(5, seed=9), "stations": stations(1, seed=10)},
    ]
    for number, day in enumerate(days):
        joined = fused.observations(day).pad_to(8)
        with count_compilations() as compiled:
            analysis = method.analyse([joined])
        assert number == 0 or compiled.n == 0, compiled.names
        operator = fused.to_observation_operator().at(joined)
        H = np.asarray(operator.linearize(jnp.asarray(X)).as_matrix())
        innovation = np.asarray(joined.value - operator(jnp.asarray(X)))
        error = np.concatenate([2 * day["columns"].error, day["stations"].error])
        p = error.size
        H, innovation, R = H[:p], innovation[:p], np.diag(error**2)
        expected = X.ravel() + 0.1 * H.T @ np.linalg.solve(0.1 * H @ H.T + R, innovation)
        np.testing.assert_allclose(analysis.state[0].ravel(), expected, rtol=1e-10)
        left = innovation - H @ (expected - X.ravel())
        n = day["columns"].value.size
        costs = [0.5 * np.sum(part**2) for part in np.split(left / error, [n])]
        np.testing.assert_allclose(analysis.cost.last.J_o_by_instrument[0], costs, rtol=1e-8)


def test_a_day_without_soundings_is_that_of_the_stations_alone():
    fused, near = fusion(), stations(3)
    joined = fused.observations({"stations": near})
    operator, state = fused.to_observation_operator().at(joined), jnp.asarray(X)
    np.testing.assert_array_equal(joined.instrument, 1)
    np.testing.assert_array_equal(operator(state), surface().at(near)(state))
    np.testing.assert_array_equal(operator.mask, 1.0)
    B = DiagonalCovariance(np.full(X.shape, 0.1))
    analysis = OptimalInterpolation(fused.to_observation_operator(), X, B, None).analyse([joined])
    costs = analysis.cost.last.J_o_by_instrument[0]
    assert float(costs[0]) == 0.0 < float(costs[1])


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (
            lambda: fusion().observations({"stations": np.ones(3)}),
            TypeError,
            "'stations' has ndarray, expected Observations",
        ),
        (
            lambda: fusion().observations(
                {"stations": Observations([1.0], 1.0, 0.0, [[1.0]]), "columns": soundings(2)}
            ),
            ValueError,
            r"the positions have \{'columns': 2, 'stations': 1\} coordinates, expected as many for all",
        ),
        (
            lambda: MultiInstrumentFusion([InstrumentSpec(surface(), [1, 1], None, "a")]).observations(
                {"a": stations(2)}
            ),
            ValueError,
            "instrument 'a' has a `mask` or an `R_op`, which are for observations in fixed places",
        ),
        (
            lambda: (
                MultiInstrumentFusion([InstrumentSpec(LinearObs(np.ones((1, 60))), instrument_id="stations")])
                .to_observation_operator()
                .at(stations(3))
            ),
            ValueError,
            "LinearObs of instrument 'stations' does not read positions.*`fusion.at",
        ),
    ],
)
def test_what_does_not_fit_is_refused(make, error, words):
    with pytest.raises(error, match=words):
        make()


def spread(points, seed):
    """The same observations at times between 0 and 2."""
    time = np.random.default_rng(seed).uniform(0, 2, points.value.shape)
    return Observations(points.value, points.error, time, points.coords, aux=dict(points.aux))


@pytest.mark.x64
@pytest.mark.slow
def test_a_window_of_scattered_observations_is_the_dense_formula():
    """Two instruments at times of their own, between the states of a linear model: 4D-Var against its closed form."""
    damped = DiscreteForward(lambda x: 0.9 * x + 0.05 * jnp.roll(x, 1, axis=-1), dt=1.0)
    fused = fusion({"columns": 0.5})
    joined = fused.observations({"stations": spread(stations(4), 3), "columns": spread(soundings(5), 4)})
    B = DiagonalCovariance(np.full(X.shape, 0.1))
    method = StrongFourDVar(damped, fused.to_observation_operator(), X, B, None, n_steps=2, tol=1e-11)
    analysis = method.analyse([joined])
    operator = fused.to_observation_operator().at(joined)

    def predict(x):
        states = jnp.stack([x, damped.step(x, 1.0), damped.step(damped.step(x, 1.0), 1.0)])
        predicted = jax.vmap(operator)(states)
        return jax.vmap(lambda time, column: jnp.interp(time, jnp.arange(3.0), column))(joined.time, predicted.T)

    G = np.asarray(jax.jacobian(predict)(jnp.asarray(X))).reshape(9, -1)
    innovation = np.asarray(joined.value - predict(jnp.asarray(X)))
    S = 0.1 * G @ G.T + np.diag(np.asarray(joined.error) ** 2)
    expected = X.ravel() + 0.1 * G.T @ np.linalg.solve(S, innovation)
    np.testing.assert_allclose(analysis.state[0].ravel(), expected, atol=1e-8)
