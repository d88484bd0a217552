"""Biases that are estimated with the state: of the model's tendency, and of the observations.

    x_t = M_t(x_{t-1}) + dt b   at each model step          ForcingBias
    y_t = H(x_t) + b            in each predicted entry     ObservationBias
    y_i = H_i(x) + b_k(i)       k(i) the instrument of i    InstrumentBias

Each is an `AbstractJointControl` with its own mean and variance. A bias of the model and one of the observations can
only be told apart where some observations have none, or by their priors.

Dee, D. P. (2005). Bias and data assimilation. QJRMS 131, 3323-3343.
"""

import abc
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array, PyTree

from vardax.dynamics.rollout import as_forward
from vardax.dynamics.stepping import in_state_dtype, step_convention
from vardax.minimisers.transforms import Identity
from vardax.models.joint_control import AbstractJointControl, joint_prior
from vardax.types import float_array

__all__ = ["ForcingBias", "InstrumentBias", "ObservationBias"]


class ForcingBias(AbstractJointControl):
    """A constant error b of the model's tendency: dt b is added to the state after each model step.

    b is a number for all variables, or a pytree like the state. With `where`, it is added to that leaf of the model
    instead, inside the model's own time stepping: `where=lambda model: model.forcing`.
    """

    mean: PyTree[Array]
    cov_op: lx.AbstractLinearOperator
    where: Callable | None
    control_transform: PyTree

    def __init__(self, mean: PyTree, cov_op: Any, *, where: Callable | None = None):
        self.mean, self.cov_op = joint_prior("ForcingBias", mean, cov_op)
        self.where, self.control_transform = where, Identity()

    def model(self, forward: Any, theta: PyTree[Array]) -> Any:
        if self.where is None:
            return _Forced(as_forward(forward), theta)
        leaf = float_array(self.where(forward))
        return eqx.tree_at(self.where, forward, leaf + theta.astype(leaf.dtype))


class _Forced(eqx.Module):
    """A model with a constant tendency added."""

    forward: Any
    bias: PyTree[Array]

    @property
    def dt(self) -> Any:
        return self.forward.dt

    @property
    def state_signature(self) -> Any:
        return getattr(self.forward, "state_signature", None)

    def step(self, state: PyTree[Array], dt: Any, *, t0: Any) -> PyTree[Array]:
        call = step_convention(self.forward.step, f"{type(self.forward).__name__}.step")
        after = call(self.forward.step, state, dt, t0)
        one = jax.tree.structure(self.bias) == jax.tree.structure(0)
        bias = jax.tree.map(lambda _: self.bias, after) if one else self.bias
        return jax.tree.map(lambda x, b: x + (in_state_dtype(dt, b) * _fitting(b, x)).astype(x.dtype), after, bias)


def _fitting(bias: Array, leaf: Array) -> Array:
    if bias.shape not in ((), leaf.shape):
        raise ValueError(
            f"ForcingBias: the bias has shape {bias.shape}, expected () or {leaf.shape}, that of the state."
        )
    return bias


class _AbstractOffset(AbstractJointControl):
    """A theta that is an array with a mean and a covariance, and nothing else to set."""

    mean: Array
    cov_op: lx.AbstractLinearOperator
    control_transform: PyTree

    def __init__(self, mean: Any, cov_op: Any):
        self.mean, self.cov_op = joint_prior(type(self).__name__, mean, cov_op)
        self.control_transform = Identity()

    @abc.abstractmethod
    def prediction(self, predicted: Array, observed: Any, theta: Array) -> Array: ...


class ObservationBias(_AbstractOffset):
    """A constant b that is added to the predicted observations: a number, or of the shape of one entry, or of all."""

    def prediction(self, predicted: Array, observed: Any, theta: Array) -> Array:
        if theta.shape not in ((), predicted.shape[1:], predicted.shape):
            raise ValueError(
                f"ObservationBias: the bias has shape {theta.shape}, expected (), {predicted.shape[1:]} (one entry) or "
                f"{predicted.shape} (all entries of the window)."
            )
        return predicted + jnp.broadcast_to(theta, predicted.shape).astype(predicted.dtype)


class InstrumentBias(_AbstractOffset):
    """A constant b_i for each instrument i, added to what is predicted for its observations: (n_instruments,)."""

    def prediction(self, predicted: Array, observed: Any, theta: Array) -> Array:
        if theta.shape != (observed.n_instruments,) or observed.instrument is None:
            raise ValueError(
                f"InstrumentBias: there are biases of shape {theta.shape} and {observed.n_instruments} instruments in "
                "the observations, expected one for each; observations say theirs by `instrument=`."
            )
        return predicted + theta[observed.instrument].astype(predicted.dtype)
