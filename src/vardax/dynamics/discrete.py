"""A model from a step function: the shortest way to bring one's own dynamics.

    x(t + dt) = step_fn(x(t), dt)

Any function of the state that JAX can differentiate is a model: a hand-written scheme, a spectral solver, a trained
network. The state may be an array or a pytree of arrays; the function must return what it was given (structure, shapes
and dtypes), which `rollout` checks before anything is compiled.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
from jaxtyping import Array, ArrayLike, PyTree

from vardax.dynamics.stepping import StepConvention, checked_dt, in_state_dtype, step_convention

__all__ = ["DiscreteForward"]


class DiscreteForward(eqx.Module):
    """The `ForwardModel` of a step function.

    `step_fn` is `(state)`, `(state, dt)`, or one of these that also takes the model time as `t` or `t0` (by name): a
    non-autonomous model then gets the time of the window, t0 + k dt. Its signature is read once, here. `step_fn` may
    be a function or an `eqx.Module` whose arrays are parameters to differentiate with respect to. `dt` is the length
    of one step; a negative one runs backwards.

    >>> decay = DiscreteForward(lambda state, dt: state * (1 - dt), dt=0.5)
    >>> float(decay.step(jax.numpy.array(4.0), decay.dt))
    2.0
    """

    step_fn: Callable[..., Any]
    dt: float | Array
    convention: StepConvention = eqx.field(static=True)
    state_signature: PyTree[jax.ShapeDtypeStruct] | None

    def __init__(
        self,
        step_fn: Any,
        dt: Any,
        *,
        state_signature: PyTree[jax.ShapeDtypeStruct] | None = None,
    ):
        self.convention = step_convention(step_fn, "step_fn")
        self.step_fn = step_fn
        self.dt = checked_dt(dt, "DiscreteForward")
        self.state_signature = state_signature

    def step(self, state: PyTree[Array], dt: ArrayLike, *, t0: ArrayLike = 0.0) -> PyTree[Array]:
        """The state one interval `dt` after time `t0`."""
        return self.convention(self.step_fn, state, in_state_dtype(dt, state), in_state_dtype(t0, state))
