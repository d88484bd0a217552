"""A window whose model, observation operator or predictions depend on what is estimated with the state.

    (x_0, theta)  or  (x_0, eta, theta)   ->   x_t = M_theta,t(x_{t-1}) (+ eta_t)   ->   y_t = H_theta(x_t) + b_theta

`joint` is the joint control (`vardax.models.joint_control`): it changes the parts of the window that lies inside, a
`Window`, a `WeakWindow`, or the `InnerWindow` of a simpler model, once per run and within what is differentiated.
"""

from typing import Any

import equinox as eqx
from jaxtyping import Array, PyTree

from vardax.minimisers.observed import ObservedEntries, ObservedSamples
from vardax.minimisers.windows import AbstractObserving, Run, Window, on_windows

__all__ = ["JointWindow"]


class JointWindow(AbstractObserving):
    """The window inside, as theta makes it. A state is the tuple of what the window inside takes, then theta."""

    window: Any
    joint: Any

    def split(self, control: tuple) -> tuple[PyTree[Array], PyTree[Array], PyTree[Array]]:
        """The parts of a control that J_b, J_q and J_theta measure."""
        background, error, _ = self.window.split(_inside(control))
        return background, error, control[-1]

    @property
    def proper(self) -> bool:
        return self.window.proper

    def prior_part(self, control: tuple) -> tuple:
        return _outside(self.window.prior_part(_inside(control)), control)

    def result(self, state: tuple) -> tuple:
        return _outside(self._given(state[-1]).result(_inside(state)), state)

    def of_result(self, result: tuple) -> tuple:
        return _outside(self._given(result[-1]).of_result(_inside(result)), result)

    def trajectory(self, state: tuple) -> PyTree[Array]:
        """x_0 ... x_T, stacked on a leading axis."""
        return self._given(state[-1]).trajectory(_inside(state))

    def memory(self, state: tuple) -> str:
        """In words, what the differentiated model run keeps."""
        return self._given(state[-1]).memory(_inside(state))

    def place(self, samples: ObservedSamples) -> ObservedSamples:
        """Scattered points get their place between the entries of the trajectory."""
        return self.window.place(samples)

    def run(self, state: tuple, observed: ObservedEntries) -> Run:
        """The trajectory, and the predicted observations along it."""
        theta = state[-1]
        operator = self.joint.operator(observed.bound(_plain(self.window).obs_op), theta)
        bound = eqx.tree_at(lambda o: o.operator, observed, operator, is_leaf=lambda x: x is None)
        run = self._given(theta).run(_inside(state), bound)
        predicted = self.joint.prediction(run.predicted, observed, theta)
        if predicted.shape != observed.value.shape:
            raise ValueError(
                f"`joint`: the predicted observations have shape {predicted.shape}, expected {observed.value.shape}, "
                "that of the observations; the operator that theta makes predicts what `obs_op` does."
            )
        return run._replace(predicted=predicted)

    def _given(self, theta: PyTree[Array]) -> Any:
        """The window inside with the model of theta."""

        def changed(window: Window) -> Window:
            try:
                model = self.joint.model(window.forward, theta)
            except Exception as error:
                raise ValueError(
                    f"`joint` cannot make the model of theta from {type(window.forward).__name__} (`forward`, or "
                    f"`inner_forward` of an incremental method): {error}"
                ) from error
            return eqx.tree_at(lambda w: w.forward, window, model)

        return on_windows(changed, self.window)


def _plain(window: Any) -> Window:
    """The window of the model itself, inside that of model errors or of a simpler model."""
    return window if isinstance(window, Window) else _plain(window.window)


def _inside(parts: tuple) -> PyTree[Array]:
    """What the window inside takes: x_0, or (x_0, eta)."""
    return parts[0] if len(parts) == 2 else parts[:-1]


def _outside(inside: PyTree[Array], parts: tuple) -> tuple:
    """`parts` with what the window inside takes replaced: a state alone may be a tuple itself."""
    return (inside, parts[-1]) if len(parts) == 2 else (*inside, parts[-1])
