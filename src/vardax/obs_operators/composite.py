"""Operators one after another: H(x) = H_n(... H_2(H_1(x))).

    state -> H_1 -> H_2 -> ... -> predicted observations,     H' = H_n' ... H_2' H_1',   each at what reaches it

The first operator gets the state, so the order is that of the data: pick a variable, sample it, then say what the
instrument makes of it. The transpose is the composition of the transposes, in the opposite order.
"""

import functools
import operator
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from vardax.obs_operators.linearisation import is_linear, linearise_operator
from vardax.obs_operators.sampling import is_unbound, mask_on, sample_along, where_seen
from vardax.types import is_traced

__all__ = ["CompositeObs"]


class CompositeObs(eqx.Module):
    """H(x) = ops[-1](... ops[1](ops[0](x))): observation operators, or plain functions, in the order of the data.

    `at(observations)` gives their positions to all operators that read some. Where an operator masks observations (its
    `mask`: positions outside the grid, or not valid), the composition has the same mask, and the operators that follow
    have to act on each position, the last axis, by itself; `check` finds those that do not. They never see what is
    masked: a position that is seen stands in for it, and the result is 0 there. Where all positions are seen, the
    operators that follow may mix them (a footprint made of several points).

    >>> speed = CompositeObs(lambda state: state["wind"], lambda wind: jnp.hypot(wind[0], wind[1]))
    >>> speed({"wind": jnp.array([[3.0], [4.0]])}).tolist()
    [5.0]
    """

    ops: tuple[Any, ...]

    def __init__(self, *ops: Any):
        if not ops:
            raise ValueError("CompositeObs: no operators were given, expected at least one: CompositeObs(first, then).")
        for number, op in enumerate(ops):
            if not callable(op):
                hint = "; give them one by one: CompositeObs(*ops)" if isinstance(op, list | tuple) else ""
                raise TypeError(
                    f"CompositeObs: operator {number} is {type(op).__name__}, expected an observation operator or a "
                    f"function{hint}."
                )
        self.ops = ops

    @property
    def linear_by_construction(self) -> bool:
        return all(getattr(op, "linear_by_construction", False) for op in self.ops)

    def linear_on(self, state_structure: PyTree[Any]) -> bool:
        """Whether every operator is affine on what reaches it, which can be said before positions are known."""
        structure = state_structure
        for op in self.ops:
            if not is_linear(op, structure):
                return False
            structure = _structure_after(op, structure)
        return True

    @property
    def mask(self) -> Float[Array, "..."] | None:
        """1 where all operators see something; None while positions are missing, or where no operator has a mask."""
        masks = [op.mask for op in self.ops if getattr(op, "mask", None) is not None]
        if not masks or any(is_unbound(op) for op in self.ops):
            return None
        return functools.reduce(operator.mul, masks)

    def at(self, observations: Any) -> "CompositeObs":
        """This operator at the positions of `observations`."""
        return CompositeObs(*(op.at(observations) if hasattr(op, "at") else op for op in self.ops))

    def __call__(self, state: PyTree[Array]) -> PyTree[Array]:
        *before, last = self.ops
        predicted, mask = last(functools.reduce(_pass_on, before, state)), self.mask
        if mask is None or not before:
            return predicted
        seen = mask_on(self, predicted.shape)
        # What is made of several positions has no meaning where some of them are missing; `check` says so in words.
        return jnp.where(jnp.all(mask != 0), predicted, jnp.nan) if seen is None else where_seen(seen, predicted)

    def sample_along(self, trajectory: PyTree[Array], entry: Int[Array, "p"]) -> Array:
        """Point j as state `entry[j]` of a stacked trajectory predicts it: sampled once, then made what is observed."""
        first = next((n for n, op in enumerate(self.ops) if hasattr(op, "sample_along")), len(self.ops) - 1)
        fields = functools.reduce(lambda value, op: jax.vmap(op)(value), self.ops[:first], trajectory)
        value = sample_along(self.ops[first], fields, entry)
        for before, op in zip(self.ops[first:], self.ops[first + 1 :], strict=False):
            value = op(_shown(before, value))
        return where_seen(mask_on(self, value.shape), value)

    def linearize(self, state: PyTree[Array]) -> lx.AbstractLinearOperator:
        tangent = linearise_operator(self.ops[0], state)
        for before, op in zip(self.ops, self.ops[1:], strict=False):
            state = _pass_on(state, before)
            tangent = linearise_operator(op, state) @ tangent
        return tangent

    def check(self, state_structure: PyTree[Any]) -> None:
        """Raise where an operator does not fit what reaches it, or mixes positions that it must keep apart."""
        structure, reached = state_structure, []
        for op in self.ops:
            if hasattr(op, "check"):
                op.check(structure)
            structure = _structure_after(op, structure)
            reached.append(structure)
            if structure is None:
                return
        self._check_mask(reached)

    def _check_mask(self, reached: list[PyTree[Any]]) -> None:
        """Values that no one sees must not reach entries that are seen."""
        mask = self.mask
        if mask is None or is_traced(mask) or np.all(np.asarray(mask) != 0):
            return
        last = max(number for number, op in enumerate(self.ops) if getattr(op, "mask", None) is not None)
        rest, seen = self.ops[last + 1 :], np.asarray(mask) != 0
        noise = jax.random.normal(jax.random.key(0), (2, *reached[last].shape), reached[last].dtype)
        one, other = noise[0], jnp.where(jnp.broadcast_to(seen, noise[0].shape), noise[0], noise[1])
        found = [np.asarray(functools.reduce(lambda value, op: op(value), rest, value)) for value in (one, other)]
        if found[0].shape[-1:] != seen.shape or not np.array_equal(found[0][..., seen], found[1][..., seen], True):
            raise ValueError(
                f"CompositeObs: operator {last} masks {int(np.sum(~seen))} of {seen.size} positions, and the operators "
                "after it mix positions, so it cannot be said which observations are missing; give it positions that "
                "it sees, and mask the observations instead."
            )


def _pass_on(value: PyTree[Array], op: Any) -> PyTree[Array]:
    """op(value); where `op` masks a position, the value of one that is seen, so that what follows stays finite."""
    return _shown(op, op(value))


def _shown(op: Any, value: PyTree[Array]) -> PyTree[Array]:
    if getattr(op, "mask", None) is None or (seen := mask_on(op, value.shape)) is None:
        return value
    shown = jnp.argmax(op.mask != 0)
    stand_in = jnp.where(jnp.any(seen), value[..., shown], jnp.ones_like(value[..., shown]))
    return jnp.where(seen, value, jnp.broadcast_to(jax.lax.stop_gradient(stand_in)[..., None], value.shape))


def _structure_after(op: Any, structure: PyTree[Any]) -> PyTree[Any]:
    """What `op` makes of a structure; None where that is not known yet."""
    return None if structure is None or is_unbound(op) else eqx.filter_eval_shape(op, structure)
