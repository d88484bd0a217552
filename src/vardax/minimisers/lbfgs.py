"""The default minimiser: L-BFGS with a line search that knows how exact the cost is.

A line search compares values of J, and these carry a rounding error of a few eps · J. Once a step promises less than
that, Armijo's condition cannot be checked any more: the search halves its step for ever while the gradient is still
1e-8 of its first size. `RoundingArmijo` accepts a step whose increase is within the rounding error; the iteration then
goes on by the gradient, which is far more exact than J, and `RecordingSolver` stops it by the gradient norm.

optimistix skips the update of its memory where Δchi·Δ∇J <= eps, an absolute bound that a gradient of 1e-8 meets. The
default solver therefore minimises J / eps, which changes nothing else: L-BFGS does not depend on the scale of J but in
its first step, and that one is shortened by the same factor.

Hager, W. W. and Zhang, H. (2005). A new conjugate gradient method with guaranteed descent and an efficient line search.
SIAM J. Optim. 16, 170-192 (section 4: the approximate Wolfe conditions, for the same reason).
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optimistix as optx
from jaxtyping import Array, Bool, Float, PyTree

from vardax.adjoints.direct import stop_gradient
from vardax.minimisers.problem import tree_dot

__all__ = ["ROUNDING", "LimitedMemoryBFGS", "RoundingArmijo"]

ROUNDING = 64.0
"""Increases of J below this many eps · |J| count as rounding."""


class RoundingArmijo(optx.AbstractSearch):
    """Backtracking by halves until J(chi + d) <= J(chi) + 0.1 ∇J·d + ROUNDING · eps · |J|.

    `first` is the size of the very first step, along the gradient; every later search begins with 1."""

    eps: float = eqx.field(static=True)
    first: float = eqx.field(static=True)

    def init(self, y: PyTree[Array], f_info_struct: Any) -> Float[Array, ""]:
        return jnp.asarray(self.first)

    def step(
        self,
        first_step: Bool[Array, ""],
        y: PyTree[Array],
        y_eval: PyTree[Array],
        f_info: Any,
        f_eval_info: Any,
        state: Float[Array, ""],
    ) -> tuple[Float[Array, ""], Bool[Array, ""], optx.RESULTS, Float[Array, ""]]:
        predicted = f_info.compute_grad_dot(jax.tree.map(jnp.subtract, y_eval, y))
        increase = f_eval_info.as_min() - f_info.as_min()
        rounding = ROUNDING * self.eps * jnp.abs(f_info.as_min())
        accept = first_step | ((increase <= 0.1 * predicted + rounding) & (predicted <= 0))
        step_size = jnp.where(accept, jnp.where(first_step, self.first, 1.0), 0.5 * state)
        return step_size, accept, optx.RESULTS.successful, step_size


class LimitedMemoryBFGS(optx.AbstractLBFGS):
    """optimistix's L-BFGS with `RoundingArmijo`; it has no stopping rule of its own."""

    rtol: float
    atol: float
    norm: Callable
    use_inverse: bool
    search: optx.AbstractSearch
    descent: optx.NewtonDescent
    history_length: int
    verbose: Callable

    def __init__(self, eps: float, scale: float, history_length: int = 20):
        self.rtol = self.atol = 0.0
        self.norm = optx.max_norm
        self.use_inverse = True
        self.search = RoundingArmijo(eps, 1.0 / scale)
        self.descent = optx.NewtonDescent()
        self.history_length = history_length
        self.verbose = _silent

    def update_hessian(
        self, y: PyTree[Array], y_eval: PyTree[Array], f_info: Any, f_eval_info: Any, hessian_update_state: Any
    ) -> tuple[Any, Any]:
        """Remember the step; where the curvature along it is negative, its absolute value.

        optimistix would skip such a step. Before the first pair is stored, the size of the next step would be lost.

        What is remembered counts as given where the iteration is differentiated. It multiplies the gradient, which
        vanishes at the minimum, so the derivative of the minimum does not depend on it; but the derivatives of pairs
        that shrink to nothing grow without bounds on the way there, and would be all that is left of it.
        """
        step = jax.tree.map(jnp.subtract, y_eval, y)
        curvature = tree_dot(step, jax.tree.map(jnp.subtract, f_eval_info.grad, f_info.grad))
        length = tree_dot(step, step)
        mirror = jnp.where((curvature < 0) & (length > 0), 2 * curvature / jnp.where(length > 0, length, 1), 0)
        mirrored = jax.tree.map(lambda g, s: g - mirror * s, f_eval_info.grad, step)
        mirrored_info = eqx.tree_at(lambda info: info.grad, f_eval_info, mirrored)
        given = stop_gradient((y, y_eval, f_info, mirrored_info, hessian_update_state))
        info, state = super().update_hessian(*given)
        return eqx.tree_at(lambda info: (info.f, info.grad), info, (f_eval_info.f, f_eval_info.grad)), state


def _silent(**info: Any) -> None:
    """The solver's progress hook, which would call the host: nothing."""
