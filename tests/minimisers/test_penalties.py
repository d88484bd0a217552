"""Further terms of the cost: known quadratics against dense algebra, in both forms, and what is refused."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optimistix as optx
import pytest

from vardax.adjoints.direct import DirectAdjoint
from vardax.covariances.dense import DenseCovariance
from vardax.covariances.diagonal import DiagonalCovariance
from vardax.dynamics.discrete import DiscreteForward
from vardax.minimisers.gauss_newton import DualCG, GaussNewtonKrylov, IncrementalConfig
from vardax.minimisers.penalties import as_penalties, penalty_costs
from vardax.models.incremental_fourdvar import IncrementalFourDVar
from vardax.models.strong_fourdvar import StrongFourDVar
from vardax.models.threedvar import ThreeDVar
from vardax.models.weak_fourdvar import WeakFourDVar
from vardax.obs_operators.linear import LinearObs
from vardax.protocols import CostFunction
from vardax.types import Batch1D

X64 = jax.config.jax_enable_x64
CLOSE = {"rtol": 1e-6, "atol": 1e-7} if X64 else {"rtol": 2e-3, "atol": 2e-3}
TOL = 1e-9 if X64 else 1e-5
N, M, ENTRIES = 4, 3, 4
RANDOM = np.random.default_rng(11)
A, H, X_B = np.linalg.qr(RANDOM.normal(size=(N, N)))[0], RANDOM.normal(size=(M, N)), RANDOM.normal(size=N)
ROOT = RANDOM.normal(size=(N, N))
B, R = ROOT @ ROOT.T / N + 0.5 * np.eye(N), 0.2 * np.eye(M) + 0.1
D, TARGET = RANDOM.normal(size=(2, N)), np.array([1.0, -1.0])
Y = RANDOM.normal(size=(1, ENTRIES, M))
Y[0, 1, 2] = np.nan
BATCH, ONE = Batch1D.from_observations(Y), Batch1D.from_observations(Y[:, :1])


class LastState(eqx.Module):
    """½ w ‖D x_T - target‖² in least-squares form."""

    weight: jax.Array

    def residual(self, trajectory):
        dtype = trajectory.dtype
        gap = jnp.asarray(D, dtype) @ trajectory[-1] - jnp.asarray(TARGET, dtype)
        return jnp.sqrt(self.weight).astype(dtype) * gap


class LastStateCost(eqx.Module):
    """The same as a scalar cost."""

    weight: jax.Array

    def __call__(self, x, batch, **kw):
        return 0.5 * jnp.sum(LastState(self.weight).residual(x) ** 2)


WEIGHT = jnp.asarray(5.0)
FORMS = {"residual": LastState(WEIGHT), "scalar": LastStateCost(WEIGHT)}


def build(method, *options, terms, **slots):
    forward = DiscreteForward(lambda x: jnp.asarray(A, x.dtype) @ x, 1.0)
    required = (LinearObs(H), X_B, DenseCovariance(B), DenseCovariance(R))
    window = () if method is ThreeDVar else (forward,)
    return method(*window, *required, *options, terms=terms, tol=TOL, **slots)


def dense(entries=ENTRIES, weight=5.0):
    """x_0 and J_c: D x_T is one more observation."""
    powers = [np.linalg.matrix_power(A, t) for t in range(entries)]
    y = np.concatenate([Y[0, :entries].ravel(), TARGET])
    seen = np.isfinite(y)
    error = np.block(
        [[np.kron(np.eye(entries), R), np.zeros((entries * M, 2))], [np.zeros((2, entries * M)), np.eye(2) / weight]]
    )[np.ix_(seen, seen)]
    G = np.concatenate([*(H @ power for power in powers), D @ powers[-1]])[seen]
    x = X_B + B @ G.T @ np.linalg.solve(G @ B @ G.T + error, y[seen] - G @ X_B)
    return x, 0.5 * weight * np.sum((D @ powers[-1] @ x - TARGET) ** 2)


@pytest.mark.parametrize("form", FORMS)
def test_both_forms_of_a_known_quadratic_give_the_dense_analysis(form):
    analysis, (expected, J_c) = build(StrongFourDVar, terms=FORMS[form]).analyse(BATCH), dense()
    assert analysis.converged.all()
    np.testing.assert_allclose(analysis.state[0], expected, **CLOSE)
    np.testing.assert_allclose(analysis.cost.last.J_c[0], J_c, rtol=1e-4 if X64 else 0.05)
    assert J_c > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_a_single_time_has_further_terms_too(form):
    """There a term sees the state itself, here as the last entry of a trajectory of one."""

    class OfState(eqx.Module):
        def residual(self, state):
            return LastState(WEIGHT).residual(state[None])

    term = OfState() if form == "residual" else lambda state, observed: LastStateCost(WEIGHT)(state[None], observed)
    analysis = build(ThreeDVar, terms=(term,)).analyse(ONE)
    np.testing.assert_allclose(analysis.state[0], dense(entries=1)[0], **CLOSE)


@pytest.mark.slow
def test_least_squares_minimisers_and_model_errors():
    expected = dense()[0]
    marquardt = build(StrongFourDVar, terms=FORMS["residual"], minimiser=optx.LevenbergMarquardt(1e-8, 1e-8))
    np.testing.assert_allclose(marquardt.analyse(BATCH).state[0], expected, **CLOSE)
    Q = DiagonalCovariance(np.full(N, 1e-12))
    loops = GaussNewtonKrylov(IncrementalConfig(cg_rtol=1e-12))
    weak = build(WeakFourDVar, Q, terms=FORMS["residual"], minimiser=loops).analyse(BATCH)
    np.testing.assert_allclose(weak.state[0][0], expected, rtol=1e-4 if X64 else 1e-2, atol=1e-4 if X64 else 1e-2)
    weak = build(WeakFourDVar, DiagonalCovariance(np.ones(N)), terms=FORMS["residual"]).analyse(BATCH)
    seen = FORMS["residual"].residual(weak.trajectory[0])
    np.testing.assert_allclose(weak.cost.last.J_c[0], 0.5 * jnp.sum(seen**2), rtol=1e-4 if X64 else 1e-2)


class Bounded(eqx.Module):
    """A term that is not linear: x_T should not be far from the unit sphere."""

    def residual(self, trajectory):
        return {"norm": 2 * (jnp.sum(trajectory[-1] ** 2) - 1.0), "unused": ()}


@pytest.mark.slow
def test_outer_loops_find_the_minimum_of_a_nonlinear_term():
    expected = build(StrongFourDVar, terms=Bounded()).analyse(BATCH)
    for solver in ({}, {"inner_solver": DualCG()}):
        config = IncrementalConfig(n_outer=30, **solver)
        found = build(IncrementalFourDVar, config, terms=Bounded()).analyse(BATCH)
        assert found.converged.all()
        np.testing.assert_allclose(found.state, expected.state, rtol=1e-4, atol=1e-5 if X64 else 1e-3)
        slack = 1e-6 if X64 else 1e-4
        assert np.all(found.cost.last.total <= expected.cost.last.total * (1 + slack))


@pytest.mark.slow
@pytest.mark.x64
@pytest.mark.parametrize("form", FORMS)
def test_the_analysis_is_differentiable_with_respect_to_a_term(form):
    @jax.jit
    @functools.partial(jax.jacobian)
    def sensitivity(weight):
        term = eqx.tree_at(lambda t: t.weight, FORMS[form], weight)
        return build(StrongFourDVar, terms=term).analyse(BATCH).state[0]

    expected = (dense(weight=5.001)[0] - dense(weight=4.999)[0]) / 0.002
    np.testing.assert_allclose(sensitivity(WEIGHT), expected, rtol=1e-5, atol=1e-9)


@pytest.mark.slow
@pytest.mark.x64
def test_adjoints_through_the_iterations_take_a_scalar_cost():
    """The cost is guarded there, scalar terms included."""
    term = FORMS["scalar"]
    unrolled = build(StrongFourDVar, terms=term, minimiser_adjoint=DirectAdjoint(), max_steps=40)
    value = lambda method, y: jnp.sum(method.analyse(Batch1D.from_observations(y)).state)  # noqa: E731
    found = jax.jit(jax.grad(lambda y: value(unrolled, y)))(BATCH.input)
    expected = jax.jit(jax.grad(lambda y: value(build(StrongFourDVar, terms=term), y)))(BATCH.input)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


def test_a_scalar_cost_is_given_the_observations_of_its_sample():
    """J_o again as a user's own term: with it, R is halved."""

    def misfit(trajectory, observed):
        gap = jnp.where(observed.mask != 0, observed.value - trajectory @ jnp.asarray(H.T, trajectory.dtype), 0.0)
        return 0.5 * jnp.sum(gap**2) / 0.3

    assert isinstance(misfit, CostFunction)
    R_diagonal = {"obs_cov_op": DiagonalCovariance(np.full(M, 0.3))}
    twice = build(StrongFourDVar, terms=misfit).with_(**R_diagonal).analyse(BATCH)
    half = build(StrongFourDVar, terms=()).with_(obs_cov_op=DiagonalCovariance(np.full(M, 0.15))).analyse(BATCH)
    np.testing.assert_allclose(twice.state, half.state, **CLOSE)
    np.testing.assert_allclose(twice.cost.last.J_c, twice.cost.last.J_o, rtol=1e-4)


def test_no_terms_cost_nothing_and_several_add_up():
    trajectory = jnp.ones((ENTRIES, N))
    assert float(penalty_costs((), trajectory, None)) == 0.0
    both = penalty_costs(tuple(FORMS.values()), trajectory, None)
    np.testing.assert_allclose(both, 2 * FORMS["scalar"](trajectory, None), rtol=1e-6)


# -- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("term", "words"),
    [
        (3.0, r"`terms\[0\]` is float, expected an object with `residual\(trajectory\)`, or a cost function"),
        (LastState, r"`terms\[0\]` is the class LastState"),
        (lambda trajectory: 0.0, r"`terms\[0\]` has the signature \(trajectory\), expected \(trajectory, observed\)"),
        ([LastState(WEIGHT), None], r"`terms\[1\]` is NoneType"),
    ],
)
def test_what_is_no_term_is_refused(term, words):
    with pytest.raises(TypeError, match=words):
        as_penalties(term)


def test_a_scalar_cost_is_refused_where_a_residual_is_linearised():
    words = "LastStateCost.* is a scalar, and a least-squares or incremental minimiser.*give an object with `residual"
    scalar = FORMS["scalar"]
    with pytest.raises(TypeError, match=words):
        build(IncrementalFourDVar, terms=scalar).analyse(BATCH)
    with pytest.raises(TypeError, match=words):
        build(StrongFourDVar, terms=scalar, minimiser=optx.GaussNewton(1e-6, 1e-6)).analyse(BATCH)
    with pytest.raises(TypeError, match=words):
        build(StrongFourDVar, terms=scalar).posterior(BATCH)
    with pytest.raises(ValueError, match=r"<lambda>\) gives shape \(4,\), expected a scalar"):
        build(StrongFourDVar, terms=lambda x, observed: jnp.sum(x, axis=1)).analyse(BATCH)
