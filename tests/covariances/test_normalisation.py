"""The variances of smoothed noise: exact ones, and those from patterns against them."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vardax.covariances.chebyshev import ChebyshevExponential, needed_steps
from vardax.covariances.lengths import reach_in_cells
from vardax.covariances.normalisation import EXACT_LIMIT, Exact, Randomised, exact_variances
from vardax.covariances.stencil import diffusion_stencil

X64 = jnp.zeros(0).dtype == jnp.float64
SHAPE = (40, 48)


def coast(shape=SHAPE):
    """Land with bays, capes and an island."""
    y, x = np.meshgrid(*map(np.arange, shape), indexing="ij")
    mask = y > 8 + 5 * np.sin(x / 4.0)
    mask &= np.hypot(y - 28, x - 30) > 4.5
    mask[:, 12] &= y[:, 12] > 25
    return mask


def problem(length, mask=None, periodic=()):
    mask = coast() if mask is None else mask
    one = jnp.ones((1,) * mask.ndim)
    square = jnp.broadcast_to(jnp.square(jnp.asarray(length)), mask.shape)
    squares = {(axis, axis): square for axis in range(mask.ndim)}
    sizes = (one,) * mask.ndim
    stencil, bound = diffusion_stencil(squares, sizes, one, jnp.asarray(mask), periodic)
    smoothing = ChebyshevExponential(stencil, bound, needed_steps(float(bound)))
    return smoothing, jnp.asarray(mask), reach_in_cells(squares, sizes), periodic


def test_exact_variances_are_the_squared_rows():
    smoothing, mask, *rest = problem(2.0, coast((14, 16)))
    matrix = np.asarray(jax.jit(jax.vmap(smoothing.mv))(jnp.eye(mask.size).reshape(-1, *mask.shape))).reshape(
        mask.size, -1
    )
    found, error = Exact().variances(smoothing, mask, *rest)
    sea = np.asarray(mask).ravel()
    np.testing.assert_allclose(np.ravel(found)[sea], np.sum(matrix**2, axis=1)[sea], rtol=1e-12 if X64 else 1e-5)
    assert error == 0


@pytest.mark.parametrize(("n", "within", "at_most"), [(64, 0.02, 0.10), (256, 0.004, 0.02)])
def test_patterns_give_the_variances_also_at_coasts(n, within, at_most):
    """Independent signs would be off by √(2/n), 18 % and 9 %."""
    smoothing, mask, *rest = problem(6.0)
    exact, _ = Exact().variances(smoothing, mask, *rest)
    found, error = Randomised(n).variances(smoothing, mask, *rest)
    ratio = np.asarray(found / exact)[np.asarray(mask)] - 1
    measured = np.sqrt(np.mean(ratio**2))
    assert measured < within
    assert np.max(np.abs(ratio)) < at_most
    assert 0.4 * measured < error < 2.5 * measured  # 32 cells say how good all of them are


def test_lengths_that_vary_are_no_worse_than_independent_signs():
    y = np.broadcast_to(np.linspace(0, 1, SHAPE[0])[:, None], SHAPE)
    smoothing, mask, *rest = problem(2.0 + 8.0 * y)
    exact, _ = Exact().variances(smoothing, mask, *rest)
    found, error = Randomised(100).variances(smoothing, mask, *rest)
    ratio = np.asarray(found / exact)[np.asarray(mask)] - 1
    assert np.sqrt(np.mean(ratio**2)) < np.sqrt(2 / 100)
    assert error < np.sqrt(2 / 100)


def test_as_many_patterns_as_cells_are_exact():
    smoothing, mask, *rest = problem(3.0, np.ones((8, 9), bool), (0,))
    exact, _ = Exact().variances(smoothing, mask, *rest)
    found, error = Randomised(8 * 9).variances(smoothing, mask, *rest)
    np.testing.assert_allclose(found, exact, rtol=1e-12 if X64 else 1e-5)
    assert error < 1e-6


def test_other_keys_are_other_estimates_and_the_same_key_the_same():
    smoothing, mask, *rest = problem(6.0)
    first, _ = Randomised(16).variances(smoothing, mask, *rest)
    again, _ = Randomised(16, key=jax.random.key(0)).variances(smoothing, mask, *rest)
    other, _ = Randomised(16, key=jax.random.key(1)).variances(smoothing, mask, *rest)
    np.testing.assert_array_equal(first, again)
    assert np.max(np.abs(np.asarray(other / first) - 1)) > 1e-3


@pytest.mark.x64
@pytest.mark.parametrize("normalisation", [Exact(), Randomised(16)], ids=["exact", "randomised"])
def test_variances_have_the_derivatives_of_what_they_are(normalisation, equals_differences):
    mask = jnp.asarray(coast((16, 13))[9:])

    def loss(length):
        one = jnp.ones((1, 1))
        squares = {(0, 0): length**2 * one, (1, 1): length**2 * one}
        stencil, bound = diffusion_stencil(squares, (one, one), one, mask, ())
        smoothing = ChebyshevExponential(stencil, bound, 20)
        found, _ = normalisation.variances(smoothing, mask, reach_in_cells(squares, (one, one)), ())
        return jnp.sum(jnp.log(found))

    equals_differences(loss, jnp.array(1.7))


def test_too_many_cells_and_too_few_patterns_are_refused():
    mask = np.ones((130, 130), bool)
    smoothing, mask, *rest = problem(2.0, mask)
    with pytest.raises(
        ValueError, match=rf"Exact: 16900 cells .* more than EXACT_LIMIT = {EXACT_LIMIT}; use `Randomised"
    ):
        Exact().variances(smoothing, mask, *rest)
    for n in (15, 0):
        with pytest.raises(ValueError, match="Randomised: `n` is .*, expected a number of patterns, at least 16"):
            Randomised(n)


def test_land_does_not_count_towards_the_limit():
    mask = np.zeros((130, 130), bool)
    mask[:6, :6] = True
    smoothing, mask, *rest = problem(2.0, mask)
    found, _ = Exact().variances(smoothing, mask, *rest)
    cells = jnp.array([0, 5 * 130 + 5])
    np.testing.assert_allclose(
        found.ravel()[cells], exact_variances(smoothing, cells, (130, 130), found.dtype), rtol=1e-6
    )
    assert found[100, 100] == 1


def test_normalisations_are_values():
    assert eqx.tree_equal(Exact(), Exact())
    assert jax.tree.structure(Randomised(16)) != jax.tree.structure(Randomised(17))
