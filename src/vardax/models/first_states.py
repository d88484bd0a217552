"""Where a learned solver starts: a state made of the observations.

    Interpolated    linear in time between the observations of each point, level beyond the first and the last
    Observed        what was observed, zero elsewhere
    Zeros           zero

The first two need observations of the state itself (any gaps). Any other function of the batch that gives states
(B, *state) may stand in their place: an `OptimalInterpolation` starts where its analysis is.
"""

import abc

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

__all__ = ["AbstractFirstState", "Interpolated", "Observed", "Zeros", "is_of_the_state"]


class AbstractFirstState(eqx.Module):
    """A first state (B, *state) from observations."""

    @abc.abstractmethod
    def __call__(
        self,
        value: Float[Array, "B E ..."],
        mask: Float[Array, "B E ..."],
        structure: PyTree[jax.ShapeDtypeStruct],
        owner: str,
    ) -> PyTree[Array]:
        """The states of all samples; `structure` is that of one."""


def is_of_the_state(observed: tuple[int, ...], structure: PyTree[jax.ShapeDtypeStruct]) -> bool:
    """Whether each entry of the state has its own entry among the observations, of shape `observed`."""
    return isinstance(structure, jax.ShapeDtypeStruct) and observed in (structure.shape, (1, *structure.shape))


def _required(observed: tuple[int, ...], structure: PyTree[jax.ShapeDtypeStruct], name: str, owner: str) -> None:
    if not is_of_the_state(observed, structure):
        shapes = jax.tree.map(lambda s: s.shape, structure)
        raise ValueError(
            f"{owner}: `start` is {name}(), which needs observations of the state itself, but the state has shape "
            f"{shapes} and a sample of observations {observed}; give `start=Zeros()`, a function of the "
            "batch, or a `first_guess`."
        )


class Zeros(AbstractFirstState):
    """Zero everywhere."""

    def __call__(
        self,
        value: Float[Array, "B E ..."],
        mask: Float[Array, "B E ..."],
        structure: PyTree[jax.ShapeDtypeStruct],
        owner: str,
    ) -> PyTree[Array]:
        n_samples, dtype = value.shape[0], value.dtype
        return jax.tree.map(lambda s: jnp.zeros((n_samples, *s.shape), dtype), structure)


class Observed(AbstractFirstState):
    """The observations, zero where there are none."""

    def __call__(
        self,
        value: Float[Array, "B E ..."],
        mask: Float[Array, "B E ..."],
        structure: PyTree[jax.ShapeDtypeStruct],
        owner: str,
    ) -> PyTree[Array]:
        _required(value.shape[1:], structure, "Observed", owner)
        return value.reshape(-1, *structure.shape)  # zero where the mask is


class Interpolated(AbstractFirstState):
    """Linear in time at each point. A point that was never observed has the mean of what was observed, 0 of nothing."""

    def __call__(
        self,
        value: Float[Array, "B E ..."],
        mask: Float[Array, "B E ..."],
        structure: PyTree[jax.ShapeDtypeStruct],
        owner: str,
    ) -> PyTree[Array]:
        _required(value.shape[1:], structure, "Interpolated", owner)
        return jax.vmap(_interpolated)(value, mask).reshape(-1, *structure.shape)


def _interpolated(value: Float[Array, "E ..."], mask: Float[Array, "E ..."]) -> Float[Array, "E ..."]:
    """Each gap from the observed entries before and after it, by two running searches along time."""
    seen = mask != 0
    count = jnp.maximum(jnp.sum(mask), 1)
    mean = jnp.sum(value) / count
    entry = jnp.arange(value.shape[0]).reshape(-1, *(1,) * (value.ndim - 1))
    before = jax.lax.cummax(jnp.where(seen, entry, -1), axis=0)
    after = jax.lax.cummin(jnp.where(seen, entry, value.shape[0]), axis=0, reverse=True)
    has_before, has_after = before >= 0, after < value.shape[0]
    last = value.shape[0] - 1
    earlier = jnp.take_along_axis(value, jnp.clip(before, 0, last), axis=0)
    later = jnp.take_along_axis(value, jnp.clip(after, 0, last), axis=0)
    gap = jnp.maximum(after - before, 1).astype(value.dtype)
    fraction = (entry - before).astype(value.dtype) / gap
    between = earlier + fraction * (later - earlier)
    one_sided = jnp.where(has_before, earlier, jnp.where(has_after, later, mean))
    return jnp.where(has_before & has_after, between, one_sided)
