"""From a state to the predicted observations of a window: what a problem observes, and by what model.

    Snapshot        x -> H(x)                                              one time
    Window          x_0 -> x_t = M_t(x_{t-1}) -> H(x_t)                    a model without error
    WeakWindow      (x_0, eta) -> x_t = M_t(x_{t-1}) + eta_t -> H(x_t)     a model with errors
    InnerWindow     x_0 -> the window of a simpler model                   the increments of an incremental method

and `SubWindows`, `JointWindow`, `DecodedStart` and `DecodedWindow` in files of their own. `run` gives the trajectory,
stacked on a leading axis, and the predictions, (E, *obs). `split` says which parts of a control J_b, J_q and J_theta
measure.
"""

import abc
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from vardax.dynamics.rollout import rollout, rollout_memory
from vardax.minimisers.moments import AbstractTimeInterpolation, LinearInTime
from vardax.minimisers.observed import ObservedEntries, ObservedSamples, place

__all__ = ["AbstractObserving", "InnerWindow", "Run", "Snapshot", "WeakWindow", "Window", "on_windows", "starting"]


class Run(NamedTuple):
    """The trajectory (for one time, the state), the predicted observations (E, *obs), and what J_q measures beside the
    control, where model errors are not part of it."""

    trajectory: PyTree[Array]
    predicted: Array
    error: PyTree[Array] = ()


class AbstractObserving(eqx.Module):
    """A map from what is estimated to predicted observations."""

    @abc.abstractmethod
    def run(self, state: PyTree[Array], observed: ObservedEntries) -> Run:
        """The trajectory, and the predicted observations along it."""

    @abc.abstractmethod
    def trajectory(self, state: PyTree[Array]) -> PyTree[Array] | None:
        """x_0 ... x_T, stacked on a leading axis; None where there is one time."""

    @abc.abstractmethod
    def memory(self, state: PyTree[Array]) -> str:
        """In words, what the differentiated model run keeps."""

    @abc.abstractmethod
    def place(self, samples: ObservedSamples) -> ObservedSamples:
        """Scattered points get their place between the entries of the trajectory."""

    def split(self, control: PyTree[Array]) -> tuple[PyTree[Array], PyTree[Array], PyTree[Array]]:
        """The parts of a control that J_b, J_q and J_theta measure: a state alone has no others."""
        return control, (), ()

    @property
    def proper(self) -> bool:
        """Whether every part of the control has a prior, ½‖chi‖²."""
        return True

    def prior_part(self, control: PyTree[Array]) -> PyTree[Array]:
        """A control with zeros where it has no prior."""
        return control

    @property
    def prior_is_a_term(self) -> bool:
        """Whether the further terms of the cost are the prior, J_b, and no part of the control is."""
        return False

    def result(self, state: PyTree[Array]) -> PyTree[Array]:
        """What the user gets of a state."""
        return state

    def of_result(self, result: PyTree[Array]) -> PyTree[Array]:
        """The state of which the user would get `result`."""
        return result

    def latent(self, state: PyTree[Array]) -> PyTree[Array] | None:
        """The state as a latent vector; None where it is none."""
        return None

    def __call__(self, state: PyTree[Array], observed: ObservedEntries) -> Array:
        return self.run(state, observed).predicted


class Snapshot(AbstractObserving):
    """x -> H(x) at one time, as the only entry of a window."""

    obs_op: Any

    def trajectory(self, state: PyTree[Array]) -> None:
        """A single time has no trajectory."""
        return None

    def memory(self, state: PyTree[Array]) -> str:
        """No model is run, so nothing is kept."""
        return ""

    def place(self, samples: ObservedSamples) -> ObservedSamples:
        """Observations of one time have their place."""
        return samples

    def run(self, state: PyTree[Array], observed: ObservedEntries) -> Run:
        """What further terms of the cost see, and the predicted observations."""
        return Run(state, observed.bound(self.obs_op)(state)[None])


class Window(AbstractObserving):
    """x_0 -> (H(x_0), ..., H(x_T)), or -> H at the moments of scattered points: the operator along the trajectory.

    `t0` is the model time of x_0; the problem of a sample has its own.
    """

    forward: Any
    obs_op: Any
    forward_adjoint: Any
    t0: Array | float
    n_steps: int = eqx.field(static=True)
    n_substeps: int = eqx.field(static=True)
    between: AbstractTimeInterpolation = LinearInTime()

    @classmethod
    def of(cls, method: Any, samples: ObservedSamples) -> "Window":
        """The window of a method for these samples, from the slots that all window methods have."""
        n_steps = samples.n_steps(method.n_steps, type(method).__name__)
        model = (method.forward, method.obs_op, method.forward_adjoint)
        return cls(*model, 0.0, n_steps, method.n_substeps, method.time_interpolation)

    def place(self, samples: ObservedSamples) -> ObservedSamples:
        """Scattered points get their place between the entries of the trajectory."""
        if samples.points is None or not hasattr(self.forward, "dt"):  # what is no model is refused where it is run
            return samples
        return place(samples, self.forward.dt * self.n_substeps, self.n_steps, self.between)

    def trajectory(self, state: PyTree[Array], increments: PyTree[Array] | None = None) -> PyTree[Array]:
        """x_0 ... x_T, stacked on a leading axis; `increments` are added at the end of each interval."""
        return rollout(
            self.forward,
            state,
            self.n_steps,
            forward_adjoint=self.forward_adjoint,
            t0=self.t0,
            n_substeps=self.n_substeps,
            increments=increments,
        )

    def memory(self, state: PyTree[Array]) -> str:
        """In words, what the differentiated model run keeps."""
        return rollout_memory(
            self.forward, state, self.n_steps, forward_adjoint=self.forward_adjoint, n_substeps=self.n_substeps
        )

    def along(self, trajectory: PyTree[Array], observed: ObservedEntries) -> Array:
        """The predicted observations of a trajectory that is at hand."""
        return observed.moments(observed.bound(self.obs_op), trajectory)

    def run(self, state: PyTree[Array], observed: ObservedEntries) -> Run:
        """The trajectory, and the predicted observations along it."""
        trajectory = self.trajectory(state)
        return Run(trajectory, self.along(trajectory, observed))


class WeakWindow(AbstractObserving):
    """(x_0, eta) -> (H(x_0), ..., H(x_T)) with x_t = M_t(x_{t-1}) + eta_t at the end of each `length` intervals."""

    window: Window
    length: int = eqx.field(static=True, default=1)

    def split(self, control: tuple[PyTree[Array], PyTree[Array]]) -> tuple[PyTree[Array], PyTree[Array], PyTree[Array]]:
        """The parts of a control that J_b, J_q and J_theta measure."""
        return (*control, ())

    def trajectory(self, state: tuple[PyTree[Array], PyTree[Array]]) -> PyTree[Array]:
        """x_0 ... x_T, stacked on a leading axis."""
        first, errors = state
        if self.length == 1:
            return self.window.trajectory(first, errors)
        return self.window.trajectory(first, jax.tree.map(self._on_intervals, errors))

    def _on_intervals(self, errors: Array) -> Array:
        """One error for each interval, zero within sub-windows and at the end of the last where there is none."""
        ends = self.length * jnp.arange(1, errors.shape[0] + 1) - 1
        return jnp.zeros((self.window.n_steps, *errors.shape[1:]), errors.dtype).at[ends].set(errors)

    def memory(self, state: tuple[PyTree[Array], PyTree[Array]]) -> str:
        """In words, what the differentiated model run keeps."""
        return self.window.memory(state[0])

    def place(self, samples: ObservedSamples) -> ObservedSamples:
        """Scattered points get their place between the entries of the trajectory."""
        return self.window.place(samples)

    def run(self, state: tuple[PyTree[Array], PyTree[Array]], observed: ObservedEntries) -> Run:
        """The trajectory, and the predicted observations along it."""
        trajectory = self.trajectory(state)
        return Run(trajectory, self.window.along(trajectory, observed))


class InnerWindow(AbstractObserving):
    """The window as a simpler model sees it: x_0 -> to_inner -> its trajectory -> to_state -> the operator."""

    window: Window
    to_inner: Callable | None
    to_state: Callable | None

    @classmethod
    def of(cls, window: Window, forward: Any, to_inner: Callable | None, to_state: Callable | None) -> "InnerWindow":
        return cls(eqx.tree_at(lambda w: w.forward, window, forward), to_inner, to_state)

    def trajectory(self, state: PyTree[Array]) -> PyTree[Array]:
        """The trajectory of the simpler model, as states of the full one."""
        inner = self.window.trajectory(self._inner(state))
        return inner if self.to_state is None else jax.vmap(self.to_state)(inner)

    def memory(self, state: PyTree[Array]) -> str:
        """In words, what the differentiated run of the simpler model keeps."""
        return self.window.memory(self._inner(state))

    def place(self, samples: ObservedSamples) -> ObservedSamples:
        """Scattered points get their place between the entries of the trajectory."""
        return self.window.place(samples)

    def run(self, state: PyTree[Array], observed: ObservedEntries) -> Run:
        """The trajectory, and the predicted observations along it."""
        trajectory = self.trajectory(state)
        return Run(trajectory, self.window.along(trajectory, observed))

    def _inner(self, state: PyTree[Array]) -> PyTree[Array]:
        return state if self.to_inner is None else self.to_inner(state)


def on_windows(change: Callable[[Window], Window], observe: Any) -> Any:
    """The map to observations with every window in it changed."""
    is_window = lambda part: isinstance(part, Window)  # noqa: E731
    return jax.tree.map(lambda part: change(part) if is_window(part) else part, observe, is_leaf=is_window)


def starting(observe: Any, start: Array | None) -> Any:
    """The map to observations with every window in it starting at the model time `start`."""
    if start is None:
        return observe
    return on_windows(lambda window: eqx.tree_at(lambda w: w.t0, window, start), observe)
