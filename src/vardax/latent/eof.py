r"""Empirical orthogonal functions: the few fields that samples vary along most.

    x_s - m = Σ_k z_sk v_k,     ⟨v_j, v_k⟩_W = δ_jk,     var(z_k) = λ_1 >= λ_2 >= ...

the principal components of samples with weights W (areas, or one over the variance of a variable); Σ λ_k over all k is
the weighted variance of the samples, so the first K explain the part Σ_{k<=K} λ_k / Σ λ_k of it.

Reference: E. N. Lorenz, Empirical orthogonal functions and statistical weather prediction, MIT, 1956.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PyTree

from vardax.dynamics.stepping import checked_count
from vardax.latent.basis import AbstractReducedBasis
from vardax.types import concrete_values, float_array

__all__ = ["EOFBasis"]


class EOFBasis(AbstractReducedBasis):
    """The leading `variances.size` modes of samples; `EOFBasis.from_samples(samples, n_modes)` makes one.

    - `mean`: the mean of the samples, a field or a pytree of fields.
    - `modes`: v_k, stacked on a leading axis, orthonormal with `weights`.
    - `variances`: λ_k, those of the coefficients; `total_variance` that of the samples.
    - `weights`: W, like the mean; zero where there is no cell (land). None is 1 everywhere.

    >>> basis = EOFBasis.from_samples(jnp.array([[1.0, 1.0], [3.0, 3.0], [5.0, 5.0]]), 1)
    >>> basis.decode(basis.encode(jnp.array([2.0, 2.0]))).round(4).tolist()
    [2.0, 2.0]
    """

    mean: PyTree[Array]
    modes: PyTree[Array]
    variances: Float[Array, "nbasis"]
    total_variance: Float[Array, ""]
    weights: PyTree[Array] | None = None

    @classmethod
    def from_samples(
        cls, samples: PyTree, n_modes: int, *, weights: PyTree | None = None, mask: PyTree | None = None
    ) -> "EOFBasis":
        """The leading modes of samples (n, *state), or of a pytree of them.

        `weights` and `mask` (0 where there is no cell) are like one state. What samples hold on masked cells does not
        matter; there modes and mean are 0.
        """
        samples = jax.tree.map(float_array, samples)
        one = jax.tree.map(lambda leaf: leaf[0], samples)
        W = _combined(_like(weights, one, "weights"), _like(mask, one, "mask"))
        flat = jax.vmap(lambda s: ravel_pytree(s)[0])(samples)
        unravel = ravel_pytree(one)[1]
        w = jnp.ones_like(flat[0]) if W is None else ravel_pytree(W)[0].astype(flat.dtype)
        flat = jnp.where((w > 0)[None], flat, jnp.zeros_like(flat))
        _check(flat, w)
        n, most = flat.shape[0], min(flat.shape[0] - 1, flat.shape[1])
        if checked_count(n_modes, "n_modes", "EOFBasis", least=1) > most:
            raise ValueError(
                f"EOFBasis: `n_modes` is {n_modes}, expected at most {most}: {n} samples of {flat.shape[1]} numbers."
            )
        mean = jnp.mean(flat, axis=0)
        root = jnp.sqrt(w)
        _, singular, right = jnp.linalg.svd((flat - mean[None]) * root[None], full_matrices=False)
        lambdas = singular**2 / (n - 1)
        modes = _signed(right[:n_modes]) * jnp.where(w > 0, 1 / jnp.where(w > 0, root, 1), 0)[None]
        return cls(unravel(mean), jax.vmap(unravel)(modes), lambdas[:n_modes], jnp.sum(lambdas), W)

    @property
    def explained_variance(self) -> Float[Array, "nbasis"]:
        """The part of the variance of the samples that each mode explains."""
        return self.variances / self.total_variance

    def expand(self, z: Float[Array, "nbasis"]) -> PyTree[Array]:
        return jax.tree.map(lambda v: jnp.tensordot(z, v.astype(z.dtype), axes=1), self.modes)

    def project(self, field: PyTree[Array]) -> Float[Array, "nbasis"]:
        if self.weights is not None:
            seen = lambda f, w: jnp.where(w > 0, f * w.astype(f.dtype), jnp.zeros_like(f))  # noqa: E731
            field = jax.tree.map(seen, field, self.weights)
        along = lambda v, f: jnp.tensordot(v.astype(f.dtype), f, axes=f.ndim)  # noqa: E731
        return jax.tree.reduce(jnp.add, jax.tree.map(along, self.modes, field))


def _like(tree: PyTree | None, state: PyTree[Array], name: str) -> PyTree[Array] | None:
    """Weights or mask, like a state; None where none are given."""
    if tree is None:
        return None
    tree = jax.tree.map(float_array, tree)
    found, expected = (jax.tree.map(jnp.shape, t) for t in (tree, state))
    if found != expected:
        raise ValueError(f"EOFBasis: `{name}` has shape {found}, expected {expected}, that of one sample.")
    known = [values for values in map(concrete_values, jax.tree.leaves(tree)) if values is not None]
    if any(not np.all(values >= 0) for values in known):
        raise ValueError(f"EOFBasis: `{name}` has negative or missing entries.")
    return tree


def _combined(weights: Any, mask: Any) -> Any:
    if weights is None or mask is None:
        return mask if weights is None else weights
    return jax.tree.map(lambda w, m: jnp.where(m > 0, w, jnp.zeros_like(w)), weights, mask)


def _check(flat: Array, weights: Array) -> None:
    values, w = concrete_values(flat), concrete_values(weights)
    if values is not None and (bad := int(np.sum(~np.isfinite(values)))):
        raise ValueError(f"EOFBasis: `samples` has {bad} non-finite entries on cells; fill them, or mask the cells.")
    if w is not None and not np.any(w > 0):
        raise ValueError("EOFBasis: no cell has a weight.")


def _signed(modes: Array) -> Array:
    """Modes whose largest entry is positive, so that they are the same on every machine."""
    largest = jnp.take_along_axis(modes, jnp.argmax(jnp.abs(modes), axis=1)[:, None], axis=1)
    return modes * jnp.where(largest < 0, -1, 1).astype(modes.dtype)
