"""4DVarNet with its default networks in one, two and three dimensions, and the learned solver as functions."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optimistix as optx
import pytest

from vardax.adjoints import DirectAdjoint, KStepAdjoint, OneStepAdjoint
from vardax.covariances import DiagonalCovariance
from vardax.grad_mod import ConvLSTMGradMod2D, IdentityGradMod
from vardax.models import (
    FourDVarNet,
    FourDVarNet1D,
    FourDVarNet2D,
    FourDVarNet3D,
    SolverConfig,
    one_step_solve_4dvarnet_1d,
    one_step_solve_4dvarnet_2d,
    solve_4dvarnet_1d,
    solve_4dvarnet_1d_fixedpoint,
    solve_4dvarnet_2d,
)
from vardax.obs_operators import MaskedIdentity
from vardax.primitives import FourDVarNetCost
from vardax.priors import BilinAEPrior2D, GaussianPrior, IdentityPrior
from vardax.types import Batch1D, Batch2D, Batch2DMultivar, Batch3D

STEPS = 3
SMALL = {"latent_dim": 3, "hidden_dim": 4, "n_solver_steps": STEPS}
MODELS = {
    "1-D": (lambda **o: FourDVarNet1D(6, 4, **SMALL, **o), Batch1D, (4, 6)),
    "2-D": (lambda **o: FourDVarNet2D(3, **SMALL, **o), Batch2D, (3, 5, 6)),
    "2-D, two variables": (lambda **o: FourDVarNet2D(3, (5, 4), 2, **SMALL, **o), Batch2DMultivar, (3, 2, 5, 4)),
    "3-D": (lambda **o: FourDVarNet3D(2, **SMALL, **o), Batch3D, (2, 4, 3, 5)),
}


def batch(kind, shape, seed=0, n_samples=2):
    rng = np.random.default_rng(seed)
    y = rng.normal(size=(n_samples, *shape))
    y[rng.random(y.shape) < 0.4] = np.nan
    return kind.from_observations(jnp.asarray(y))


@pytest.mark.parametrize("dimension", MODELS)
def test_the_result_has_the_shape_of_the_input(dimension):
    make, kind, shape = MODELS[dimension]
    model, observations = make(), batch(kind, shape)
    analysis = model.analyse(observations)
    assert analysis.state.shape == analysis.trajectory.shape == observations.input.shape
    assert np.all(np.isfinite(analysis.state))
    assert np.all(np.asarray(analysis.n_iterations) == STEPS)


ADJOINTS = {
    "checkpoints": optx.RecursiveCheckpointAdjoint(),
    "direct": DirectAdjoint(),
    "all steps": KStepAdjoint(STEPS),
    "two steps": KStepAdjoint(2),
    "one step": OneStepAdjoint(),
    "implicit": optx.ImplicitAdjoint(),
}


@pytest.mark.slow
@pytest.mark.x64
@pytest.mark.parametrize("dimension", ["1-D", "2-D", "3-D"])
def test_every_adjoint_differentiates_the_same_forward_pass(dimension):
    """The value is one; what drops nothing gives the unrolled gradient, what truncates another, finite one."""
    make, kind, shape = MODELS[dimension]
    observations = batch(kind, shape, n_samples=1)

    def slope(adjoint):
        weights, rest = eqx.partition(make(solver_adjoint=adjoint), eqx.is_inexact_array)
        loss = lambda w: jnp.mean(jnp.sin(eqx.combine(w, rest).analyse(observations).state))  # noqa: E731
        value, slopes = jax.jit(jax.value_and_grad(loss))(weights)
        return float(value), np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(slopes)])

    few = ("direct", "one step", "implicit") if dimension != "2-D" else ADJOINTS
    found = {name: slope(ADJOINTS[name]) for name in few}
    values, exact = [value for value, _ in found.values()], found["direct"][1]
    np.testing.assert_allclose(values, values[0], rtol=1e-12)
    assert np.all(np.isfinite([s for _, s in found.values()]))
    for name in found.keys() & {"checkpoints", "all steps"}:
        np.testing.assert_allclose(found[name][1], exact, rtol=1e-8, atol=1e-12 * np.max(np.abs(exact)))
    off = [np.linalg.norm(found[name][1] - exact) for name in ("two steps", "one step") if name in found]
    assert 0 < off[0] <= off[-1] < np.linalg.norm(exact)


@pytest.mark.x64
def test_a_gradient_of_the_weights_is_that_of_differences():
    make, kind, shape = MODELS["2-D, two variables"]
    observations = batch(kind, shape, n_samples=1)
    weights, rest = eqx.partition(make(solver_adjoint=DirectAdjoint()), eqx.is_inexact_array)
    loss = jax.jit(lambda w: jnp.mean(jnp.sin(eqx.combine(w, rest).analyse(observations).state)))
    rng = np.random.default_rng(1)
    direction = jax.tree.map(lambda w: jnp.asarray(rng.normal(size=w.shape)), weights)
    moved = lambda h: jax.tree.map(lambda w, d: w + h * d, weights, direction)  # noqa: E731
    difference = (loss(moved(1e-5)) - loss(moved(-1e-5))) / 2e-5
    slope = jax.jit(jax.grad(loss))(weights)
    along = sum(jnp.sum(s * d) for s, d in zip(*map(jax.tree.leaves, (slope, direction)), strict=True))
    np.testing.assert_allclose(along, difference, rtol=1e-6)


def test_weights_of_one_grid_serve_another_unless_the_grid_is_named():
    """Trained on patches, run on the map: the interior of a shifted crop is the crop of the map's interior."""
    model = FourDVarNet2D(2, latent_dim=3, hidden_dim=4, config=SolverConfig(n_steps=1, normalize_grad=False))
    wide = batch(Batch2D, (2, 24, 26))
    crop = Batch2D(wide.input[:, :, 4:20, 6:22], wide.mask[:, :, 4:20, 6:22])
    start = {"first_guess": jnp.zeros(wide.input.shape)}, {"first_guess": jnp.zeros(crop.input.shape)}
    whole, part = model.analyse(wide, **start[0]).state, model.analyse(crop, **start[1]).state
    reach = 6  # of the gradient (twice two convolutions) and of the modulator (two)
    inner = slice(reach, -reach)
    np.testing.assert_allclose(part[:, :, inner, inner], whole[:, :, 4:20, 6:22][:, :, inner, inner], atol=1e-5)
    named = FourDVarNet2D(2, (24, 26), latent_dim=3, hidden_dim=4, n_solver_steps=1)
    with pytest.raises(ValueError, match=r"`batch.input` has shape \(2, 2, 16, 16\), expected .*24, 26"):
        named(crop)


def test_given_parts_take_the_place_of_the_defaults():
    prior, grad_mod = BilinAEPrior2D(2, 5), ConvLSTMGradMod2D(2, 3)
    model = FourDVarNet2D(prior=prior, grad_mod=grad_mod, config=SolverConfig(n_steps=2), start=jnp.zeros_like)
    assert model.prior is prior
    assert model.grad_mod is grad_mod
    assert model.config.n_steps == 2
    other = model.with_(config=SolverConfig(n_steps=4))
    assert type(other) is FourDVarNet2D
    assert other.config.n_steps == 4
    assert other.prior is prior


def test_weights_come_from_the_key():
    leaves = lambda model: jax.tree.leaves(eqx.filter(model, eqx.is_inexact_array))  # noqa: E731
    make = MODELS["1-D"][0]
    for a, b in zip(leaves(make()), leaves(make(key=jax.random.key(0))), strict=True):
        np.testing.assert_array_equal(a, b)
    assert any(np.any(a != b) for a, b in zip(leaves(make()), leaves(make(key=jax.random.key(1))), strict=True))


def test_bfloat16_is_a_choice_of_the_networks_alone():
    make, kind, shape = MODELS["2-D"]
    observations = batch(kind, shape)
    exact = make().analyse(observations).state
    coarse = make(config=SolverConfig(n_steps=STEPS, compute_dtype=jnp.bfloat16)).analyse(observations)
    assert coarse.state.dtype == coarse.cost.last.J_o.dtype == exact.dtype
    gap = np.max(np.abs(coarse.state - exact))
    assert 0 < gap < 0.05


def test_a_gaussian_prior_is_no_network():
    shape = (4, 6)
    prior = GaussianPrior(jnp.ones(shape), DiagonalCovariance(jnp.full(shape, 1 / 3)))
    costs = [
        FourDVarNetCost(prior, MaskedIdentity(), SolverConfig(compute_dtype=dtype))(
            jnp.full((2, *shape), 0.3), batch(Batch1D, shape)
        )
        for dtype in (None, jnp.bfloat16)
    ]
    assert costs[0] == costs[1]


def test_what_is_missing_or_does_not_fit_is_named():
    with pytest.raises(TypeError, match="FourDVarNet1D: `n_time` is not given"):
        FourDVarNet1D(5)
    with pytest.raises(TypeError, match="FourDVarNet2D: `n_time` is not given"):
        FourDVarNet2D()
    with pytest.raises(ValueError, match=r"FourDVarNet2D: `grid_shape` is \(5,\), expected 2 positive sizes"):
        FourDVarNet2D(3, (5,))
    with pytest.raises(ValueError, match="FourDVarNet3D: `n_channels` is 2, expected 1"):
        FourDVarNet3D(3, None, 2)


# ---------------------------------------------------------------------------------------------------------------------
# The solver as functions


def test_the_functions_are_the_method():
    observations = batch(Batch1D, (4, 6))
    model = MODELS["1-D"][0]()
    parts = (observations, model.prior, model.grad_mod, model.config)
    expected = model.analyse(observations).state
    for solve in (solve_4dvarnet_1d, one_step_solve_4dvarnet_1d, solve_4dvarnet_1d_fixedpoint):
        np.testing.assert_allclose(solve(*parts), expected, rtol=1e-6)
    guess = jnp.ones(observations.input.shape)
    found = solve_4dvarnet_1d(*parts, first_guess=guess)
    np.testing.assert_allclose(found, model.analyse(observations, first_guess=guess).state, rtol=1e-6)


@pytest.mark.x64
def test_the_functions_differ_in_their_derivatives():
    """Descent on ½‖m (y - x)‖²: after n steps of size a, x = y (1 - (1 - a)^n) from zero where it is observed."""
    shape, size = (1, 2, 3, 4), 0.3
    mask = np.ones(shape)
    mask[0, 0] = 0
    config = SolverConfig(n_steps=STEPS)
    parts = (IdentityPrior(), IdentityGradMod(size), config)
    guess = jnp.zeros(shape)
    slope = lambda solve: jax.grad(lambda y: jnp.sum(solve(Batch2D(y, mask), *parts, first_guess=guess)))(guess)  # noqa: E731
    np.testing.assert_allclose(slope(solve_4dvarnet_2d), mask * (1 - (1 - size) ** STEPS), rtol=1e-12)
    np.testing.assert_allclose(slope(one_step_solve_4dvarnet_2d), mask * size, rtol=1e-12)


def test_a_function_says_what_batch_it_takes():
    with pytest.raises(TypeError, match="solve_4dvarnet_1d: `batch` is Batch2D, expected Batch1D"):
        solve_4dvarnet_1d(batch(Batch2D, (2, 3, 4)), IdentityPrior(), IdentityGradMod(0.1))
    with pytest.raises(TypeError, match="solve_4dvarnet_2d: `batch` is Batch1D, expected Batch2D or Batch2DMultivar"):
        solve_4dvarnet_2d(batch(Batch1D, (2, 3)), IdentityPrior(), IdentityGradMod(0.1))


@pytest.mark.parametrize("dimension", ["1-D", "2-D", "3-D"])
def test_a_sized_model_is_a_fourdvarnet(dimension):
    assert isinstance(MODELS[dimension][0](), FourDVarNet)
