"""Conjugate gradients to a residual relative to the length of the right side.

lineax's `CG` measures the residual entry by entry, against `atol + rtol |b_i|`. With `atol = 0` one entry of b that is
zero makes that 0 / 0, and the iteration ends after its first step without a word. A cotangent or a column of the
identity is mostly zeros, and its length is not known beforehand, so no fixed `atol` will do. `RelativeCG` solves for
b / ‖b‖.
"""

from typing import Any

import jax
import jax.numpy as jnp
import lineax as lx
import optimistix as optx
from jaxtyping import Array, PyTree

__all__ = ["RelativeCG"]


class RelativeCG(lx.AbstractLinearSolver):
    """lineax's conjugate gradients until ‖b - A x‖ <= rtol · ‖b‖, for positive definite A.

    >>> A = lx.MatrixLinearOperator(jnp.diag(jnp.array([1.0, 4.0])), lx.positive_semidefinite_tag)
    >>> lx.linear_solve(A, jnp.array([0.0, 2.0]), RelativeCG(1e-6)).value.tolist()
    [0.0, 0.5]
    """

    rtol: float
    max_steps: int | None = None

    def _solver(self) -> lx.CG:
        return lx.CG(rtol=0.0, atol=self.rtol, norm=optx.two_norm, max_steps=self.max_steps)

    def init(self, operator: lx.AbstractLinearOperator, options: dict[str, Any]) -> Any:
        return self._solver().init(operator, options)

    def compute(
        self, state: Any, vector: PyTree[Array], options: dict[str, Any]
    ) -> tuple[PyTree[Array], lx.RESULTS, dict[str, Any]]:
        length = optx.two_norm(vector)
        unit = jnp.where(length > 0, length, jnp.ones_like(length))
        scaled = jax.tree.map(lambda leaf: leaf / unit.astype(leaf.dtype), vector)
        solution, result, stats = self._solver().compute(state, scaled, options)
        return jax.tree.map(lambda leaf: leaf * unit.astype(leaf.dtype), solution), result, stats

    def transpose(self, state: Any, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return self._solver().transpose(state, options)

    def conj(self, state: Any, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return self._solver().conj(state, options)

    def assume_full_rank(self) -> bool:
        return True
