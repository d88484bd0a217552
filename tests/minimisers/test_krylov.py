"""The iterative linear-Gaussian analysis against dense algebra and textbook conjugate gradients in control space."""

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest

from vardax.covariances.dense import DenseCovariance
from vardax.covariances.diagonal import DiagonalCovariance
from vardax.covariances.functions import restrict
from vardax.covariances.matern import MaternLinearOperator
from vardax.minimisers import krylov, modes_form, observation_form, products_form
from vardax.minimisers.krylov import EVEN_COVERAGE
from vardax.minimisers.modes_form import observation_coverage
from vardax.obs_operators.linear import LinearObs
from vardax.obs_operators.point import PointObs

pytestmark = pytest.mark.slow  # compiles many programs

RANDOM = np.random.default_rng(5)
SHAPE, N = (8, 6), 48
GRID = jnp.zeros(SHAPE)
BOUNDARIES = ("periodic", "free")
solve_blue = eqx.filter_jit(krylov.solve_blue)
solve_by_products = eqx.filter_jit(products_form.solve_by_products)
solve_in_modes = eqx.filter_jit(modes_form.solve_in_modes)
solve_in_observations = eqx.filter_jit(observation_form.solve_in_observations)


def _root(n):
    return RANDOM.normal(size=(n, n)) / np.sqrt(n) + 0.5 * np.eye(n)


class Case:
    """B, H, R of one analysis, with their matrices on the observed entries."""

    def __init__(self, B, H, R, mask, innovation):
        self.B, self.H, self.mask = B, H, jnp.asarray(mask, float)
        self.R, self.R_operator = restrict(R, self.mask), R
        self.innovation = jnp.where(self.mask != 0, jnp.asarray(innovation), 0.0)
        seen = np.asarray(mask) != 0
        self.seen = seen
        self.B_matrix, self.H_matrix = np.asarray(B.as_matrix()), np.asarray(H.as_matrix())[seen]
        self.R_matrix = np.asarray(R.as_matrix())[np.ix_(seen, seen)]
        self.d = np.asarray(self.innovation)[seen]

    def dense(self):
        """B Hᵀ (H B Hᵀ + R)⁻¹ d, and the weights."""
        cross = self.B_matrix @ self.H_matrix.T
        weights = np.linalg.solve(self.H_matrix @ cross + self.R_matrix, self.d)
        return cross @ weights, weights

    def cost(self, control, increment):
        residual = self.d - self.H_matrix @ np.ravel(increment)
        return 0.5 * np.sum(np.asarray(control) ** 2) + 0.5 * residual @ np.linalg.solve(self.R_matrix, residual)

    def textbook(self, n_steps):
        """The increments of conjugate gradients on (I + LᵀHᵀR⁻¹HL) chi = LᵀHᵀR⁻¹d, L the symmetric root of B."""
        values, vectors = np.linalg.eigh(self.B_matrix)
        L = vectors * np.sqrt(np.maximum(values, 0)) @ vectors.T
        G = np.linalg.solve(np.linalg.cholesky(self.R_matrix), self.H_matrix @ L)
        hessian = np.eye(len(L)) + G.T @ G
        r = G.T @ np.linalg.solve(np.linalg.cholesky(self.R_matrix), self.d)
        chi, p, increments = np.zeros(len(L)), r, []
        for _ in range(n_steps):
            length = (r @ r) / (p @ hessian @ p)
            chi, new = chi + length * p, r - length * hessian @ p
            p, r = new + (new @ new) / (r @ r) * p, new
            increments.append(L @ chi)
        return increments

    def in_observations(self, **options):
        return solve_in_observations(self.B, self.B.half(), self.H, self.R, self.innovation, **options)

    def in_modes(self, **options):
        return solve_in_modes(self.B, self.H, self.R, self.innovation, **options)

    def by_products(self, **options):
        return solve_by_products(self.B, self.B.half(), self.H, self.R_operator, self.innovation, self.mask, **options)

    def blue(self, **options):
        return solve_blue(self.B, self.B.half(), self.H, self.R, self.innovation, **options)


def correlated():
    """Correlated B and R, a dense H with fewer rows than columns, gaps."""
    root, error = _root(12), _root(9)
    H = LinearObs(jnp.asarray(RANDOM.normal(size=(9, 12)))).linearize(jnp.zeros(12))
    mask = [1, 1, 0, 1, 1, 1, 0, 1, 1]
    B, R = DenseCovariance(root @ root.T), DenseCovariance(error @ error.T + 0.1 * np.eye(9))
    return Case(B, H, R, mask, RANDOM.normal(size=9))


def field(boundary, n_obs=70):
    """More point observations than cells on a Matérn field, some twice, some missing."""
    B = MaternLinearOperator(SHAPE, 1.5, sigma=1.3, boundary=boundary)
    indices = np.concatenate([np.arange(N), RANDOM.integers(0, N, n_obs - N)])
    R = DiagonalCovariance(jnp.asarray(RANDOM.uniform(0.05, 0.2, n_obs)))
    mask = np.arange(n_obs) % 7 != 3
    return Case(B, PointObs(indices).linearize(GRID), R, mask, RANDOM.normal(size=n_obs))


CASES = {"correlated": correlated(), "periodic": field("periodic"), "free": field("free")}
FIELDS = pytest.mark.parametrize("boundary", BOUNDARIES)
EVERY_CASE = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


@pytest.mark.x64
@EVERY_CASE
def test_increment_and_weights_equal_the_dense_formula(case):
    increment, weights = case.dense()
    result = case.blue(tol=1e-11, max_steps=200)
    assert result.converged
    np.testing.assert_allclose(np.ravel(result.increment), increment, atol=1e-8)
    np.testing.assert_allclose(result.weights[case.seen], weights, atol=1e-8)
    np.testing.assert_array_equal(result.weights[~case.seen], 0)


@pytest.mark.x64
@EVERY_CASE
def test_control_maps_to_the_increment(case):
    result = case.blue(tol=1e-11, max_steps=200)
    np.testing.assert_allclose(case.B.half().mv(result.control), result.increment, atol=1e-10)


@pytest.mark.x64
@FIELDS
def test_both_forms_agree_with_the_dense_formula(boundary):
    case = CASES[boundary]
    increment, _ = case.dense()
    for result in (case.in_observations(tol=1e-11, max_steps=200), case.in_modes(tol=1e-11, max_steps=200)):
        np.testing.assert_allclose(np.ravel(result.increment), increment, atol=1e-8)


@pytest.mark.x64
@EVERY_CASE
def test_observation_form_takes_the_steps_of_control_space_conjugate_gradients(case):
    for n_steps, expected in enumerate(case.textbook(6), start=1):
        result = case.in_observations(tol=0.0, max_steps=n_steps)
        np.testing.assert_allclose(np.ravel(result.increment), expected, atol=1e-10)


@pytest.mark.x64
@FIELDS
def test_modes_form_takes_the_steps_of_control_space_conjugate_gradients(boundary):
    case = CASES[boundary]
    for n_steps in range(1, 8):
        modes = case.in_modes(tol=0.0, max_steps=n_steps)
        observations = case.in_observations(tol=0.0, max_steps=n_steps)
        np.testing.assert_allclose(modes.increment, observations.increment, atol=1e-10)
        np.testing.assert_allclose(modes.gradient_norms, observations.gradient_norms, rtol=1e-8)


@pytest.mark.x64
@EVERY_CASE
@pytest.mark.parametrize("form", ["observations", "modes", "preconditioned"])
def test_cost_decreases_at_every_truncation(case, form):
    if form != "observations" and not isinstance(case.B, MaternLinearOperator):
        form = "observations"
    previous = case.cost(0.0, np.zeros(case.B_matrix.shape[0]))
    for n_steps in range(9):
        options = {"tol": 0.0, "max_steps": n_steps}
        if form == "preconditioned":
            result = case.in_modes(coverage=3.0, **options)
        else:
            result = case.in_modes(**options) if form == "modes" else case.in_observations(**options)
        cost = case.cost(result.control, result.increment)
        np.testing.assert_allclose(cost, result.costs[n_steps], rtol=1e-10)
        assert cost <= previous * (1 + 1e-12)
        previous = cost


@pytest.mark.x64
@EVERY_CASE
def test_gradient_norms_are_those_of_the_cost_in_control_space(case):
    result = case.in_observations(tol=0.0, max_steps=3)
    residual = case.R.solve(case.innovation - case.H.mv(result.increment))
    gradient = result.control - case.B.half().transpose().mv(case.H.transpose().mv(residual))
    np.testing.assert_allclose(result.gradient_norm, jnp.linalg.norm(gradient), rtol=1e-8)


@pytest.mark.x64
def test_preconditioner_needs_fewer_steps_for_the_same_answer():
    size = (24, 24)
    B = MaternLinearOperator(size, 3.0)
    cells = RANDOM.choice(24 * 24, 300, replace=False)
    H = PointObs(cells).linearize(jnp.zeros(size))
    R = restrict(DiagonalCovariance(jnp.full(300, 0.01)), jnp.ones(300))
    innovation = jnp.asarray(RANDOM.normal(size=300))
    plain = solve_in_observations(B, B.half(), H, R, innovation, tol=1e-6, max_steps=500)
    chosen = solve_blue(B, B.half(), H, R, innovation, tol=1e-6, max_steps=500)
    assert chosen.converged
    assert int(chosen.n_iterations) < 0.5 * int(plain.n_iterations)
    np.testing.assert_allclose(chosen.increment, plain.increment, atol=1e-4)


def _tracks(side=256, variance=1e-3):
    """Accurate observations along six lines that cross a field."""
    along = np.arange(side)
    columns = [(20 + 40 * track + slope * along).astype(int) % side for track, slope in enumerate((0.5, -0.4) * 3)]
    cells = np.concatenate([along * side + column for column in columns])
    B = MaternLinearOperator((side, side), 12.0, dtype=jnp.float32)
    H = PointObs(cells).linearize(jnp.zeros((side, side), jnp.float32))
    R = DiagonalCovariance(jnp.full(cells.size, variance, jnp.float32))
    noise = jnp.asarray(np.sqrt(variance) * RANDOM.normal(size=cells.size), jnp.float32)
    return B, H, R, H.mv(B.sample(jax.random.key(3), 1)[0]) + noise


def test_accurate_tracks_take_the_factor_and_far_fewer_steps():
    B, H, R, innovation = _tracks()
    options = {"tol": 1e-4, "max_steps": 1000}
    R = restrict(R, jnp.ones_like(innovation))
    chosen = solve_blue(B, B.half(), H, R, innovation, **options)
    plain = solve_in_observations(B, B.half(), H, R, innovation, **options)
    assert chosen.converged
    assert 5 * int(chosen.n_iterations) < int(plain.n_iterations)
    cells = jnp.unravel_index(H.fn.indices, B.shape)
    pairs = [tuple(jnp.expand_dims(cell, axis) for cell in cells) for axis in (1, 0)]
    K = np.asarray(B.between_cells()(*pairs), np.float64)
    exact = K @ np.linalg.solve(K + 1e-3 * np.eye(len(K)), np.asarray(innovation, np.float64))
    errors = [np.sqrt(np.mean((np.asarray(H.mv(result.increment)) - exact) ** 2)) for result in (chosen, plain)]
    assert errors[0] < 1e-3
    assert errors[0] < errors[1]


def test_a_batch_of_masks_may_need_different_forms():
    """One sample sees all tracks, one nothing, one only inaccurate observations: each gets its own answer."""
    B, H, R, innovation = _tracks()
    masks = jnp.stack([jnp.ones_like(innovation), jnp.zeros_like(innovation), jnp.ones_like(innovation)])
    variances = R.variance[None] * jnp.array([1.0, 1.0, 1e5], jnp.float32)[:, None]

    @jax.jit
    def one(mask, variance):
        R = restrict(DiagonalCovariance(variance), mask)
        return solve_blue(B, B.half(), H, R, mask * innovation, tol=1e-4, max_steps=300)

    together = jax.vmap(one)(masks, variances)
    assert together.converged.all()
    for i in range(3):
        alone = one(masks[i], variances[i])
        np.testing.assert_allclose(together.increment[i], alone.increment, atol=2e-3)
        assert abs(int(together.n_iterations[i]) - int(alone.n_iterations)) <= 1


@FIELDS
def test_coverage_of_a_fully_observed_field_is_even(boundary):
    B = MaternLinearOperator(SHAPE, 1.5, boundary=boundary)
    H = PointObs(np.arange(N)).linearize(GRID)
    R = restrict(DiagonalCovariance(jnp.full(N, 0.5)), jnp.ones(N))
    least, evenness = observation_coverage(B, H, R)
    np.testing.assert_allclose([least, evenness], [2.0, 1.0], rtol=1e-4)


@pytest.mark.parametrize("kind", ["gap", "average", "nothing"])
def test_uneven_coverage_takes_the_observation_form(kind):
    size = (32, 4)
    B = MaternLinearOperator(size, 2.0)
    if kind == "average":
        average = np.kron(np.eye(4), np.full((1, 32), 1 / 32))
        H = lx.MatrixLinearOperator(jnp.asarray(average, B.dtype)) @ _ravel(size, B.dtype)
        n_obs = 4
    else:
        H, n_obs = PointObs(np.arange(64)).linearize(jnp.zeros(size, B.dtype)), 64
    mask = jnp.zeros(n_obs) if kind == "nothing" else jnp.ones(n_obs)
    R = restrict(DiagonalCovariance(jnp.full(n_obs, 0.1)), mask)
    _, evenness = observation_coverage(B, H, R)
    assert evenness < EVEN_COVERAGE
    innovation = jnp.where(mask != 0, jnp.asarray(RANDOM.normal(size=n_obs), B.dtype), 0)
    options = {"tol": 1e-4, "max_steps": 50}
    chosen = solve_blue(B, B.half(), H, R, innovation, **options)
    plain = solve_in_observations(B, B.half(), H, R, innovation, **options)
    assert chosen.n_iterations == plain.n_iterations
    np.testing.assert_allclose(chosen.increment, plain.increment, atol=1e-5)


def _ravel(shape, dtype):
    return lx.FunctionLinearOperator(jnp.ravel, jax.ShapeDtypeStruct(shape, dtype))


@pytest.mark.x64
@EVERY_CASE
def test_products_with_R_are_enough(case):
    increment, weights = case.dense()
    result = case.by_products(tol=1e-11, max_steps=200)
    assert result.converged
    np.testing.assert_allclose(np.ravel(result.increment), increment, atol=1e-8)
    np.testing.assert_allclose(result.weights[case.seen], weights, atol=1e-8)
    np.testing.assert_allclose(case.B.half().mv(result.control), result.increment, atol=1e-10)


@pytest.mark.x64
@EVERY_CASE
def test_cost_is_never_above_the_background_with_products_of_R(case):
    first = case.cost(0.0, np.zeros(case.B_matrix.shape[0]))
    for n_steps in (0, 1, 2, 3, 5, 8, 13):
        result = case.by_products(tol=0.0, max_steps=n_steps)
        cost = case.cost(result.control, result.increment)
        assert cost <= first * (1 + 1e-12)
        np.testing.assert_allclose(cost, result.costs[1], rtol=1e-8)


def test_truncation_stops_without_raising():
    result = CASES["correlated"].blue(tol=0.0, max_steps=2)
    assert result.n_iterations == 2
    assert not result.converged
    assert np.isfinite(result.gradient_norms).sum() == 3


@EVERY_CASE
def test_no_observations_leave_the_background(case):
    R = restrict(DiagonalCovariance(jnp.ones(case.mask.size)), jnp.zeros(case.mask.size))
    result = solve_blue(case.B, case.B.half(), case.H, R, jnp.zeros_like(case.innovation), tol=1e-6, max_steps=20)
    assert result.converged
    assert result.n_iterations == 0
    np.testing.assert_array_equal(result.increment, 0)


@EVERY_CASE
def test_non_finite_innovation_leaves_the_background(case):
    broken = case.innovation.at[0].set(jnp.inf)
    result = solve_blue(case.B, case.B.half(), case.H, case.R, broken, tol=1e-6, max_steps=20)
    assert not result.converged
    np.testing.assert_array_equal(result.increment, 0)


def _analysis(form, parameters):
    """A number that depends on the analysis of a small field and on everything that goes into it."""
    sigma, length, variance, innovation = parameters
    B = MaternLinearOperator(SHAPE, length, sigma=sigma, padding=8, boundary="free")
    R = restrict(DiagonalCovariance(variance), jnp.asarray(np.arange(9) % 4 != 2, float))
    H = PointObs(jnp.arange(0, 45, 5)).linearize(GRID)
    innovation = jnp.where(R.mask != 0, innovation, 0.0)
    options = {"tol": 1e-11, "max_steps": 200}
    if form == "observations":
        result = solve_in_observations(B, B.half(), H, R, innovation, **options)
    else:
        result = solve_in_modes(B, H, R, innovation, coverage=0.5, **options)
    return jnp.sum(jnp.sin(result.increment)) + 0.1 * jnp.sum(result.control**2) + jnp.sum(result.weights)


@pytest.mark.x64
@pytest.mark.parametrize("form", ["observations", "modes"])
def test_gradients_equal_finite_differences(form):
    parameters = (jnp.array(1.2), jnp.array(1.7), jnp.linspace(0.2, 0.5, 9), jnp.asarray(np.cos(np.arange(9.0))))
    value = jax.jit(lambda p: _analysis(form, p))
    gradient = jax.jit(jax.grad(lambda p: _analysis(form, p)))(parameters)
    direction = jax.tree.map(lambda p: jnp.asarray(RANDOM.normal(size=p.shape)), parameters)
    along = sum(jnp.vdot(g, v) for g, v in zip(gradient, direction, strict=True))
    _, tangent = jax.jvp(value, (parameters,), (direction,))
    step = 1e-5
    shifted = [jax.tree.map(lambda p, v, s=s: p + s * v, parameters, direction) for s in (step, -step)]
    difference = (value(shifted[0]) - value(shifted[1])) / (2 * step)
    np.testing.assert_allclose(along, difference, rtol=1e-6)
    np.testing.assert_allclose(tangent, difference, rtol=1e-6)
    assert all(np.any(np.asarray(g) != 0) for g in gradient)


@pytest.mark.x64
def test_gradients_of_the_chosen_form_equal_those_of_the_dense_formula():
    case = CASES["periodic"]

    def total(solve):
        return jax.grad(lambda d: jnp.sum(solve(d) ** 2))(case.innovation)

    cross = jnp.asarray(case.B_matrix @ case.H_matrix.T)
    gain = cross @ jnp.linalg.inv(jnp.asarray(case.H_matrix) @ cross + jnp.asarray(case.R_matrix))
    options = {"tol": 1e-11, "max_steps": 200}
    chosen = total(lambda d: solve_blue(case.B, case.B.half(), case.H, case.R, d, **options).increment)
    np.testing.assert_allclose(chosen, total(lambda d: gain @ d[case.seen]), atol=1e-8)
    products = (case.B, case.B.half(), case.H, case.R_operator)
    by_products = total(lambda d: solve_by_products(*products, d, case.mask, **options).increment)
    np.testing.assert_allclose(by_products, chosen, atol=1e-8)


@pytest.mark.x64
def test_gradients_are_right_where_weights_are_not_seen():
    """B has rank 2 and one cell is observed twice: many weights give the same increment, one gives the derivative."""
    H = jnp.asarray(np.eye(5)[[0, 0, 2, 3]])
    variance, innovation = jnp.array([0.3, 0.1, 0.2, 0.4]), jnp.array([1.0, -2.0, 0.5, 1.5])
    start = jnp.asarray(RANDOM.normal(size=(5, 2)))

    def dense(factor, variance):
        cross = factor @ factor.T @ H.T
        return jnp.sum(jnp.sin(cross @ jnp.linalg.solve(H @ cross + jnp.diag(variance), innovation)))

    def krylov(factor, variance):
        half = lx.MatrixLinearOperator(factor)
        R = DiagonalCovariance(variance).restrict(jnp.ones(4))
        result = solve_blue(half @ half.T, half, lx.MatrixLinearOperator(H), R, innovation, tol=1e-11, max_steps=50)
        return jnp.sum(jnp.sin(result.increment))

    expected = jax.grad(dense, argnums=(0, 1))(start, variance)
    for found, right in zip(jax.grad(krylov, argnums=(0, 1))(start, variance), expected, strict=True):
        np.testing.assert_allclose(found, right, atol=1e-9)


@pytest.mark.x64
@FIELDS
def test_float32_stays_float32_and_close(boundary):
    case = CASES[boundary]
    single = lambda tree: jax.tree.map(  # noqa: E731
        lambda a: a.astype(jnp.float32) if eqx.is_inexact_array(a) else a, tree
    )
    H = PointObs(case.H.fn.indices).linearize(GRID.astype(jnp.float32))
    B, R, innovation = single(case.B), single(case.R), single(case.innovation)
    for result in (
        solve_blue(B, B.half(), H, R, innovation, tol=1e-5, max_steps=100),
        solve_in_observations(B, B.half(), H, R, innovation, tol=1e-5, max_steps=100),
    ):
        dtypes = {leaf.dtype for leaf in jax.tree.leaves(eqx.filter(result, eqx.is_inexact_array))}
        assert dtypes == {jnp.dtype(jnp.float32)}
        assert result.converged
        np.testing.assert_allclose(np.ravel(result.increment), case.dense()[0], atol=1e-4)


@pytest.mark.x64
def test_observations_in_another_precision_keep_their_own():
    case = CASES["correlated"]
    R = jax.tree.map(lambda a: a.astype(jnp.float32), case.R)
    result = solve_blue(case.B, case.B.half(), case.H, R, case.innovation.astype(jnp.float32), tol=1e-4, max_steps=50)
    assert result.increment.dtype == jnp.float64
    assert result.weights.dtype == jnp.float32
    np.testing.assert_allclose(result.increment, case.dense()[0], atol=1e-3)


@pytest.mark.x64
@FIELDS
def test_vmap_over_masks_and_innovations_equals_a_loop(boundary):
    case = CASES[boundary]
    R = DiagonalCovariance(jnp.full(case.mask.size, 0.1))
    masks = jnp.asarray(RANDOM.integers(0, 2, size=(3, case.mask.size)), float).at[2].set(0.0)
    innovations = masks * jnp.asarray(RANDOM.normal(size=masks.shape))

    @jax.jit
    def one(mask, innovation):
        return solve_blue(case.B, case.B.half(), case.H, restrict(R, mask), innovation, tol=1e-10, max_steps=200)

    together = jax.vmap(one)(masks, innovations)
    for i in range(3):
        alone = one(masks[i], innovations[i])
        np.testing.assert_allclose(together.increment[i], alone.increment, atol=1e-9)
        assert abs(int(together.n_iterations[i]) - int(alone.n_iterations)) <= 1
    assert together.converged.all()
    gradient = jax.grad(lambda d: jnp.sum(jax.vmap(one)(masks, d).increment ** 2))(innovations)
    np.testing.assert_allclose(
        gradient[0], jax.grad(lambda d: jnp.sum(one(masks[0], d).increment ** 2))(innovations[0]), atol=1e-8
    )


@pytest.mark.x64
def test_state_may_be_a_pytree():
    variances = {"u": jnp.array([1.0, 2.0]), "v": jnp.array([3.0])}
    B = lx.DiagonalLinearOperator(variances)
    half = lx.DiagonalLinearOperator(jax.tree.map(jnp.sqrt, variances))
    H = lx.FunctionLinearOperator(lambda x: x["u"] + x["v"], B.in_structure())
    R = restrict(DiagonalCovariance(jnp.array([0.5, 1.0])), jnp.ones(2))
    result = solve_blue(B, half, H, R, jnp.array([1.0, -2.0]), tol=1e-12, max_steps=10)
    matrix, covariance = np.array([[1.0, 0, 1], [0, 1, 1]]), np.diag([1.0, 2, 3])
    gain = covariance @ matrix.T @ np.linalg.inv(matrix @ covariance @ matrix.T + np.diag([0.5, 1.0]))
    expected = gain @ np.array([1.0, -2.0])
    np.testing.assert_allclose(np.concatenate([result.increment["u"], result.increment["v"]]), expected, atol=1e-10)
