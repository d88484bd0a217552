"""A window cut into sub-windows that are run side by side, each from a state of its own.

    (x_0, x_1 .. x_J)  ->  sub-window j runs from x_j to M_j(x_j)  ->  H along all of them
    jumps              eta_j = x_j - M_{j-1}(x_{j-1}),      J_q = ½ Σ_j ‖eta_j‖²_{Q⁻¹}

The control holds the states at the starts of all sub-windows instead of the jumps between them, so that no run waits
for another: the runs are one `vmap`. The price is Q⁻¹, which weighs the jumps as Lᵀ Q⁻¹ eta with Q = L Lᵀ, and a cost
with a larger condition number where Q is small: the states of later sub-windows have no prior, only the jumps do. They
are written x_j = x̄_j + L chi_j around the background's trajectory x̄_j. The minimum is that of `WeakWindow`.

Trémolet, Y. (2006). Accounting for an imperfect model in 4D-Var. QJRMS 132, 2483-2504 (the control variable x).
"""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array, PyTree

from vardax.covariances.functions import half, inv_mv
from vardax.dynamics.stepping import in_state_dtype
from vardax.minimisers.observed import ObservedEntries, ObservedSamples
from vardax.minimisers.windows import AbstractObserving, Run, Window

__all__ = ["SubWindows"]

States = tuple[PyTree[Array], PyTree[Array]]


class SubWindows(AbstractObserving):
    """(x_0, the states at the starts of the later sub-windows) -> (H(x_0), ..., H(x_T)).

    `covariance` is that of all jumps, on (J, *state). A sub-window has `length` intervals; with as many jumps as
    sub-windows the last jump is at the end of the window.
    """

    window: Window
    covariance: lx.AbstractLinearOperator
    length: int = eqx.field(static=True)

    def split(self, control: States) -> tuple[PyTree[Array], PyTree[Array], PyTree[Array]]:
        """J_b measures the first state; the later ones have no prior."""
        return control[0], (), ()

    def prior_part(self, control: States) -> States:
        return control[0], jax.tree.map(jnp.zeros_like, control[1])

    @property
    def proper(self) -> bool:
        return False

    def background(self, state: PyTree[Array]) -> PyTree[Array]:
        """The states at the starts of the later sub-windows, on the trajectory of one state without jumps."""
        jumps = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), self.covariance.out_structure())
        return self.of_result((state, jumps))[1]

    def result(self, state: States) -> States:
        """(x_0, the jumps)."""
        return state[0], self._jumps(state[1], self._runs(state))

    def of_result(self, result: States) -> States:
        """The states at the starts, one sub-window after another."""
        first, jumps = result

        def next_start(carry: tuple[PyTree[Array], Array], jump: PyTree[Array]) -> tuple[tuple, PyTree[Array]]:
            state, j = carry
            end = jax.tree.map(lambda x: x[-1], self._part(self._time(j)).trajectory(state))
            start = jax.tree.map(lambda e, eta: e + eta.astype(e.dtype), end, jump)
            return (start, j + 1), start

        return first, jax.lax.scan(next_start, (first, jnp.asarray(0)), jumps)[1]

    def trajectory(self, state: States) -> PyTree[Array]:
        """x_0 ... x_T, stacked on a leading axis: at the start of a sub-window its own state, after the jump."""
        return self._joined(self._runs(state), state[1])

    def memory(self, state: States) -> str:
        """In words, what the differentiated run of a sub-window keeps."""
        return f"{self.window.n_steps // self.length} sub-windows, each: {self._part(self.window.t0).memory(state[0])}"

    def place(self, samples: ObservedSamples) -> ObservedSamples:
        """Scattered points get their place between the entries of the trajectory."""
        return self.window.place(samples)

    def run(self, state: States, observed: ObservedEntries) -> Run:
        """The trajectory, the predicted observations along it, and the weighted jumps."""
        runs = self._runs(state)
        trajectory = self._joined(runs, state[1])
        jumps = self._jumps(state[1], runs)
        structure = self.covariance.in_structure()
        weighted = inv_mv(self.covariance, jax.tree.map(lambda eta, s: eta.astype(s.dtype), jumps, structure))
        error = half(self.covariance).transpose().mv(weighted)
        return Run(trajectory, self.window.along(trajectory, observed), error)

    def _runs(self, state: States) -> PyTree[Array]:
        """(n_runs, length + 1, *state): the trajectories of all sub-windows."""
        n_runs = self.window.n_steps // self.length
        starts = jax.tree.map(lambda x, later: jnp.concatenate([x[None], later])[:n_runs], *state)
        times = self._time(jnp.arange(n_runs))
        return jax.vmap(lambda x, t: self._part(t).trajectory(x))(starts, times)

    def _time(self, j: Array) -> Array:
        """When sub-window j starts."""
        start = jnp.asarray(self.window.t0)
        size = self.window.forward.dt * self.window.n_substeps * self.length
        return start + j.astype(start.dtype) * in_state_dtype(size, start)

    def _part(self, t0: Array | float) -> Window:
        """A sub-window."""
        return dataclasses.replace(self.window, n_steps=self.length, t0=t0)

    def _jumps(self, later: PyTree[Array], runs: PyTree[Array]) -> PyTree[Array]:
        """What the later starts differ by from the ends of the runs before them."""
        return jax.tree.map(lambda start, run: start - run[: start.shape[0], -1], later, runs)

    def _joined(self, runs: PyTree[Array], later: PyTree[Array]) -> PyTree[Array]:
        def one(run: Array, start: Array) -> Array:
            inside = run[:, :-1].reshape(-1, *run.shape[2:])
            last = start[-1:] if start.shape[0] == run.shape[0] else run[-1:, -1]
            return jnp.concatenate([inside, last])

        return jax.tree.map(one, runs, later)
