"""The finite-volume diffusion operator against its energy, cell by cell and corner by corner."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vardax.covariances.stencil import diffusion_stencil

X64 = jnp.zeros(0).dtype == jnp.float64
EXACT = 1e-13 if X64 else 1e-5

CASES = {
    "1-D": ((7,), ()),
    "1-D, periodic": ((6,), (0,)),
    "one cell": ((1,), (0,)),
    "two cells, periodic": ((2,), (0,)),
    "2-D": ((6, 5), ()),
    "2-D, one axis periodic": ((5, 6), (1,)),
    "2-D, one row": ((1, 6), (1,)),
    "3-D": ((3, 4, 3), ()),
    "3-D, two axes periodic": ((3, 4, 3), (0, 2)),
}
every_case = pytest.mark.parametrize("name", CASES)


def problem(name, off_diagonal=True):
    """Random tensors, sizes, volumes and land."""
    shape, periodic = CASES[name]
    rng, d = np.random.default_rng(0), len(shape)
    root = rng.standard_normal((*shape, d, d))
    tensor = root @ np.swapaxes(root, -1, -2) + 0.1 * np.eye(d)
    pairs = [(a, b) for a in range(d) for b in range(a, d) if off_diagonal or a == b]
    squares = {(a, b): jnp.asarray(tensor[..., a, b]) for a, b in pairs}
    tensor = tensor if off_diagonal else tensor * np.eye(d)
    sizes, volume = 1 + rng.random((d, *shape)), 1 + rng.random(shape)
    mask = rng.random(shape) > 0.25
    stencil, bound = diffusion_stencil(
        squares, tuple(map(jnp.asarray, sizes)), jnp.asarray(volume), jnp.asarray(mask), periodic
    )
    return stencil, bound, tensor, sizes, volume, mask, periodic


def matrix_of(stencil):
    units = jnp.eye(int(np.prod(stencil.shape))).reshape(-1, *stencil.shape)
    return np.asarray(jax.jit(jax.vmap(stencil.mv))(units)).reshape(len(units), -1)


def from_energy(tensor, sizes, volume, mask, periodic):
    """S of uᵀ S u = ½ Σ V mean_corners gᵀ Λ g, with the gradient as a matrix that acts on u."""
    shape, n, d = mask.shape, mask.size, mask.ndim
    number = np.arange(n).reshape(shape)
    S = np.zeros((n, n))
    for cell in np.ndindex(shape):
        if not mask[cell]:
            continue
        for corner in itertools.product((-1, 1), repeat=d):
            g = np.zeros((d, n))
            for axis, sign in enumerate(corner):
                other = list(cell)
                other[axis] += sign
                if axis in periodic:
                    other[axis] %= shape[axis]
                other = tuple(other)
                if other == cell or not 0 <= other[axis] < shape[axis] or not mask[other]:
                    continue
                distance = (sizes[axis][cell] + sizes[axis][other]) / 2
                g[axis, number[other]], g[axis, number[cell]] = sign / distance, -sign / distance
            S += volume[cell] / 2 / 2**d * g.T @ tensor[cell] @ g
    return S


@every_case
@pytest.mark.parametrize("off_diagonal", [False, True], ids=["lengths along axes", "tensor"])
def test_it_is_the_second_derivative_of_the_energy(name, off_diagonal):
    stencil, _, *rest = problem(name, off_diagonal)
    expected = from_energy(*rest)
    np.testing.assert_allclose(matrix_of(stencil), expected, atol=EXACT * max(1, np.max(np.abs(expected))))


@every_case
def test_nothing_is_lost_and_nothing_crosses_land(name):
    stencil, _, *_, mask, _ = problem(name)
    S, land = matrix_of(stencil), ~mask.ravel()
    np.testing.assert_allclose(S.sum(axis=1), 0, atol=20 * EXACT * max(1, np.max(np.abs(S))))
    assert np.all(S[land] == 0)
    assert np.all(S[:, land] == 0)


@every_case
def test_the_bound_is_above_the_spectrum(name):
    stencil, bound, _, _, volume, *_ = problem(name)
    root = np.sqrt(volume.ravel())
    largest = np.linalg.eigvalsh(matrix_of(stencil) / root[:, None] / root[None, :])[-1]
    assert largest <= float(bound) * (1 + 1e-6) + 1e-6
    assert float(bound) <= 3 * largest + 1e-6  # and not far above


def test_it_is_the_five_point_laplacian_on_a_square_grid():
    one = jnp.ones((1, 1))
    stencil, bound = diffusion_stencil({(0, 0): one, (1, 1): one}, (one, one), one, jnp.ones((5, 6), bool), (0, 1))
    impulse = jnp.zeros((5, 6)).at[2, 3].set(1.0)
    expected = jnp.zeros((5, 6)).at[2, 3].set(2.0).at[jnp.array([1, 3]), 3].set(-0.5).at[2, jnp.array([2, 4])].set(-0.5)
    np.testing.assert_allclose(stencil.mv(impulse), expected, atol=1e-7)
    assert float(bound) == pytest.approx(4.0)


def test_a_multiple_has_the_multiple_of_the_weights():
    stencil, *_ = problem("2-D")
    v = jnp.asarray(np.random.default_rng(1).standard_normal((6, 5)))
    np.testing.assert_allclose(stencil.times(jnp.array(3.0)).mv(v), 3 * stencil.mv(v), rtol=1e-5, atol=1e-5)


def test_a_tensor_without_off_diagonal_elements_couples_only_across_faces():
    stencil, *_ = problem("2-D", off_diagonal=False)
    S = matrix_of(stencil).reshape(6, 5, 6, 5)
    for (i, j), (k, m) in itertools.product(np.ndindex(6, 5), repeat=2):
        assert abs(i - k) + abs(j - m) <= 1 or S[i, j, k, m] == 0
