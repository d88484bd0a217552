"""The incremental primitives against dense algebra: the quadratic, its truncated solution, the outer loops."""

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest

from vardax.covariances.dense import DenseCovariance
from vardax.dynamics.discrete import DiscreteForward
from vardax.dynamics.rollout import rollout
from vardax.minimisers.gauss_newton import IncrementalConfig
from vardax.models.incremental_fourdvar import IncrementalFourDVar
from vardax.obs_operators.linear import LinearObs
from vardax.primitives.control import tangent_linear
from vardax.primitives.cost_functions import StrongConstraintCost
from vardax.primitives.incremental import gauss_newton_inner, incremental_cost, incremental_outer
from vardax.types import Batch1D

X64 = jax.config.jax_enable_x64
CLOSE = {"rtol": 1e-9, "atol": 1e-9} if X64 else {"rtol": 2e-3, "atol": 2e-3}
N, P, INTERVALS, SAMPLES = 5, 3, 2, 2
RNG = np.random.default_rng(4)


def spd(n, seed):
    root = np.random.default_rng(seed).normal(size=(n, n))
    return root @ root.T / n + 0.5 * np.eye(n)


B, R = spd(N, 0), spd(P, 1)
M, H = RNG.normal(size=(INTERVALS, N, N)) / 2, RNG.normal(size=(INTERVALS + 1, P, N))
Y = RNG.normal(size=(SAMPLES, INTERVALS + 1, P))
Y[0, 1, 2], Y[1, 0] = np.nan, np.nan
X_B, X_REF = RNG.normal(size=(2, SAMPLES, N))
DX = RNG.normal(size=(SAMPLES, N))
BATCH = Batch1D.from_observations(Y)


def operator(matrix):
    return lx.MatrixLinearOperator(jnp.asarray(matrix))


OPERATORS = (
    tuple(operator(m) for m in M),
    tuple(operator(h) for h in H),
    operator(np.linalg.inv(B)),
    operator(np.linalg.inv(R)),
)
G = np.concatenate([H[0], H[1] @ M[0], H[2] @ M[1] @ M[0]])  # all entries, from the state at the start
R_INV = np.kron(np.eye(INTERVALS + 1), np.linalg.inv(R))


def dense(sample, x_b, x_ref, prediction=None):
    """(A, b, c) with J(dx) = ½ dxᵀA dx - bᵀdx + c."""
    seen = np.isfinite(Y[sample]).ravel()
    base = G @ x_ref if prediction is None else prediction[sample].ravel()
    d = np.where(seen, np.nan_to_num(Y[sample]).ravel() - base, 0.0)
    masked = np.where(seen[:, None], G, 0.0)
    B_inv, gap = np.linalg.inv(B), x_ref - x_b
    A = B_inv + masked.T @ R_INV @ masked
    return A, masked.T @ R_INV @ d - B_inv @ gap, 0.5 * gap @ B_inv @ gap + 0.5 * d @ R_INV @ d


def dense_cg(A, b, steps, rtol=0.0):
    """Conjugate gradients from zero, as in a textbook."""
    x, r = np.zeros_like(b), b
    d, goal = r, rtol * np.linalg.norm(b)
    for _ in range(steps):
        if np.linalg.norm(r) <= goal:
            break
        curved = A @ d
        length = r @ r / (d @ curved)
        x, new = x + length * d, r - length * curved
        d, r = new + (new @ new) / (r @ r) * d, new
    return x


PREDICTION = RNG.normal(size=Y.shape)
POINTS = {
    "the background": (X_B, None, None),
    "one background for all": (X_B[0], None, None),
    "an iterate": (X_B[1], X_REF, None),
    "an iterate of a nonlinear model": (X_B, X_REF, PREDICTION),
}


@pytest.fixture(params=POINTS)
def point(request):
    """(x_b, x_ref, prediction) as given, and the dense (A, b, c) of each sample."""
    x_b, x_ref, prediction = POINTS[request.param]
    each = [np.broadcast_to(x, (SAMPLES, N)) for x in (x_b, x_b if x_ref is None else x_ref)]
    given = (jnp.asarray(x_b), None if x_ref is None else jnp.asarray(x_ref))
    more = {} if prediction is None else {"prediction": jnp.asarray(prediction)}
    return given, more, [dense(s, each[0][s], each[1][s], prediction) for s in range(SAMPLES)]


def test_the_cost_is_the_dense_quadratic_summed_over_the_samples(point):
    (x_b, x_ref), more, expected = point
    found = incremental_cost(jnp.asarray(DX), x_b, BATCH, *OPERATORS, x_ref, **more)
    total = sum(0.5 * dx @ A @ dx - b @ dx + c for dx, (A, b, c) in zip(DX, expected, strict=True))
    np.testing.assert_allclose(found, total, **CLOSE)


@pytest.mark.x64
def test_its_gradient_is_the_limit_of_differences():
    direction, step = RNG.normal(size=DX.shape), 1e-4
    cost = lambda dx: incremental_cost(dx, jnp.asarray(X_B), BATCH, *OPERATORS, jnp.asarray(X_REF))  # noqa: E731
    slope = (cost(jnp.asarray(DX + step * direction)) - cost(jnp.asarray(DX - step * direction))) / (2 * step)
    np.testing.assert_allclose(jnp.sum(jax.grad(cost)(jnp.asarray(DX)) * direction), slope, rtol=1e-8)


def test_enough_inner_steps_solve_the_normal_equations(point):
    (x_b, x_ref), more, expected = point
    found = gauss_newton_inner(jnp.asarray(DX), x_b, BATCH, *OPERATORS, N + 2, 0.0, 0.0, x_ref, **more)
    np.testing.assert_allclose(found, np.stack([np.linalg.solve(A, b) for A, b, _ in expected]), **CLOSE)


@pytest.mark.parametrize(("steps", "rtol"), [(1, 0.0), (3, 0.0), (5, 0.2)])
def test_fewer_are_the_iterates_of_conjugate_gradients(steps, rtol):
    found = gauss_newton_inner(jnp.asarray(DX), jnp.asarray(X_B), BATCH, *OPERATORS, steps, 0.0, rtol)
    for sample, dx in enumerate(DX):
        A, b, _ = dense(sample, X_B[sample], X_B[sample])
        expected = dx + dense_cg(A, b - A @ dx, steps, rtol)
        np.testing.assert_allclose(found[sample], expected, **CLOSE)


@pytest.mark.parametrize(
    ("forward_lin", "obs_op_lin", "words"),
    [
        (OPERATORS[0][:1], OPERATORS[1], "`forward_lin` has 1 operators and `obs_op_lin` 3"),
        (OPERATORS[0][:1], OPERATORS[1][:2], "`batch.input` has 3 time entries, expected 2"),
    ],
)
def test_operators_that_do_not_fit_the_window_are_refused(forward_lin, obs_op_lin, words):
    with pytest.raises(ValueError, match=words):
        incremental_cost(jnp.asarray(DX), jnp.asarray(X_B), BATCH, forward_lin, obs_op_lin, *OPERATORS[2:])


def test_states_and_predictions_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"a state has shape \(4,\), expected \(5,\), or \(2, 5\)"):
        incremental_cost(jnp.asarray(DX), jnp.zeros(4), BATCH, *OPERATORS)
    with pytest.raises(ValueError, match=r"`prediction` has shape \(1, 3, 3\), expected \(2, 3, 3\)"):
        incremental_cost(jnp.asarray(DX), jnp.asarray(X_B), BATCH, *OPERATORS, prediction=jnp.zeros((1, 3, 3)))


# -- outer loops -----------------------------------------------------------------------------------------------------

FORWARD = DiscreteForward(lambda x, dt: x + dt * (1 - x**2 * jnp.roll(x, 1)), 0.1)
OBS_OP = LinearObs(H[0])
COVARIANCES = (DenseCovariance(B), DenseCovariance(0.1 * R))


def method(config):
    return IncrementalFourDVar(FORWARD, OBS_OP, jnp.asarray(X_B[0]), *COVARIANCES, config, n_substeps=2)


@pytest.mark.parametrize("guess", [None, pytest.param(X_REF, marks=pytest.mark.slow)], ids=["background", "guess"])
def test_the_whole_iteration_is_that_of_the_method(guess):
    config, x_b = IncrementalConfig(n_outer=2, n_inner=3), jnp.asarray(X_B[0])
    first_guess = None if guess is None else jnp.asarray(guess)
    starts = (x_b, None) if guess is None else (first_guess, x_b)
    found = incremental_outer(starts[0], BATCH, FORWARD, OBS_OP, *COVARIANCES, config, x_b=starts[1], n_substeps=2)
    expected = method(config).analyse(BATCH, first_guess=first_guess).state
    np.testing.assert_allclose(found, expected, **CLOSE)


@pytest.mark.slow
def test_outer_loops_by_hand_end_where_the_gradient_of_strong_4dvar_vanishes():
    """The point of linearisation moves, the background does not. Observations of a truth, so that loops without a
    line search settle."""
    x_b = jnp.asarray(X_B[0])
    truth = rollout(FORWARD, x_b + 0.3 * jnp.asarray(DX[0]), INTERVALS, n_substeps=2)
    sample = Batch1D.from_observations(jax.vmap(OBS_OP)(truth)[None])
    step = lambda x: rollout(FORWARD, x, 1, n_substeps=2)[1]  # noqa: E731
    inverses = (operator(np.linalg.inv(B)), operator(np.linalg.inv(0.1 * R)))

    @jax.jit
    def outer(x_ref):
        trajectory = rollout(FORWARD, x_ref, INTERVALS, n_substeps=2)
        models = tuple(tangent_linear(step, x) for x in trajectory[:-1])
        observed = (operator(H[0]),) * (INTERVALS + 1)
        more = {"x_ref": x_ref, "prediction": jax.vmap(OBS_OP)(trajectory)[None]}
        return x_ref + gauss_newton_inner(x_ref * 0, x_b, sample, models, observed, *inverses, N, 0.0, 0.0, **more)[0]

    x_ref = x_b
    for _ in range(30):
        x_ref = outer(x_ref)
    cost = StrongConstraintCost(FORWARD, OBS_OP, x_b, *COVARIANCES, n_substeps=2)
    slope = jax.jit(jax.grad(lambda x: cost(x, sample)))
    at_start, at_end = (jnp.linalg.norm(slope(x[None])) for x in (x_b, x_ref))
    assert at_end < (1e-9 if X64 else 1e-4) * at_start
