"""What a retrieval of a profile sees: the a priori, moved towards the state as far as the kernel allows.

    y = x_a + A (x - x_a)

A is the averaging kernel, the derivative of the retrieved profile with respect to the true one, and x_a the a priori of
the retrieval. Where A is the identity the state is seen as it is; where A is zero the product repeats its a priori and
says nothing about the state. The error covariance that goes with y is that of the retrieval noise, without the
smoothing error, because the smoothing is in A.

Rodgers, C. D. (2000). Inverse Methods for Atmospheric Sounding. World Scientific, chapter 3.
"""

from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
from jaxtyping import Array, ArrayLike, Float, PyTree

from vardax.obs_operators.averaging_kernel import Kernel, as_kernel, require_finite, state_like
from vardax.obs_operators.linear import LinearObs
from vardax.obs_operators.linearisation import as_field
from vardax.obs_operators.module_operator import ModuleLinearOperator, structure_of
from vardax.types import float_array

__all__ = ["RetrievalKernel"]


class RetrievalKernel(eqx.Module):
    """H(x) = x_a + A (x - x_a), affine in x, of the shape of the state.

    - `A`: (n, n) on the ravelled state; or, for p profiles of L levels (p, L), one kernel each: (p, L, L); or
      (*state, *state); or a lineax operator or linear callable from states to states.
    - `x_a`: of the shape of the state, or broadcast to it.

    Of profiles with a kernel each, those whose kernel or a priori has gaps are missing: `mask` is 0 there, and they
    predict 0. Other kernels have to be complete.

    >>> H = RetrievalKernel(A=[[0.5, 0.0], [0.0, 0.0]], x_a=[1.0, 2.0])
    >>> H(jnp.array([3.0, 9.0])).tolist()
    [2.0, 2.0]
    """

    A: Kernel
    x_a: Float[Array, "..."]
    mask: Float[Array, "p L"] | None

    def __init__(self, A: Any, x_a: ArrayLike | Sequence[Any]):
        self.x_a, self.mask = float_array(jnp.asarray(x_a)), None
        shape = None if isinstance(A, lx.AbstractLinearOperator) or callable(A) else np.shape(A)
        if shape is not None and len(shape) == 3 and self.x_a.shape in (shape[:2], shape[1:2], ()):
            kernels = float_array(jnp.asarray(A))
            self.A, self.x_a, self.mask = _complete(kernels, jnp.broadcast_to(self.x_a, shape[:2]))
            return
        self.A = as_kernel(A, "RetrievalKernel")
        require_finite(self.x_a, "x_a", "RetrievalKernel")

    @property
    def linear_by_construction(self) -> bool:
        return LinearObs(self.A).linear_by_construction

    def __call__(self, state: PyTree[Array]) -> Float[Array, "..."]:
        field = as_field(state, "RetrievalKernel")
        x_a = state_like(self.x_a, field, "x_a", "RetrievalKernel")
        return x_a + self._smoothing(field).mv(field - x_a)

    def linearize(self, state: PyTree[Array]) -> lx.AbstractLinearOperator:
        return self._smoothing(as_field(state, "RetrievalKernel"))

    def _smoothing(self, field: Array) -> lx.AbstractLinearOperator:
        """A, from the structure of the state to itself."""
        if isinstance(self.A, jax.Array) and field.ndim == 2 and self.A.ndim == 3:
            return _profile_by_profile(self.A, field)
        kernel = LinearObs(self.A).linearize(field)
        found = kernel.out_structure()
        if found == structure_of(field):
            return kernel
        if getattr(found, "size", None) != field.size:
            raise ValueError(
                f"RetrievalKernel: `A` maps the state {field.shape} to {found}, expected the shape of the state; a "
                "kernel with other rows than columns is an `AveragingKernel`."
            )
        return ModuleLinearOperator(_Reshaped(field.shape), found) @ kernel


def _profile_by_profile(kernels: Array, field: Array) -> lx.AbstractLinearOperator:
    p, levels = field.shape
    if kernels.shape != (p, levels, levels):
        raise ValueError(
            f"RetrievalKernel: `A` has shape {kernels.shape}, expected {(p, levels, levels)}, one kernel for each of "
            f"the {p} profiles of a state of shape {field.shape}."
        )
    return ModuleLinearOperator(_PerProfile(kernels.astype(field.dtype)), structure_of(field))


def _complete(kernels: Array, x_a: Array) -> tuple[Array, Array, Array]:
    """Kernels and a priori with zeros in the profiles that have gaps, and the mask of the others."""
    known = jnp.all(jnp.isfinite(kernels), axis=(1, 2)) & jnp.all(jnp.isfinite(x_a), axis=1)
    rows, blocks = (jnp.broadcast_to(known.reshape(-1, *(1,) * (a.ndim - 1)), a.shape) for a in (x_a, kernels))
    kernels = jnp.where(blocks, kernels, jnp.zeros_like(kernels))
    return kernels, jnp.where(rows, x_a, jnp.zeros_like(x_a)), rows.astype(x_a.dtype)


class _Reshaped(eqx.Module):
    shape: tuple[int, ...] = eqx.field(static=True)

    def __call__(self, vector: Array) -> Array:
        return vector.reshape(self.shape)


class _PerProfile(eqx.Module):
    """x_i -> A_i x_i."""

    kernels: Float[Array, "p L L"]

    def __call__(self, profiles: Array) -> Array:
        return jnp.einsum("pij,pj->pi", self.kernels, profiles, precision=jax.lax.Precision.HIGHEST)
