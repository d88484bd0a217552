"""Control transforms: keep a state positive by working with a transformed copy of it.

x = T(z), z = T^{-1}(x_b) + B^{1/2} chi. The background covariance then describes errors of z (for `Exp`, relative
errors), and every analysis lies in the range of T. One transform serves the whole state; a pytree of transforms with
the structure of the state serves each leaf.
"""

import abc

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

__all__ = ["AbstractControlTransform", "Exp", "Identity", "Softplus", "from_control", "spread", "to_control"]


class AbstractControlTransform(eqx.Module):
    """An increasing, differentiable map T applied entry by entry."""

    @abc.abstractmethod
    def __call__(self, z: Array) -> Array:
        """x = T(z)."""

    @abc.abstractmethod
    def inverse(self, x: Array) -> Array:
        """z = T^{-1}(x)."""


class Identity(AbstractControlTransform):
    """x = z: the state itself."""

    def __call__(self, z: Array) -> Array:
        return z

    def inverse(self, x: Array) -> Array:
        return x


class Exp(AbstractControlTransform):
    """x = exp(z): positive states with multiplicative errors."""

    def __call__(self, z: Array) -> Array:
        return jnp.exp(z)

    def inverse(self, x: Array) -> Array:
        return jnp.log(x)


class Softplus(AbstractControlTransform):
    """x = log(1 + exp(z)): positive states whose errors are additive where x is large."""

    def __call__(self, z: Array) -> Array:
        return jax.nn.softplus(z)

    def inverse(self, x: Array) -> Array:
        return x + jnp.log(-jnp.expm1(-x))


def _per_leaf(transform: PyTree, state: PyTree, apply) -> PyTree:
    if isinstance(transform, AbstractControlTransform):
        return jax.tree.map(lambda leaf: apply(transform, leaf), state)
    is_transform = lambda node: isinstance(node, AbstractControlTransform)  # noqa: E731
    return jax.tree.map(apply, transform, state, is_leaf=is_transform)


def spread(transform: PyTree, structure: PyTree) -> PyTree:
    """One transform for each leaf of a state, where one stands for all."""
    if isinstance(transform, AbstractControlTransform):
        return jax.tree.map(lambda _: transform, structure)
    return transform


def from_control(transform: PyTree, z: PyTree[Array]) -> PyTree[Array]:
    """T(z), leaf by leaf.

    >>> from_control(Softplus(), {"concentration": jnp.zeros(1)})["concentration"]
    Array([0.6931472], dtype=float32)
    """
    return _per_leaf(transform, z, lambda t, leaf: t(leaf))


def to_control(transform: PyTree, x: PyTree[Array]) -> PyTree[Array]:
    """T^{-1}(x), leaf by leaf."""
    return _per_leaf(transform, x, lambda t, leaf: t.inverse(leaf))
