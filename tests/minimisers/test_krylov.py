"""The large linear-Gaussian analysis, whichever form it takes, against dense algebra."""

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest

from vardax.covariances.diagonal import DiagonalCovariance
from vardax.covariances.functions import restrict
from vardax.covariances.matern import MaternLinearOperator
from vardax.minimisers import krylov, observation_form, products_form
from vardax.obs_operators.point import PointObs

pytestmark = pytest.mark.slow  # compiles many programs

RANDOM = np.random.default_rng(5)
SHAPE, N = (8, 6), 48
GRID = jnp.zeros(SHAPE)
solve_blue = eqx.filter_jit(krylov.solve_blue)
solve_by_products = eqx.filter_jit(products_form.solve_by_products)
solve_in_observations = eqx.filter_jit(observation_form.solve_in_observations)


@pytest.mark.x64
def test_increment_and_weights_equal_the_dense_formula(case):
    increment, weights = case.dense()
    result = case.blue(tol=1e-11, max_steps=200)
    assert result.converged
    np.testing.assert_allclose(np.ravel(result.increment), increment, atol=1e-8)
    np.testing.assert_allclose(result.weights[case.seen], weights, atol=1e-8)
    np.testing.assert_array_equal(result.weights[~case.seen], 0)


@pytest.mark.x64
def test_control_maps_to_the_increment(case):
    result = case.blue(tol=1e-11, max_steps=200)
    np.testing.assert_allclose(case.B.half().mv(result.control), result.increment, atol=1e-10)


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


def test_truncation_stops_without_raising(cases):
    result = cases["correlated"].blue(tol=0.0, max_steps=2)
    assert result.n_iterations == 2
    assert not result.converged
    assert np.isfinite(result.gradient_norms).sum() == 3


def test_no_observations_leave_the_background(case):
    R = restrict(DiagonalCovariance(jnp.ones(case.mask.size)), jnp.zeros(case.mask.size))
    result = solve_blue(case.B, case.B.half(), case.H, R, jnp.zeros_like(case.innovation), tol=1e-6, max_steps=20)
    assert result.converged
    assert result.n_iterations == 0
    np.testing.assert_array_equal(result.increment, 0)


def test_non_finite_innovation_leaves_the_background(case):
    broken = case.innovation.at[0].set(jnp.inf)
    result = solve_blue(case.B, case.B.half(), case.H, case.R, broken, tol=1e-6, max_steps=20)
    assert not result.converged
    np.testing.assert_array_equal(result.increment, 0)


@pytest.mark.x64
def test_gradients_of_the_chosen_form_equal_those_of_the_dense_formula(cases):
    case = cases["periodic"]

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
def test_float32_stays_float32_and_close(field_case):
    single = lambda tree: jax.tree.map(  # noqa: E731
        lambda a: a.astype(jnp.float32) if eqx.is_inexact_array(a) else a, tree
    )
    H = PointObs(field_case.H.fn.indices).linearize(GRID.astype(jnp.float32))
    B, R, innovation = single(field_case.B), single(field_case.R), single(field_case.innovation)
    for result in (
        solve_blue(B, B.half(), H, R, innovation, tol=1e-5, max_steps=100),
        solve_in_observations(B, B.half(), H, R, innovation, tol=1e-5, max_steps=100),
    ):
        dtypes = {leaf.dtype for leaf in jax.tree.leaves(eqx.filter(result, eqx.is_inexact_array))}
        assert dtypes == {jnp.dtype(jnp.float32)}
        assert result.converged
        np.testing.assert_allclose(np.ravel(result.increment), field_case.dense()[0], atol=1e-4)


@pytest.mark.x64
def test_observations_in_another_precision_keep_their_own(cases):
    case = cases["correlated"]
    R = jax.tree.map(lambda a: a.astype(jnp.float32), case.R)
    result = solve_blue(case.B, case.B.half(), case.H, R, case.innovation.astype(jnp.float32), tol=1e-4, max_steps=50)
    assert result.increment.dtype == jnp.float64
    assert result.weights.dtype == jnp.float32
    np.testing.assert_allclose(result.increment, case.dense()[0], atol=1e-3)


@pytest.mark.x64
def test_vmap_over_masks_and_innovations_equals_a_loop(field_case):
    R = DiagonalCovariance(jnp.full(field_case.mask.size, 0.1))
    masks = jnp.asarray(RANDOM.integers(0, 2, size=(3, field_case.mask.size)), float).at[2].set(0.0)
    innovations = masks * jnp.asarray(RANDOM.normal(size=masks.shape))

    @jax.jit
    def one(mask, innovation):
        return solve_blue(
            field_case.B, field_case.B.half(), field_case.H, restrict(R, mask), innovation, tol=1e-10, max_steps=200
        )

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
