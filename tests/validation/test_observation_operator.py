"""An operator test sees a wrong tangent, a wrong dtype and a mask that is ignored."""

import jax.numpy as jnp
import numpy as np
import pytest

from vardax.obs_operators.interp import InterpObs
from vardax.obs_operators.linear import LinearObs
from vardax.types import Observations
from vardax.validation import observation_operator_test

DTYPES = ["float32", pytest.param("float64", marks=pytest.mark.x64)]
MASK = np.array([1, 1, 0, 1, 0])


def state(n, dtype="float32", seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(1.0, 1.0, n), dtype)


class Operator:
    """y = m * x[::2]², with one thing or another wrong."""

    def __init__(self, defect="", mask=None):
        self.defect = defect
        if mask is not None:
            self.mask = mask

    def gaps(self, dtype, ignored):
        mask = getattr(self, "mask", None)
        return jnp.ones(5, dtype) if mask is None or self.defect == ignored else jnp.asarray(mask, dtype)

    def __call__(self, x):
        y = self.gaps(x.dtype, "mask") * x[::2] ** 2
        return y.astype("float16" if self.defect == "dtype" else x.dtype)

    def linearize(self, x):
        factor = jnp.asarray({"factor": 2.02, "sign": -2.0}.get(self.defect, 2.0), x.dtype)
        gaps = self.gaps(x.dtype, "mask" if self.defect == "mask" else "tangent mask")
        diagonal = factor * gaps * x[::2]
        if self.defect == "one entry":
            diagonal = diagonal.at[3].multiply(1.01)
        return jnp.zeros((5, 10), x.dtype).at[jnp.arange(5), 2 * jnp.arange(5)].set(diagonal)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mask", [None, MASK, MASK.astype(bool)])
def test_a_right_operator_passes(mask, dtype):
    for seed in range(3):
        report = observation_operator_test(Operator(mask=mask), state(10, dtype, seed))
        assert report, str(report)
    assert ("mask" in {row.name for row in report.rows}) == (mask is not None)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("defect", ["factor", "sign", "one entry"])
def test_a_wrong_tangent_fails(defect, dtype):
    report = observation_operator_test(Operator(defect), state(10, dtype))
    assert not report["tangent"].passed
    assert any("h = " in note for note in report.notes)


def test_a_result_in_another_dtype_is_refused_or_fails():
    with pytest.raises(TypeError, match="the value of `op` at `state`` has dtype float16"):
        observation_operator_test(Operator("dtype"), state(10))


@pytest.mark.x64
def test_a_result_in_float64_for_a_state_in_float32_fails():
    report = observation_operator_test(lambda x: x.astype(jnp.float64), state(10))
    assert [row.name for row in report.failures] == ["dtype of the state"]
    assert "found the result: float64 for a state of float32[10]" in report.verdict


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("defect", ["mask", "tangent mask"])
def test_a_mask_that_is_ignored_fails(defect, dtype):
    report = observation_operator_test(Operator(defect, MASK), state(10, dtype))
    assert not report.passed
    assert not report["mask, adjoint"].passed
    assert report["mask"].passed == (defect == "tangent mask")


def test_a_mask_can_be_given():
    operator = lambda x: jnp.asarray(MASK, x.dtype) * x  # noqa: E731
    assert observation_operator_test(operator, state(5), mask=MASK)
    assert not observation_operator_test(lambda x: x, state(5), mask=MASK)
    with pytest.raises(ValueError, match=r"`mask` has shapes \[\(4,\)\], expected \[\(5,\)\]"):
        observation_operator_test(operator, state(5), mask=np.ones(4))


@pytest.mark.parametrize("dtype", DTYPES)
def test_cells_that_may_not_be_read_do_not_reach_the_result(dtype):
    """Land in the state: an average over all cells reads it, one over the sea does not."""
    sea = np.array([1, 1, 1, 0, 0, 1])
    right = lambda x: jnp.sum(jnp.where(sea != 0, x, 0))[None] / 4  # noqa: E731
    wrong = lambda x: jnp.mean(x)[None]  # noqa: E731
    x = state(6, dtype)
    assert observation_operator_test(right, x, state_mask=sea)
    report = observation_operator_test(wrong, x, state_mask=sea)
    assert {row.name for row in report.failures} == {"state mask", "state mask, adjoint"}


def test_state_masks_follow_the_structure_of_the_state():
    x = {"u": state(3), "v": state(2)}
    sea = {"u": np.array([1, 0, 1]), "v": np.ones(2)}
    assert observation_operator_test(lambda s: s["u"][::2], x, state_mask=sea)
    assert not observation_operator_test(lambda s: s["u"], x, state_mask=sea)
    with pytest.raises(ValueError, match="`state_mask` has shapes"):
        observation_operator_test(lambda s: s["u"], x, state_mask=np.ones(5))


def test_positions_are_bound_from_the_observations():
    H = InterpObs([jnp.arange(8, dtype=jnp.float32)])
    points = Observations(
        np.zeros(4, np.float32), 1.0, 0.0, np.array([[0.5], [2.25], [6.9], [3.0]], np.float32), valid=[1, 1, 0, 1]
    )
    report = observation_operator_test(H, state(8), observations=points, mask=points.valid)
    assert report, str(report)
    with pytest.raises(TypeError, match="`observations` were given, but LinearObs has no `at"):
        observation_operator_test(LinearObs(jnp.eye(3)), state(3), observations=points)


def test_positions_outside_do_not_count():
    H = InterpObs([jnp.arange(8, dtype=jnp.float32)], outside="mask").at(np.array([[0.5], [9.0]], np.float32))
    report = observation_operator_test(H, state(8))
    assert report, str(report)
    assert report["mask"].passed


def test_a_claim_of_linearity_is_checked():
    class Claims:
        linear_by_construction = True

        def __call__(self, x):
            return x**2

    report = observation_operator_test(Claims(), state(5))
    assert [row.name for row in report.failures] == ["linear as claimed"]


def test_pytree_states_and_results_pass():
    x = {"u": state(4), "v": 1e5 * state(3)}
    report = observation_operator_test(lambda s: (s["u"] * s["v"][0], jnp.sum(s["v"])), x)
    assert report, str(report)


def test_a_triple_is_an_operator():
    right = (jnp.sin, lambda x, dx: jnp.cos(x) * dx, lambda x, dy: jnp.cos(x) * dy)
    flipped = (*right[:2], lambda x, dy: (jnp.cos(x) * dy).at[2].multiply(-1))
    assert observation_operator_test(right, state(9))
    report = observation_operator_test(flipped, state(9))
    assert [row.name for row in report.failures] == ["adjoint"]


def test_one_observation_of_a_state_of_one_passes():
    assert observation_operator_test(lambda x: x[:1] ** 3, state(1))
    assert observation_operator_test(lambda x: x**3, jnp.float32(0.7))


def test_a_result_that_is_not_finite_stops_the_test_there():
    report = observation_operator_test(jnp.log, -jnp.ones(3, jnp.float32))
    assert [row.name for row in report.failures] == ["finite"]
    assert "H has values that are not finite" in report.verdict


@pytest.mark.parametrize(
    ("op", "x", "error", "words"),
    [
        (3.0, jnp.ones(2), TypeError, "`obs_op` is float, expected an observation operator"),
        (jnp.sin, None, ValueError, "`state` is missing"),
        (jnp.sin, "x", TypeError, "`state` holds str, expected arrays"),
    ],
)
def test_unusable_input_is_refused_by_name(op, x, error, words):
    with pytest.raises(error, match=words):
        observation_operator_test(op, x)
