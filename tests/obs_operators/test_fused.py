"""FusedObs: the stacked operator, its exact tangent from the instruments' own, masks, and what is refused."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vardax.covariances import DenseCovariance, DiagonalCovariance
from vardax.models import OptimalInterpolation, ThreeDVar
from vardax.obs_operators import (
    CallableObs,
    FusedObs,
    InstrumentRegistry,
    InstrumentSpec,
    InterpObs,
    LinearObs,
    MultiInstrumentFusion,
    PointObs,
    is_linear,
)
from vardax.types import Batch1D

RNG = np.random.default_rng(0)
N = 6
F = RNG.standard_normal((2, 2, N))
ROOT = RNG.standard_normal((4, 4))
X = RNG.standard_normal(N)
STATE = jnp.asarray(X)


def fused(second=None, mask=None, error=3):
    """Two by two entries with correlated errors, and a second instrument that comes first by name."""
    second = CallableObs(lambda x: jnp.sin(x[:3])) if second is None else second
    R = DenseCovariance(ROOT @ ROOT.T + np.eye(4), shape=(2, 2))
    specs = [
        InstrumentSpec(LinearObs(F), [[1, 0], [1, 1]], R, "tropomi"),
        InstrumentSpec(second, mask, DiagonalCovariance(np.ones(error)), "goes"),
    ]
    return MultiInstrumentFusion(specs).to_observation_operator()


def test_predictions_stand_in_the_order_of_the_names():
    operator = fused()
    assert operator.ids == ("goes", "tropomi")
    images = (F.reshape(4, N) @ X) * np.array([1, 0, 1, 1])
    np.testing.assert_allclose(operator(STATE), np.concatenate([np.sin(X[:3]), images]), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(operator.mask, [1, 1, 1, 1, 0, 1, 1])


@pytest.mark.x64
@pytest.mark.parametrize("mask", [None, [1, 0, 1]])
def test_the_stacked_tangent_is_the_jacobian(mask):
    operator = fused(mask=mask)
    tangent, jacobian = operator.linearize(STATE), jax.jacobian(operator)(STATE)
    np.testing.assert_allclose(tangent.as_matrix(), jacobian, rtol=1e-13, atol=1e-15)
    np.testing.assert_allclose(tangent.T.as_matrix(), jacobian.T, rtol=1e-13, atol=1e-15)
    by_products = jax.vmap(tangent.mv, out_axes=1)(jnp.eye(N))
    np.testing.assert_allclose(by_products, jacobian, rtol=1e-13, atol=1e-15)


class HandWritten(eqx.Module):
    """A tangent and an adjoint that JAX could not find: the function is rounded."""

    def __call__(self, state):
        return jnp.round(state[:3])

    def linearize(self, state):
        return 7 * jnp.eye(3, state.size, dtype=state.dtype)


def test_the_instruments_own_tangents_are_stacked():
    tangent = fused(HandWritten()).linearize(STATE)
    np.testing.assert_array_equal(tangent.as_matrix()[:3], 7 * np.eye(3, N))
    np.testing.assert_array_equal(tangent.mv(STATE)[:3], 7 * STATE[:3])
    np.testing.assert_array_equal(tangent.T.mv(jnp.eye(7)[1]), 7 * np.eye(N)[1])


def test_the_masks_of_operators_count():
    outside = InterpObs([np.arange(float(N))], outside="mask").at(np.array([[-1.0], [2.0], [9.0]]))
    operator = fused(outside, mask=[1, 1, 0])
    np.testing.assert_array_equal(operator.mask[:3], [0, 1, 0])
    np.testing.assert_allclose(operator(STATE)[:3], [0, X[2], 0], rtol=1e-6)


def test_linearity_is_that_of_all_instruments():
    structure = jax.eval_shape(lambda: STATE)
    assert not is_linear(fused(), structure)
    assert is_linear(fused(lambda x: 2 * x[:3] + 1), structure)
    assert fused(PointObs([0, 1, 2])).linear_by_construction
    assert not fused().linear_by_construction
    B, R = DiagonalCovariance(np.ones(N)), fused().obs_cov_op
    with pytest.raises(ValueError, match=r"`obs_op` \(FusedObs\) is not linear.*Use ThreeDVar"):
        OptimalInterpolation(fused(), np.zeros(N), B, R)


def test_it_carries_its_R_where_every_instrument_has_one():
    assert fused().obs_cov_op.shape == (7,)
    waiting = InstrumentSpec(InterpObs([np.arange(3.0)]), instrument_id="stations")
    operator = MultiInstrumentFusion([waiting]).to_observation_operator()
    assert operator.obs_cov_op is None
    assert operator.mask is None
    assert FusedObs(InstrumentRegistry([waiting])).obs_cov_op is None


@pytest.mark.parametrize(
    ("second", "error", "words"),
    [
        (lambda x: {"a": x}, TypeError, "instrument 'goes': `obs_op` gives dict, expected one array"),
        (lambda x: x, ValueError, r"instrument 'goes': `obs_op` makes observations of shape \(6,\).*expected \(3,\)"),
    ],
)
def test_what_an_instrument_predicts_is_checked(second, error, words):
    with pytest.raises(error, match=words):
        fused(second)(STATE)


def test_the_instrument_that_refuses_the_state_is_named():
    operator = fused(PointObs([0, 1, 6]))
    with pytest.raises(ValueError, match="instrument 'goes': PointObs: 1 of 3 `indices` are out of range"):
        operator.check(STATE)
    method = ThreeDVar(operator, np.zeros(N), DiagonalCovariance(np.ones(N)), operator.obs_cov_op)
    with pytest.raises(ValueError, match=r"ThreeDVar: `obs_op` \(FusedObs\) cannot be applied.*instrument 'goes'"):
        method(Batch1D.from_observations(np.ones((1, 7))))
