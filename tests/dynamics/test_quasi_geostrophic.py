"""Quasi-geostrophic flow: invariants, Rossby waves, and pyqg-jax."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pyqg_jax
import pytest

from vardax.dynamics import QuasiGeostrophic2D, rollout
from vardax.protocols import ForwardModel


def eddies(shape, largest=4, size=3.0, seed=0):
    """A random field of the longest waves."""
    rng = np.random.default_rng(seed)
    y, x = (np.fft.fftfreq(n, 1 / n) for n in shape)
    k = np.hypot(y[:, None], x[None])
    field = np.fft.ifft2(np.fft.fft2(rng.normal(size=shape)) * ((k > 0) & (k <= largest))).real
    return jnp.asarray(size * field / field.std())


def mesh(shape, lengths=(2 * np.pi, 2 * np.pi)):
    y, x = (length * np.arange(n) / n for length, n in zip(lengths, shape, strict=True))
    return np.meshgrid(y, x, indexing="ij")


@pytest.mark.x64
def test_energy_and_enstrophy_are_conserved_without_friction():
    """By the truncated products to rounding; by the time stepping with a high power of the step."""
    q, model = eddies((24, 32)), QuasiGeostrophic2D((24, 32), beta=2.0, deformation_radius=0.5)
    tendency = model.tendency(q)
    for invariant in (model.energy, model.enstrophy):
        if invariant == model.enstrophy:
            tendency = QuasiGeostrophic2D((24, 32)).tendency(q)
        rate = jax.jvp(invariant, (q,), (tendency,))[1]
        assert abs(rate) < 1e-12 * invariant(q) * float(jnp.abs(q).max())
    losses = []
    for dt in (0.04, 0.02):
        end = rollout(QuasiGeostrophic2D((24, 32), beta=2.0, dt=dt), q, 1, n_substeps=round(0.8 / dt))[1]
        losses.append([abs(float(f(end) / f(q) - 1)) for f in (model.enstrophy, QuasiGeostrophic2D((24, 32)).energy)])
    assert np.all(np.array(losses[1]) < 1e-4)
    assert np.all(np.array(losses[0]) / losses[1] > 12)


@pytest.mark.x64
@pytest.mark.parametrize("radius", [np.inf, 0.4])
@pytest.mark.parametrize(("l", "k"), [(0, 1), (3, 2), (-2, 3)])
def test_a_rossby_wave_travels_at_its_phase_speed(radius, l, k):
    """ω = -β k / (k² + l² + 1 / L_d²); a single wave is an exact solution of the nonlinear equation."""
    lengths, beta = (3.0, 5.0), 4.0
    y, x = mesh((16, 20), lengths)
    ky, kx = 2 * np.pi * l / lengths[0], 2 * np.pi * k / lengths[1]
    omega = -beta * kx / (kx**2 + ky**2 + radius**-2.0)
    model = QuasiGeostrophic2D((16, 20), lengths, beta=beta, deformation_radius=radius, dt=0.01)
    end = rollout(model, jnp.asarray(np.cos(kx * x + ky * y)), 1, n_substeps=100)[1]
    error_of_runge_kutta = 100 * abs(omega * 0.01) ** 5 / 120
    np.testing.assert_allclose(end, np.cos(kx * x + ky * y - omega * 1.0), atol=1.1 * error_of_runge_kutta + 1e-12)


@pytest.mark.x64
def test_friction_damps_a_wave_at_its_rate():
    y, x = mesh((12, 12))
    model = QuasiGeostrophic2D((12, 12), drag=0.3, viscosity=1e-3, deformation_radius=0.5, dt=0.02)
    end = rollout(model, jnp.asarray(np.cos(2 * x + y)), 1, n_substeps=50)[1]
    rate = 0.3 * 5 / (5 + 4) + 1e-3 * 25
    np.testing.assert_allclose(end, np.exp(-rate) * np.cos(2 * x + y), atol=1e-9)


@pytest.mark.x64
@pytest.mark.parametrize(("beta", "drag"), [(0.0, 0.0), (3.0, 0.1)])
def test_the_tendency_is_that_of_pyqg(beta, drag):
    """Of waves whose products the grid resolves: pyqg filters the others after the step, we leave them out before."""
    q, model = eddies((32, 32)), QuasiGeostrophic2D((32, 32), beta=beta, drag=drag)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        theirs = pyqg_jax.bt_model.BTModel(
            nx=32, ny=32, L=2 * np.pi, beta=beta, rek=drag, H=1.0, U=0.0, precision=pyqg_jax.state.Precision.DOUBLE
        )
        state = theirs.create_initial_state(jax.random.key(0)).update(q=q[None])
        rate, u = theirs.get_updates(state).q[0], theirs.get_full_state(state).u[0]
    np.testing.assert_allclose(model.velocity(q)[0], u, atol=1e-13)
    np.testing.assert_allclose(model.tendency(q), rate, atol=1e-11 * float(jnp.abs(rate).max()))


@pytest.mark.x64
def test_streamfunction_and_vorticity_are_inverses():
    model = QuasiGeostrophic2D((10, 11), (2.0, 3.0), deformation_radius=0.3)
    q = eddies((10, 11), largest=5)
    np.testing.assert_allclose(model.potential_vorticity(model.streamfunction(q)), q, atol=1e-12)
    y, x = mesh((10, 11), (2.0, 3.0))
    psi = np.sin(np.pi * y) * np.cos(2 * np.pi / 3 * x)
    u, v = model.velocity(model.potential_vorticity(jnp.asarray(psi)))
    np.testing.assert_allclose(u, -np.pi * np.cos(np.pi * y) * np.cos(2 * np.pi / 3 * x), atol=1e-12)
    np.testing.assert_allclose(v, -2 * np.pi / 3 * np.sin(np.pi * y) * np.sin(2 * np.pi / 3 * x), atol=1e-12)


@pytest.mark.x64
def test_short_waves_are_kept_and_a_short_step_changes_little():
    """The model is invertible: white noise is not filtered away."""
    q = jnp.asarray(np.random.default_rng(0).normal(size=(12, 12)))
    model = QuasiGeostrophic2D((12, 12), beta=1.0, dt=1e-7)
    np.testing.assert_allclose(model.step(q, 1e-7), q, atol=1e-5)
    back = QuasiGeostrophic2D((12, 12), beta=1.0, dt=-0.01)
    there = rollout(QuasiGeostrophic2D((12, 12), beta=1.0, dt=0.01), q, 5)[-1]
    np.testing.assert_allclose(rollout(back, there, 5)[-1], q, atol=1e-6)


def test_is_a_forward_model_whose_parameters_are_traced(count_compilations):
    model, q = QuasiGeostrophic2D((8, 8), beta=1.0), eddies((8, 8), 2)
    assert isinstance(model, ForwardModel)
    assert model.state_signature.shape == (8, 8)
    run = eqx.filter_jit(lambda model, x: model.step(x, model.dt))
    run(model, q)
    other = QuasiGeostrophic2D((8, 8), beta=2.0, drag=0.1)
    with count_compilations() as compiled:
        run(other, q).block_until_ready()
    assert compiled.n == 0, compiled.names
    assert model.step(q.astype(jnp.float32), 0.01).dtype == jnp.float32
    together = model.tendency(jnp.stack([q, 2 * q]))
    np.testing.assert_allclose(together[1], model.tendency(2 * q), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"dt": 10.0, "beta": 1.0}, r"`dt` is 10, beyond the stability limit 2.83 .* beta 1 and viscosity 0 \(CFL\)"),
        ({"viscosity": 1e-3}, "beyond the stability limit .* viscosity 0.001"),
        ({"drag": -1.0}, "`drag` is -1, expected a positive number"),
        ({"deformation_radius": 0.0}, "`deformation_radius` is 0, expected a positive number"),
        ({"beta": np.ones(2)}, r"`beta` has shape \(2,\), expected a scalar"),
        ({"drag": 0.1, "dt": -0.01}, "`dt` is -0.01; with `drag` or `viscosity` it cannot be negative"),
        ({"lengths": (1.0, -1.0)}, r"`lengths` is \(1.0, -1.0\), expected a positive number"),
        ({"shape": (3, 8)}, "`shape` is 3, expected an integer of at least 4 cells each way"),
    ],
)
def test_bad_arguments_are_named(arguments, words):
    with pytest.raises(ValueError, match=words):
        QuasiGeostrophic2D(**arguments)


def test_a_flow_that_the_step_cannot_move_is_refused_where_its_values_are_at_hand():
    model, q = QuasiGeostrophic2D((16, 16), dt=0.05), eddies((16, 16))
    rollout(model, q, 1)
    with pytest.raises(ValueError, match=r"beyond the stability limit .* for a flow of .*\(CFL\)"):
        rollout(model, 100 * q, 1)
    with pytest.raises(ValueError, match=r"`state` has shape \(8, 8\)"):
        model.step(jnp.ones((8, 8)), 0.05)
