"""A model whose states cannot leave a bound, so that a bad iterate does not blow up.

    x(t + dt) = s(M(s(x(t)))),   s(x) = x for |x| <= b/2,   ±(b/2 + b/2 tanh((|x| - b/2) / (b/2))) beyond

s is the identity where states belong, never reaches b, and is twice continuously differentiable. The first trial step
of a minimiser, or an untrained network, can start the model far off; without a bound the run overflows, and although
the step is then rejected, a gradient through the unrolled iterations is NaN. With it values and gradients stay finite.

Choose b at least twice the largest value that the model should reach, and small enough that one step from b is finite.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, PyTree

from vardax.dynamics.rollout import as_forward
from vardax.dynamics.stepping import StepConvention, in_state_dtype, step_convention
from vardax.types import concrete_values, float_array

__all__ = ["SoftBoundedForward", "soft_bound"]


def soft_bound(x: Array, bound: Array) -> Array:
    """s(x): x itself within half the bound, smoothly towards ±bound beyond.

    >>> soft_bound(jnp.array([-3.0, 4.0, 1e30]), jnp.array(8.0)).tolist()
    [-3.0, 4.0, 8.0]
    """
    half = jnp.broadcast_to(0.5 * bound.astype(x.dtype), x.shape)
    core = jnp.clip(x, -half, half)
    return core + half * jnp.tanh((x - core) / half)


class SoftBoundedForward(eqx.Module):
    """`forward` with its states kept within ±`bound`, before and after each step.

    `bound` is positive: a scalar, an array that broadcasts to the state, or a tree of these with the structure of the
    state. It is a traced leaf. States within half the bound move as they do without it.

    >>> from vardax.dynamics.lorenz96 import Lorenz96
    >>> model = SoftBoundedForward(Lorenz96(4), bound=100.0)
    >>> bool(jnp.all(jnp.abs(model.step(jnp.array([1e8, 0.0, -1e8, 3.0]), model.dt)) <= 100.0))
    True
    """

    forward: Any
    bound: PyTree[Array]
    convention: StepConvention = eqx.field(static=True)

    def __init__(self, forward: Any, bound: PyTree[ArrayLike]):
        self.forward = as_forward(forward)
        self.convention = step_convention(self.forward.step, f"{type(forward).__name__}.step")
        self.bound = jax.tree.map(float_array, bound)
        for leaf in jax.tree.leaves(self.bound):
            values = concrete_values(leaf)
            if values is not None and not np.all(values > 0):
                raise ValueError(f"SoftBoundedForward: `bound` is {values}, expected positive numbers.")

    @property
    def dt(self) -> Any:
        """That of the model inside."""
        return self.forward.dt

    @property
    def state_signature(self) -> Any:
        """That of the model inside."""
        return getattr(self.forward, "state_signature", None)

    def step(self, state: PyTree[Array], dt: ArrayLike, *, t0: ArrayLike = 0.0) -> PyTree[Array]:
        """One step of the model inside, from a bounded state to a bounded state."""
        times = (in_state_dtype(dt, state), in_state_dtype(t0, state))
        return self._bounded(self.convention(self.forward.step, self._bounded(state), *times))

    def _bounded(self, state: PyTree[Array]) -> PyTree[Array]:
        if isinstance(self.bound, jax.Array):
            return jax.tree.map(lambda x: soft_bound(x, self.bound), state)
        if jax.tree.structure(self.bound) != jax.tree.structure(state):
            raise ValueError(
                f"SoftBoundedForward: `bound` has the structure {jax.tree.structure(self.bound)}, expected a scalar, "
                f"or that of the state, {jax.tree.structure(state)}."
            )
        return jax.tree.map(soft_bound, state, self.bound)
