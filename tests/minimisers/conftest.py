"""Small linear-Gaussian problems for all forms of the large analysis, with their dense and textbook solutions."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vardax.covariances.dense import DenseCovariance
from vardax.covariances.diagonal import DiagonalCovariance
from vardax.covariances.functions import restrict
from vardax.covariances.matern import MaternLinearOperator
from vardax.minimisers import krylov, modes_form, observation_form, products_form
from vardax.obs_operators.linear import LinearObs
from vardax.obs_operators.point import PointObs

RANDOM = np.random.default_rng(5)
SHAPE, N = (8, 6), 48
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
    return Case(B, PointObs(indices).linearize(jnp.zeros(SHAPE)), R, mask, RANDOM.normal(size=n_obs))


CASES = {"correlated": correlated(), "periodic": field("periodic"), "free": field("free")}


@pytest.fixture
def cases():
    """By name: "correlated", and fields with a "periodic" and a "free" boundary."""
    return CASES


@pytest.fixture(params=list(CASES))
def case(request):
    """Each of the cases."""
    return CASES[request.param]


@pytest.fixture(params=["periodic", "free"])
def field_case(request):
    """Each of the cases with a Matérn B."""
    return CASES[request.param]


@pytest.fixture
def cost_decreases():
    """The check that J is what is recorded, and decreases, wherever `solve(case, max_steps)` is truncated."""

    def check(case, solve):
        previous = case.cost(0.0, np.zeros(case.B_matrix.shape[0]))
        for n_steps in range(9):
            result = solve(n_steps)
            cost = case.cost(result.control, result.increment)
            np.testing.assert_allclose(cost, result.costs[n_steps], rtol=1e-10)
            assert cost <= previous * (1 + 1e-12)
            previous = cost

    return check


@pytest.fixture
def gradients_are_right():
    """The check of jvp and vjp of `solve(B, H, R, innovation)` with respect to everything against differences."""

    def analysis(solve, parameters):
        sigma, length, variance, innovation = parameters
        B = MaternLinearOperator(SHAPE, length, sigma=sigma, padding=8, boundary="free")
        R = restrict(DiagonalCovariance(variance), jnp.asarray(np.arange(9) % 4 != 2, float))
        H = PointObs(jnp.arange(0, 45, 5)).linearize(jnp.zeros(SHAPE))
        result = solve(B, H, R, jnp.where(R.mask != 0, innovation, 0.0))
        return jnp.sum(jnp.sin(result.increment)) + 0.1 * jnp.sum(result.control**2) + jnp.sum(result.weights)

    def check(solve):
        parameters = (jnp.array(1.2), jnp.array(1.7), jnp.linspace(0.2, 0.5, 9), jnp.asarray(np.cos(np.arange(9.0))))
        value = jax.jit(lambda p: analysis(solve, p))
        gradient = jax.jit(jax.grad(lambda p: analysis(solve, p)))(parameters)
        direction = jax.tree.map(lambda p: jnp.asarray(RANDOM.normal(size=p.shape)), parameters)
        along = sum(jnp.vdot(g, v) for g, v in zip(gradient, direction, strict=True))
        _, tangent = jax.jvp(value, (parameters,), (direction,))
        shifted = [jax.tree.map(lambda p, v, s=s: p + s * v, parameters, direction) for s in (1e-5, -1e-5)]
        difference = (value(shifted[0]) - value(shifted[1])) / 2e-5
        np.testing.assert_allclose(along, difference, rtol=1e-6)
        np.testing.assert_allclose(tangent, difference, rtol=1e-6)
        assert all(np.any(np.asarray(g) != 0) for g in gradient)

    return check
