"""The learned iteration as an optimistix minimiser: its steps against a loop in numpy, its record, its ends."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optimistix as optx
import pytest

from vardax.adjoints import DirectAdjoint, KStepAdjoint
from vardax.minimisers import AnnealedStep, ConstantStep, LearnedMinimiser

N, STEPS = 5, 6
RNG = np.random.default_rng(0)
A = (lambda F: F @ F.T / N + 0.4 * np.eye(N))(RNG.normal(size=(N, N)))
B = 3.0 * RNG.normal(size=N)


class Momentum(eqx.Module):
    """A modulator with a memory and with weights: m' = beta m + g + c x, update = -w m'."""

    w: jax.Array
    beta: jax.Array
    c: jax.Array

    def init_carry(self, state):
        return jax.tree.map(jnp.zeros_like, state)

    def __call__(self, grad, state, carry):
        carry = jax.tree.map(lambda m, g, x: self.beta * m + g + self.c * x, carry, grad, state)
        return jax.tree.map(lambda m: -self.w * m, carry), carry


class Itself(Momentum):
    """The same as a step, which is not scaled or normalised."""

    scaled_by_itself = True


def modulator(kind=Momentum, w=0.7, beta=0.3, c=0.05):
    return kind(*map(jnp.asarray, (w, beta, c)))


def cost(x, b):
    return 0.5 * x @ jnp.asarray(A) @ x - b @ x


def in_numpy(x, solver, w=0.7, beta=0.3, c=0.05, scale=None):
    """(all iterates, all gradients) of the loop as the module writes it."""
    memory, iterates, gradients = np.zeros(N), [x], []
    for k in range(solver.n_steps):
        g = A @ x - B
        gradients.append(g)
        scale = np.sqrt(np.mean(g**2)) if scale is None else scale
        memory = beta * memory + g / scale + c * x
        update = -w * memory * (1.0 if solver.scaled_by_itself else solver.alpha)
        if isinstance(solver.rule, AnnealedStep):
            update = update / (k + 1) - solver.rule.gradient_step * (k + 1) / solver.n_steps * g
        x = x + update
        iterates.append(x)
    return np.array(iterates), np.array(gradients)


SOLVERS = {
    "normalised": (LearnedMinimiser(modulator(), STEPS, 0.4), None),
    "not normalised": (LearnedMinimiser(modulator(), STEPS, 0.4, normalize_grad=False), 1.0),
    "scales itself": (LearnedMinimiser(modulator(Itself), STEPS, 0.4), 1.0),
    "scales itself, normalised": (LearnedMinimiser(modulator(Itself), STEPS, 0.4, normalize_grad=True), None),
    "annealed": (LearnedMinimiser(modulator(), STEPS, -0.1, rule=AnnealedStep(0.2)), None),
}


@pytest.mark.x64
@pytest.mark.parametrize("kind", SOLVERS)
def test_the_steps_are_those_of_the_formula(kind):
    solver, scale = SOLVERS[kind]
    first = np.arange(N) / N
    iterates, gradients = in_numpy(first, solver, scale=scale)
    solution = optx.minimise(cost, solver, jnp.asarray(first), jnp.asarray(B))
    np.testing.assert_allclose(solution.value, iterates[-1], rtol=1e-13)
    record = solution.stats["record"]
    np.testing.assert_allclose(record.gradient_norm, np.linalg.norm(gradients, axis=1), rtol=1e-13)
    np.testing.assert_allclose(record.cost, [0.5 * x @ A @ x - B @ x for x in iterates[:-1]], rtol=1e-12, atol=1e-12)
    size = lambda v: np.sqrt(np.mean(v**2))  # noqa: E731
    np.testing.assert_allclose(record.change, size(iterates[-1] - iterates[-2]) / size(iterates[-1]), rtol=1e-10)
    assert int(record.n_steps) == STEPS
    assert not bool(record.non_finite)


def test_the_units_of_the_cost_do_not_matter_to_a_normalised_modulator():
    solver = LearnedMinimiser(modulator(), STEPS)
    run = lambda unit: optx.minimise(lambda x, b: unit * cost(x, b), solver, jnp.zeros(N), jnp.asarray(B)).value  # noqa: E731
    np.testing.assert_allclose(run(1.0), run(1e4), rtol=1e-5)
    plain = LearnedMinimiser(modulator(), STEPS, normalize_grad=False)
    other = optx.minimise(lambda x, b: 1.1 * cost(x, b), plain, jnp.zeros(N), jnp.asarray(B)).value
    assert not np.allclose(run(1.0), other, rtol=1e-2)


def test_a_first_gradient_of_zero_divides_by_nothing():
    still = LearnedMinimiser(modulator(c=0.0), STEPS)

    def loss(b):
        return jnp.sum(optx.minimise(cost, still, jnp.zeros(N), b, adjoint=DirectAdjoint(), max_steps=STEPS).value)

    value, slope = jax.value_and_grad(loss)(jnp.zeros(N))
    assert float(value) == 0.0
    assert np.all(np.isfinite(slope))


def test_a_tolerance_ends_the_iteration_and_none_does_not():
    first, b = jnp.zeros(N), jnp.asarray(B)
    descent = modulator(Itself, w=0.3, beta=0.0, c=0.0)
    to_the_end = optx.minimise(cost, LearnedMinimiser(descent, 200), first, b).stats["record"]
    assert int(to_the_end.n_steps) == 200
    early = optx.minimise(cost, LearnedMinimiser(descent, 200, rtol=1e-3), first, b).stats["record"]
    assert 1 < int(early.n_steps) < 200
    assert float(early.change) < 1e-3
    assert np.isnan(early.cost[int(early.n_steps) :]).all()
    assert np.isfinite(early.cost[: int(early.n_steps)]).all()


def test_a_step_that_is_not_finite_is_refused():
    def blows_up(x, b):
        return jnp.where(jnp.max(jnp.abs(x)) < 20.0, cost(x, b), jnp.nan)

    solver = LearnedMinimiser(modulator(Itself, w=-0.5, beta=0.0, c=0.0), 50)  # uphill
    solution = optx.minimise(blows_up, solver, jnp.full(N, 1.0), jnp.asarray(B), throw=False)
    record = solution.stats["record"]
    assert bool(record.non_finite)
    assert int(record.n_steps) < 50
    assert np.all(np.isfinite(solution.value))


def test_a_state_may_be_a_pytree():
    tree = {"u": jnp.zeros(2), "v": jnp.zeros((3, 1))}
    fn = lambda s, _: cost(jnp.concatenate([s["u"], s["v"][:, 0]]), jnp.asarray(B))  # noqa: E731
    solver = LearnedMinimiser(modulator(), STEPS)
    found = optx.minimise(fn, solver, tree).value
    expected = optx.minimise(cost, solver, jnp.zeros(N), jnp.asarray(B)).value
    np.testing.assert_allclose(found["u"], expected[:2], rtol=1e-5)
    np.testing.assert_allclose(found["v"][:, 0], expected[2:], rtol=1e-5)


@pytest.mark.x64
def test_all_adjoints_of_optimistix_and_vardax_run_it():
    """The unrolled gradients equal differences, in b and in the weights; k = n drops nothing; the value is one."""
    solver = SOLVERS["normalised"][0]
    b = jnp.asarray(B)

    def loss(inputs, adjoint):
        b, grad_mod = inputs
        trained = eqx.tree_at(lambda s: s.grad_mod, solver, grad_mod)
        value = optx.minimise(cost, trained, jnp.ones(N), b, adjoint=adjoint, max_steps=STEPS).value
        return jnp.sum(jnp.sin(value))

    inputs = (b, solver.grad_mod)
    adjoints = [optx.RecursiveCheckpointAdjoint(), DirectAdjoint(), KStepAdjoint(STEPS)]
    values, slopes = zip(*(jax.value_and_grad(loss)(inputs, adjoint) for adjoint in adjoints), strict=True)
    np.testing.assert_allclose(values, values[0], rtol=1e-14)
    flat = [np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(slope)]) for slope in slopes]
    for other in flat[1:]:
        np.testing.assert_allclose(other, flat[0], rtol=1e-10)
    direction = jax.tree.map(lambda leaf: jnp.asarray(RNG.normal(size=leaf.shape)), inputs)
    moved = lambda h: jax.tree.map(lambda a, d: a + h * d, inputs, direction)  # noqa: E731
    difference = (loss(moved(1e-6), DirectAdjoint()) - loss(moved(-1e-6), DirectAdjoint())) / 2e-6
    along = sum(jnp.sum(s * d) for s, d in zip(*map(jax.tree.leaves, (slopes[0], direction)), strict=True))
    np.testing.assert_allclose(along, difference, rtol=1e-7)


def test_the_size_of_a_step_is_measured_as_asked():
    descent = modulator(Itself, w=0.3, beta=0.0, c=0.0)
    ends = {}
    for norm in (optx.rms_norm, optx.max_norm):
        solver = LearnedMinimiser(descent, 3, norm=norm)
        x = optx.minimise(cost, solver, jnp.zeros(N), jnp.asarray(B))
        before = optx.minimise(cost, LearnedMinimiser(descent, 2), jnp.zeros(N), jnp.asarray(B)).value
        ends[norm] = float(x.stats["record"].change)
        np.testing.assert_allclose(ends[norm], norm(x.value - before) / norm(x.value), rtol=1e-5)
    assert ends[optx.rms_norm] != ends[optx.max_norm]


def test_what_cannot_be_used_is_refused_in_words():
    with pytest.raises(TypeError, match="`grad_mod` is 3, expected a gradient modulator"):
        LearnedMinimiser(3)
    with pytest.raises(TypeError, match="`grad_mod` is .*Momentum.*expected a gradient modulator"):
        LearnedMinimiser(Momentum)
    with pytest.raises(ValueError, match="`n_steps` is 0, expected at least 1"):
        LearnedMinimiser(modulator(), 0)


def test_a_steady_rule_says_so():
    assert ConstantStep().steady
    assert not AnnealedStep(1.0).steady
