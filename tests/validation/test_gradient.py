"""The gradient test sees one wrong component, and a mask that is ignored."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vardax.covariances.dense import DenseCovariance
from vardax.covariances.diagonal import DiagonalCovariance
from vardax.models.optimal_interpolation import OptimalInterpolation
from vardax.models.threedvar import ThreeDVar
from vardax.obs_operators.callable import CallableObs
from vardax.obs_operators.linear import LinearObs
from vardax.types import Batch1D
from vardax.validation import gradient_test

DTYPES = ["float32", pytest.param("float64", marks=pytest.mark.x64)]


def state(n, dtype, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(1.0, 1.0, n), dtype)


def quartic(x):
    return jnp.sum(x**4) / 4 + 0.5 * jnp.sum((x[1:] - x[:-1]) ** 2)


COSTS = {
    "quartic": quartic,
    "quadratic": lambda x: 0.5 * jnp.sum(x**2),
    "far from zero": lambda x: 1e3 + jnp.sum(jnp.sin(x)),
    "logarithmic": lambda x: jnp.sum(jnp.log(1 + x**2)),
    "constant": lambda x: jnp.sum(0 * x),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", COSTS)
@pytest.mark.parametrize("n", [1, 200])
def test_gradients_by_jax_pass(name, n, dtype):
    for seed in (0, 1):
        report = gradient_test(COSTS[name], state(n, dtype, seed), key=jax.random.key(seed))
        assert report, str(report)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [3, 200])
@pytest.mark.parametrize(
    "wrong",
    [
        lambda g: g.at[g.size // 2].multiply(-1),
        lambda g: 1.02 * g,
        lambda g: -g,
        lambda g: g.at[0].set(0),
        lambda g: 2 * g,
        lambda g: jnp.full_like(g, jnp.nan),
    ],
    ids=["one sign", "2 %", "sign", "one missing", "no half", "nan"],
)
def test_wrong_gradients_fail(wrong, n, dtype):
    pair = (quartic, lambda x: wrong(jax.grad(quartic)(x)))
    report = gradient_test(pair, state(n, dtype), n_probes=3)
    assert not report["gradient"].passed, str(report)


@pytest.mark.x64
def test_a_small_array_does_not_hide_behind_a_large_one():
    cost = lambda x: jnp.sum(x["p"] ** 2) + jnp.sum(x["q"] ** 2)  # noqa: E731
    x = {"p": state(50, "float64") * 1e4, "q": state(50, "float64") * 1e-1}
    assert gradient_test(cost, x)
    wrong = (cost, lambda x: {"p": 2 * x["p"], "q": -2 * x["q"]})
    assert not gradient_test(wrong, x)


def test_a_gradient_of_another_shape_is_a_failing_row():
    report = gradient_test((quartic, lambda x: jax.grad(quartic)(x)[1:]), state(5, "float32"))
    assert [row.name for row in report.failures] == ["structure of gradient"]


def method(kind=ThreeDVar, obs_op=None, dtype="float32", n=6):
    d = np.abs(np.subtract.outer(np.arange(n), np.arange(n)))
    R = jnp.asarray(0.5 * np.exp(-d[:4, :4] / 2.0), dtype)
    H = LinearObs(jnp.asarray(np.random.default_rng(1).standard_normal((4, n)), dtype))
    B = DenseCovariance(jnp.asarray(np.exp(-(d**2) / 8.0) + 0.01 * np.eye(n), dtype))
    return kind(obs_op or H, jnp.ones(n, dtype), B, DenseCovariance(R))


def batch(dtype="float32", n_samples=3):
    y = np.random.default_rng(2).standard_normal((n_samples, 4)).astype(dtype)
    y[0, 1] = np.nan
    return Batch1D.from_observations(y)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n_samples", [1, 3])
@pytest.mark.parametrize("linear", [True, False])
def test_the_problem_of_a_method_passes(n_samples, linear, dtype):
    model = method(dtype=dtype, obs_op=None if linear else CallableObs(lambda x: jnp.sin(x[:4]) + x[2:] ** 2))
    report = gradient_test(model, batch=batch(dtype, n_samples))
    assert report, str(report)
    assert {"cost = its terms", "Hessian = 1 + GᵀG", "mask, cost"} <= {row.name for row in report.rows}


def test_a_method_of_another_kind_and_a_bare_problem_pass():
    assert gradient_test(method(OptimalInterpolation), batch=batch())
    assert gradient_test(method().problem(batch()))
    assert gradient_test(method().problem(batch()), jnp.zeros((3, 6), jnp.float32))


class Problem:
    """A small quadratic problem; `break_` changes one of its members."""

    def __init__(self, **broken):
        self.A = jnp.asarray(np.random.default_rng(0).standard_normal((5, 8)), jnp.float32)
        self.broken = broken

    def zero_control(self):
        return jnp.zeros(8, jnp.float32)

    def residual(self, x):
        return 1 - self.A @ x

    def cost(self, x):
        return self.broken.get("half", 0.5) * (x @ x) + 0.5 * jnp.sum(self.residual(x) ** 2)

    def gradient(self, x):
        return 2 * self.broken.get("half", 0.5) * x - self.A.T @ self.residual(x)

    def hessian_product(self, x, v):
        return (
            v
            + self.broken.get("factor", 1.0) * (self.A.T @ (self.A @ v))
            + self.broken.get("skew", 0.0) * jnp.roll(v, 1)
        )


def test_the_parts_of_a_problem_are_held_against_each_other():
    assert gradient_test(Problem())
    assert [row.name for row in gradient_test(Problem(half=1.0)).failures] == ["cost = its terms"]
    assert [row.name for row in gradient_test(Problem(factor=1.01)).failures] == ["Hessian = 1 + GᵀG"]
    assert "Hessian, symmetric" in [row.name for row in gradient_test(Problem(skew=0.1)).failures]


def misfit(x, batch):
    return 0.5 * jnp.sum(batch.mask[0] * (batch.input[0] - x) ** 2)


def misfit_without_mask(x, batch):
    return 0.5 * jnp.sum((batch.input[0] - x) ** 2)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_cost_that_ignores_the_mask_fails(dtype):
    observed = Batch1D.from_observations(np.ones((1, 40), dtype))
    assert gradient_test(misfit, state(40, dtype), observed)
    report = gradient_test(misfit_without_mask, state(40, dtype), observed)
    assert [row.name for row in report.failures] == ["mask, cost", "mask, gradient"]
    assert "the mask is ignored" in report.verdict


def test_one_leaking_entry_is_enough():
    observed = Batch1D.from_observations(np.ones((1, 40), np.float32))
    leaky = lambda x, b: misfit(x, b) + 1e-3 * jnp.sum(b.input[0, :10] ** 2)  # noqa: E731
    report = gradient_test(leaky, state(40, "float32"), observed)
    assert not report["mask, cost"].passed


def test_a_gradient_of_ones_own_takes_the_batch():
    observed = Batch1D.from_observations(np.ones((1, 9), np.float32))
    gradient = lambda x, b: b.mask[0] * (x - b.input[0])  # noqa: E731
    ignoring = lambda x, b: x - b.input[0]  # noqa: E731
    assert gradient_test((misfit, gradient), state(9, "float32"), observed)
    assert not gradient_test((misfit, ignoring), state(9, "float32"), observed)


class LeakyMethod(eqx.Module):
    """A method whose problem reads missing entries."""

    inner: ThreeDVar

    def problem(self, batch):
        everything = eqx.tree_at(lambda b: b.mask, batch, jnp.ones_like(batch.mask))
        return self.inner.problem(everything)


def test_a_method_that_ignores_the_mask_fails():
    report = gradient_test(LeakyMethod(method()), batch=batch())
    assert {"mask, cost", "mask, gradient"} == {row.name for row in report.failures}


def test_uncorrelated_errors_pass_as_well():
    model = method().with_(obs_cov_op=DiagonalCovariance(jnp.full(4, 0.3, jnp.float32)))
    assert gradient_test(model, batch=batch())


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        (("J", jnp.ones(2)), TypeError, "`cost` is str, expected a function, a pair"),
        ((quartic,), ValueError, "`x` is missing"),
        ((method(),), ValueError, "`batch` is missing; ThreeDVar poses its problem"),
        ((misfit, jnp.ones(2), "observations"), TypeError, "`batch` is str, expected `input` and `mask`"),
        ((quartic, jnp.ones(2, jnp.int32)), TypeError, "`x` has dtype int32"),
    ],
    ids=["kind", "x", "batch", "batch kind", "dtype"],
)
def test_unusable_input_is_refused_by_name(arguments, error, words):
    with pytest.raises(error, match=words):
        gradient_test(*arguments)
