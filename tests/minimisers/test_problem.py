"""The control-space problem against dense algebra: cost, gradient, tangent, adjoint, Gauss-Newton product, samples."""

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import optimistix as optx
import pytest

from vardax.covariances.dense import DenseCovariance
from vardax.covariances.diagonal import DiagonalCovariance
from vardax.covariances.functions import half
from vardax.covariances.matern import MaternLinearOperator
from vardax.dynamics.discrete import DiscreteForward
from vardax.minimisers.observed import read_samples, restrict_samples
from vardax.minimisers.problem import BatchedProblem, tree_dot, tree_norm
from vardax.minimisers.transforms import Exp, Identity, Softplus
from vardax.minimisers.windows import Snapshot, Window
from vardax.obs_operators.callable import CallableObs
from vardax.obs_operators.linear import LinearObs
from vardax.types import Batch1D

RANDOM = np.random.default_rng(11)
N, M, E, SAMPLES = 5, 3, 3, 2
H = RANDOM.normal(size=(M, N))
MODEL = np.linalg.qr(RANDOM.normal(size=(N, N)))[0]
ROOT = RANDOM.normal(size=(N, N))
B = ROOT @ ROOT.T + 0.5 * np.eye(N)
R = np.array([[1.0, 0.4, 0.1], [0.4, 0.8, 0.3], [0.1, 0.3, 1.2]])
Y = RANDOM.normal(size=(SAMPLES, E, M))
MASK = np.array([[[1, 1, 0], [1, 0, 1], [1, 1, 1]], [[0, 0, 0], [1, 1, 1], [0, 1, 0]]])
X_B = RANDOM.uniform(0.5, 2.0, size=(SAMPLES, N))
CHI, V = jnp.asarray(RANDOM.normal(size=(2, SAMPLES, N)))
X64 = jax.config.jax_enable_x64
TOLERANCE = {"rtol": 1e-10, "atol": 1e-10} if X64 else {"rtol": 2e-3, "atol": 2e-3}
DOT = 1e-12 if X64 else 1e-4


class Times(eqx.Module):
    """x -> M x."""

    matrix: jax.Array

    def __call__(self, state):
        return self.matrix @ state


def model():
    return DiscreteForward(Times(jnp.asarray(MODEL)), dt=1.0)


def problem(
    *, obs_op=None, prior=None, obs_cov=None, transform=None, window=True, y=Y, mask=MASK, background=X_B, **fields
):
    """The samples of one window of a rotating state, or of the window's first entry."""
    obs_op = LinearObs(jnp.asarray(H)) if obs_op is None else obs_op
    prior = DenseCovariance(B) if prior is None else prior
    y, mask = (y, mask) if window else (y[:, :1], mask[:, :1])
    samples = read_samples(Batch1D(y, mask, **fields), y.shape[2:], window=window, owner="test")
    along = Window(model(), obs_op, optx.RecursiveCheckpointAdjoint(), 0.0, y.shape[1] - 1, 1)
    return BatchedProblem(
        background=jax.tree.map(jnp.asarray, background),
        observed=restrict_samples(samples, DenseCovariance(R) if obs_cov is None else obs_cov, "test"),
        covariance=prior,
        half=half(prior),
        observe=along if window else Snapshot(obs_op),
        transform=Identity() if transform is None else transform,
    )


def one_sample(batched, index):
    """The problem of one sample, by itself."""
    alone = eqx.tree_at(
        lambda p: (p.background, p.observed),
        batched,
        jax.tree.map(lambda a: a[index : index + 1], (batched.background, batched.observed)),
    )
    problems = []
    alone.map_samples(lambda sample: problems.append(sample))
    return problems[0]


def root():
    return np.asarray(half(DenseCovariance(B)).as_matrix())


def marginal_inverse(mask):
    """R⁻¹ of the observed entries in their places, zero elsewhere."""
    inverse, kept = np.zeros((M, M)), np.flatnonzero(mask)
    inverse[np.ix_(kept, kept)] = np.linalg.inv(R[np.ix_(kept, kept)]) if kept.size else 0
    return inverse


def dense(sample):
    """(A, P, d): predictions A chi + A x_b', block-diagonal P = R⁻¹ where observed, innovation d, of a window."""
    stacked = np.concatenate([H @ np.linalg.matrix_power(MODEL, t) for t in range(E)])
    precision = np.zeros((E * M, E * M))
    for t in range(E):
        precision[t * M : (t + 1) * M, t * M : (t + 1) * M] = marginal_inverse(MASK[sample, t])
    return stacked @ root(), precision, Y[sample].ravel() - stacked @ X_B[sample]


def test_the_square_root_of_the_oracle_is_one():
    np.testing.assert_allclose(root() @ root().T, B, **TOLERANCE)


@pytest.mark.parametrize("sample", range(SAMPLES))
def test_the_cost_is_that_of_dense_algebra(sample):
    A, precision, d = dense(sample)
    chi = np.asarray(CHI[sample])
    misfit = d - A @ chi
    terms = problem().terms(CHI)
    np.testing.assert_allclose(terms.J_b[sample], 0.5 * chi @ chi, **TOLERANCE)
    np.testing.assert_allclose(terms.J_o[sample], 0.5 * misfit @ precision @ misfit, **TOLERANCE)
    np.testing.assert_allclose(terms.J_q[sample], 0.0)
    np.testing.assert_allclose(problem().cost(CHI)[sample], terms.total[sample], **TOLERANCE)


@pytest.mark.parametrize("sample", range(SAMPLES))
def test_the_gradient_is_that_of_dense_algebra(sample):
    A, precision, d = dense(sample)
    chi = np.asarray(CHI[sample])
    np.testing.assert_allclose(problem().gradient(CHI)[sample], chi - A.T @ precision @ (d - A @ chi), **TOLERANCE)


@pytest.mark.parametrize("sample", range(SAMPLES))
def test_the_gauss_newton_product_is_that_of_dense_algebra(sample):
    A, precision, _ = dense(sample)
    v = np.asarray(V[sample])
    np.testing.assert_allclose(problem().hessian_product(CHI, V)[sample], v + A.T @ precision @ A @ v, **TOLERANCE)


def test_the_residual_is_whitened_and_zero_where_missing():
    residual = problem().residual(CHI)
    np.testing.assert_allclose(0.5 * jnp.sum(residual**2, axis=(1, 2)), problem().terms(CHI).J_o, **TOLERANCE)
    assert (np.asarray(residual)[MASK == 0] == 0).all()


def test_a_control_of_zero_is_the_background():
    posed = problem()
    np.testing.assert_allclose(posed.control_to_state(posed.zero_control()), X_B, **TOLERANCE)


def test_a_state_is_the_background_and_the_square_root_of_B():
    np.testing.assert_allclose(problem().control_to_state(CHI), X_B + np.asarray(CHI) @ root().T, **TOLERANCE)


def test_the_predictions_are_those_of_the_trajectory():
    state = np.asarray(problem().control_to_state(CHI))
    for t in range(E):
        expected = state @ np.linalg.matrix_power(MODEL, t).T @ H.T
        np.testing.assert_allclose(problem().predicted(CHI)[:, t], expected, **TOLERANCE)


@pytest.mark.parametrize("window", [True, False], ids=["window", "snapshot"])
@pytest.mark.parametrize("transform", [Identity(), Exp(), Softplus()], ids=lambda t: type(t).__name__)
def test_the_adjoint_is_the_transpose_of_the_tangent(window, transform):
    nonlinear = CallableObs(lambda x: jnp.sin(x[:M]) * x[1 : M + 1])
    sample = one_sample(problem(obs_op=nonlinear, transform=transform, window=window), 0)
    residual, G, GT = sample.linearise(CHI[0])
    w = jnp.asarray(RANDOM.normal(size=residual.shape))
    left, right = jnp.sum(G(V[0]) * w), jnp.sum(V[0] * GT(w))
    scale = jnp.linalg.norm(G(V[0])) * jnp.linalg.norm(w)
    assert abs(left - right) <= DOT * scale
    np.testing.assert_allclose(residual, sample.residual(CHI[0]), **TOLERANCE)
    np.testing.assert_allclose(sample.gradient(CHI[0]), CHI[0] - GT(residual), **TOLERANCE)


@pytest.mark.x64
@pytest.mark.parametrize("transform", [Identity(), Exp(), Softplus()], ids=lambda t: type(t).__name__)
def test_the_tangent_is_the_limit_of_differences(transform):
    nonlinear = CallableObs(lambda x: jnp.sin(x[:M]) * x[1 : M + 1])
    sample = one_sample(problem(obs_op=nonlinear, transform=transform), 0)
    _, G, _ = sample.linearise(CHI[0])
    step = 1e-6
    difference = (sample.residual(CHI[0] - step * V[0]) - sample.residual(CHI[0] + step * V[0])) / (2 * step)
    np.testing.assert_allclose(G(V[0]), difference, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("member", ["control_to_state", "predicted", "residual", "cost", "gradient"])
def test_a_batch_is_its_samples(member):
    batched = problem()
    together = getattr(batched, member)(CHI)
    for index in range(SAMPLES):
        alone = getattr(one_sample(batched, index), member)(CHI[index])
        np.testing.assert_allclose(together[index], alone, **TOLERANCE)


def test_the_gauss_newton_product_of_a_batch_is_that_of_its_samples():
    batched = problem()
    together = batched.hessian_product(CHI, V)
    for index in range(SAMPLES):
        np.testing.assert_allclose(
            together[index], one_sample(batched, index).hessian_product(CHI[index], V[index]), **TOLERANCE
        )


def test_a_sample_without_observations_costs_only_its_background():
    posed = problem(mask=np.zeros_like(MASK))
    np.testing.assert_allclose(posed.cost(CHI), 0.5 * jnp.sum(CHI**2, axis=1), **TOLERANCE)
    np.testing.assert_allclose(posed.gradient(CHI), CHI, **TOLERANCE)


def test_a_gap_hides_what_is_there():
    """Neither the value under a gap nor a NaN there changes the cost or its derivatives."""
    hidden = np.where(MASK == 1, Y, np.nan)
    for member in ("cost", "gradient", "residual"):
        np.testing.assert_array_equal(getattr(problem(y=hidden), member)(CHI), getattr(problem(), member)(CHI))


@pytest.mark.parametrize(
    "prior",
    [
        DiagonalCovariance(np.linspace(0.5, 2.0, N)),
        DenseCovariance(B),
        MaternLinearOperator((N,), 2.0, boundary="free"),
        MaternLinearOperator((N,), 2.0),
        2.0 * DenseCovariance(B),
        DenseCovariance(B) + DiagonalCovariance(np.ones(N)),
    ],
    ids=["diagonal", "dense", "free", "periodic", "scaled", "sum"],
)
def test_the_background_term_is_that_of_B_for_every_square_root(prior):
    """With chi the shortest control of a state, ½‖chi‖² = ½ dxᵀ B⁻¹ dx, also for a rectangular root."""
    sample = one_sample(problem(prior=prior), 0)
    matrix = np.asarray(prior.as_matrix())
    dx = RANDOM.normal(size=N)
    control = sample.control_of(jnp.asarray(X_B[0] + dx))
    np.testing.assert_allclose(sample.control_to_state(control), X_B[0] + dx, **TOLERANCE)
    np.testing.assert_allclose(sample.terms(control).J_b, 0.5 * dx @ np.linalg.solve(matrix, dx), **TOLERANCE)


def test_a_first_guess_outside_the_range_of_B_is_projected():
    direction = np.array([1.0, 2.0, 0.0, -1.0, 0.5])
    factor = lx.MatrixLinearOperator(jnp.asarray(direction)[:, None])
    sample = one_sample(problem(prior=factor @ factor.T), 0)
    dx = RANDOM.normal(size=N)
    projected = direction * (direction @ dx) / (direction @ direction)
    state = sample.control_to_state(sample.control_of(jnp.asarray(X_B[0] + dx)))
    np.testing.assert_allclose(state, X_B[0] + projected, **TOLERANCE)


@pytest.mark.parametrize("transform", [Exp(), Softplus()], ids=lambda t: type(t).__name__)
def test_a_transform_applies_to_background_and_increment(transform):
    posed = problem(transform=transform)
    z_b = np.asarray(transform.inverse(jnp.asarray(X_B)))
    expected = np.asarray(transform(jnp.asarray(z_b + np.asarray(CHI) @ root().T)))
    np.testing.assert_allclose(posed.control_to_state(CHI), expected, **TOLERANCE)
    assert (np.asarray(posed.control_to_state(20 * CHI)) > 0).all()


@pytest.mark.parametrize("transform", [Identity(), Exp(), Softplus()], ids=lambda t: type(t).__name__)
def test_the_prior_variances_are_carried_through_the_transform(transform):
    sample = one_sample(problem(transform=transform), 0)
    S = np.asarray(jax.jacobian(sample.control_to_state)(CHI[0]))
    np.testing.assert_allclose(sample.prior_variances(CHI[0]), np.diag(S @ S.T), **TOLERANCE)


def test_a_state_may_be_a_pytree():
    prior = lx.DiagonalLinearOperator({"u": jnp.array([1.0, 4.0]), "c": jnp.array([0.25])})
    background = {"u": np.ones((SAMPLES, 2)), "c": np.full((SAMPLES, 1), 2.0)}
    both = CallableObs(lambda x: jnp.concatenate([x["u"], x["c"]]))
    posed = problem(prior=prior, background=background, obs_op=both, window=False)
    control = {"u": V[:, :2], "c": V[:, 2:3]}
    state = posed.control_to_state(control)
    np.testing.assert_allclose(state["u"], 1.0 + np.array([[1.0, 2.0]]) * V[:, :2], **TOLERANCE)
    np.testing.assert_allclose(state["c"], 2.0 + 0.5 * np.asarray(V[:, 2:3]), **TOLERANCE)
    predicted = np.concatenate([state["u"], state["c"]], axis=1)
    for index in range(SAMPLES):
        misfit = Y[index, 0] - predicted[index]
        expected = 0.5 * misfit @ marginal_inverse(MASK[index, 0]) @ misfit
        np.testing.assert_allclose(posed.terms(control).J_o[index], expected, **TOLERANCE)
    assert jax.tree.structure(posed.gradient(control)) == jax.tree.structure(control)


def test_tree_algebra():
    a, b = {"u": jnp.array([1.0, 2.0]), "c": jnp.array(3.0)}, {"u": jnp.array([4.0, 5.0]), "c": jnp.array(6.0)}
    assert float(tree_dot(a, b)) == 32.0
    assert float(tree_norm({"u": jnp.array([3.0]), "c": jnp.array([4.0])})) == 5.0


def test_a_problem_passes_through_jit():
    posed = problem()
    np.testing.assert_allclose(eqx.filter_jit(lambda p, c: p.cost(c))(posed, CHI), posed.cost(CHI), **TOLERANCE)


@pytest.mark.x64
@pytest.mark.parametrize("prior_dtype", [jnp.float32, jnp.float64])
def test_operators_compute_in_their_dtype_and_the_state_keeps_its_own(prior_dtype):
    float32 = {"y": Y.astype(np.float32), "background": X_B.astype(np.float32), "window": False}
    prior, obs_cov = DenseCovariance(B, dtype=prior_dtype), DenseCovariance(R, dtype=prior_dtype)
    posed = problem(prior=prior, obs_cov=obs_cov, **float32)
    control = CHI.astype(prior_dtype)
    assert posed.control_to_state(control).dtype == jnp.float32
    assert posed.residual(control).dtype == jnp.float32
    assert posed.cost(control).dtype == jnp.float32
    np.testing.assert_allclose(posed.cost(control), problem(window=False).cost(CHI), rtol=1e-4)
