"""Satellite columns: what a retrieval makes of the model column below it, sounding by sounding.

    y_i = sum_j w_ij [x_a,ij + a_ij (x_ij - x_a,ij)],      x_ij the model's mean in layer j of sounding i

with the column averaging kernel a, the a priori x_a and the weights w of the product (for a column average the share of
the air in each layer). x_ij is a conservative mean over the model's layers (`layers`). Everything but the model
column is known once the positions are, so H is reduced (`soundings`) to

    y_i = c_i + sum_k g_ik X_ik,      X_ik the model column at sounding i, as `interp` samples it

and costs one sampling and one weighted sum. Kernels, a priori and positions come with the operator or, each day anew,
with the observations (`at`). A sounding whose kernel, a priori, weights or boundaries have gaps is a missing
observation.

Rodgers, C. D. and Connor, B. J. (2003). Intercomparison of remote sounding instruments. JGR 108, 4116.
"""

from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array, ArrayLike, Float, Int, PyTree

from vardax.obs_operators.column_sampling import as_sampling, levels_at, seen_by
from vardax.obs_operators.interp import InterpObs
from vardax.obs_operators.linearisation import as_field, linearise_operator
from vardax.obs_operators.module_operator import ModuleLinearOperator, structure_of
from vardax.obs_operators.sampling import is_unbound, sample_along
from vardax.obs_operators.soundings import PARTS, check_model_levels, check_soundings, reduce_soundings
from vardax.types import float_array

__all__ = ["ColumnRetrieval"]

OUTSIDE = ("clamp", "prior", "mask")


class ColumnRetrieval(eqx.Module):
    """y_i = sum_j w_ij [x_a,ij + a_ij (x_ij - x_a,ij)] for p soundings of L layers, affine in the state.

    - `kernel`, `prior`, `weights`: a, x_a and w, (p, L). `levels`: the boundaries of the layers, (p, L+1), in pressure,
      so that the thickness of a layer is its mass, and in either order. A layer of weight 0 needs neither kernel nor a
      priori. All four may be left out and come with the observations, as `aux["kernel"]` and so on.
    - `interp`: from the state (K, *horizontal) to the model columns (K, p): an `InterpObs` over the horizontal axes, or
      column numbers (p,) into the ravelled horizontal axes, or None: the state is the columns (K, p) already, or
      `aux["column"]` of the observations has the numbers.
    - `model_levels`: the boundaries of the model's K layers in the unit of `levels`: (K+1,), or (K+1, *horizontal)
      where they follow the surface (a + b p_surface), sampled like the state. None: the layers of the retrieval.
    - `outside`: what a layer, or part of one, has where the retrieval reaches beyond the model: "clamp" the value of
      the model's outermost layer, "prior" its a priori; "mask" makes the sounding missing.

    `mask` is 1 where a sounding is seen.

    >>> H = ColumnRetrieval([[1.0, 0.5]], [[2.0, 4.0]], [[0.5, 0.5]], [[1000.0, 500.0, 0.0]],
    ...                     model_levels=[0.0, 250.0, 500.0, 1000.0])
    >>> H(jnp.array([[6.0], [10.0], [1.0]])).tolist()  # 0.5 [2 + (1 - 2)] + 0.5 [4 + 0.5 (8 - 4)]
    [3.5]
    """

    kernel: Float[Array, "p L"] | None
    prior: Float[Array, "p L"] | None
    weights: Float[Array, "p L"] | None
    levels: Float[Array, "p L1"] | None
    interp: Any
    model_levels: Float[Array, "..."] | None
    gain: Float[Array, "K p"] | None
    offset: Float[Array, "p"] | None
    mask: Float[Array, "p"] | None
    outside: str = eqx.field(static=True)

    def __init__(
        self,
        kernel: ArrayLike | Sequence[Any] | None = None,
        prior: ArrayLike | Sequence[Any] | None = None,
        weights: ArrayLike | Sequence[Any] | None = None,
        levels: ArrayLike | Sequence[Any] | None = None,
        interp: Any = None,
        *,
        model_levels: ArrayLike | Sequence[Any] | None = None,
        outside: str = "clamp",
    ):
        if outside not in OUTSIDE:
            raise ValueError(f"ColumnRetrieval: `outside` is {outside!r}, expected 'clamp', 'prior' or 'mask'.")
        given = dict(zip(PARTS, (kernel, prior, weights, levels), strict=True))
        parts = {name: None if part is None else float_array(jnp.asarray(part)) for name, part in given.items()}
        self.kernel, self.prior, self.weights, self.levels = (parts[name] for name in PARTS)
        self.model_levels = None if model_levels is None else float_array(jnp.asarray(model_levels))
        self.interp, self.outside = as_sampling(interp), outside
        self.gain = self.offset = self.mask = None
        check_model_levels(self.model_levels, "ColumnRetrieval")
        if all(part is None for part in parts.values()):
            return
        check_soundings(parts, self.model_levels, "ColumnRetrieval")
        if not is_unbound(self.interp):
            p = next(part.shape[0] for part in parts.values() if part is not None)
            boundaries, seen = levels_at(self.model_levels, self.interp, p), seen_by(self.interp, p)
            self.gain, self.offset, self.mask = reduce_soundings(parts, boundaries, seen, outside)

    @property
    def linear_by_construction(self) -> bool:
        return getattr(self.interp, "linear_by_construction", False)

    @property
    def aux(self) -> dict[str, Array]:
        """Kernel, a priori, weights and boundaries as `Observations(aux=...)` takes them."""
        return {name: getattr(self, name) for name in PARTS if getattr(self, name) is not None}

    def at(self, observations: Any) -> "ColumnRetrieval":
        """This operator for `observations`: at their positions, with the kernels that they bring in `aux`."""
        brought = getattr(observations, "aux", {})
        parts = {name: brought.get(name, getattr(self, name)) for name in PARTS}
        if all(part is None for part in parts.values()):
            raise ValueError(
                f"ColumnRetrieval: neither the operator nor the observations have kernels (their `aux` has "
                f"{sorted(brought) or 'nothing'}); give `kernel`, `prior`, `weights` and `levels` to one of the two."
            )
        interp = self.interp.at(observations) if hasattr(self.interp, "at") else self.interp
        bound = ColumnRetrieval(**parts, interp=interp, model_levels=self.model_levels, outside=self.outside)
        valid = getattr(observations, "valid", None)
        return bound if valid is None else bound._only(valid != 0)

    def __call__(self, state: PyTree[Array]) -> Float[Array, "p"]:
        gain, offset, _ = self._bound()
        if isinstance(self.interp, InterpObs):
            seen = self._by_layers(state).mv(state)
        else:
            seen = _WeightedSum(gain)(self._columns(state))
        return offset.astype(seen.dtype) + seen

    def sample_along(self, trajectory: PyTree[Array], entry: Int[Array, "p"]) -> Float[Array, "p"]:
        """Sounding j as state `entry[j]` of a stacked trajectory predicts it, and no other."""
        gain, offset, _ = self._bound()
        seen = _WeightedSum(gain)(sample_along(self.interp, trajectory, entry))
        return offset.astype(seen.dtype) + seen

    def linearize(self, state: PyTree[Array]) -> lx.AbstractLinearOperator:
        if isinstance(self.interp, InterpObs):
            return self._by_layers(state)
        gain, _, _ = self._bound()
        columns = eqx.filter_eval_shape(self._columns, state)
        return ModuleLinearOperator(_WeightedSum(gain), structure_of(columns)) @ linearise_operator(self.interp, state)

    def _by_layers(self, state: PyTree[Array]) -> ModuleLinearOperator:
        """The linear part where the sampling takes a layer of the model at a time."""
        gain, field = self._bound()[0], as_field(state, "ColumnRetrieval")
        eqx.filter_eval_shape(self._columns, field)
        return ModuleLinearOperator(_LayerByLayer(self.interp, gain), structure_of(field))

    def check(self, state_structure: PyTree[Any]) -> None:
        """Raise unless the state has the model's layers, and `interp` takes it."""
        if hasattr(self.interp, "check"):
            self.interp.check(state_structure)
        if self.gain is not None:
            eqx.filter_eval_shape(self._columns, state_structure)

    def _bound(self) -> tuple[Array, Array, Array]:
        if self.gain is None or self.offset is None or self.mask is None:
            raise ValueError(
                "ColumnRetrieval: it has no soundings yet; give it those of the observations by "
                "`obs_op.at(observations)`, or build it with kernels and an `interp` that has its positions."
            )
        return self.gain, self.offset, self.mask

    def _columns(self, state: PyTree[Array]) -> Float[Array, "K p"]:
        """The model columns at the soundings."""
        expected, columns = self._bound()[0].shape, self.interp(state)
        found = getattr(columns, "shape", None)
        if found != expected:
            layers = "the retrieval" if self.model_levels is None else "`model_levels`"
            raise ValueError(
                f"ColumnRetrieval: `interp` makes columns of shape {found} of the state, expected {expected}: the "
                f"{expected[0]} layers of {layers} at {expected[1]} soundings."
            )
        return columns

    def _only(self, counted: Array) -> "ColumnRetrieval":
        """Soundings that do not count predict 0 and are masked."""
        gain, offset, mask = self._bound()
        kept = jnp.where(jnp.broadcast_to(counted, gain.shape), gain, jnp.zeros_like(gain))
        values = (kept, jnp.where(counted, offset, jnp.zeros_like(offset)), mask * counted.astype(mask.dtype))
        return eqx.tree_at(lambda op: (op.gain, op.offset, op.mask), self, values)


class _WeightedSum(eqx.Module):
    """X -> sum_k g_k X_k, column by column."""

    gain: Float[Array, "K p"]

    def __call__(self, columns: Array) -> Array:
        return jnp.sum(self.gain.astype(columns.dtype) * columns, axis=0)


class _LayerByLayer(eqx.Module):
    """X -> sum_k g_k S(X_k), S the sampling of one layer: five times faster than all layers at once, and back."""

    sampling: InterpObs
    gain: Float[Array, "K p"]

    def __call__(self, field: Array) -> Array:
        def add(total: Array, layer: tuple[Array, Array]) -> tuple[Array, None]:
            weight, values = layer
            return total + weight * self.sampling(values), None

        gain = self.gain.astype(field.dtype)
        return jax.lax.scan(add, jnp.zeros_like(gain[0]), (gain, field))[0]
