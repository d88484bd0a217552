"""A cost that may be differentiated again where it blew up.

Adjoints that go through the iterations of a solver also go through its rejected trials. A trial has no weight in the
result, but where the model blew up its derivatives are infinite, and 0 · inf is NaN: one trial beyond the range of the
numbers would spoil a gradient whose value is right. So each point is looked at first, and the background takes its
place in the derivatives where J is too large to be squared:

    J(chi) where J(chi) <= sqrt(largest number),   else the same value with the derivative zero.

The look costs one more run of the model for each evaluation, without derivatives. `ImplicitAdjoint` differentiates the
solution alone and does without.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optimistix as optx
from jaxtyping import Array, PyTree

from vardax.adjoints.direct import stop_gradient
from vardax.types import CostTerms

__all__ = ["GuardedProblem", "guarded_for"]


class GuardedProblem(eqx.Module):
    """The cost of `problem`, and its residual, with derivatives that are zero where it blew up."""

    problem: Any

    def residual_and_terms(self, control: PyTree[Array]) -> tuple[tuple[PyTree[Array], PyTree[Array]], CostTerms]:
        """The least-squares residual (chi, r), and the terms of J."""
        return self._guarded(lambda problem, chi: problem.residual_and_terms(chi), control, lambda seen: seen[1])

    def terms(self, control: PyTree[Array]) -> CostTerms:
        """The terms of J."""
        return self._guarded(lambda problem, chi: problem.terms(chi), control, lambda seen: seen)

    def _guarded(self, fn: Callable, control: PyTree[Array], terms_of: Callable) -> Any:
        seen = fn(stop_gradient(self.problem), stop_gradient(control))
        total = terms_of(seen).total
        tame = total <= jnp.sqrt(jnp.finfo(total.dtype).max).astype(total.dtype)
        harmless = jax.tree.map(lambda c: jnp.where(tame, c, jnp.zeros_like(c)), control)
        live = fn(self.problem, harmless)
        return jax.tree.map(lambda value, fixed: jnp.where(tame, value, fixed), live, seen)


def guarded_for(adjoint: optx.AbstractAdjoint, problem: Any) -> Any:
    """`problem`, guarded where the adjoint goes through the iterations."""
    return problem if isinstance(adjoint, optx.ImplicitAdjoint) else GuardedProblem(problem)
