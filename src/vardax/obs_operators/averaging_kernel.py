"""What an instrument of limited resolution sees: a kernel A smooths the state, after mixing it with an a priori.

    y = A (h x + (1 - h) x_a)

with h between 0 (the entry is taken from the a priori) and 1 (from the state), entry by entry. With h = 1 this is A x:
**the a priori drops out**. A retrieval that was regularised towards its a priori has y = x_a + A (x - x_a) instead,
which is `RetrievalKernel`; columns of satellite products are `ColumnRetrieval`. Leaving the kernel or the a priori out
is a bias, not noise: it does not average away.

Rodgers, C. D. and Connor, B. J. (2003). Intercomparison of remote sounding instruments. JGR 108, 4116.
"""

from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import lineax as lx
import numpy as np
from jaxtyping import Array, ArrayLike, Float, PyTree

from vardax.obs_operators.linear import LinearObs
from vardax.obs_operators.linearisation import as_field
from vardax.obs_operators.module_operator import ModuleLinearOperator, structure_of
from vardax.types import concrete_values, float_array

__all__ = ["AveragingKernel", "as_kernel", "require_finite", "state_like"]

Kernel = Array | lx.AbstractLinearOperator | Callable[..., Any]


class AveragingKernel(eqx.Module):
    """H(x) = A (h x + (1 - h) x_a), affine in x.

    - `A`: as for `LinearObs`: a matrix (m, n) on the ravelled state, an array (*obs, *state) on its trailing axes, a
      lineax operator, or a linear callable.
    - `x_a`, `h`: of the shape of the state, or broadcast to it (a number, a profile on the last axis).

    **At h = 1 the a priori x_a has no effect**, since y = A x: for retrievals y = x_a + A (x - x_a) use
    `RetrievalKernel`.

    >>> A = jnp.array([[0.5, 0.5, 0.0], [0.0, 0.5, 0.5]])
    >>> AveragingKernel(A, x_a=jnp.array([1.0, 1.0, 1.0]), h=jnp.array([1.0, 1.0, 0.0]))(jnp.array([2.0, 4.0, 8.0]))
    Array([3. , 2.5], dtype=float32)
    """

    A: Kernel
    x_a: Float[Array, "..."]
    h: Float[Array, "..."]

    def __init__(self, A: Any, x_a: ArrayLike | Sequence[Any], h: ArrayLike | Sequence[Any] = 1.0):
        self.A = as_kernel(A, "AveragingKernel")
        self.x_a, self.h = float_array(jnp.asarray(x_a)), float_array(jnp.asarray(h))
        for name, values in (("x_a", self.x_a), ("h", self.h)):
            require_finite(values, name, "AveragingKernel")

    @property
    def linear_by_construction(self) -> bool:
        return LinearObs(self.A).linear_by_construction

    def __call__(self, state: PyTree[Array]) -> PyTree[Array]:
        field = as_field(state, "AveragingKernel")
        h, x_a = self._on(field)
        return LinearObs(self.A)(h * field + (1 - h) * x_a)

    def linearize(self, state: PyTree[Array]) -> lx.AbstractLinearOperator:
        field = as_field(state, "AveragingKernel")
        h, x_a = self._on(field)
        kernel = LinearObs(self.A).linearize(h * field + (1 - h) * x_a)
        return kernel @ ModuleLinearOperator(_Scaled(h), structure_of(field))

    def _on(self, field: Array) -> tuple[Array, Array]:
        return state_like(self.h, field, "h", "AveragingKernel"), state_like(self.x_a, field, "x_a", "AveragingKernel")


class _Scaled(eqx.Module):
    factor: Array

    def __call__(self, field: Array) -> Array:
        return self.factor * field


def as_kernel(A: Any, owner: str) -> Kernel:
    """`A` as `LinearObs` takes it, after a check that a concrete one is complete."""
    if isinstance(A, lx.AbstractLinearOperator) or callable(A):
        return A
    kernel = float_array(jnp.asarray(A))
    if kernel.ndim < 2:
        raise ValueError(f"{owner}: `A` has shape {kernel.shape}, expected a matrix (m, n) or (*obs, *state).")
    require_finite(kernel, "A", owner)
    return kernel


def require_finite(values: Array, name: str, owner: str) -> None:
    """Raise where concrete values have gaps: a kernel with missing levels predicts nothing."""
    concrete = concrete_values(values)
    bad = 0 if concrete is None else int(np.sum(~np.isfinite(concrete)))
    if bad:
        raise ValueError(
            f"{owner}: `{name}` has {bad} of {values.size} entries that are not finite; leave out the observations "
            "whose kernel or a priori is incomplete."
        )


def state_like(values: Array, field: Array, name: str, owner: str) -> Array:
    """`values` broadcast to the state, in its dtype."""
    try:
        return jnp.broadcast_to(values, field.shape).astype(field.dtype)
    except ValueError as error:
        raise ValueError(
            f"{owner}: `{name}` has shape {values.shape}, expected that of the state, {field.shape}, or one that "
            "broadcasts to it."
        ) from error
