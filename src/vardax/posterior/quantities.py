"""What a posterior is of: a function of the control, whose derivative carries the covariance of the control.

    f(chi)  ->  mean f(chi*),   covariance f' (I + GᵀG)⁻¹ f'ᵀ

`State` is what the method returns, `Untransformed` the same before the control transform, in which the posterior is
Gaussian entry by entry, `Entry` the state at one entry of the window, and `Trajectory` all of them.
"""

import abc
import math

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Int, PyTree

from vardax.covariances.functions import diagonal
from vardax.covariances.sizes import TooLarge
from vardax.minimisers.closed_form import DENSE_LIMIT
from vardax.minimisers.problem import ControlSpaceProblem
from vardax.minimisers.transforms import to_control

__all__ = ["AbstractQuantity", "Entry", "State", "Trajectory", "Untransformed"]


class AbstractQuantity(eqx.Module):
    """A differentiable function of the control of one sample."""

    @abc.abstractmethod
    def __call__(self, problem: ControlSpaceProblem, control: PyTree[Array]) -> PyTree[Array]:
        """f(chi)."""

    def prior_variances(self, problem: ControlSpaceProblem, control: PyTree[Array]) -> PyTree[Array]:
        """diag(f' f'ᵀ): by one product with f' for each entry of the control, unless it is known."""
        size = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(control))
        if size > DENSE_LIMIT:
            raise TooLarge(f"The prior variances of {type(self).__name__} need {size} products, beyond {DENSE_LIMIT}.")
        _, tangent = jax.linearize(lambda chi: self(problem, chi), control)
        flat, unravel = ravel_pytree(control)
        zero = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), jax.eval_shape(tangent, control))

        def add(total: PyTree[Array], unit: Array) -> tuple[PyTree[Array], None]:
            return jax.tree.map(lambda t, c: t + c**2, total, tangent(unravel(unit))), None

        return jax.lax.scan(add, zero, jnp.eye(size, dtype=flat.dtype))[0]


class State(AbstractQuantity):
    """What the method estimates: x, or (x_0, eta), with what is estimated jointly."""

    def __call__(self, problem: ControlSpaceProblem, control: PyTree[Array]) -> PyTree[Array]:
        return problem.control_to_state(control)

    def prior_variances(self, problem: ControlSpaceProblem, control: PyTree[Array]) -> PyTree[Array]:
        """(dT/dz)² diag(B), where all of the control has a prior."""
        if not problem.observe.proper:
            return super().prior_variances(problem, control)
        return problem.prior_variances(control)


class Untransformed(AbstractQuantity):
    """z = T⁻¹(x), an affine function of the control."""

    def __call__(self, problem: ControlSpaceProblem, control: PyTree[Array]) -> PyTree[Array]:
        return to_control(problem.transform, problem.control_to_state(control))

    def prior_variances(self, problem: ControlSpaceProblem, control: PyTree[Array]) -> PyTree[Array]:
        """diag(B), where all of the control has a prior."""
        if not problem.observe.proper:
            return super().prior_variances(problem, control)
        like = problem.background
        return jax.tree.map(lambda v, b: v.astype(b.dtype), diagonal(problem.covariance), like)


class Trajectory(AbstractQuantity):
    """x_0 ... x_T, stacked on a leading axis."""

    def __call__(self, problem: ControlSpaceProblem, control: PyTree[Array]) -> PyTree[Array]:
        return problem.observe.trajectory(problem.window_state(control))


class Entry(AbstractQuantity):
    """x_t, the state at entry t of the window."""

    t: Int[Array, ""]

    def __call__(self, problem: ControlSpaceProblem, control: PyTree[Array]) -> PyTree[Array]:
        return jax.tree.map(lambda x: x[self.t], problem.observe.trajectory(problem.window_state(control)))
