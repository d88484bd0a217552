"""rollout: values, every kind of derivative, memory, time, and errors before compilation."""

import importlib

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optimistix
import pytest

from vardax.dynamics import DiscreteForward, Lorenz96, rollout, rollout_memory

rollout_module = importlib.import_module("vardax.dynamics.rollout")  # the package exports the function of that name


class DirectAdjoint:
    """A specification of another package, known by its name only."""


ADJOINTS = {
    "direct": diffrax.DirectAdjoint(),
    "foreign direct": DirectAdjoint(),
    "forward mode": diffrax.ForwardMode(),
    "automatic": optimistix.RecursiveCheckpointAdjoint(),
    "diffrax automatic": diffrax.RecursiveCheckpointAdjoint(),
    "one block": diffrax.RecursiveCheckpointAdjoint(1),
    "three blocks": optimistix.RecursiveCheckpointAdjoint(3),
    "every step": diffrax.RecursiveCheckpointAdjoint(99),
}


def shallow_water(state, dt):
    """One-dimensional linear-advective shallow water, periodic; a pytree state."""
    h, u = state["h"], state["u"]
    dx = lambda a: 0.5 * (jnp.roll(a, -1) - jnp.roll(a, 1))  # noqa: E731
    u_new = u - dt * (u * dx(u) + dx(h))
    return {"h": h - dt * dx((1.0 + h) * u_new), "u": u_new}


def oscillator(state, dt, *, t0):
    """Depends on time."""
    return state + dt * jnp.stack([state[1], -jnp.sin(state[0]) + jnp.cos(3.0 * t0)])


def problem(name):
    rng = np.random.default_rng(0)
    if name == "lorenz96":
        return Lorenz96(6), jnp.asarray(rng.standard_normal(6))
    if name == "shallow water":
        state = {"h": jnp.asarray(0.1 * rng.standard_normal(5)), "u": jnp.asarray(0.1 * rng.standard_normal(5))}
        return DiscreteForward(shallow_water, 0.1), state
    return DiscreteForward(oscillator, 0.1), jnp.asarray(rng.standard_normal(2))


DISTINCT = ["direct", "automatic", "three blocks", "every step"]
"""One of each kind, for what takes long to compile."""

PROBLEMS = ["lorenz96", "shallow water", "oscillator"]


def loop(forward, x0, n_steps, t0=0.0, n_substeps=1):
    """The oracle: a Python loop."""
    timed = isinstance(forward, DiscreteForward)
    step = jax.jit(lambda state, t: forward.step(state, forward.dt, **({"t0": t} if timed else {})))
    states, state = [x0], x0
    for k in range(n_steps * n_substeps):
        state = step(state, t0 + k * forward.dt)
        if (k + 1) % n_substeps == 0:
            states.append(state)
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)


def assert_trees_close(found, expected, **tolerances):
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, **tolerances)


def cost(trajectory):
    """A scalar that sees every entry, nonlinearly."""
    return sum(
        jnp.sum(jnp.sin(leaf) * jnp.arange(1.0, leaf.size + 1).reshape(leaf.shape))
        for leaf in jax.tree.leaves(trajectory)
    )


def dot(a, b):
    return sum(jnp.vdot(u, v) for u, v in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def moved(x, step, dx):
    return jax.tree.map(lambda a, b: a + step * b, x, dx)


@pytest.mark.parametrize("adjoint", ADJOINTS)
@pytest.mark.parametrize("name", PROBLEMS)
def test_trajectory_is_that_of_a_python_loop(name, adjoint):
    forward, x0 = problem(name)
    for n_substeps in (1, 3):
        found = rollout(forward, x0, 7, forward_adjoint=ADJOINTS[adjoint], t0=0.4, n_substeps=n_substeps)
        assert_trees_close(found, loop(forward, x0, 7, 0.4, n_substeps), rtol=1e-4, atol=1e-5)


@pytest.mark.x64
@pytest.mark.parametrize("adjoint", DISTINCT)
@pytest.mark.parametrize("name", PROBLEMS)
def test_gradient_agrees_with_central_differences(name, adjoint):
    forward, x0 = problem(name)
    run = jax.jit(lambda x: cost(rollout(forward, x, 7, forward_adjoint=ADJOINTS[adjoint], n_substeps=2)))
    dx = jax.tree.map(jnp.cos, x0)
    central = (run(moved(x0, 1e-5, dx)) - run(moved(x0, -1e-5, dx))) / 2e-5
    np.testing.assert_allclose(dot(jax.grad(run)(x0), dx), central, rtol=1e-7)


@pytest.mark.x64
@pytest.mark.parametrize("adjoint", DISTINCT)
@pytest.mark.parametrize("name", PROBLEMS)
def test_tangent_and_adjoint_are_transposes(name, adjoint):
    forward, x0 = problem(name)
    run = lambda x: rollout(forward, x, 7, forward_adjoint=ADJOINTS[adjoint])  # noqa: E731
    dx = jax.tree.map(jnp.cos, x0)
    trajectory, tangent = jax.jit(lambda x: jax.jvp(run, (x,), (dx,)))(x0)
    dy = jax.tree.map(jnp.sin, trajectory)
    (back,) = jax.jit(lambda x: jax.vjp(run, x)[1](dy))(x0)
    np.testing.assert_allclose(dot(tangent, dy), dot(dx, back), rtol=1e-12)
    (from_linearised,) = jax.linear_transpose(jax.linearize(run, x0)[1], x0)(dy)
    assert_trees_close(from_linearised, back, rtol=1e-12, atol=1e-14)


@pytest.mark.slow
@pytest.mark.x64
@pytest.mark.parametrize("adjoint", DISTINCT)
@pytest.mark.parametrize("name", PROBLEMS)
def test_hessian_and_gauss_newton_products_work(name, adjoint):
    forward, x0 = problem(name)
    v = jax.tree.map(jnp.cos, x0)

    def products(spec):
        run = lambda x: rollout(forward, x, 5, forward_adjoint=spec)  # noqa: E731
        gradient = jax.grad(lambda x: cost(run(x)))
        forward_over_reverse = jax.jvp(gradient, (x0,), (v,))[1]
        reverse_over_reverse = jax.grad(lambda x: dot(gradient(x), v))(x0)
        gauss_newton = jax.vjp(run, x0)[1](jax.jvp(run, (x0,), (v,))[1])[0]
        return forward_over_reverse, reverse_over_reverse, gauss_newton

    found = jax.jit(lambda: products(ADJOINTS[adjoint]))()
    expected = jax.jit(lambda: products(ADJOINTS["direct"]))()
    assert_trees_close(found, expected, rtol=1e-10, atol=1e-12)
    assert_trees_close(found[0], found[1], rtol=1e-10, atol=1e-12)


def test_no_step_gives_the_initial_state():
    forward, x0 = problem("lorenz96")
    for adjoint in ADJOINTS.values():
        np.testing.assert_array_equal(rollout(forward, x0, 0, forward_adjoint=adjoint), x0[None])


class Timed:
    """Models that ask for the time in different ways; the trajectory lists what they got."""

    dt, state_signature = 0.5, None


class TakesT0(Timed):
    def step(self, state, dt, *, t0):
        return state * 0 + t0


class TakesT(Timed):
    def step(self, state, dt, t):
        return state * 0 + t


class TakesInterval(Timed):
    def step(self, state, t0, t1):
        return state * 0 + t1


@pytest.mark.parametrize(
    ("model", "expected"), [(TakesT0(), [2.5, 3.5]), (TakesT(), [2.5, 3.5]), (TakesInterval(), [3.0, 4.0])]
)
@pytest.mark.parametrize("dtype", ["float32", pytest.param("float64", marks=pytest.mark.x64)])
@pytest.mark.parametrize("t0", [2.0, np.float64(2.0), jnp.asarray(2.0)], ids=["float", "numpy", "jax"])
def test_models_get_the_time_of_the_window_in_their_own_dtype(model, expected, dtype, t0):
    times = rollout(model, jnp.zeros((), dtype), 2, t0=t0, n_substeps=2)
    assert times.dtype == dtype
    np.testing.assert_array_equal(times[1:], expected)


def test_a_new_window_time_does_not_compile(count_compilations):
    forward, x0 = problem("oscillator")
    first = rollout(forward, x0, 4, t0=0.0)
    with count_compilations() as compiled:
        later = rollout(forward, x0, 4, t0=1.0).block_until_ready()
    assert compiled.n == 0, compiled.names
    assert not np.allclose(first, later)


def test_a_second_run_from_another_state_does_not_compile(count_compilations):
    forward, x0 = problem("lorenz96")
    other = 2 * x0
    rollout(forward, x0, 4)
    with count_compilations() as compiled:
        rollout(forward, other, 4).block_until_ready()
    assert compiled.n == 0, compiled.names


def test_a_foreign_model_that_changes_is_run_as_it_is_now():
    class Growth:
        dt, state_signature, factor = 1.0, None, 2.0

        def step(self, state, dt):
            return self.factor * state

    model = Growth()
    assert float(rollout(model, jnp.asarray(1.0), 2)[-1]) == 4.0
    model.factor = 3.0
    assert float(rollout(model, jnp.asarray(1.0), 2)[-1]) == 9.0


def test_float32_stays_float32_under_every_adjoint():
    forward, x0 = Lorenz96(6), jnp.ones(6, jnp.float32)
    for adjoint in ADJOINTS.values():
        run = lambda x, adjoint=adjoint: rollout(forward, x, 3, forward_adjoint=adjoint)  # noqa: E731
        assert run(x0).dtype == jnp.float32
        assert jax.grad(lambda x, run=run: jnp.sum(run(x)))(x0).dtype == jnp.float32


def test_works_under_vmap_over_states_and_models():
    forward, x0 = problem("lorenz96")
    states = jnp.stack([x0, 2 * x0])
    batch = jax.vmap(lambda x: rollout(forward, x, 4))(states)
    np.testing.assert_allclose(batch[1], rollout(forward, states[1], 4), rtol=1e-5, atol=1e-6)
    ends = eqx.filter_vmap(lambda f: rollout(Lorenz96(6, f), x0, 4)[-1])(jnp.array([7.0, 8.0]))
    np.testing.assert_allclose(ends[1], rollout(forward, x0, 4)[-1], rtol=1e-5, atol=1e-6)


def kept_by(adjoint, n_steps=64, n=400):
    """Temporary bytes of a compiled gradient, from XLA."""
    forward, x0 = Lorenz96(n), jnp.ones(n)
    gradient = jax.jit(jax.grad(lambda x: jnp.sum(rollout(forward, x, n_steps, forward_adjoint=adjoint) ** 2)))
    return gradient.lower(x0).compile().memory_analysis().temp_size_in_bytes


def test_checkpoints_save_memory():
    direct, blocks, steps = (
        kept_by(ADJOINTS["direct"]),
        kept_by(diffrax.RecursiveCheckpointAdjoint(8)),
        kept_by(ADJOINTS["every step"]),
    )
    assert steps < 0.6 * direct
    assert blocks < 0.6 * direct
    trajectory = 64 * jnp.ones(400).nbytes
    assert blocks - trajectory < steps


def test_memory_grows_with_the_square_root_of_the_window_only():
    """Beyond the trajectory itself, which the result holds anyway."""
    end = lambda n, spec: jax.jit(  # noqa: E731
        jax.grad(lambda x: jnp.sum(rollout(Lorenz96(400), x, n, forward_adjoint=spec)[-1] ** 2))
    )
    x0 = jnp.ones(400)
    temp = lambda n, spec: end(n, spec).lower(x0).compile().memory_analysis().temp_size_in_bytes  # noqa: E731
    trajectory = lambda n: n * x0.nbytes  # noqa: E731
    spec_16, spec_256 = diffrax.RecursiveCheckpointAdjoint(4), diffrax.RecursiveCheckpointAdjoint(16)
    short, long = temp(16, spec_16), temp(256, spec_256)
    direct = temp(256, ADJOINTS["direct"])
    assert long - 2 * trajectory(256) < 8 * short
    assert long < 0.4 * direct


def test_automatic_choice_keeps_within_the_budget_and_checkpoints_beyond(monkeypatch):
    forward, x0 = Lorenz96(40), jnp.ones(40)
    spec = diffrax.RecursiveCheckpointAdjoint()
    assert rollout_memory(forward, x0, 16, forward_adjoint=spec).startswith(
        "keeps the linearisation of all 16 steps (about"
    )
    within = rollout(forward, x0, 16, forward_adjoint=spec)
    monkeypatch.setattr(rollout_module, "KEEP_BUDGET_BYTES", 1000)
    words = rollout_memory(forward, x0, 16, forward_adjoint=spec)
    assert words == "rematerialises: keeps 4 block starts, runs blocks of 4 steps again"
    np.testing.assert_array_equal(rollout(forward, x0, 16, forward_adjoint=spec), within)
    assert "keeps the linearisation" in rollout_memory(forward, x0, 16, forward_adjoint=diffrax.DirectAdjoint())


def test_estimate_is_near_what_xla_keeps():
    n, steps = 4000, 32
    words = rollout_memory(Lorenz96(n), jax.ShapeDtypeStruct((n,), jnp.result_type(float)), steps)
    estimate = float(words.split("about ")[1].split(" MiB")[0]) * 2**20
    found = kept_by(ADJOINTS["direct"], steps, n)
    assert 0.5 < estimate / found < 2.0


@pytest.mark.parametrize(
    ("checkpoints", "n_steps", "n_substeps", "words"),
    [
        (3, 10, 1, "keeps 3 block starts, runs blocks of 4 steps again"),
        (10, 10, 1, "keeps 10 block starts, runs blocks of 1 steps again"),
        (2, 10, 6, "keeps 2 block starts, runs blocks of 30 steps again"),
    ],
)
def test_checkpoints_choose_the_blocks(checkpoints, n_steps, n_substeps, words):
    spec = diffrax.RecursiveCheckpointAdjoint(checkpoints)
    forward, x0 = problem("lorenz96")
    assert words in rollout_memory(forward, x0, n_steps, forward_adjoint=spec, n_substeps=n_substeps)


@pytest.mark.parametrize(
    ("n_steps", "n_substeps", "expected"), [(16, 1, 4), (100, 1, 10), (12, 3, 2), (4, 100, 1), (97, 1, 10)]
)
def test_automatic_blocks_balance_starts_and_steps(n_steps, n_substeps, expected):
    assert rollout_module._balanced_block(n_steps, n_substeps) == expected


@pytest.mark.parametrize(
    ("step", "x0", "error", "words"),
    [
        (lambda s: s[1:], jnp.ones(3), ValueError, r"`DiscreteForward.step` returns shape \(2,\), expected \(3,\)"),
        (lambda s: s > 0, jnp.ones(3), TypeError, "returns dtype bool, expected float"),
        (lambda s: (s, s), jnp.ones(3), TypeError, "returns the structure PyTreeDef.*expected that of the state"),
        (
            lambda s: {"u": s["u"], "h": s["h"][None]},
            {"u": jnp.ones(2), "h": jnp.ones(3)},
            ValueError,
            r"returns shape \(1, 3\) at leaf \['h'\], expected \(3,\)",
        ),
        (
            lambda s: s.astype(jnp.result_type(float)),
            jnp.ones(3, int),
            TypeError,
            "returns dtype float.*, expected int.*give `x0` in float",
        ),
    ],
)
def test_a_step_that_changes_the_state_is_refused_before_compilation(step, x0, error, words):
    with pytest.raises(error, match=words):
        rollout(DiscreteForward(step, 1.0), x0, 3)


def test_other_bad_arguments_are_named():
    forward, x0 = problem("lorenz96")
    with pytest.raises(TypeError, match=r"`forward` is a function, expected a model with `step\(state, dt\)` and `dt`"):
        rollout(lambda s: s, x0, 3)
    with pytest.raises(TypeError, match=r"a vector field in DiffraxForward\(vector_field, dt\)"):
        rollout(lambda s: s, x0, 3)
    with pytest.raises(ValueError, match="`n_steps` is -1, expected at least 0"):
        rollout(forward, x0, -1)
    with pytest.raises(ValueError, match="`n_substeps` is 0, expected at least 1"):
        rollout(forward, x0, 3, n_substeps=0)
    with pytest.raises(TypeError, match="n_steps"):
        rollout(forward, x0, 2.5)
    with pytest.raises(TypeError, match="`n_steps` is traced"):
        jax.jit(lambda n: rollout(forward, x0, n))(3)


# -- model errors ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("adjoint", [ADJOINTS["three blocks"], ADJOINTS["automatic"]])
@pytest.mark.parametrize("n_substeps", [1, 2])
def test_increments_are_added_at_the_end_of_each_interval(adjoint, n_substeps):
    """Five intervals in blocks of three and two, against a loop; and the derivative with respect to the increments."""
    model = DiscreteForward(lambda x: 0.9 * x + 0.1 * jnp.sin(jnp.roll(x, 1)), 0.1)
    rng = np.random.default_rng(0)
    start, errors = jnp.asarray(rng.normal(size=3)), jnp.asarray(rng.normal(size=(5, 3)))
    run = lambda errors: rollout(  # noqa: E731
        model, start, 5, forward_adjoint=adjoint, n_substeps=n_substeps, increments=errors
    )

    def loop(errors):
        states = [start]
        for error in errors:
            state = states[-1]
            for _ in range(n_substeps):
                state = model.step(state, 0.1)
            states.append(state + error)
        return jnp.stack(states)

    rounding = 20 * jnp.finfo(errors.dtype).eps  # of states and derivatives of order 1 to 10, in another order
    np.testing.assert_allclose(run(errors), loop(errors), rtol=0, atol=rounding)
    found = jax.grad(lambda e: jnp.sum(run(e)[1:] ** 2))(errors)
    np.testing.assert_allclose(found, jax.grad(lambda e: jnp.sum(loop(e)[1:] ** 2))(errors), rtol=0, atol=rounding)


def test_increments_of_another_shape_are_refused():
    model = DiscreteForward(lambda x: x, 0.1)
    with pytest.raises(ValueError, match=r"`increments` has shape \(2, 3\), expected \(4, 3\)"):
        rollout(model, jnp.ones(3), 4, increments=jnp.ones((2, 3)))


def test_a_model_that_checks_states_is_asked_where_the_values_are_at_hand():
    class Picky(eqx.Module):
        dt: float = 1.0

        def step(self, state, dt):
            return 0.5 * state

        def check_state(self, state):
            if eqx.is_array(state) and not isinstance(state, jax.core.Tracer) and float(state) > 1.0:
                raise ValueError("too much for one step")

    with pytest.raises(ValueError, match="too much for one step"):
        rollout(Picky(), jnp.asarray(2.0), 3)
    assert float(jax.jit(lambda x: rollout(Picky(), x, 1)[1])(2.0)) == 1.0
