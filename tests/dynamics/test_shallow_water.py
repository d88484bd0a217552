"""Shallow water: mass and energy, the speed of gravity waves, geostrophic balance, and 4DVar on a tree."""

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest

from vardax.covariances.diagonal import DiagonalCovariance
from vardax.dynamics import ShallowWater2D, rollout
from vardax.dynamics.shallow_water import largest_stable_dt
from vardax.models.strong_fourdvar import StrongFourDVar
from vardax.obs_operators.callable import CallableObs
from vardax.protocols import ForwardModel
from vardax.types import Batch2D


def fields(shape, size, seed=0):
    rng = np.random.default_rng(seed)
    return {name: jnp.asarray(size * rng.normal(size=shape)) for name in ("h", "u", "v")}


def unit(shape, **options):
    """Wave speed 1, cells of 1."""
    arguments = {"spacing": 1.0, "depth": 1.0, "gravity": 1.0, "coriolis": 0.0, "dt": 0.05}
    return ShallowWater2D(shape, **{**arguments, **options})


def waves(shape, spacing, ky, kx):
    """The phase of a wave at h, u and v points."""
    y, x = (np.arange(n) * d for n, d in zip(shape, spacing, strict=True))
    angles = 2 * np.pi * kx / (shape[1] * spacing[1]), 2 * np.pi * ky / (shape[0] * spacing[0])
    at = lambda dy, dx: angles[1] * (y + dy * spacing[0])[:, None] + angles[0] * (x + dx * spacing[1])[None]  # noqa: E731
    return at(0, 0), at(0, -0.5), at(-0.5, 0), angles


@pytest.mark.x64
def test_mass_and_energy_are_conserved():
    """Energy by the scheme to rounding; by the time stepping with the fifth power of the step."""
    model, state = unit((7, 9), spacing=(1.0, 1.2), coriolis=0.5), fields((7, 9), 0.1)
    rate = jax.jvp(model.energy, (state,), (model.tendency(state),))[1]
    assert abs(rate) < 1e-13 * model.energy(state)
    losses = []
    for n in (1, 2):
        states = rollout(unit((7, 9), spacing=(1.0, 1.2), coriolis=0.5, dt=0.2 / n), state, 1, n_substeps=20 * n)
        np.testing.assert_allclose(jnp.sum(states["h"][-1]), jnp.sum(state["h"]), atol=1e-13)
        end = jax.tree.map(lambda leaf: leaf[-1], states)
        losses.append(abs(float(model.energy(end) / model.energy(state) - 1)))
    assert losses[0] / losses[1] > 25


@pytest.mark.x64
@pytest.mark.parametrize(("ky", "kx"), [(0, 1), (1, 0), (2, 3)])
def test_a_small_gravity_wave_oscillates_at_the_frequency_of_the_grid(ky, kx):
    """ω² = g H (4/Δx² sin²(kΔx/2) + 4/Δy² sin²(lΔy/2)), which is g H k² for long waves."""
    shape, spacing, size = (12, 16), (1.0, 0.8), 1e-7
    model = unit(shape, spacing=spacing, dt=0.02)
    at_h, at_u, at_v, (k, l) = waves(shape, spacing, ky, kx)
    slopes = 2 / spacing[1] * np.sin(k * spacing[1] / 2), 2 / spacing[0] * np.sin(l * spacing[0] / 2)
    omega = np.hypot(*slopes)
    exact = lambda t: {  # noqa: E731
        "h": size * np.cos(at_h - omega * t),
        "u": size * slopes[0] / omega * np.cos(at_u - omega * t),
        "v": size * slopes[1] / omega * np.cos(at_v - omega * t),
    }
    states = rollout(model, jax.tree.map(jnp.asarray, exact(0.0)), 1, n_substeps=150)
    for name, expected in exact(3.0).items():
        np.testing.assert_allclose(states[name][1], expected, atol=2e-5 * size)
    long = 2 * np.pi / (shape[1] * spacing[1])
    if (ky, kx) == (0, 1):
        np.testing.assert_allclose(omega, long, rtol=0.01)  # the speed sqrt(g H) = 1


@pytest.mark.x64
def test_inertial_oscillation_turns_at_f():
    model = unit((4, 4), coriolis=0.7)
    state = {"h": jnp.zeros((4, 4)), "u": jnp.full((4, 4), 0.3), "v": jnp.zeros((4, 4))}
    end = rollout(model, state, 1, n_substeps=40)
    np.testing.assert_allclose(end["u"][1], 0.3 * np.cos(0.7 * 2.0), atol=1e-6)
    np.testing.assert_allclose(end["v"][1], -0.3 * np.sin(0.7 * 2.0), atol=1e-6)


@pytest.mark.x64
def test_a_balanced_jet_is_steady_to_truncation():
    """In the default setting: the residual acceleration falls with the square of the cells."""
    residuals = []
    for n in (16, 32, 64):
        model = ShallowWater2D((n, n), 1280e3 / n, dt=30.0)
        y = 2 * np.pi * np.arange(n) / n
        h = jnp.asarray(np.broadcast_to(np.sin(y)[:, None], (n, n)).copy())
        rates = model.tendency(model.balanced(h))
        assert float(jnp.abs(rates["h"]).max()) < 1e-15
        residuals.append(float(jnp.abs(rates["v"]).max()))
    pressure = 9.81 * 2 * np.pi / 1280e3
    np.testing.assert_allclose(np.log2(np.array(residuals[:-1]) / residuals[1:]), 2.0, atol=0.1)
    assert residuals[-1] < 0.005 * pressure


@pytest.mark.x64
def test_viscosity_damps_a_shear_flow_at_its_rate():
    model = unit((12, 4), viscosity=0.05, gravity=1e-6)
    y = 2 * np.pi * np.arange(12) / 12
    u = jnp.asarray(np.broadcast_to(np.sin(y)[:, None], (12, 4)).copy())
    end = rollout(model, {"h": jnp.zeros_like(u), "u": u, "v": jnp.zeros_like(u)}, 1, n_substeps=40)["u"][1]
    np.testing.assert_allclose(end, np.exp(-0.05 * 4 * np.sin(np.pi / 12) ** 2 * 2.0) * u, rtol=1e-6, atol=1e-9)


@pytest.mark.slow
def test_4dvar_recovers_the_flow_from_the_elevation():
    """The state of the analysis is a tree, and the unobserved flow comes closer to the truth."""
    model = unit((6, 8), coriolis=0.5)
    truth = fields((6, 8), 0.1, seed=1)
    states = rollout(model, truth, 6, n_substeps=4)
    background = jax.tree.map(jnp.zeros_like, truth)
    method = StrongFourDVar(
        model,
        CallableObs(lambda state: state["h"]),
        background,
        lx.DiagonalLinearOperator(jax.tree.map(lambda x: jnp.full_like(x, 0.01), truth)),
        DiagonalCovariance(jnp.full((6, 8), 1e-4)),
        n_substeps=4,
    )
    analysis = method.analyse(Batch2D.from_observations(states["h"][None]))
    assert set(analysis.state) == {"h", "u", "v"}
    assert analysis.trajectory["u"].shape == (1, 7, 6, 8)
    for name, share in (("h", 0.3), ("u", 0.7), ("v", 0.7)):
        error = jnp.sqrt(jnp.mean((analysis.state[name][0] - truth[name]) ** 2))
        assert error < share * jnp.sqrt(jnp.mean(truth[name] ** 2)), name


def test_is_a_forward_model_whose_parameters_are_traced(count_compilations):
    model, state = unit((4, 5)), fields((4, 5), 0.1)
    assert isinstance(model, ForwardModel)
    assert {name: leaf.shape for name, leaf in model.state_signature.items()} == dict.fromkeys("huv", (4, 5))
    run = eqx.filter_jit(lambda model, x: model.step(x, model.dt))
    run(model, state)
    other = unit((4, 5), coriolis=0.3)
    with count_compilations() as compiled:
        run(other, state)["h"].block_until_ready()
    assert compiled.n == 0, compiled.names
    single = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), state)
    assert {leaf.dtype.name for leaf in model.step(single, 0.05).values()} == {"float32"}


def test_the_largest_stable_step_stays_bounded_and_a_longer_one_grows():
    dt = largest_stable_dt(1.0, (0.0, 0.0), 0.0, 0.0, (1.0, 1.0))
    state = jax.tree.map(lambda leaf: 1e-6 * leaf, fields((6, 6), 1.0))
    run = lambda dt: rollout(eqx.tree_at(lambda m: m.dt, unit((6, 6)), jnp.asarray(dt)), state, 1, n_substeps=300)  # noqa: E731
    end = unit((6, 6)).energy(jax.tree.map(lambda leaf: leaf[1], run(0.99 * dt)))
    assert end <= unit((6, 6)).energy(state)
    with pytest.raises(ValueError, match="beyond the stability limit"):
        run(1.1 * dt)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"dt": 1000.0}, r"`dt` is 1000, beyond the stability limit 624 .* waves of 31.3 .* cells of 20000 \(CFL\)"),
        ({"depth": -1.0}, "`depth` is -1 somewhere, expected a positive thickness"),
        ({"depth": np.ones(3)}, r"`depth` has shape \(3,\), expected \(\) or \(32, 32\)"),
        ({"gravity": np.ones(2)}, r"`gravity` has shape \(2,\), expected a scalar"),
        ({"shape": (2, 8)}, "`shape` is 2, expected an integer of at least 3 cells each way"),
        ({"shape": (8,)}, r"`shape` is \(8,\), expected \(ny, nx\)"),
        ({"spacing": 0.0}, r"`spacing` is 0.0, expected a positive number, or two of them, \(y, x\)"),
        ({"viscosity": 10.0, "dt": -300.0}, "`dt` is -300; with `viscosity` it cannot be negative"),
    ],
)
def test_bad_arguments_are_named(arguments, words):
    with pytest.raises(ValueError, match=words):
        ShallowWater2D(**arguments)


def test_a_state_that_the_step_cannot_move_is_refused_where_its_values_are_at_hand():
    model = unit((4, 5))
    dry = model.at_rest(jnp.full((4, 5), -2.0))
    with pytest.raises(ValueError, match="`state` has a layer of -1 somewhere"):
        rollout(model, dry, 3)
    fast = {**model.at_rest(jnp.zeros((4, 5))), "u": jnp.full((4, 5), 100.0)}
    with pytest.raises(ValueError, match="waves of 1 on a flow of 100"):
        rollout(model, fast, 3)
    with pytest.raises(ValueError, match="`state` is {'h': .*}, expected `h`, `u` and `v` of shape"):
        model.step({"h": jnp.zeros((4, 5))}, 0.05)
