"""The kernels of satellite soundings, on the layers of a model.

For one sounding, with the means of the model's layers in those of the retrieval x_j = sum_k W_jk X_k (`layers`) and
the part f_j = sum_k W_jk of each layer that the model covers,

    y = sum_j w_j [x_a,j + a_j (x_j + (1 - f_j) x_a,j - x_a,j)] = c + sum_k g_k X_k
    g_k = sum_j w_j a_j W_jk,      c = sum_j w_j (1 - a_j f_j) x_a,j

so that nothing but g, c and which soundings are complete is needed to predict y.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from vardax.obs_operators.layers import beyond, collect, covered, reaching
from vardax.types import concrete_values

__all__ = ["PARTS", "check_model_levels", "check_soundings", "reduce_soundings"]

PARTS = ("kernel", "prior", "weights", "levels")


def check_soundings(parts: dict[str, Array | None], model_levels: Array | None, owner: str) -> None:
    """Raise unless kernel, a priori and weights are (p, L) and the boundaries (p, L+1), in order."""
    missing = [name for name in PARTS[:3] if parts[name] is None]
    if model_levels is not None and parts["levels"] is None:
        missing.append("levels")
    if missing:
        raise ValueError(f"{owner}: {', '.join(f'`{name}`' for name in missing)} of the soundings is missing.")
    given = {name: array for name, array in parts.items() if array is not None}
    if given["kernel"].ndim != 2:
        raise ValueError(f"{owner}: `kernel` has shape {given['kernel'].shape}, expected (p, L), soundings by layers.")
    p, layers = given["kernel"].shape
    for name, array in given.items():
        expected = (p, layers + 1) if name == "levels" else (p, layers)
        if array.shape != expected:
            meaning = "the boundaries of the layers, one more than layers" if name == "levels" else "as `kernel`"
            raise ValueError(f"{owner}: `{name}` has shape {array.shape}, expected {expected}: {meaning}.")
    if "levels" in given:
        _check_order(given["weights"], given["levels"], owner)


def _check_order(weights: Array, levels: Array, owner: str) -> None:
    w, boundaries = concrete_values(weights), concrete_values(levels)
    if w is None or boundaries is None or not w.size:
        return
    steps = np.diff(boundaries, axis=1)
    known = np.isfinite(steps).all(axis=1) & np.isfinite(w).all(axis=1) & (w != 0).any(axis=1)
    ordered = (steps >= 0).all(axis=1) | (steps <= 0).all(axis=1)
    bad = known & ~(ordered & ~((steps == 0) & (w != 0)).any(axis=1))
    if bad.any():
        raise ValueError(
            f"{owner}: `levels` of {int(bad.sum())} of {bad.size} soundings, the first is number "
            f"{int(np.flatnonzero(bad)[0])}, are not boundaries of layers: they must increase or decrease throughout "
            "(two may be equal around a layer of weight 0); NaN makes a sounding missing."
        )


def check_model_levels(model_levels: Array | None, owner: str) -> None:
    """Raise unless the model's boundaries increase or decrease along their first axis."""
    if model_levels is None:
        return
    if model_levels.ndim == 0 or model_levels.shape[0] < 2:
        raise ValueError(
            f"{owner}: `model_levels` has shape {model_levels.shape}, expected (K+1,) or (K+1, *horizontal): the "
            "boundaries of K layers."
        )
    values = concrete_values(model_levels)
    if values is not None:
        steps = np.diff(values, axis=0)
        if not np.all((steps > 0).all(axis=0) | (steps < 0).all(axis=0)):
            raise ValueError(f"{owner}: `model_levels` must increase or decrease throughout along its first axis.")


@eqx.filter_jit
def reduce_soundings(
    parts: dict[str, Array | None], model_levels: Array | None, counted: Array, outside: str
) -> tuple[Float[Array, "K p"], Float[Array, "p"], Float[Array, "p"]]:
    """g, c and the mask of all soundings; 0 where a sounding does not count or has gaps.

    `model_levels` is (K+1,), or (K+1, p) at the soundings, or None where the model has the layers of the retrieval.
    """
    present = [array for array in (*parts.values(), model_levels) if array is not None]
    dtype = max((array.dtype for array in present), key=lambda each: jnp.finfo(each).bits)
    parts, model_levels = jax.tree.map(lambda array: array.astype(dtype), (parts, model_levels))
    model_axis = None if model_levels is None or model_levels.ndim == 1 else 1
    one = lambda part, model, counts: _reduce(part, model, counts, outside)  # noqa: E731
    return jax.vmap(one, in_axes=(0, model_axis, 0), out_axes=(1, 0, 0))(parts, model_levels, counted)


def _reduce(
    parts: dict[str, Any], model_levels: Array | None, counted: Array, outside: str
) -> tuple[Array, Array, Array]:
    """g (K,), c and whether one sounding is seen."""
    kernel, prior, weights = (parts[name] for name in PARTS[:3])
    levels = parts["levels"]
    weighs = weights != 0
    known = jnp.isfinite(kernel) & jnp.isfinite(prior) & jnp.isfinite(weights)
    seen = counted & jnp.all(known | ~weighs) & jnp.any(weighs)
    if levels is not None:
        seen = seen & jnp.all(jnp.isfinite(levels))
        levels = jnp.where(seen, levels, jnp.zeros_like(levels))
        if model_levels is not None and outside == "mask":
            seen = seen & ~beyond(levels, model_levels)
    kernel, prior, weights = (jnp.where(seen & weighs, part, jnp.zeros_like(part)) for part in (kernel, prior, weights))
    inside, gain = jnp.ones_like(kernel), weights * kernel
    if levels is not None and model_levels is not None:
        model_levels = reaching(model_levels, levels) if outside == "clamp" else model_levels
        inside, gain = covered(levels, model_levels), collect(gain, levels, model_levels)
    gain = jnp.where(seen, gain, jnp.zeros_like(gain))
    return gain, jnp.sum(weights * (1 - kernel * inside) * prior), seen.astype(weights.dtype)
