"""Simulation-based calibration: is a posterior right on average over the prior?

    x ~ prior,   y | x as observed,   x_1 .. x_L ~ posterior given y,   rank = #{l : f(x_l) < f(x)}

If the draws come from the posterior of the model that made truth and observations, the rank of every scalar function f
of the state is uniform on 0 .. L, whatever the dimension, the nonlinearity or the number of observations. Nothing has
to be known of the true posterior. Draws that scatter too little push ranks to both ends, a bias pushes them to one.

Talts, S., Betancourt, M., Simpson, D., Vehtari, A. and Gelman, A. (2018). Validating Bayesian inference algorithms with
simulation-based calibration. arXiv:1804.06788.
"""

from collections.abc import Callable, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PRNGKeyArray, PyTree

from vardax.simulation.drawn import draw_twin
from vardax.validation.calibration import CalibrationReport
from vardax.validation.linearised import title_of

__all__ = ["simulation_based_calibration"]

MOST_ENTRIES = 8
"""By default so many entries of the state are looked at, evenly spread."""


def simulation_based_calibration(
    method: Any,
    like: Any,
    *,
    generator: Any = None,
    statistics: Mapping[str, Callable[[PyTree[Array]], Array]] | None = None,
    adapter: Any = None,
    n_simulations: int = 1000,
    n_draws: int = 99,
    batch_size: int = 100,
    significance: float = 1e-3,
    key: PRNGKeyArray | None = None,
) -> CalibrationReport:
    """Ranks of truths among draws from the posteriors that `method` finds of their observations.

    - `method`: a method, whose posterior draws with its default `adapter` or the one given, or any function
      `(key, batch, n) -> draws` (B, n, *state).
    - `like`: a batch with the gaps, errors, times and positions of the observations to simulate; its values do not
      matter. `batch_size` windows at least are simulated and analysed side by side.
    - `generator`: the method whose prior, model and observation errors make truths and observations, as `draw_twin`
      does; by default `method` itself. Give another to see what a wrong assumption does, or for a function.
    - `statistics`: names and scalar functions of a state; by default some entries of it. Functions that see what the
      observations say of a state, such as its misfit, find what entries one by one do not.
    - `n_draws` + 1 needs divisors: 99 gives 100 ranks, which are tested in 20 bins.

    The report is true where all ranks could be uniform, with a chance of `significance` of a false alarm. It has the
    ranks, their histograms and p-values.
    """
    source = method if generator is None else generator
    if not hasattr(source, "problem"):
        raise ValueError(
            "simulation_based_calibration: `generator` is missing; `method` is a function, and only a method says what "
            "truths and observations are like."
        )
    if n_simulations < 20:
        raise ValueError(f"simulation_based_calibration: `n_simulations` is {n_simulations}, expected at least 20.")
    key = jax.random.key(0) if key is None else key
    draw = _Posterior(method, adapter) if hasattr(method, "posterior") else method
    truth = eqx.filter_eval_shape(lambda k: draw_twin(k, source, like).truth, key)
    functions = _entries_of(truth) if statistics is None else dict(statistics)
    n_samples = jax.tree.leaves(truth)[0].shape[0]
    side_by_side = max(1, -(-min(batch_size, n_simulations) // n_samples))
    rounds = -(-n_simulations // (n_samples * side_by_side))
    keys = jax.random.split(key, (rounds * side_by_side,))
    ranks, converged = _ranks(keys, source, draw, like, tuple(functions.values()), n_draws, side_by_side)
    ranks, converged = (np.asarray(a).reshape(-1, *a.shape[2:])[:n_simulations] for a in (ranks, converged))
    named = {name: ranks[:, i] for i, name in enumerate(functions)}
    title = title_of("simulation_based_calibration", method)
    return CalibrationReport.of(title, named, n_draws, significance, n_unconverged=int(np.sum(~converged)))


class _Posterior(eqx.Module):
    """A method as a function that draws from its posterior."""

    method: Any
    adapter: Any

    def __call__(self, key: PRNGKeyArray, batch: Any, n: int) -> tuple[PyTree[Array], Array | None]:
        posterior = self.method.posterior(batch, adapter=self.adapter)
        return posterior.sample(key, n), posterior.provenance.get("converged")


@eqx.filter_jit
def _ranks(
    keys: Array, generator: Any, draw: Any, like: Any, functions: tuple, n_draws: int, side_by_side: int
) -> tuple[Array, Array]:
    """(rounds, B, functions) ranks, -1 where something was not finite; (rounds, B) whether the analysis converged."""

    def one(key: PRNGKeyArray) -> tuple[Array, Array]:
        for_twin, for_draws, for_ties = jax.random.split(key, 3)
        twin = draw_twin(for_twin, generator, like)
        drawn = draw(for_draws, twin.batch, n_draws)
        draws, converged = drawn if isinstance(draw, _Posterior) else (drawn, None)
        _require_draws(draws, twin.truth, n_draws)
        true = jnp.stack([_values(f, twin.truth, 1) for f in functions], axis=-1)
        found = jnp.stack([_values(f, draws, 2) for f in functions], axis=-1)
        ranks = _rank(for_ties, true, found)
        return ranks, jnp.ones(true.shape[0], bool) if converged is None else converged

    return jax.lax.map(one, keys, batch_size=side_by_side)


def _values(function: Callable, states: PyTree[Array], n_axes: int) -> Array:
    """A statistic of states with `n_axes` axes in front."""
    for _ in range(n_axes):
        function = jax.vmap(function)
    values = function(states)
    if values.ndim != n_axes:
        raise ValueError(
            f"simulation_based_calibration: a function of `statistics` gives shape {values.shape[n_axes:]}, expected a "
            "scalar of each state."
        )
    return values


def _rank(key: PRNGKeyArray, true: Array, drawn: Array) -> Array:
    """How many draws, on axis 1, lie below the truth; ties are broken at random."""
    true, drawn = (a.astype(jnp.result_type(true, drawn)) for a in (true, drawn))
    below = jnp.sum(drawn < true[:, None], axis=1)
    ties = jnp.sum(drawn == true[:, None], axis=1)
    ranks = below + jax.random.randint(key, below.shape, 0, ties + 1, below.dtype)
    finite = jnp.isfinite(true) & jnp.all(jnp.isfinite(drawn), axis=1)
    return jnp.where(finite, ranks, -1)


def _require_draws(draws: PyTree[Array], truth: PyTree[Array], n: int) -> None:
    found = jax.tree.map(lambda leaf: leaf.shape, draws)
    expected = jax.tree.map(lambda leaf: (leaf.shape[0], n, *leaf.shape[1:]), truth)
    if found != expected:
        raise ValueError(
            f"simulation_based_calibration: `method` draws states of shape {found}, expected {expected}: "
            "(B, n, *state) like the truth."
        )


class _Entry(eqx.Module):
    """One entry of one array of a state."""

    leaf: int = eqx.field(static=True)
    index: int = eqx.field(static=True)

    def __call__(self, state: PyTree[Array]) -> Array:
        return jnp.ravel(jax.tree.leaves(state)[self.leaf])[self.index]


def _entries_of(truth: PyTree[jax.ShapeDtypeStruct]) -> dict[str, Callable]:
    """Entries of every array of a state, evenly spread."""
    leaves = jax.tree_util.tree_flatten_with_path(truth)[0]
    each, functions = max(1, MOST_ENTRIES // len(leaves)), {}
    for number, (path, leaf) in enumerate(leaves):
        shape = leaf.shape[1:]
        size = int(np.prod(shape))
        for index in np.unique(np.linspace(0, size - 1, min(each, size)).astype(int)):
            place = ", ".join(map(str, np.unravel_index(index, shape)))
            functions[f"x{jax.tree_util.keystr(path)}[{place}]"] = _Entry(number, int(index))
    return functions
